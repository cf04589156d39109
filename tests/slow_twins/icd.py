"""ICD written out: the disturbing words put into a list of ids, both prompts in full at every token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.slow_twins.full import dropped_below, last_logits


def told(inputs: Mapping[str, Any], words: Sequence[int], at: int) -> dict[str, Any]:
    """One row's inputs with ``words`` in front of position ``at``; the model finds its own positions."""
    out = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == inputs["input_ids"].shape:
            fill = {"input_ids": list(words), "attention_mask": [1] * len(words)}.get(name, [0] * len(words))
            row = value[0].tolist()
            out[name] = torch.tensor([row[:at] + fill + row[at:]])
    return out


def icd(
    model: Any, inputs: Mapping[str, Any], other: Mapping[str, Any], tokens: Tensor, alpha: float, beta: float
) -> Tensor:
    """``[B, V]`` after ``tokens``."""
    real, confused = last_logits(model, inputs, tokens), last_logits(model, other, tokens)
    return dropped_below((1 + alpha) * real - alpha * confused, real, beta)
