"""Mixtures of experts stored in 3-D parameters, each expert ``down(act(gate) * up)`` or ``down(act(up))``.

Rules: those of a gated MLP per expert (identity rule for the activation, half of the gradient to each factor); routing
is a constant (:mod:`limelight.relevance.layers.router`). Tangents use block 0's experts and routing weights, and experts'
weights are read once for all blocks.

Recognised by shapes and probing. Experts in a ModuleList are separate gated MLPs, as are shared experts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product as pairs

import torch
from torch import Tensor, nn
from torch.nn import functional

from limelight.models.runtime.offload import offloading, present
from limelight.relevance import rules
from limelight.relevance.blocks import activated, gated_product
from limelight.relevance.kind import Attach, LayerKind, ModuleMatch, replaced
from limelight.relevance.layers.gated_mlp import HALVES
from limelight.relevance.layers.norm import NormSpec, probe_norm
from limelight.relevance.mode import Mode, block_rows, blocks
from limelight.relevance.probing import activation_of, agrees, answer, require_finite, sample

_ORDERS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor | None]]] = {**HALVES, "no gate": lambda h: (h, None)}


@dataclass(frozen=True)
class ExpertsSpec:
    """The layout of stacked experts.

    Attributes:
        act: the activation of the gate.
        fused, down: names of the parameters of the (gate, up) projection and of the down projection.
        transposed: experts are ``[in, out]`` matrices (else ``[out, in]``).
        order: layout of gate and up in the fused output; ``no gate``: the output is the activation's input.
        sorted: forward takes ``[E * N, D]``, the inputs of all experts in order, instead of ``(x, indices, weights)``.
        after, norm: spec and module of a norm on each expert's output, before its routing weight (Muse Spark).
    """

    act: nn.Module
    fused: str
    down: str
    transposed: bool
    order: str
    sorted: bool
    after: NormSpec | None = None
    norm: nn.Module | None = None

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight if self.transposed else functional.linear(x, weight)

    def value(self, gate: Tensor) -> Tensor:
        """Apply the class's activation, ignoring what is attached to the instance."""
        return type(self.act).forward(self.act, gate)  # type: ignore[no-any-return]

    def normed(self, mode: Mode, y: Tensor) -> Tensor:
        """Apply the norm after an expert to its output ``[1 + C, n, D]``, if there is one."""
        if self.after is None or self.norm is None:
            return y
        out = self.after.through(y, mode.const(y[0])).to(y.dtype)
        if y.dtype is torch.float32:
            return out
        value = type(self.norm).forward(self.norm, y[0])  # the model's own roundings
        first = value if mode.graph == "none" else rules.gradient_of(out[0], value)
        return torch.cat([first[None], out[1:]])

    def expert(self, mode: Mode, x: Tensor, into: Tensor, out_of: Tensor) -> Tensor:
        """Apply one expert to blocks ``[1 + C, n, D]``."""
        gate, up = _ORDERS[self.order](self.apply(x, into))
        if up is None:
            mixed = activated(mode, self.value, gate)
        else:
            mixed = gated_product(mode, gate, up, mode.value(self.value, gate[0]))
        return self.normed(mode, self.apply(mixed, out_of))

    def compute(self, mode: Mode, module: nn.Module, x: Tensor, routing: tuple[Tensor, ...]) -> Tensor:
        """Apply the experts to blocks of rows ``[(1 + C) * N, D]``, all routed like block 0.

        ``routing``: indices and weights ``[(1 + C) * N, k]``; empty if sorted: then the blocks are within each expert.
        """
        fused, down = (present(module, name) for name in (self.fused, self.down))
        if self.sorted:
            rows = x.reshape(len(fused), mode.channels, -1, x.shape[-1])
            return torch.stack([self.expert(mode, rows[e], w, down[e]) for e, w in enumerate(fused)]).reshape(x.shape)
        index, weights = (mode.const(r[: block_rows(r, mode.channels)]) for r in routing)
        rows = blocks(x, mode.channels)
        out = torch.zeros_like(rows)
        for expert in torch.unique(index).tolist():
            if expert >= len(fused):  # marks experts on another device
                continue
            slot, row = torch.where((index == expert).T)
            mixed = self.expert(mode, rows[:, row], fused[expert], down[expert]) * weights[row, slot, None]
            out = out.index_add(1, row, mixed.to(out.dtype))
        return out.reshape(x.shape)


def experts_spec(module: nn.Module, act: nn.Module | None) -> ExpertsSpec | None:
    """Return the spec that reproduces the module's output on a sample, or None."""
    own = dict(module.named_parameters(recurse=False))
    if act is None or len(own) != 2 or any(p.ndim != 3 or not p.is_floating_point() for p in own.values()):
        return None
    if any(p.device.type == "meta" for p in own.values()) and offloading(module) is None:
        return None
    norms = [(n, c) for c in module.children() if (n := probe_norm(c)) is not None]
    if len(norms) > 1 or any(n.center or n.bias is not None for n, _ in norms):
        return None
    after, norm = norms[0] if norms else (None, None)
    takes = len(inspect.signature(type(module).forward).parameters) - 1
    if takes not in (1, 3):
        return None
    for (fused, down), transposed in pairs((tuple(own), tuple(own)[::-1]), (False, True)):
        into, out = ((own[n].mT if transposed else own[n]).shape for n in (fused, down))  # [E, out, in]
        halves = into[1] // out[2]
        if into[0] != out[0] or into[1] % out[2] or halves not in (1, 2) or into[2] != out[1]:
            continue
        for order in (o for o in _ORDERS if (o == "no gate") == (halves == 1)):
            spec = ExpertsSpec(act, fused, down, transposed, order, takes == 1, after, norm)
            if all(_reproduces(spec, module, int(into[0]), int(into[2]), size) for size in (1.0, 30.0)):
                return spec
    return None


def _reproduces(spec: ExpertsSpec, module: nn.Module, experts: int, width: int, size: float) -> bool:
    count = experts if spec.sorted else 4
    x = sample((count * 2, width), module) * size
    routing: tuple[Tensor, ...] = ()
    if not spec.sorted:
        chosen = torch.arange(count * 2)[:, None] + torch.arange(min(2, experts))
        routing = (chosen.remainder(experts).to(x.device), sample(tuple(chosen.shape), module).abs() + 0.1)
    want = answer(module, x, *routing)
    got = answer(spec.compute, Mode(), module, x, routing)
    if not isinstance(want, Tensor) or not isinstance(got, Tensor):
        return False
    if size > 1 and not bool(torch.isfinite(want).all()):
        return True  # overflows float16: rely on the small inputs
    require_finite(module, want)
    return agrees(got, want)


def stacked(module: nn.Module) -> bool:
    """Return whether the module has 3-D parameters that could be experts."""
    return any(p.ndim == 3 for p in module.parameters(recurse=False))


def recognise(name: str, module: nn.Module) -> Iterator[ModuleMatch]:
    if stacked(module) and (spec := experts_spec(module, activation_of(module))) is not None:
        yield ModuleMatch("experts", name, module, spec, tuple(module.modules()))


def run(match: ModuleMatch, mode: Mode) -> Iterator[Attach]:
    module, original = match.module, match.module.forward

    def forward(x: Tensor, *routing: Tensor) -> Tensor:
        if mode.plain(x):
            return original(x, *routing)  # type: ignore[no-any-return]
        out: Tensor = match.spec.compute(mode, module, x, routing)
        if not mode.backward:
            return out
        with torch.no_grad():
            value = original(x, *routing)
        return rules.gradient_of(out.to(value.dtype), value)

    yield replaced(module, forward)


KIND = LayerKind("experts", recognise, run, order=10)
