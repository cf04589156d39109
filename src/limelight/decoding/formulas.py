"""The formulas of methods that need only logits. Imports nothing but torch, so that other engines can use them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def plausible(logits: Tensor, beta: float) -> Tensor:
    """Return a mask ``[B, V]`` of tokens with ``p >= beta * max p`` (Li et al., 2023; Leng et al., 2024); 0 keeps all."""
    if beta == 0:
        return torch.ones_like(logits, dtype=torch.bool)
    return logits >= math.log(beta) + logits.amax(-1, keepdim=True)


def cut(values: Tensor, logits: Tensor, beta: float) -> Tensor:
    """Return ``values`` with -inf where a token is implausible under the unchanged model's ``logits``."""
    return values.masked_fill(~plausible(logits, beta), float("-inf"))


def amplified(logits: Tensor, other: Tensor, alpha: float, beta: float) -> Tensor:
    """Compute ``(1 + alpha) l - alpha l'`` with the cut; tokens at -inf in the model's own logits stay there.

    ``alpha = 0`` returns ``logits`` without a cut.
    """
    if alpha == 0:
        return logits
    out = (1 + alpha) * logits - alpha * other
    return cut(torch.where(torch.isneginf(logits), logits, out), logits, beta)


def guided(logits: Tensor, other: Tensor, weight: float, beta: float) -> Tensor:
    """Compute ``l + weight * (s - s')`` with the cut, where ``s`` is the log-softmax.

    Up to a constant per row this is ``s + weight * (s - s')``; ``weight = 0`` returns ``logits`` without a cut.
    """
    if weight == 0:
        return logits
    gain = torch.log_softmax(logits, dim=-1) - torch.log_softmax(other, dim=-1)
    out = torch.where(torch.isneginf(logits), logits, logits + weight * gain)
    return cut(out, logits, beta)


def boosted(logits: Tensor, first: Tensor, count: int, gamma: float, decay: float, beta: float) -> Tensor:
    """Compute FLB's ``l_t + gamma (1 - exp(-decay t)) l_0`` with the cut, from the model's logits and those of the first token,
    ``[B, V]``; ``t = count``, 0 at the first token.

    Tokens at -inf in ``first`` count as its least likely finite one. ``gamma = 0`` returns ``logits`` without a cut.
    """
    if gamma == 0:
        return logits
    weight = gamma * -math.expm1(-decay * count)
    barred = torch.isneginf(first)
    lowest = first.masked_fill(barred, math.inf).amin(dim=-1, keepdim=True)
    return cut(logits + weight * torch.where(barred, lowest, first), logits, beta)
