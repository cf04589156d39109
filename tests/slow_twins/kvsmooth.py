"""KVSmooth written out: after each token's forward, its cached keys and values move towards those before them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from tests.slow_twins import grouped


def kvsmooth(
    model: Any, embeds: Tensor, prompt: int, strength: float, radius: float, window: int, layers: range
) -> list[Tensor]:
    """Logits ``[V]`` after the prompt and after every token."""
    history: dict[int, list[float]] = {}

    def kept(call: grouped.Call, w: Tensor) -> tuple[Tensor, Tensor]:
        if call.layer not in layers or call.at.start < prompt:
            return call.keys, call.values
        rows = [-sum(p * math.log(p) for p in head.tolist() if p > 0) for head in w[:, -1]]
        entropy = sum(rows) / len(rows)
        recent = [*history.get(call.layer, []), entropy][-window:]
        history[call.layer] = recent
        share = sum(e < entropy for e in recent) / window
        weight = min(min(1.0, strength + radius), max(max(0.0, strength - radius), share))
        keys, values = call.keys.clone(), call.values.clone()
        for states in (keys, values):
            states[:, -1] = (1 - weight) * states[:, -1] + weight * states[:, -2]
        return keys, values

    return grouped.run(model, embeds, prompt, kept=kept)[0]
