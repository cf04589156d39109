"""Classifying tokens by their spelling in the tokenizer: which start words, and which end sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.answer import end_tokens
from limelight.errors import UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.detect import special_ids

_ENDS = frozenset(".!?…。！？")
_SPACES = ("Ġ", "▁", " ")  # a space before a word, as spelled by tokenizers
_BREAKS = "ĊĉčĠ▁"  # white space, as spelled by byte-level tokenizers
_INSIDE = "##"  # WordPiece: the token continues a word
_FIRST_IDEOGRAPH = "\u2e80"  # scripts from here on do not separate words by spaces


@dataclass(frozen=True)
class Vocabulary:
    """Classes of tokens, each a bool tensor ``[V]``.

    Attributes:
        words: tokens with a letter or digit that are not special tokens.
        opening: those of ``words`` that always start a new word.
        ends: tokens that end a sentence (full stop etc.) or the answer.
    """

    words: Tensor
    opening: Tensor
    ends: Tensor

    @classmethod
    def of(cls, adapter: Adapter, method: str, size: int | None = None) -> Vocabulary:
        """Classify the tokens of a model's tokenizer; ``size``: width of the logits (None: that of the output embedding).

        Raises:
            UnsupportedError: there is no tokenizer.
        """
        tokenizer: Any = adapter.tokenizer
        if tokenizer is None or not hasattr(tokenizer, "convert_ids_to_tokens"):
            raise UnsupportedError(
                f"{method} needs the tokenizer, and this adapter has none", hint="limelight.wrap(model, processor)"
            )
        width = adapter.traits.vocab if size is None else size
        known = min(width, max(tokenizer.get_vocab().values()) + 1)
        spelled: Sequence[Any] = tokenizer.convert_ids_to_tokens(list(range(known)))
        special = special_ids(tokenizer)
        ends = end_tokens(adapter)
        rows = [_kinds(str(t or ""), i in special, i in ends) for i, t in enumerate(spelled)]
        rows += [(False, False, i in ends) for i in range(known, width)]
        return cls(*(torch.tensor(column, device=adapter.device) for column in zip(*rows, strict=True)))

    def begins(self, previous: int | None) -> Tensor:
        """Return which tokens ``[V]`` start a word after ``previous`` (None: at the start of the answer)."""
        inside = previous is not None and bool(self.words[previous])
        return self.opening if inside else self.words


def _kinds(token: str, special: bool, final: bool) -> tuple[bool, bool, bool]:
    """Return words, opening and ends for one token."""
    text = token.strip(_BREAKS + " \n\t")
    word = not special and not token.startswith("<0x") and any(c.isalnum() for c in text)
    opening = word and not token.startswith(_INSIDE) and (token.startswith(_SPACES) or text[0] >= _FIRST_IDEOGRAPH)
    ends = final or (not special and bool(text) and all(c in _ENDS for c in text))
    return word and not token.startswith(_INSIDE), opening, ends
