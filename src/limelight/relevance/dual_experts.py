"""Forward twins of a mixture of experts: tangents go where block 0 goes, with block 0's weights.

Experts are read once for all blocks: ``[1 + C, n, D]`` rows of one expert at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from limelight.relevance.dual_attention import Mode, block_rows, blocks
from limelight.relevance.dual_gated import gated_product
from limelight.relevance.experts import ExpertsSpec


def router_twin(module: nn.Module, mode: Mode) -> Callable[..., Any]:
    """Block 0 decides; its decision is repeated for the others, and is a constant unless the true gradient is wanted."""
    original = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return _repeated(original(x[: block_rows(x, mode.channels)], *args, **kwargs), mode)

    return forward


def _repeated(value: Any, mode: Mode) -> Any:
    if isinstance(value, Tensor):
        return mode.const(value).repeat(mode.channels, *[1] * (value.ndim - 1))
    if isinstance(value, Mapping):
        return type(value)({k: _repeated(v, mode) for k, v in value.items()})  # type: ignore[call-arg]
    if isinstance(value, (tuple, list)):
        return type(value)([_repeated(v, mode) for v in value])
    return value


def experts_twin(module: nn.Module, spec: ExpertsSpec, mode: Mode) -> Callable[..., Tensor]:
    original = module.forward

    def product(gate: Tensor, up: Tensor) -> Tensor:
        return gated_product(mode, gate, up, spec.value(gate[0]))

    def forward(x: Tensor, *routing: Tensor) -> Tensor:
        if mode.channels == 1 and mode.graph != "surrogate":
            return original(x, *routing)  # type: ignore[no-any-return]
        if not spec.sorted:
            first = tuple(r[: block_rows(r, mode.channels)] for r in routing)
            return spec.run(module, blocks(x, mode.channels), first, product).reshape(x.shape)
        experts = getattr(module, spec.fused).shape[0]  # [E * (1 + C) * N, D]: the blocks are within each expert
        y = x.reshape(experts, mode.channels, -1, x.shape[-1]).transpose(0, 1)
        out = spec.run(module, y.reshape(mode.channels, -1, x.shape[-1]), routing, product)
        return out.reshape(mode.channels, experts, -1, x.shape[-1]).transpose(0, 1).reshape(x.shape)

    return forward
