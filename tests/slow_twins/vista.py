"""VISTA written out: a direction per layer from two plain runs, MLP outputs turned position by position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.slow_twins import grouped, stack


def unit(x: Tensor) -> Tensor:
    return x / x.pow(2).sum().sqrt()


def vista(
    model: Any, embeds: Tensor, media: list[bool], strength: float, alpha: float, layers: tuple[int, int]
) -> list[Tensor]:
    """Logits ``[V]`` after the prompt and after every token; ``layers`` are outputs counted from 1, both included."""
    prompt = len(media)
    seen = stack.run(model, embeds[:prompt]).hidden
    blind = stack.run(model, embeds[:prompt][~torch.tensor(media)]).hidden
    directions = [a[-1] - b[-1] for a, b in zip(seen[1:], blind[1:], strict=True)]

    def mlp(layer: int, out: Tensor) -> Tensor:
        turned = []
        for x in out:
            away = 1 + max(0.0, -float(unit(x) @ unit(directions[layer])))
            y = unit(x) + strength * away * unit(directions[layer])
            turned.append(unit(y) * x.pow(2).sum().sqrt())
        return torch.stack(turned) if strength > 0 else out

    logits, outputs = grouped.run(model, embeds, prompt, mlp=mlp)
    mixed = []
    for own, found in zip(logits, outputs, strict=True):
        early = [model.lm_head(found[i - 1][-1]) for i in range(layers[0], layers[1] + 1)]
        mixed.append((1 - alpha) * own + alpha * torch.stack(early).mean(0))
    return mixed
