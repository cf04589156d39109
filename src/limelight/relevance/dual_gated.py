"""The forward twin of a gated product ``act(gate) * up``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from limelight.relevance import rules
from limelight.relevance.dual_attention import Mode, blocks
from limelight.relevance.kinds import GatedSpec


def gated_product(mode: Mode, z: Tensor, u: Tensor, value: Tensor) -> Tensor:
    """``[a u, (a' u + a u') / 2]`` for blocks ``z``, ``u`` [1 + C, ...]; ``value`` is ``a = act(z)`` of block 0."""
    if mode.graph == "none":
        return _product(z, u, value)
    slope = mode.slope(z[0], value).to(z.dtype)
    a0 = rules.gradient_of(z[0] * slope, value) if mode.graph == "surrogate" else value
    first = mode.shared(a0 * u[0], 2)
    rest = (z[1:] * slope * u[0] + a0 * u[1:]) / 2
    return torch.cat([first[None], rest])


def factor_twins(layer: nn.Module, spec: GatedSpec, mode: Mode) -> list[tuple[nn.Module, Callable[..., Any]]]:
    """Twins for a layer that multiplies ``act(gate)`` by an argument of its own, ``p``: of the layer, act, and down.

    The layer itself multiplies row by row. Handed ``a`` of block 0 for every block it makes ``a p`` and ``a p'``; what
    is missing, ``a' p``, is added before ``down``.
    """
    original, activation, down = layer.forward, type(spec.act).forward, spec.down.forward
    names = list(inspect.signature(type(layer).forward).parameters)[1:]
    kept: dict[str, Tensor] = {}

    def whole(*args: Any, **kwargs: Any) -> Any:
        kept["p"] = {**dict(zip(names, args, strict=False)), **kwargs}[spec.factor]
        return original(*args, **kwargs)

    def act(z: Tensor) -> Tensor:
        y = blocks(z, mode.channels)
        value: Tensor = activation(spec.act, y[0])
        slope = mode.slope(y[0], value).to(z.dtype)
        kept["rest"] = y[1:] * slope
        first = rules.gradient_of(y[0] * slope, value) if mode.graph == "surrogate" else value
        return first.repeat(mode.channels, *[1] * (z.ndim - 1))

    def project(x: Tensor) -> Tensor:
        y = blocks(x, mode.channels)
        other = blocks(kept.pop("p"), mode.channels)[0]
        rest = (y[1:] + kept.pop("rest") * other) / 2
        return down(torch.cat([mode.shared(y[:1], 2), rest]).reshape(x.shape))  # type: ignore[no-any-return]

    return [(layer, whole), (spec.act, act), (spec.down, project)]


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
