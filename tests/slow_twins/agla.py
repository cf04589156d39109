"""AGLA written out on a LLaMA stack: the local view zeroes what is kept out, position by position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.slow_twins import stack
from tests.slow_twins.full import dropped_below


def agla(
    model: Any, embeds: Tensor, media: list[bool], relevance: list[float], alpha: float, beta: float, kept: float
) -> Tensor:
    """``[1, V]`` after ``embeds`` [T, D]; ``relevance`` of the prompt's positions."""
    places = sorted((i for i, m in enumerate(media) if m), key=lambda i: -relevance[i])
    local = embeds.clone()
    for i in places[max(1, round(kept * len(places))) :]:
        local[i] = torch.zeros_like(local[i])
    own, other = (stack.run(model, x).logits[-1:] for x in (embeds, local))
    return dropped_below(own + alpha * other, own, beta)
