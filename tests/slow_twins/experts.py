"""A mixture of experts, one token and one expert at a time: its relevance carried down, and its tangents; no autograd.

y = sum_e w_e down_e(act(gate_e x) * up_e x)      the weights w_e of the chosen experts are constants
backward   each expert gets its summand's part; the product's two factors a half each; act by the identity rule
forward    y' = sum_e w_e down_e((gate_e x' act(z) / (z + eps) up_e x + act(z) up_e x') / 2),   z = gate_e x
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.slow_twins.attnlrp import through_linear

EPS = 1e-10
Expert = tuple[Tensor, Tensor, Tensor]  # gate [I, D], up [I, D], down [D, I]
Act = Callable[[Tensor], Tensor]


def value(x: Tensor, experts: Sequence[Expert], chosen: Tensor, weights: Tensor, act: Act) -> Tensor:
    """``x`` [N, D], ``chosen`` and ``weights`` [N, k] -> ``[N, D]``."""
    out = torch.zeros_like(x)
    for n in range(len(x)):
        for e, w in zip(chosen[n].tolist(), weights[n], strict=True):
            gate, up, down = experts[e]
            out[n] += w * (down @ (act(gate @ x[n]) * (up @ x[n])))
    return out


def relevance(x: Tensor, experts: Sequence[Expert], chosen: Tensor, weights: Tensor, act: Act, r: Tensor) -> Tensor:
    """Relevance ``[N, D]`` of x from that of the output ``[N, D]``."""
    total = value(x, experts, chosen, weights, act)
    out = torch.zeros_like(x)
    for n in range(len(x)):
        row = x[n : n + 1]
        for e, w in zip(chosen[n].tolist(), weights[n], strict=True):
            gate, up, down = experts[e]
            z = row @ gate.T
            product = act(z) * (row @ up.T)
            part = w * (product @ down.T) / total[n] * r[n]
            half = through_linear(product, down, part) / 2
            out[n] += through_linear(row, gate, half * z / (z + EPS))[0] + through_linear(row, up, half)[0]
    return out


def tangent(x: Tensor, t: Tensor, experts: Sequence[Expert], chosen: Tensor, weights: Tensor, act: Act) -> Tensor:
    """What becomes of a tangent ``t`` [N, D] at ``x``."""
    out = torch.zeros_like(t)
    for n in range(len(x)):
        for e, w in zip(chosen[n].tolist(), weights[n], strict=True):
            gate, up, down = experts[e]
            z, u = gate @ x[n], up @ x[n]
            mixed = (gate @ t[n]) * (act(z) / (z + EPS)) * u + act(z) * (up @ t[n])
            out[n] += w * (down @ (mixed / 2))
    return out
