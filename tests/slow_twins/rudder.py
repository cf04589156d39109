"""RUDDER written out: one layer's attention output, position by position."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tests.slow_twins import grouped


def unit(x: Tensor) -> Tensor:
    return x / x.pow(2).sum().sqrt()


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def rudder(
    model: Any, embeds: Tensor, prompt: int, among: list[int], *, layer: int, alpha: float, k: float, c: float,
    floor: float, weighted: bool, released: bool, constant: bool, first: bool,
) -> list[Tensor]:  # fmt: skip
    """Logits ``[V]`` after the prompt and after every token; ``among``: positions that v is pooled from."""
    known: list[Tensor] = []

    def update(call: grouped.Call, out: Tensor) -> Tensor:
        if call.layer != layer:
            return out
        if not known:
            moved = [out[i] - call.normed[i] if released else out[i] for i in among]
            sizes = [float(m.pow(2).sum().sqrt()) if weighted else 1.0 for m in moved]
            known.append(unit(torch.stack([s * m for s, m in zip(sizes, moved, strict=True)]).sum(0) / sum(sizes)))
            if not first:
                return out
        state = out[-1] if released else call.entering[-1]
        cosine = float(unit(state) @ known[0])
        plus, minus = softplus(k * cosine + c), softplus(-k * cosine + c)
        gate = 1.0 if constant else max(floor, plus / (plus + minus))
        pushed = out.clone()
        pushed[-1] = out[-1] + alpha * gate * known[0]
        return pushed

    return grouped.run(model, embeds, prompt, update=update)[0]
