"""LRP rules as modified gradients: the forward value is the model's own, bit for bit; only the gradient changes.

Every rule here is linear in the relevance it passes on and can be differentiated twice (the second-order pass of LIME
runs through the rules again: factors act again, constants stay constants).

Source: AttnLRP (Achtibat et al., ICML 2024, arXiv 2402.05602), in the gradient form of its reference code LXT.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EPS = 1e-10


class _GradientOf(torch.autograd.Function):
    """Value of ``value``, gradient of ``surrogate``."""

    @staticmethod
    def forward(ctx: Any, surrogate: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def gradient_of(surrogate: Tensor, value: Tensor) -> Tensor:
    """``value`` in the forward pass, ``surrogate`` in every backward pass; same shape and dtype."""
    out: Tensor = _GradientOf.apply(surrogate, value.detach())  # type: ignore[no-untyped-call]
    return out


def uniform(x: Tensor, parts: int) -> Tensor:
    """The uniform rule of a product of ``parts`` factors: relevance is shared equally, the gradient divided by ``parts``.

    AttnLRP, proposition 3.3 (matrix products): 2 for ``weights @ v``, 4 for ``q`` and ``k`` (two products in a row).
    """
    out: Tensor = _ScaledGradient.apply(x, 1.0 / parts)  # type: ignore[no-untyped-call]
    return out


def stop(x: Tensor) -> Tensor:
    """No relevance passes."""
    return x.detach()


def divided(x: Tensor, parts: int) -> Tensor:
    """Gradient divided by ``parts``; 0 stops it, 1 leaves it alone."""
    if parts == 0:
        return stop(x)
    return x if parts == 1 else uniform(x, parts)


def slope(z: Tensor, value: Tensor) -> Tensor:
    """``act(z) / (z + eps)`` as a constant, in float32 or better (1e-10 underflows in float16).

    Zero where ``z + eps`` all but vanishes (z near -eps, where there is no relevance to pass).
    """
    wide = torch.promote_types(z.dtype, torch.float32)
    z, value = z.detach().to(wide), value.detach().to(wide)
    shifted = z + EPS
    gone = shifted.abs() < EPS / 2
    return torch.where(gone, torch.zeros_like(z), value / torch.where(gone, torch.ones_like(z), shifted))


def identity(z: Tensor, value: Tensor) -> Tensor:
    """The identity rule of an elementwise function: ``act(z)`` passes relevance on as ``z * const(act(z) / z)``.

    AttnLRP, section 3.3.1 (component-wise non-linearities).
    """
    return gradient_of((z * slope(z, value).to(z.dtype)).to(value.dtype), value)


def frozen_norm(x: Tensor, value: Tensor, *, gain: Tensor | None, center: bool, eps: float) -> Tensor:
    """A norm whose 1/std is a constant: AttnLRP, proposition 3.4. ``gain`` is the weight as it multiplies."""
    return gradient_of(norm_tangent(x, x, gain=gain, center=center, eps=eps).to(value.dtype), value)


def norm_tangent(x: Tensor, tangent: Tensor, *, gain: Tensor | None, center: bool, eps: float) -> Tensor:
    """``tangent`` through the norm at ``x`` with 1/std of ``x`` held constant; no bias."""
    wide = torch.promote_types(x.dtype, torch.float32)
    base = x.detach().to(wide)
    tangent = tangent.to(wide)
    if center:
        base = base - base.mean(-1, keepdim=True)
        tangent = tangent - tangent.mean(-1, keepdim=True)
    scale = torch.rsqrt(base.pow(2).mean(-1, keepdim=True) + eps)
    out = tangent * scale
    return out if gain is None else out * gain.detach().to(wide)
