"""PAI written out on a LLaMA stack: every query that decides a token attends more to the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.slow_twins import stack
from tests.slow_twins.full import dropped_below, words_only


def boosted(
    model: Any,
    inputs: Mapping[str, Any],
    media_mask: Tensor,
    tokens: Tensor,
    alpha: float,
    layers: range,
    *,
    late: bool = False,
) -> Tensor:
    """``[1, V]`` after ``tokens`` [1, t] with raised attention in ``layers``; ``late``: not in the prompt's forward."""
    first = media_mask.shape[1] - (0 if late else 1)

    def scores(layer: int, s: Tensor) -> Tensor:
        if layer not in layers:
            return s
        out = s.clone()
        for query in range(first, s.shape[1]):
            for key in media_mask[0].nonzero()[:, 0].tolist():
                out[:, query, key] = s[:, query, key] + alpha * s[:, query, key].abs()
        return out

    return stack.run(model, stack.prompt(model, inputs, tokens), scores=scores).logits[-1:]


def pai(
    model: Any, inputs: Mapping[str, Any], media_mask: Tensor, tokens: Tensor,
    alpha: float, gamma: float, beta: float, layers: range, *, late: bool,
) -> Tensor:  # fmt: skip
    """``[1, V]`` log-probabilities, guided and cut."""
    s = torch.log_softmax(boosted(model, inputs, media_mask, tokens, alpha, layers, late=late), -1)
    blind = words_only(model, inputs["input_ids"], inputs["attention_mask"], media_mask, tokens)
    s_blind = torch.log_softmax(blind, -1)
    return dropped_below(gamma * (s - s_blind) + s_blind, s, beta)
