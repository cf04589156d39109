"""AvisC written out on a LLaMA stack, one row, in full at every token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tests.slow_twins import stack
from tests.slow_twins.full import dropped_below


def blind(weights: list[Tensor], media_mask: list[int], gamma: float, lam: float) -> list[int]:
    """Over-attended positions from attention maps ``[H, T, T]`` of the prompt."""
    maps = [w.mean(0)[-1] for w in weights]
    shares = [sum(float(m[i]) for i in media_mask) for m in maps]
    order = sorted(range(len(maps)), key=lambda i: -shares[i])
    chosen, held = [], 0.0
    for i in order:
        chosen.append(i)
        held += shares[i] / sum(shares)
        if held >= gamma:
            break
    values = [sum(float(maps[i][j]) for i in chosen) / len(chosen) for j in media_mask]
    mean = sum(values) / len(values)
    spread = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
    return [j for j, v in zip(media_mask, values, strict=True) if v >= mean + lam * spread]


def avisc(
    model: Any, inputs: Mapping[str, Any], media_mask: Tensor, tokens: Tensor,
    alpha: float, beta: float, gamma: float, lam: float,
) -> Tensor:  # fmt: skip
    """``[1, V]`` after ``tokens`` [1, t]."""
    places = media_mask[0].nonzero()[:, 0].tolist()
    start = stack.run(model, stack.prompt(model, inputs, tokens[:, :0]))
    kept = blind(start.weights, places, gamma, lam)
    embeds = stack.prompt(model, inputs, tokens)
    real = stack.run(model, embeds).logits[-1:]
    other = embeds.clone()
    for j in places:
        if j not in kept:
            other[j] = 0
    over = stack.run(model, other).logits[-1:]
    return dropped_below((1 + alpha) * real - alpha * over, real, beta)
