"""Attention whose output is gated, ``o_proj(sigmoid(g) * out)``: the gate ``g`` is a constant of the rules.

The gate is a linear of its own (one channel a head, or one a channel of the output), or the second half of every head
of a query projection of double width (Qwen3-Next and after). Which it is, is told by widths; that the model does this
and nothing else with it is checked at the first run, on what enters the output projection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import UnknownKindError
from limelight.models.runtime.attention import AttentionHook
from limelight.relevance import rules
from limelight.relevance.probing import HINT, apart, slack


@dataclass(frozen=True)
class GateSpec:
    """``gate``: the linear; ``heads``: of the double query projection, or 0 where the gate is a linear of its own."""

    gate: nn.Module
    heads: int = 0

    def halves(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and gates ``[..., H, d]`` of a double projection's output ``[..., H * 2 * d]``."""
        query, gate = out.reshape(*out.shape[:-1], self.heads, -1).chunk(2, dim=-1)
        return query, gate

    def joined(self, query: Tensor, gate: Tensor) -> Tensor:
        return torch.cat([query, gate], dim=-1).flatten(-2)


def gate_spec(module: Any, extra: list[str]) -> GateSpec | None:
    """The gate of an attention module; ``extra``: its linears beside q, k, v and the output."""
    out = getattr(module, "o_proj", None)
    if out is None:
        return None
    width, dim = int(out.in_features), getattr(module, "head_dim", None) or getattr(module, "v_head_dim", None)
    heads = width // int(dim) if dim else 0
    query = getattr(module, "q_proj", None)
    doubled = isinstance(query, nn.Module) and heads > 0 and query.out_features == 2 * width
    if isinstance(query, nn.Module) and doubled and not extra:
        return GateSpec(query, heads)
    if len(extra) == 1 and not doubled and int(getattr(module, extra[0]).out_features) in (heads, width):
        return GateSpec(getattr(module, extra[0]))
    return None


def gate_rule(spec: GateSpec) -> Callable[..., Tensor]:
    original = spec.gate.forward

    def forward(x: Tensor) -> Tensor:
        if not spec.heads:
            return rules.stop(original(x))
        query, gate = spec.halves(original(x))
        return spec.joined(query, rules.stop(gate))

    return forward


@dataclass
class _Seen(AttentionHook):
    """What attention put out, layer by layer."""

    outputs: dict[int, Tensor] = field(default_factory=dict)

    def attended(self, layer: int, out: Tensor) -> None:
        self.outputs[layer] = out.detach()


@contextmanager
def checked(gates: list[tuple[str, Any, GateSpec]]) -> Iterator[AttentionHook]:
    """Inside, every gated attention (name, module, spec) must enter its output projection as ``sigmoid(g) * out``.

    Yields the attention hook that has to be active.

    Raises:
        UnknownKindError: it does not.
    """
    seen = _Seen()
    values: dict[int, Tensor] = {}
    normed: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for name, module, spec in gates:
            layer = int(module.layer_idx)

            def keep(_: Any, __: Any, output: Tensor, layer: int = layer, spec: GateSpec = spec) -> None:
                gate = spec.halves(output)[1] if spec.heads else output
                values[layer] = gate.detach().flatten(2) if spec.heads else gate.detach()

            def compare(_: Any, args: tuple[Tensor, ...], layer: int = layer, name: str = name) -> None:
                if layer not in values or layer not in seen.outputs:
                    raise UnknownKindError(f"{name} has what looks like a gate and does not use it", hint=HINT)
                mixed = normed.pop(layer, seen.outputs[layer].transpose(1, 2))  # [B, Q, H, d]
                gate = torch.sigmoid(values[layer]).reshape(*mixed.shape[:3], -1)
                want, got = (mixed * gate).flatten(2), args[0].detach().reshape(*mixed.shape[:2], -1)
                if not apart(want, got) <= slack(got.dtype, 1e-5, 5e-2):
                    raise UnknownKindError(
                        f"{name} does something else with its gate than to multiply its output by the sigmoid",
                        hint=HINT,
                    )

            def after(_: Any, __: Any, output: Tensor, layer: int = layer) -> None:
                if layer in seen.outputs:  # else it is run alone, as a probe does
                    normed[layer] = output.detach().reshape(seen.outputs[layer].transpose(1, 2).shape)

            between = getattr(module, "o_norm", None)  # a norm of its own in front of the gate
            if isinstance(between, nn.Module):
                stack.callback(between.register_forward_hook(after).remove)
            stack.callback(spec.gate.register_forward_hook(keep).remove)
            stack.callback(module.o_proj.register_forward_pre_hook(compare).remove)
        yield seen
