"""FLB written out, token by token."""

from __future__ import annotations

import math

from torch import Tensor

from tests.slow_twins.full import dropped_below


def flb(logits: list[Tensor], gamma: float, decay: float, beta: float) -> list[Tensor]:
    """``[1, V]`` of every token from the model's own ``[1, V]``."""
    out = []
    for t, own in enumerate(logits):
        values = own.clone()
        for v in range(own.shape[1]):
            values[0, v] += gamma * (1 - math.exp(-decay * t)) * logits[0][0, v]
        out.append(dropped_below(values, own, beta))
    return out
