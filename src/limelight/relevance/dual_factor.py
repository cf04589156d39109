"""The forward twin of a layer that multiplies ``act(gate)`` by an argument of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from limelight.relevance import rules
from limelight.relevance.dual_mode import Mode, blocks
from limelight.relevance.gated import GatedSpec


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
