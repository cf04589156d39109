"""Forward twins of a mixture of experts: tangents go where block 0 goes, with block 0's weights.

Experts are read once for all blocks: ``[1 + C, n, D]`` rows of one expert at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from limelight.relevance import rules
from limelight.relevance.dual_attention import Mode, block_rows, blocks
from limelight.relevance.dual_gated import gated_product
from limelight.relevance.experts import ExpertsSpec
from limelight.relevance.mixer_parts import activated


def experts_twin(module: nn.Module, spec: ExpertsSpec, mode: Mode) -> Callable[..., Tensor]:
    original = module.forward

    def product(gate: Tensor, up: Tensor | None) -> Tensor:
        if up is None:
            return activated(mode, spec.value, gate)
        return gated_product(mode, gate, up, spec.value(gate[0]))

    def normed(y: Tensor) -> Tensor:
        if spec.after is None or spec.norm is None:
            return y
        out = spec.after.through(y, mode.const(y[0])).to(y.dtype)
        if y.dtype is torch.float32:
            return out
        value = type(spec.norm).forward(spec.norm, y[0])  # the model's own roundings
        first = value if mode.graph == "none" else rules.gradient_of(out[0], value)
        return torch.cat([first[None], out[1:]])

    def forward(x: Tensor, *routing: Tensor) -> Tensor:
        if mode.channels == 1 and mode.graph != "surrogate":
            return original(x, *routing)  # type: ignore[no-any-return]
        if not spec.sorted:
            first = tuple(r[: block_rows(r, mode.channels)] for r in routing)
            return spec.run(module, blocks(x, mode.channels), first, product, normed).reshape(x.shape)
        experts = getattr(module, spec.fused).shape[0]  # [E * (1 + C) * N, D]: the blocks are within each expert
        y = x.reshape(experts, mode.channels, -1, x.shape[-1]).transpose(0, 1)
        out = spec.run(module, y.reshape(mode.channels, -1, x.shape[-1]), routing, product, normed)
        return out.reshape(mode.channels, experts, -1, x.shape[-1]).transpose(0, 1).reshape(x.shape)

    return forward
