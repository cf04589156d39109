"""Group norms over channels: ``out = (x - mean) / std * weight + bias``, mean and std of each group of channels.

Rule: 1/std is a constant, as of other norms (AttnLRP, proposition 3.4). Tangents use block 0's; a bias enters block 0 alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from limelight.models.runtime.offload import weight_of
from limelight.relevance import rules
from limelight.relevance.blocks import repeated
from limelight.relevance.kind import Attach, LayerKind, ModuleMatch, replaced
from limelight.relevance.mode import Mode, block_rows


def recognise(name: str, module: nn.Module) -> Iterator[ModuleMatch]:
    if isinstance(module, nn.GroupNorm):
        yield ModuleMatch("group_norm", name, module)


def through(module: nn.GroupNorm, weight: Tensor | None, x: Tensor, base: Tensor) -> Tensor:
    """Apply the norm to ``x`` [rows, channels, ...] with the std of ``base``, without bias; computed in float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    groups = x.to(wide).reshape(len(x), module.num_groups, -1)
    of_base = base.to(wide).reshape(len(base), module.num_groups, -1)
    scale = torch.rsqrt(of_base.var(-1, keepdim=True, correction=0) + module.eps)
    out = ((groups - groups.mean(-1, keepdim=True)) * scale).reshape(x.shape)
    return (out if weight is None else out * _per_channel(weight, out)).to(x.dtype)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.detach().to(x).reshape(1, -1, *[1] * (x.ndim - 2))


def run(match: ModuleMatch, mode: Mode) -> Iterator[Attach]:
    module: Any = match.module
    original, weight, bias = module.forward, weight_of(module, "weight"), weight_of(module, "bias")

    def forward(x: Tensor) -> Tensor:
        if mode.plain(x):
            return original(x)  # type: ignore[no-any-return]
        if mode.backward:
            return rules.gradient_of(through(module, weight, x, x.detach()), mode.value(original, x))
        first = block_rows(x, mode.channels)
        out = through(module, weight, x, repeated(mode, x[:first]))
        if bias is None:
            return out
        return torch.cat([out[:first] + _per_channel(bias, x), out[first:]])

    yield replaced(module, forward)


KIND = LayerKind("group_norm", recognise, run, order=39)
