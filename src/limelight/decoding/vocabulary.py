"""Which tokens begin words, and which end sentences, told from the tokenizer's own spelling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.answer import end_tokens
from limelight.errors import UnsupportedError
from limelight.models.adapter import Adapter

_ENDS = frozenset(".!?…。！？")
_SPACES = ("Ġ", "▁", " ")  # how tokenizers spell the space in front of a word
_BREAKS = "ĊĉčĠ▁"  # of byte-level tokenizers: letters by their code, white space by their meaning
_INSIDE = "##"  # of WordPiece: goes on with a word
_FIRST_IDEOGRAPH = "\u2e80"  # from here on, scripts that put no space between words


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by what they are, each bool ``[V]``.

    Attributes:
        words: have a letter or a digit, and are no special token.
        opening: of these, those that begin a word wherever they stand.
        ends: end a sentence (a full stop and its like) or the answer.
        finals: end the answer.
    """

    words: Tensor
    opening: Tensor
    ends: Tensor
    finals: Tensor

    @classmethod
    def of(cls, adapter: Adapter, method: str, size: int | None = None) -> Vocabulary:
        """Of a model's tokenizer; ``size``: of the logits (None: the output embedding's).

        Raises:
            UnsupportedError: there is no tokenizer.
        """
        tokenizer: Any = adapter.tokenizer
        if tokenizer is None or not hasattr(tokenizer, "convert_ids_to_tokens"):
            raise UnsupportedError(
                f"{method} looks at words, and this adapter has no tokenizer", hint="limelight.wrap(model, processor)"
            )
        width = adapter.traits.vocab if size is None else size
        known = min(width, max(tokenizer.get_vocab().values()) + 1)
        spelled: Sequence[Any] = tokenizer.convert_ids_to_tokens(list(range(known)))
        special = set(tokenizer.all_special_ids)
        ends = end_tokens(adapter)
        rows = [_kinds(str(t or ""), i in special, i in ends) for i, t in enumerate(spelled)]
        rows += [(False, False, i in ends, i in ends) for i in range(known, width)]
        return cls(*(torch.tensor(column, device=adapter.device) for column in zip(*rows, strict=True)))

    def begins(self, previous: int | None) -> Tensor:
        """bool ``[V]``: the tokens that begin a word behind ``previous`` (None: at the start of the answer)."""
        inside = previous is not None and bool(self.words[previous])
        return self.opening if inside else self.words


def _kinds(token: str, special: bool, final: bool) -> tuple[bool, bool, bool, bool]:
    """words, opening, ends, finals of one token."""
    text = token.strip(_BREAKS + " \n\t")
    word = not special and not token.startswith("<0x") and any(c.isalnum() for c in text)
    opening = word and not token.startswith(_INSIDE) and (token.startswith(_SPACES) or text[0] >= _FIRST_IDEOGRAPH)
    ends = final or (not special and bool(text) and all(c in _ENDS for c in text))
    return word and not token.startswith(_INSIDE), opening, ends, final
