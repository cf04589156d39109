"""The decision that a second look is about: two tokens between which the model chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limelight.errors import SettingError

DECISIONS = ("auto", "top", "yes-no")
AMONG = 4  # "auto": yes and no are both among so many of the likeliest tokens
YES = ("yes", "Yes", "YES")
NO = ("no", "No", "NO")


@dataclass(frozen=True)
class Decision:
    """``logit[chosen] - logit[other]`` of each row; both int64 ``[R]``.

    ``phrase``: token ids of named words. Localisers then explain the sum of their logits behind the prompt instead.
    ``asks``: bool ``[R]``, whether yes is ``chosen`` and no is ``other``; None: nowhere.
    """

    chosen: Tensor
    other: Tensor
    phrase: tuple[int, ...] = ()
    asks: Tensor | None = None

    def margin(self, logits: Tensor) -> Tensor:
        """``[R]`` of logits ``[R, V]``."""
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, self.chosen.to(logits.device)] - logits[rows, self.other.to(logits.device)]

    def of(self, rows: Sequence[int]) -> Decision:
        """The decisions of these rows, in this order and with repetitions."""
        own = list(rows)
        return Decision(self.chosen[own], self.other[own], self.phrase, None if self.asks is None else self.asks[own])


def decide(logits: Tensor, how: str, tokenizer: Any, phrase: str | None = None) -> Decision:
    """Return the decision of each row of ``logits [R, V]``.

    Args:
        how: ``top``: the likeliest token against the next one; ``yes-no``: the likeliest spelling of yes against that of
            no; ``auto``: yes-no where both are among the four likeliest tokens, else top.
        phrase: words to localise.

    Raises:
        SettingError: yes-no or a phrase without a tokenizer, or one that does not tell yes from no.
    """
    best = logits.topk(2, dim=-1).indices
    chosen, other = best[:, 0].clone(), best[:, 1].clone()
    words = () if phrase is None else _phrase(tokenizer, phrase)
    yes, no = spellings(tokenizer)
    if how == "yes-no" and not (yes and no):
        raise SettingError(
            "look-again: decision='yes-no' needs a tokenizer that spells yes and no with different tokens",
            hint="custom_generate(strategy, processor=processor), or decision='top'",
        )
    if how == "top" or not (yes and no):
        return Decision(chosen, other, words)
    affirmed, denied = (torch.tensor(ids, device=logits.device)[logits[:, list(ids)].argmax(-1)] for ids in (yes, no))
    if how == "yes-no":
        return Decision(affirmed, denied, words, torch.ones_like(affirmed, dtype=torch.bool))
    likely = logits.topk(min(AMONG, logits.shape[-1]), dim=-1).indices
    asked = (likely == affirmed[:, None]).any(-1) & (likely == denied[:, None]).any(-1)
    return Decision(torch.where(asked, affirmed, chosen), torch.where(asked, denied, other), words, asked)


def spellings(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the first token ids of the spellings of yes, and of no; none that begins both."""
    if tokenizer is None:
        return (), ()
    found = []
    for words in (YES, NO):
        texts = [space + word for word in words for space in ("", " ")]
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        unknown = getattr(tokenizer, "unk_token_id", None)
        found.append(dict.fromkeys(i[0] for i in ids if len(i) and i[0] != unknown))
    yes, no = found
    return tuple(i for i in yes if i not in no), tuple(i for i in no if i not in yes)


def _phrase(tokenizer: Any, phrase: str) -> tuple[int, ...]:
    if tokenizer is None:
        raise SettingError(
            f"look-again: the phrase {phrase!r} needs a tokenizer",
            hint="custom_generate(strategy, processor=processor)",
        )
    ids = tuple(int(i) for i in tokenizer(" " + phrase.strip(), add_special_tokens=False)["input_ids"])
    if not ids:
        raise SettingError(f"look-again: the tokenizer returns no tokens for {phrase!r}", hint="name an object")
    return ids
