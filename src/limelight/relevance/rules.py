"""LRP rules as modified gradients: the forward value is bit-identical to the model's own; only the gradient changes.

Every rule is linear in the relevance it propagates and can be differentiated twice (LIME's second-order pass applies the
rules again: factors act again, constants stay constants).

Source: AttnLRP (Achtibat et al., ICML 2024, arXiv 2402.05602), in the gradient form of its reference code LXT.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EPS = 1e-10


class _GradientOf(torch.autograd.Function):
    """Return ``value`` with the gradient of ``surrogate``."""

    @staticmethod
    def forward(ctx: Any, surrogate: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Identity(torch.autograd.Function):
    """Return ``value`` and multiply the gradient by ``value / z``, computed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(z, value)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        z, value = ctx.saved_tensors
        factor = slope(z, value).to(z.dtype)
        grad = grad.to(z.device, z.dtype)
        return (grad * factor if torch.is_grad_enabled() else factor.mul_(grad)), None


class _FrozenNorm(torch.autograd.Function):
    """Return ``value`` and multiply the gradient by a gain and a constant 1/std, of which one number per row is saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, gain: Tensor | None, center: bool, eps: float) -> Tensor:
        base = x.to(torch.promote_types(x.dtype, torch.float32))
        if center:
            base = base - base.mean(-1, keepdim=True)
        ctx.save_for_backward(torch.rsqrt(base.pow(2).mean(-1, keepdim=True) + eps), gain)
        ctx.center, ctx.dtype = center, x.dtype
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, gain = ctx.saved_tensors
        grad = grad.to(scale.device, scale.dtype)
        if gain is not None:
            grad = grad * gain.to(scale.device, scale.dtype)
        grad = grad * scale
        if ctx.center:
            grad = grad - grad.mean(-1, keepdim=True)
        return grad.to(ctx.dtype), None, None, None, None


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def gradient_of(surrogate: Tensor, value: Tensor) -> Tensor:
    """Return ``value`` in the forward pass, with the gradient of ``surrogate`` in every backward pass; same shape and dtype."""
    out: Tensor = _GradientOf.apply(surrogate, value.detach())  # type: ignore[no-untyped-call]
    return out


def uniform(x: Tensor, parts: int) -> Tensor:
    """Apply the uniform rule for a product of ``parts`` factors: equal shares, so the gradient is divided by ``parts``.

    AttnLRP, proposition 3.3 (matrix products): 2 for ``weights @ v``, 4 for ``q`` and ``k`` (two successive products).
    """
    out: Tensor = _ScaledGradient.apply(x, 1.0 / parts)  # type: ignore[no-untyped-call]
    return out


def divided(x: Tensor, parts: int) -> Tensor:
    """Divide the gradient by ``parts``; 0 stops it, 1 leaves it unchanged."""
    if parts == 0:
        return x.detach()
    return x if parts == 1 else uniform(x, parts)


def slope(z: Tensor, value: Tensor) -> Tensor:
    """Compute ``act(z) / (z + eps)`` as a constant, in float32 or wider (1e-10 underflows in float16).

    Zero where ``z + eps`` nearly vanishes (z near -eps, where there is no relevance).
    """
    wide = torch.promote_types(z.dtype, torch.float32)
    denominator = z.detach().to(wide) + EPS
    vanishing = denominator.abs() < EPS / 2
    return torch.div(value.detach().to(wide), denominator, out=denominator).masked_fill_(vanishing, 0.0)


def identity(z: Tensor, value: Tensor) -> Tensor:
    """Apply the identity rule of an elementwise function: ``act(z)`` is treated as ``z * const(act(z) / z)``.

    AttnLRP, section 3.3.1 (component-wise non-linearities). Saves ``z`` and ``act(z)`` for the backward pass, as the
    function's own gradient and the subsequent product do.
    """
    out: Tensor = _Identity.apply(z, value.detach())  # type: ignore[no-untyped-call]
    return out


def frozen_norm(x: Tensor, value: Tensor, *, gain: Tensor | None, center: bool, eps: float) -> Tensor:
    """Apply the rule of a norm, with 1/std constant: AttnLRP, proposition 3.4. ``gain`` is the effective weight."""
    gain = None if gain is None else gain.detach()
    out: Tensor = _FrozenNorm.apply(x, value.detach(), gain, center, eps)  # type: ignore[no-untyped-call]
    return out
