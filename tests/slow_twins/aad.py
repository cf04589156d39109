"""AAD written out: the sound replaced by silence, or its placeholder left alone; in full at every token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.slow_twins.full import last_logits, words_only


def aad(
    model: Any, inputs: Mapping[str, Any], tokens: Tensor, alpha: float, silence: float | None, sound: int
) -> Tensor:
    """``[B, V]``; ``silence`` None leaves one placeholder ``sound`` a sound, without features."""
    real = last_logits(model, inputs, tokens)
    if silence is not None:
        quiet = last_logits(
            model, {**inputs, "input_features": torch.full_like(inputs["input_features"], silence)}, tokens
        )
    else:
        ids = inputs["input_ids"]
        again = torch.zeros_like(ids, dtype=torch.bool)
        for row in range(ids.shape[0]):
            for i in range(1, ids.shape[1]):
                again[row, i] = ids[row, i] == sound and ids[row, i - 1] == sound
        quiet = words_only(model, ids, inputs["attention_mask"], again, tokens)
    return (1 + alpha) * real - alpha * quiet
