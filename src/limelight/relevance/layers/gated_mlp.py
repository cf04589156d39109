"""Gated MLPs, ``down(act(gate) * up)``: which linear is which is told by widths and by probing, never by names or order.

Rules: the activation passes by the identity rule (:mod:`limelight.relevance.layers.activation`), each factor of the
product gets half (AttnLRP, proposition 3.2); of blocks ``(a' u + a u') / 2``.
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
from limelight.relevance.kind import LayerKind, ModuleMatch, PutOn, hooked, replaced
from limelight.relevance.layers.gaussian_topk import keeping, kept, kept_blocks, spread_of
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
HALVES: dict[str, Halves] = {  # how gate and up lie in the output of one linear
    "gate, up": lambda h: (h[..., : h.shape[-1] // 2], h[..., h.shape[-1] // 2 :]),
    "up, gate": lambda h: (h[..., h.shape[-1] // 2 :], h[..., : h.shape[-1] // 2]),
    "interleaved": lambda h: (h[..., ::2], h[..., 1::2]),
}
_SIZES = (1.0, 100.0, 10.0)  # clamped gates show themselves only where they are large; 10 where 100 overflows
_FACTOR = "per_layer_input"


@dataclass(frozen=True)
class GatedSpec:
    """The linear after the gated product, and where the gate is: two linears, or one with both halves.

    ``order``: how the halves lie in the one (:data:`HALVES`).
    ``factor``: the product's other factor is this argument of the layer itself (Gemma's per-layer inputs).
    ``spread``: only what stands out of the gate by so many deviations is kept (:mod:`limelight.relevance.sparse_gate`).
    """

    act: nn.Module
    down: nn.Module
    gate: nn.Module | None = None
    up: nn.Module | None = None
    fused: nn.Module | None = None
    order: str = ""
    factor: str = ""
    written: bool = False  # the MLP calls the activation as a function: no module of its own, ``act`` stands in
    spread: float | None = None


def gated_spec(module: nn.Module) -> GatedSpec | None:
    """The gated product of an MLP; None where its linears are no three of such widths and no two with 2 x the channels.

    Raises:
        UnknownKindError: they are, and something else is computed; or more linears around an activation than a rule
            is known for.
    """
    linears: list[Any] = [c for c in module.children() if is_linear(c)]
    if len(linears) < 2 or is_attention(module):
        return None
    act = activation_of(module)
    if act is None:
        return _written(module, linears)
    if len(linears) == 2 and _FACTOR in inspect.signature(type(module).forward).parameters:
        gate, down = linears
        return GatedSpec(act, down, gate=gate, factor=_FACTOR) if gate.out_features == down.in_features else None
    if len(linears) == 2:
        for fused, down in (linears, linears[::-1]):
            if fused.in_features == down.out_features and fused.out_features == 2 * down.in_features:
                return GatedSpec(act, down, fused=fused, order=_order(module, act, fused, down))
        return None
    found = next((s for ways in _threes(linears) if (s := _separate(module, act, *ways)) is not None), None)
    if found is None:
        raise _unlike(module)
    return found


def _threes(linears: list[Any]) -> Iterator[tuple[Any, Any, Any]]:
    """(one, other, down) whose widths fit, down last, in the middle or first."""
    for down in reversed(linears):
        into = [
            c
            for c in linears
            if c is not down and (c.in_features, c.out_features) == (down.out_features, down.in_features)
        ]
        if len(into) == 2:
            yield into[0], into[1], down


def _written(module: nn.Module, linears: list[Any]) -> GatedSpec | None:
    """A gated MLP of three linears, whose activation is a function in its forward."""
    others = [c for c in module.children() if not is_linear(c)]
    if len(linears) != 3 or next(module.parameters(recurse=False), None) is not None:
        return None
    if not all(is_leaf(c) and not list(c.parameters()) and elementwise(c) == "identity" for c in others):  # dropout
        return None
    for act in (nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.ReLU()):
        for ways in _threes(linears):
            found = _separate(module, act, *ways, written=True)
            if found is not None:
                return found
    return None


def _separate(
    module: nn.Module, act: nn.Module, first: nn.Module, second: nn.Module, down: nn.Module, *, written: bool = False
) -> GatedSpec | None:
    """Which of two linears goes through the activation; None where the module computes something else."""
    ways = {"first": (first, second), "second": (second, first)}
    spread = spread_of(module)

    def way(gate: nn.Module, up: nn.Module) -> Callable[[Tensor], Tensor]:
        if spread is None:
            return lambda x: down(act(gate(x)) * up(x))
        return lambda x: down(act(kept(gate(x), spread)) * up(x))

    found = _best(module, first, {name: way(*pair) for name, pair in ways.items()})
    if found is None or (written and spread is not None):
        return None
    gate, up = ways[found]
    return GatedSpec(act, down, gate=gate, up=up, written=written, spread=spread)


def _order(module: nn.Module, act: nn.Module, fused: nn.Module, down: nn.Module) -> str:
    def way(halves: Halves) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            gate, up = halves(fused(x))
            return down(act(gate) * up)  # type: ignore[no-any-return]

        return run

    found = _best(module, fused, {name: way(halves) for name, halves in HALVES.items()})
    if found is None:
        raise _unlike(module)
    return found


def _best(module: nn.Module, into: Any, ways: dict[str, Callable[[Tensor], Tensor]]) -> str | None:
    """The way of computing it that gives what the module gives, small and large inputs; None where none does."""
    total = dict.fromkeys(ways, 0.0)
    for size in _SIZES:
        x = sample((1, 2, int(into.in_features)), into) * size
        out = answer(module, x)
        out = out[0] if isinstance(out, tuple) else out
        if not isinstance(out, Tensor):
            return None
        if size > 1 and not bool(torch.isfinite(out).all()):
            continue  # larger than float16 can hold
        require_finite(module, out)
        found = {name: answer(way, x) for name, way in ways.items()}
        if any(got is None for got in found.values()):
            return None
        errors = {name: relative_error(got, out) for name, got in found.items()}
        if not min(errors.values()) <= tolerance(out.dtype, 1e-3, 5e-2):
            return None
        total = {name: total[name] + error for name, error in errors.items()}
        if size > 1:
            break
    return min(total, key=lambda name: total[name])


def _unlike(module: nn.Module) -> UnknownKindError:
    return UnknownKindError(
        f"{type(module).__name__} looks like a gated MLP but does not compute down(act(gate) * up)", hint=HINT
    )


def recognise(name: str, module: nn.Module) -> Iterator[ModuleMatch]:
    if (spec := gated_spec(module)) is not None:
        yield ModuleMatch("gated_mlp", name, module, spec)


def run(match: ModuleMatch, mode: Mode) -> Iterator[PutOn]:
    spec: GatedSpec = match.spec
    if mode.backward and not spec.written:
        yield hooked(lambda: spec.down.register_forward_pre_hook(_halve))
        if spec.spread is not None and spec.gate is not None:
            yield keeping(spec.gate, spec.act, spec.spread)
    elif spec.factor:
        yield _factored(match.module, spec, mode)
    else:
        yield replaced(match.module, _written_out(match.module, spec, mode))


def _halve(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (rules.uniform(args[0], 2), *args[1:])


def _written_out(module: nn.Module, spec: GatedSpec, mode: Mode) -> Callable[[Tensor], Tensor]:
    """The MLP over blocks of rows; backward, where no activation module could carry the identity rule."""
    original, act, activation, down = module.forward, spec.act, type(spec.act).forward, spec.down

    def forward(x: Tensor) -> Tensor:
        if mode.plain(x):
            return original(x)  # type: ignore[no-any-return]
        if spec.gate is not None and spec.up is not None:
            gate, up = spec.gate(x), spec.up(x)
        else:
            fused: Any = spec.fused
            gate, up = HALVES[spec.order](fused(x))
        z, u = blocks(gate, mode.channels), blocks(up, mode.channels)
        if spec.spread is not None:
            z = kept_blocks(mode, z, spec.spread)
        out: Tensor = down(gated_product(mode, z, u, mode.value(activation, act, z[0])).reshape(up.shape))
        return out

    return forward


def _factored(layer: nn.Module, spec: GatedSpec, mode: Mode) -> PutOn:
    """A layer that multiplies ``act(gate)`` by an argument of its own, row by row: the product over blocks in its place."""
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
