"""What is explained: token ids of answers that are given as text."""

from __future__ import annotations

from typing import Any

import torch

from limelight.errors import SettingError
from limelight.models.adapter import Adapter
from limelight.models.runtime.capture import DecoderCall


def first_token(adapter: Adapter, call: DecoderCall, position: int, target: Any) -> Any:
    """Return the first token id of an answer given as text; anything else unchanged.

    Args:
        call: the captured row; ``position``: the position that predicts the answer.

    Raises:
        SettingError: the answer has no tokens, or there is no tokenizer.
    """
    return answer_ids(adapter, call, position, target)[0] if isinstance(target, str) else target


def answer_ids(adapter: Adapter, call: DecoderCall, position: int, text: str) -> list[int]:
    """Tokenise an answer without special tokens, with a leading space if the model finds that more likely, or always
    writes one (Whisper).

    Raises:
        SettingError: the answer has no tokens, or there is no tokenizer.
    """
    if adapter.tokenizer is None:
        raise SettingError(
            f"the answer {text!r} cannot be read without a tokenizer",
            hint="pass a token id, or limelight.wrap(model, processor)",
        )
    before = adapter.family.answer_prefix
    spelled = [text] if text[:1].isspace() or not text else [before + text] if before else [text, f" {text}"]
    found = [list(adapter.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in spelled if t.strip()]
    found = [ids for ids in found if ids]
    if not found:
        raise SettingError(f"the answer {text!r} has no tokens", hint="give at least one word")
    if len({ids[0] for ids in found}) == 1:
        return found[0]
    with torch.no_grad():
        logits = adapter.logits(adapter.hidden(call)[:, position : position + 1])[0, 0]
    return max(found, key=lambda ids: float(logits[ids[0]]))


def check_differ(token: int, against: int, text: str) -> None:
    """Raise SettingError where both answers start with the same token."""
    if token == against:
        raise SettingError(
            f"both answers start with the same token {text!r}", hint="give answers that differ in their first token"
        )
