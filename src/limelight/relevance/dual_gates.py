"""Forward twins of what decides: routers of experts and gates of attention. Block 0 decides for all blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from limelight.relevance.dual_attention import Mode, block_rows
from limelight.relevance.gated_attention import GateSpec


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


def gate_twin(spec: GateSpec, mode: Mode, linear: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Block 0's gate is everybody's. ``linear``: the module's own forward twin."""
    original = spec.gate.forward

    def forward(x: Tensor) -> Tensor:
        if mode.channels == 1 and mode.graph != "surrogate":
            return original(x)  # type: ignore[no-any-return]
        b = block_rows(x, mode.channels)
        if not spec.heads:
            return _repeated(original(x[:b]), mode)  # type: ignore[no-any-return]
        query, gate = spec.halves(linear(x))
        return spec.joined(query, _repeated(gate[:b], mode))

    return forward
