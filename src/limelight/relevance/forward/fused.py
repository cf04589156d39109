"""The most frequent Jacobian-vector products of the true graph as single operations with explicit gradients.

The reference implementations are the plain forms in the callers (:mod:`limelight.relevance.layers.norm`,
:mod:`limelight.relevance.blocks`), against which they are tested. One operation instead of thirty matters for the few rows
of one token, where call overhead dominates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limelight.relevance import rules
from limelight.relevance.mode import NEAR_ZERO

once = torch.autograd.function.once_differentiable


class _RootMeanSquare(torch.autograd.Function):
    """``x_c r g`` for blocks x ``[1 + C, ...,  D]``, r = (mean(x_0^2) + eps)^(-1/2) of block 0, a gain g ``[D]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
        scale = x[0].square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale)
        ctx.gain = gain
        out = x * scale
        return out if gain is None else out.mul_(gain)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, scale = ctx.saved_tensors
        grad = grad * scale if ctx.gain is None else (grad * ctx.gain).mul_(scale)
        # dr = sum_c <g_c, x_c>, and r depends on block 0: dr/dx_0 = -r^3 x_0 / D (one r is in grad already)
        inner = (grad * x).sum(-1, keepdim=True).sum(0).mul_(scale.square()).div_(-x.shape[-1])
        grad[0].addcmul_(inner.expand_as(x[0]), x[0])
        return grad, None, None


class _Gated(torch.autograd.Function):
    """``[a u, (a' u + a u') / 2]`` with a' = z' a / (z + eps), for blocks z, u ``[1 + C, ...]`` and a = act(z_0)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, u: Tensor, value: Tensor) -> Tensor:
        denominator = z[0] + rules.EPS
        vanishing = denominator.abs() < rules.EPS / 2  # see rules.slope
        inverse = denominator.reciprocal_()
        slope = (value * inverse).masked_fill_(vanishing, 0.0)
        inverse.masked_fill_(z[0].abs() < NEAR_ZERO, 0.0)  # eps dominates there: the slope is a constant
        out = torch.empty_like(u)
        torch.mul(value, u[0], out=out[0])
        torch.mul(z[1:], slope * u[0], out=out[1:])
        out[1:].addcmul_(value.expand_as(u[1:]), u[1:]).mul_(0.5)
        ctx.save_for_backward(z, u, value, slope, inverse)
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, u, value, slope, inverse = ctx.saved_tensors
        half = grad[1:] * 0.5
        weighted = (half * z[1:]).sum(0)  # gradient of slope * u_0
        dz, du = torch.empty_like(z), torch.empty_like(u)
        torch.mul(half, slope * u[0], out=dz[1:])
        torch.mul(half, value, out=du[1:])
        torch.mul(grad[0], value, out=du[0])
        du[0].addcmul_(weighted, slope)
        by_slope = weighted.mul_(u[0]).mul_(inverse)  # d slope = inverse d value - slope inverse d z_0
        torch.mul(by_slope, slope, out=dz[0]).neg_()
        return dz, du, (grad[0] * u[0]).add_(by_slope).add_((half * u[1:]).sum(0))


def root_mean_square(x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    """Normalise blocks ``[1 + C, ..., D]`` by block 0's root mean square; differentiable once, ``gain`` is a constant."""
    out: Tensor = _RootMeanSquare.apply(x, gain, eps)  # type: ignore[no-untyped-call]
    return out


def gated(z: Tensor, u: Tensor, value: Tensor) -> Tensor:
    """Compute the gated product of blocks ``[1 + C, ...]`` with ``value = act(z[0])``; differentiable once."""
    out: Tensor = _Gated.apply(z, u, value)  # type: ignore[no-untyped-call]
    return out
