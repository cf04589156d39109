"""Operations on blocks of rows ``[1 + C, B, ...]``: block 0 is the model, the others are tangents along ``c * x``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from limelight.relevance import rules
from limelight.relevance.forward.fused import gated
from limelight.relevance.mode import Mode, block_rows, blocks

_WIDE = (torch.float32, torch.float64)


def repeated(mode: Mode, value: Any) -> Any:
    """Repeat block 0's value for every block, as a constant unless the true gradient is requested; handles containers."""
    if isinstance(value, Tensor):
        return mode.const(value).repeat(mode.channels, *[1] * (value.ndim - 1))
    if isinstance(value, Mapping):
        return type(value)({k: repeated(mode, v) for k, v in value.items()})  # type: ignore[call-arg]
    if isinstance(value, (tuple, list)):
        return type(value)([repeated(mode, v) for v in value])
    return value


def decided(mode: Mode, function: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Apply ``function`` to block 0 of ``x`` [(1 + C) * B, ...] and repeat the result per block; relevance is stopped."""
    return repeated(mode, function(mode.const(x[: block_rows(x, mode.channels)]), *args, **kwargs))


def activated(mode: Mode, act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Compute ``[act(z), z' act(z) / z]`` of ``x`` [(1 + C) * B, ...]: the identity rule of an elementwise function."""
    z = blocks(x, mode.channels)
    value = mode.value(act, z[0])
    first = rules.identity(z[0], value) if mode.graph == "surrogate" else value
    if mode.channels == 1:
        return first.reshape(x.shape)
    return torch.cat([first[None], z[1:] * mode.slope(z[0], value).to(z.dtype)]).reshape(x.shape)


def product(mode: Mode, a: Tensor, b: Tensor) -> Tensor:
    """Compute ``[a b, (a' b + a b') / 2]`` of blocks ``[1 + C, ...]``: each factor of a product gets half."""
    first = mode.shared(a[0] * b[0], 2)
    return torch.cat([first[None], (a[1:] * b[0] + a[0] * b[1:]) / 2])


def gated_product(mode: Mode, z: Tensor, u: Tensor, value: Tensor) -> Tensor:
    """Compute ``[a u, (a' u + a u') / 2]`` for blocks ``z``, ``u`` [1 + C, ...]; ``value`` is ``a = act(z)`` of block 0."""
    if mode.graph == "none":
        return _gated_in_place(z, u, value)
    if mode.graph == "true" and z.dtype is u.dtype is value.dtype and z.dtype in _WIDE:
        return gated(z, u, value)
    a0 = rules.identity(z[0], value) if mode.graph == "surrogate" else value
    first = mode.shared(a0 * u[0], 2)[None]
    if len(z) == 1:
        return first
    slope = mode.slope(z[0], value).to(z.dtype)
    return torch.cat([first, (z[1:] * slope * u[0] + a0 * u[1:]) / 2])


def _gated_in_place(z: Tensor, u: Tensor, value: Tensor) -> Tensor:
    """Compute :func:`gated_product` in preallocated buffers: no concatenation, and one temporary."""
    out = torch.empty_like(u)
    torch.mul(value, u[0], out=out[0])
    slope = _quick_slope(z[0], value).mul_(u[0])
    torch.mul(z[1:], slope, out=out[1:])
    out[1:].addcmul_(value.expand_as(u[1:]), u[1:]).mul_(0.5)
    return out


def _quick_slope(z: Tensor, value: Tensor) -> Tensor:
    """:func:`rules.slope` in one buffer (float32 and wider; narrower types use the guarded version)."""
    if z.dtype not in _WIDE:
        return rules.slope(z, value).to(z.dtype)
    denominator = z + rules.EPS
    denominator.masked_fill_(denominator == 0, float("inf"))
    return torch.div(value, denominator, out=denominator)


def normed(mode: Mode, x: Tensor, eps: float, groups: int = 1) -> Tensor:
    """RMS norm of blocks ``[1 + C, ..., d]`` in ``groups`` groups of d, without weight; 1/rms of block 0 is a constant."""
    y = x.reshape(*x.shape[:-1], groups, -1)
    scale = mode.const(torch.rsqrt(y[0].pow(2).mean(-1, keepdim=True) + eps))
    return (y * scale).reshape(x.shape)
