"""Exact LIME for one token, step by step as the method's description reads, on the hand-written Llama. Adam by hand too.

fresh dK, dV = 0, one a query head, on every position; S times: forward with the offsets, p = softmax(l), p_ref = p at zero
offsets, target chosen from this forward, R with its graph, L = -mean_{i in M} log_softmax(R / tau)_i + lambda KL(p_ref || p),
backward, Adam step. The token comes from the last forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.slow_twins.llama import Weights, forward


@dataclass(frozen=True)
class Step:
    logits: Tensor
    target: int
    relevance: Tensor
    kl: float
    reward: float
    gradients: list[Tensor]
    offsets: list[Tensor]


def optimise(
    weights: Weights,
    x: Tensor,
    modality: Sequence[int],
    *,
    lr: float,
    tau: float,
    kl_weight: float,
    steps: int,
    rules: bool = True,
) -> list[Step]:
    """Every step's values; gradients and offsets (after the step's update) are all dK, then all dV, ``[H, T, d]``."""
    shape = (weights.heads, x.shape[0], weights.dim)
    number = len(weights.layers)
    offsets = [torch.zeros(shape, dtype=x.dtype) for _ in range(2 * number)]
    first = [torch.zeros_like(o) for o in offsets]
    second = [torch.zeros_like(o) for o in offsets]
    reference: Tensor | None = None
    out: list[Step] = []
    for step in range(1, steps + 1):
        leaves = [o.clone().requires_grad_(True) for o in offsets]
        embeds = x.clone().requires_grad_(True)
        logits = forward(weights, embeds, rules=rules, dk=leaves[:number], dv=leaves[number:])
        p = torch.softmax(logits, dim=-1)
        if reference is None:
            reference = p.detach()
        target = int(logits.argmax())
        (gradient,) = torch.autograd.grad(logits[target], embeds, create_graph=True)
        relevance = (gradient * embeds).sum(-1)
        exponents = relevance / tau
        total = torch.log(torch.exp(exponents - exponents.max().detach()).sum()) + exponents.max().detach()
        reward = sum((total - exponents[i] for i in modality), torch.zeros((), dtype=x.dtype)) / len(modality)
        kl = (reference * (reference.log() - p.log())).sum()
        gradients = torch.autograd.grad(reward + kl_weight * kl, leaves)
        for i, g in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g * g
            mean, scale = first[i] / (1 - 0.9**step), second[i] / (1 - 0.999**step)
            offsets[i] = offsets[i] - lr * mean / (scale.sqrt() + 1e-8)
        out.append(
            Step(
                logits.detach(), target, relevance.detach(), float(kl.detach()), float(reward.detach()), list(gradients),
                [o.clone() for o in offsets],
            )
        )  # fmt: skip
    return out
