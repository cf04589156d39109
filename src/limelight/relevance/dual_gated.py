"""The forward twin of a gated product ``act(gate) * up``."""

from __future__ import annotations

import torch
from torch import Tensor

from limelight.relevance import rules
from limelight.relevance.dual_fused import gated
from limelight.relevance.dual_mode import Mode

_WIDE = (torch.float32, torch.float64)


def gated_product(mode: Mode, z: Tensor, u: Tensor, value: Tensor) -> Tensor:
    """``[a u, (a' u + a u') / 2]`` for blocks ``z``, ``u`` [1 + C, ...]; ``value`` is ``a = act(z)`` of block 0."""
    if mode.graph == "none":
        return _product(z, u, value)
    if mode.graph == "true" and z.dtype is u.dtype is value.dtype and z.dtype in _WIDE:
        return gated(z, u, value)
    slope = mode.slope(z[0], value).to(z.dtype)
    a0 = rules.gradient_of(z[0] * slope, value) if mode.graph == "surrogate" else value
    first = mode.shared(a0 * u[0], 2)
    rest = (z[1:] * slope * u[0] + a0 * u[1:]) / 2
    return torch.cat([first[None], rest])


def _product(z: Tensor, u: Tensor, value: Tensor) -> Tensor:
    """``[a u, (a' u + a u') / 2]`` in buffers of its own: no concatenation, no temporaries beyond one."""
    out = torch.empty_like(u)
    torch.mul(value, u[0], out=out[0])
    slope = _quick_slope(z[0], value).mul_(u[0])
    torch.mul(z[1:], slope, out=out[1:])
    out[1:].addcmul_(value.expand_as(u[1:]), u[1:]).mul_(0.5)
    return out


def _quick_slope(z: Tensor, value: Tensor) -> Tensor:
    """:func:`rules.slope` in one buffer (float32 and wider; narrower types take the guarded way)."""
    if z.dtype not in (torch.float32, torch.float64):
        return rules.slope(z, value).to(z.dtype)
    shifted = z + rules.EPS
    shifted.masked_fill_(shifted == 0, float("inf"))
    return torch.div(value, shifted, out=shifted)
