"""Gated MLPs, ``down(act(gate) * up)``; the linears' roles are determined by widths and probing, not by name or order.

Rules: the identity rule for the activation (:mod:`limelight.relevance.layers.activation`), half to each factor of the
product (AttnLRP, proposition 3.2); for tangents ``(a' u + a u') / 2``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import UnknownKindError
from limelight.models.detect import is_attention
from limelight.relevance import rules
from limelight.relevance.blocks import gated_product, product
from limelight.relevance.kind import Attach, LayerKind, ModuleMatch, hooked, replaced
from limelight.relevance.layers.gaussian_topk import deviations_of, keeping, kept, kept_blocks
from limelight.relevance.mode import Mode, blocks
from limelight.relevance.probing import (
    HINT,
    activation_of,
    answer,
    elementwise,
    is_leaf,
    is_linear,
    relative_error,
    require_finite,
    sample,
    tolerance,
)

Halves = Callable[[Tensor], tuple[Tensor, Tensor]]
HALVES: dict[str, Halves] = {  # layouts of gate and up in the output of one linear
    "gate, up": lambda h: (h[..., : h.shape[-1] // 2], h[..., h.shape[-1] // 2 :]),
    "up, gate": lambda h: (h[..., h.shape[-1] // 2 :], h[..., : h.shape[-1] // 2]),
    "interleaved": lambda h: (h[..., ::2], h[..., 1::2]),
}
_SIZES = (1.0, 100.0, 10.0)  # clamping is only visible for large inputs; 10 is used where 100 overflows
_FACTOR = "per_layer_input"
_INNER = 1 << 22  # numbers of the product at once: 16 MiB in float32


@dataclass(frozen=True)
class GatedSpec:
    """The structure of a gated MLP: the linear after the product, and gate and up as two linears or one fused linear.

    Attributes:
        order: layout of the halves in the fused linear (:data:`HALVES`).
        factor: name of the layer's argument that is the product's other factor (Gemma's per-layer inputs).
        written: the MLP calls the activation as a function, not as a module; ``act`` is an equivalent module.
        deviations: number of standard deviations above the mean beyond which gate entries are kept
            (:mod:`limelight.relevance.layers.gaussian_topk`).
    """

    act: nn.Module
    down: nn.Module
    gate: Any = None
    up: Any = None
    fused: Any = None
    order: str = ""
    factor: str = ""
    written: bool = False
    deviations: float | None = None

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute ``(gate, up)`` of the input."""
        return (self.gate(x), self.up(x)) if self.fused is None else HALVES[self.order](self.fused(x))

    def compute(self, x: Tensor) -> Tensor:
        gate, up = self.halves(x)
        out: Tensor = self.down(self.act(gate if self.deviations is None else kept(gate, self.deviations)) * up)
        return out


def gated_spec(module: nn.Module, name: str = "an MLP") -> GatedSpec | None:
    """Recognise the gated product of an MLP; None if its linears do not have the widths of a separate or fused layout.

    Raises:
        UnknownKindError: the widths match but something else is computed, or there are more linears around an activation
            than any rule covers.
    """
    linears: list[Any] = [c for c in module.children() if is_linear(c)]
    if len(linears) < 2 or is_attention(module):
        return None
    act = activation_of(module)
    if act is not None and len(linears) == 2 and _FACTOR in inspect.signature(type(module).forward).parameters:
        gate, down = linears
        return GatedSpec(act, down, gate=gate, factor=_FACTOR) if gate.out_features == down.in_features else None
    deviations = deviations_of(module)
    acts = [act] if act is not None else _functions(module) if len(linears) == 3 and deviations is None else []
    layouts = [specs for a in acts for specs in _layouts(a, linears, written=act is None, deviations=deviations)]
    found = next((spec for specs in layouts if (spec := _best(module, specs)) is not None), None)
    if found is None and act is not None and len(linears) == 2 and _sequential(module, act, linears):
        return None
    if found is None and act is not None and (layouts or len(linears) > 2):
        raise UnknownKindError(
            f"{name} ({type(module).__name__}) looks like a gated MLP but does not compute down(act(gate) * up)",
            hint=HINT,
        )
    return found


def _sequential(module: nn.Module, act: nn.Module, linears: list[Any]) -> bool:
    """Whether it computes ``second(act(first(x)))``: an MLP without a gate, of whatever widths."""
    for first, second in (linears, linears[::-1]):
        if first.out_features == second.in_features:
            x = sample((1, 2, int(first.in_features)), first)
            out = answer(module, x)
            got = answer(lambda y, a=first, b=second: b(act(a(y))), x)
            if (
                isinstance(out, Tensor)
                and got is not None
                and relative_error(got, out) <= tolerance(out.dtype, 1e-3, 5e-2)
            ):
                return True
    return False


def _functions(module: nn.Module) -> list[nn.Module]:
    """Return the activation functions to try for a module that contains only linears (and dropout)."""
    others = [c for c in module.children() if not is_linear(c)]
    bare = next(module.parameters(recurse=False), None) is None
    bare = bare and all(is_leaf(c) and not list(c.parameters()) and elementwise(c) == "identity" for c in others)
    return [nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.ReLU()] if bare else []


def _layouts(act: nn.Module, linears: list[Any], **more: Any) -> Iterator[list[GatedSpec]]:
    """Yield the layouts in which linears of these widths can form a gated product, with down last, middle or first."""
    if len(linears) == 2:
        for fused, down in (linears, linears[::-1]):
            if fused.in_features == down.out_features and fused.out_features == 2 * down.in_features:
                yield [GatedSpec(act, down, fused=fused, order=order, **more) for order in HALVES]
    for down in reversed(linears):
        width = (down.out_features, down.in_features)
        into = [c for c in linears if c is not down and (c.in_features, c.out_features) == width]
        if len(into) == 2:
            yield [GatedSpec(act, down, gate=gate, up=up, **more) for gate, up in (into, into[::-1])]


def _best(module: nn.Module, specs: list[GatedSpec]) -> GatedSpec | None:
    """Return the spec that reproduces the module's output on small and large inputs, or None."""
    into = specs[0].gate if specs[0].fused is None else specs[0].fused
    total = [0.0] * len(specs)
    for size in _SIZES:
        x = sample((1, 2, int(into.in_features)), into) * size
        out = answer(module, x)
        out = out[0] if isinstance(out, tuple) else out
        if not isinstance(out, Tensor):
            return None
        if size > 1 and not bool(torch.isfinite(out).all()):
            continue  # overflows float16
        require_finite(module, out)
        found = [answer(spec.compute, x) for spec in specs]
        if any(got is None for got in found):
            return None
        errors = [relative_error(got, out) for got in found]
        if not min(errors) <= tolerance(out.dtype, 1e-3, 5e-2):
            return None
        total = [a + b for a, b in zip(total, errors, strict=True)]
        if size > 1:
            break
    return specs[total.index(min(total))]


def recognise(name: str, module: nn.Module) -> Iterator[ModuleMatch]:
    if (spec := gated_spec(module, name)) is not None:
        yield ModuleMatch("gated_mlp", name, module, spec)


def run(match: ModuleMatch, mode: Mode) -> Iterator[Attach]:
    spec: GatedSpec = match.spec
    if mode.backward and not spec.written:
        yield hooked(lambda: spec.down.register_forward_pre_hook(_halve))
        if spec.deviations is not None:
            yield keeping(spec.gate, spec.act, spec.deviations)
    elif spec.factor:
        yield _factored(match.module, spec, mode)
    else:
        yield replaced(match.module, _written_out(match.module, spec, mode))


def _halve(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (rules.uniform(args[0], 2), *args[1:])


def _written_out(module: nn.Module, spec: GatedSpec, mode: Mode) -> Callable[[Tensor], Tensor]:
    """Build the MLP's forward over blocks of rows; also used backward if there is no activation module to hook."""
    original, act, activation, down = module.forward, spec.act, type(spec.act).forward, spec.down

    def forward(x: Tensor) -> Tensor:
        if mode.plain(x):
            return original(x)  # type: ignore[no-any-return]
        if (parts := _parts(x, down)) > 1:
            return torch.cat([over_blocks(part) for part in x.chunk(parts, 1)], 1)
        return over_blocks(x)

    def over_blocks(x: Tensor) -> Tensor:
        gate, up = spec.halves(x)
        z, u = blocks(gate, mode.channels), blocks(up, mode.channels)
        if spec.deviations is not None:
            z = kept_blocks(mode, z, spec.deviations)
        out: Tensor = down(gated_product(mode, z, u, mode.value(activation, act, z[0])).reshape(up.shape))
        return out

    return forward


def _parts(x: Tensor, down: Any) -> int:
    """Return into how many runs of positions ``[B, T, D]`` is cut, so that a prompt's products stay small.

    An MLP computes every position by itself, and its inner width is several times the model's: with tangents beside the
    values, the products of a long prompt would be the largest tensors of a prefill.
    """
    if x.ndim != 3 or torch.is_grad_enabled():
        return 1
    inner = x.shape[0] * x.shape[1] * int(down.in_features)
    return min(x.shape[1], -(-inner // _INNER))


def _factored(layer: nn.Module, spec: GatedSpec, mode: Mode) -> Attach:
    """Replace, over blocks, the product of ``act(gate)`` with an argument of the layer itself."""
    names = list(inspect.signature(type(layer).forward).parameters)[1:]
    kept: dict[str, Tensor] = {}

    def argument(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept["u"] = {**dict(zip(names, args, strict=False)), **kwargs}[spec.factor]

    def activation(_: nn.Module, __: Any, output: Tensor) -> None:
        kept["a"] = output

    def multiply(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        a, u = (blocks(kept.pop(name), mode.channels) for name in ("a", "u"))
        if mode.plain(args[0]):
            return args
        return (product(mode, a, u).reshape(args[0].shape), *args[1:])

    return hooked(
        lambda: layer.register_forward_pre_hook(argument, with_kwargs=True),
        lambda: spec.act.register_forward_hook(activation),
        lambda: spec.down.register_forward_pre_hook(multiply),
    )


KIND = LayerKind("gated_mlp", recognise, run, order=50)
