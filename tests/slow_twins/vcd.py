"""VCD written out: the noise schedule in a loop, both prompts in full at every token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.slow_twins.full import dropped_below, last_logits


def keep_rate(step: int) -> float:
    """Product of ``1 - beta_i`` for i = 0..step of a 1000-step sigmoid schedule."""
    out = 1.0
    for i in range(step + 1):
        x = -6 + 12 * i / 999
        out *= 1 - ((0.5e-2 - 1e-5) / (1 + math.exp(-x)) + 1e-5)
    return out


def noised(inputs: Mapping[str, Any], media: list[int], name: str, step: int, seed: int) -> dict[str, Any]:
    """The inputs with the tensor ``name`` noised; ``media`` says how many of its rows belong to each medium."""
    a = keep_rate(step)
    pieces = []
    for piece in inputs[name].split(media):
        shape = piece.shape if len(piece) > 1 else piece.shape[1:]
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(piece.dtype)
        pieces.append(math.sqrt(a) * piece + math.sqrt(1 - a) * noise)
    return {**inputs, name: torch.cat(pieces)}


def vcd(
    model: Any, inputs: Mapping[str, Any], other: Mapping[str, Any], tokens: Tensor, alpha: float, beta: float
) -> Tensor:
    """``[B, V]`` after ``tokens``."""
    real, noisy = last_logits(model, inputs, tokens), last_logits(model, other, tokens)
    return dropped_below((1 + alpha) * real - alpha * noisy, real, beta)
