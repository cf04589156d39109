"""Group norms over channels: ``out = (x - mean) / std * weight + bias``, mean and std of each group of channels.

Rule: 1/std is a constant, as of other norms (AttnLRP, proposition 3.4). Tangents use block 0's; a bias enters block 0 alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from limelight.relevance import rules
from limelight.relevance.blocks import repeated
from limelight.relevance.kind import Attach, LayerKind, ModuleMatch, replaced
from limelight.relevance.mode import Mode, block_rows


def recognise(name: str, module: nn.Module) -> Iterator[ModuleMatch]:
    if isinstance(module, nn.GroupNorm):
        yield ModuleMatch("group_norm", name, module)


def through(module: nn.GroupNorm, x: Tensor, base: Tensor) -> Tensor:
    """Apply the norm to ``x`` [rows, channels, ...] with the std of ``base``, without bias."""
    groups = x.reshape(len(x), module.num_groups, -1)
    of_base = base.reshape(len(base), module.num_groups, -1)
    scale = torch.rsqrt(of_base.var(-1, keepdim=True, correction=0) + module.eps)
    out = ((groups - groups.mean(-1, keepdim=True)) * scale).reshape(x.shape)
    return out if module.weight is None else out * _per_channel(module.weight, x)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.detach().to(x).reshape(1, -1, *[1] * (x.ndim - 2))


def run(match: ModuleMatch, mode: Mode) -> Iterator[Attach]:
    module: Any = match.module
    original = module.forward

    def forward(x: Tensor) -> Tensor:
        if mode.plain(x):
            return original(x)  # type: ignore[no-any-return]
        if mode.backward:
            return rules.gradient_of(through(module, x, x.detach()), mode.value(original, x))
        first = block_rows(x, mode.channels)
        out = through(module, x, repeated(mode, x[:first]))
        if module.bias is None:
            return out
        return torch.cat([out[:first] + _per_channel(module.bias, x), out[first:]])

    yield replaced(module, forward)


KIND = LayerKind("group_norm", recognise, run, order=39)
