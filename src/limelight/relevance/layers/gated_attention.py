"""Attention with a gated output, ``o_proj(sigmoid(g) * out)``: the gate ``g`` is a constant under the rules.

The gate is a separate linear (one channel per head, or one per channel of the output), or the second half of every head
of a query projection of double width (Qwen3-Next and later). The widths determine which; the formula is checked at the
first run, on the input of the output projection.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import UnknownKindError
from limelight.models.detect import is_attention
from limelight.models.runtime.attention import AttentionHook
from limelight.relevance.blocks import decided, repeated
from limelight.relevance.kind import Attach, LayerKind, ModuleMatch, replaced
from limelight.relevance.layers.linear import linear_jvp
from limelight.relevance.mode import Mode, block_rows
from limelight.relevance.probing import HINT, agrees, is_linear


@dataclass(frozen=True)
class GateSpec:
    """A gate. ``heads``: of the double query projection, or 0 if the gate is a separate linear; ``attention``: its module."""

    gate: nn.Module
    heads: int
    attention: nn.Module

    def halves(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Split a double projection's output ``[..., H * 2 * d]`` into queries and gates ``[..., H, d]``."""
        query, gate = out.reshape(*out.shape[:-1], self.heads, -1).chunk(2, dim=-1)
        return query, gate

    def joined(self, query: Tensor, gate: Tensor) -> Tensor:
        return torch.cat([query, gate], dim=-1).flatten(-2)


_PROJECTIONS = frozenset(
    {
        "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa",
        "kv_b_proj", "query_key_value", "dense",
    }
)  # fmt: skip


def recognise(name: str, module: Any) -> Iterator[ModuleMatch]:
    """Match the gate of an attention's output.

    Raises:
        UnknownKindError: the attention has linears besides q, k, v and the output that are not a gate, so they would have
            no rule.
    """
    if not is_attention(module):
        return
    odd = [n for n, c in module.named_children() if is_linear(c) and n not in _PROJECTIONS]
    query, out = getattr(module, "q_proj", None), getattr(module, "o_proj", None)
    if out is not None:
        width, dim = int(out.in_features), getattr(module, "head_dim", None) or getattr(module, "v_head_dim", None)
        heads = width // int(dim) if dim else 0
        doubled = isinstance(query, nn.Module) and heads > 0 and query.out_features == 2 * width
        if doubled and not odd:
            yield _match(f"{name}.q_proj", query, heads, module)
            return
        if len(odd) == 1 and not doubled and int(getattr(module, odd[0]).out_features) in (heads, width):
            yield _match(f"{name}.{odd[0]}", getattr(module, odd[0]), 0, module)
            return
        if query is not None and getattr(module, "head_dim", None) and int(query.out_features) != width:
            odd.append(f"q_proj of {query.out_features} for {width} channels")
    if odd:
        raise UnknownKindError(
            f"{name} ({type(module).__name__}) is attention with {', '.join(odd)} besides q, k, v and the output",
            hint=HINT,
        )


def _match(name: str, gate: Any, heads: int, attention: nn.Module) -> ModuleMatch:
    return ModuleMatch("gated_attention", name, gate, GateSpec(gate, heads, attention), tuple(gate.modules()))


def run(match: ModuleMatch, mode: Mode) -> Iterator[Attach]:
    """Use block 0's gate for all blocks."""
    spec: GateSpec = match.spec
    original, linear = spec.gate.forward, linear_jvp(spec.gate, mode)

    def forward(x: Tensor) -> Tensor:
        if mode.plain(x):
            return original(x)  # type: ignore[no-any-return]
        if not spec.heads:
            return decided(mode, original, x)  # type: ignore[no-any-return]
        query, gate = spec.halves(linear(x))
        return spec.joined(query, repeated(mode, gate[: block_rows(x, mode.channels)]))

    yield replaced(spec.gate, forward)


@dataclass
class _Outputs(AttentionHook):
    """Records attention's outputs by layer."""

    outputs: dict[int, Tensor] = field(default_factory=dict)

    def attended(self, layer: int, out: Tensor) -> None:
        self.outputs[layer] = out.detach()


@contextmanager
def checked(gates: list[ModuleMatch]) -> Iterator[AttentionHook]:
    """Check inside the block that every gated attention's output projection receives ``sigmoid(g) * out``.

    Yields the attention hook that must be active.

    Raises:
        UnknownKindError: it receives something else.
    """
    seen = _Outputs()
    with ExitStack() as stack:
        for match in gates:
            _watch(match, seen, stack)
        yield seen


def _watch(match: ModuleMatch, seen: _Outputs, stack: ExitStack) -> None:
    spec: GateSpec = match.spec
    module: Any = spec.attention
    layer = int(module.layer_idx)
    gates: list[Tensor] = []
    normed: list[Tensor] = []

    def keep(_: Any, __: Any, output: Tensor) -> None:
        gates[:] = [(spec.halves(output)[1].flatten(2) if spec.heads else output).detach()]

    def after(_: Any, __: Any, output: Tensor) -> None:
        if layer in seen.outputs:  # otherwise called alone, as in probing
            normed[:] = [output.detach().reshape(seen.outputs[layer].transpose(1, 2).shape)]

    def compare(_: Any, args: tuple[Tensor, ...]) -> None:
        if not gates or layer not in seen.outputs:
            raise UnknownKindError(f"{match.name} looks like a gate but is not used as one", hint=HINT)
        mixed = normed.pop() if normed else seen.outputs[layer].transpose(1, 2)  # [B, Q, H, d]
        gate = torch.sigmoid(gates[0]).reshape(*mixed.shape[:3], -1)
        want, got = (mixed * gate).flatten(2), args[0].detach().reshape(*mixed.shape[:2], -1)
        if not agrees(got, want, 1e-5):
            raise UnknownKindError(
                f"{match.name} uses its gate other than by multiplying its output with the sigmoid", hint=HINT
            )

    between = getattr(module, "o_norm", None)  # a norm before the gate
    if isinstance(between, nn.Module):
        stack.callback(between.register_forward_hook(after).remove)
    stack.callback(spec.gate.register_forward_hook(keep).remove)
    stack.callback(module.o_proj.register_forward_pre_hook(compare).remove)


KIND = LayerKind("gated_attention", recognise, run)
