"""M3ID written out: words alone, each row without padding, in full at every token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.slow_twins.full import dropped_below, last_logits, words_only


def m3id(
    model: Any,
    inputs: Mapping[str, Any],
    media_mask: Tensor,
    tokens: Tensor,
    decay: float,
    *,
    gate: float,
    beta: float,
    blind: Tensor | None = None,
) -> Tensor:
    """``[B, V]`` after ``tokens`` [B, t]; ``blind`` are the second run's logits where it is another one.

    The paper: ``s + 1[max s < log 0.3] (1 - g) / g (s - s')``, nothing cut. As released: ``gate`` 1 and a cut.
    """
    real = last_logits(model, inputs, tokens)
    if blind is None:
        blind = words_only(model, inputs["input_ids"], inputs["attention_mask"], media_mask, tokens)
    g = math.exp(-decay * (tokens.shape[1] + 1))
    s, s_blind = torch.log_softmax(real, -1), torch.log_softmax(blind, -1)
    rows = []
    for row in range(len(s)):
        certain = float(s[row].max()) >= math.log(gate) if 0 < gate < 1 else gate == 0
        contrasted = s[row] + (1 - g) / g * (s[row] - s_blind[row])
        rows.append(s[row] if certain else dropped_below(contrasted[None], real[row : row + 1], beta)[0])
    return torch.stack(rows)
