"""Mixtures of experts: stacked experts and their routers, told by shapes and by probing, and their backward rules.

    EXPERTS   all experts of a layer as 3-D parameters; each computes down(act(gate) * up), or down(act(up))
    ROUTER    decides who computes; whatever it returns is a constant of the rules

Experts written as a ModuleList are gated MLPs of their own; their router is told in the same way. Shared experts are
gated MLPs, and a linear into one channel beside experts (the gate of a shared expert) counts as a router.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product as pairs
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limelight.models.runtime.offload import device_of, offloading, present
from limelight.relevance import rules
from limelight.relevance.gated import HALVES
from limelight.relevance.norms import NormSpec, probe_norm
from limelight.relevance.probing import REFUSALS, apart, require_finite, slack

Product = Callable[[Tensor, Tensor | None], Tensor]
_ORDERS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor | None]]] = {**HALVES, "no gate": lambda h: (h, None)}


@dataclass(frozen=True)
class ExpertsSpec:
    """Where stacked experts keep what.

    Attributes:
        act: the activation of the gate.
        fused, down: names of the parameters into (gate, up) and out of their product.
        transposed: experts are ``[in, out]`` matrices (else ``[out, in]``).
        order: how gate and up lie in the fused output; ``no gate``: it is what the activation gets, and nothing else.
        sorted: forward takes ``[E * N, D]``, every expert's input in turn, instead of ``(x, indices, weights)``.
        after, norm: what each expert puts out is normed, in front of its weight (Muse Spark), and the module that does it.
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
        """The activation itself, whatever has been put on the instance."""
        return type(self.act).forward(self.act, gate)  # type: ignore[no-any-return]

    def run(
        self,
        module: nn.Module,
        x: Tensor,
        routing: tuple[Tensor, ...],
        product: Product,
        normed: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The experts on ``x`` [R, N, D], R blocks with one routing (indices and weights [N, k]; none where sorted).

        ``normed``: the norm behind an expert; left out: with its 1/std as a constant.
        """

        def out_of(mixed: Tensor, weight: Tensor) -> Tensor:
            y = self.apply(mixed, weight)
            if self.after is None:
                return y
            return self.after.through(y, y.detach()).to(y.dtype) if normed is None else normed(y)

        fused, down = (present(module, name) for name in (self.fused, self.down))
        split = _ORDERS[self.order]
        if self.sorted:
            rows = x.reshape(x.shape[0], fused.shape[0], -1, x.shape[-1])
            parts = [out_of(product(*split(self.apply(rows[:, e], w))), down[e]) for e, w in enumerate(fused)]
            return torch.stack(parts, dim=1).reshape(x.shape)
        index, weights = routing
        out = torch.zeros_like(x)
        for expert in torch.unique(index).tolist():
            if expert >= fused.shape[0]:  # a mark of experts that live elsewhere
                continue
            slot, row = torch.where((index == expert).T)
            mixed = product(*split(self.apply(x[:, row], fused[expert])))
            mixed = out_of(mixed, down[expert]) * weights[row, slot, None]
            out = out.index_add(1, row, mixed.to(out.dtype))
        return out


def experts_spec(module: nn.Module, act: nn.Module | None) -> ExpertsSpec | None:
    """The spec that reproduces the module's output on a sample, or None when none does."""
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
    parameter = getattr(module, spec.fused)
    count = experts if spec.sorted else 4
    x = (_noise((count * 2, width)) * size).to(device_of(module), parameter.dtype)
    routing: tuple[Tensor, ...] = ()
    if not spec.sorted:
        chosen = torch.arange(count * 2)[:, None] + torch.arange(min(2, experts))
        routing = (chosen.remainder(experts).to(x.device), (_noise(chosen.shape).abs() + 0.1).to(x))
    try:
        with torch.no_grad():
            want = module(x, *routing)
            got = spec.run(module, x[None], routing, lambda z, u: spec.value(z) if u is None else spec.value(z) * u)[0]
    except REFUSALS:
        return False
    if want.shape != got.shape:
        return False
    if size > 1 and not bool(torch.isfinite(want).all()):
        return True  # larger than float16 can hold: what small inputs say has to do
    require_finite(module, want)
    return apart(got, want) <= slack(x.dtype, 1e-3, 5e-2)


def _noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def stacked(module: nn.Module) -> bool:
    """Owns 3-D parameters that could be experts."""
    return any(p.ndim == 3 for p in module.parameters(recurse=False))


def routers(container: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Children of a block with experts that decide about them: linear into one score an expert (or into one gate)."""
    children = dict(container.named_children())
    for experts in children.values():
        listed = isinstance(experts, nn.ModuleList) and len(experts) > 1 and _alike(experts)
        if not (listed or stacked(experts)):
            continue
        count = len(experts) if isinstance(experts, nn.ModuleList) else int(next(experts.parameters()).shape[0])
        for name, child in children.items():
            if child is not experts and not isinstance(child, nn.ModuleList) and _decides(child, count):
                yield name, child
        return


def _alike(experts: nn.ModuleList) -> bool:
    """Modules of one build with two or more matrices each (a list of layers has norms and attention, too)."""
    shapes = [tuple((n, p.shape) for n, p in e.named_parameters() if p.ndim == 2) for e in experts]
    odd = any(p.ndim != 2 for e in experts for n, p in e.named_parameters() if not n.endswith("bias"))
    return not odd and len(shapes[0]) > 1 and len(set(shapes)) == 1


def _decides(module: nn.Module, experts: int) -> bool:
    """All matrices inside lead to scores: as many as experts (shared ones may be counted in), or one."""
    matrices = [p for p in module.parameters() if p.ndim == 2]
    most = experts if isinstance(module, nn.Linear) else 2 * experts - 1
    return bool(matrices) and all(
        p.shape[0] == 1 or (experts <= p.shape[0] <= most and p.shape[0] < p.shape[1]) for p in matrices
    )


def router_rule(module: nn.Module) -> Callable[..., Any]:
    """A forward whose results are constants."""
    original = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return original(rules.stop(x), *args, **kwargs)

    return forward


def experts_rule(module: nn.Module, spec: ExpertsSpec) -> Callable[..., Tensor]:
    """Identity rule for the activation, half of the gradient for the gated product; the value is the model's own."""
    original = module.forward

    def product(gate: Tensor, up: Tensor | None) -> Tensor:
        acted = rules.identity(gate, spec.value(gate))
        return acted if up is None else rules.uniform(acted * up, 2)

    def forward(x: Tensor, *routing: Tensor) -> Tensor:
        if not x.requires_grad:
            return original(x, *routing)  # type: ignore[no-any-return]
        with torch.no_grad():
            value = original(x, *routing)
        out = spec.run(module, x[None], tuple(map(rules.stop, routing)), product)[0]
        return rules.gradient_of(out.to(value.dtype), value)

    return forward
