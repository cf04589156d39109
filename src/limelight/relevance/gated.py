"""Gated products ``down(act(gate) * up)``: which linear is which, told by widths and by probing, never by names or order."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import UnknownKindError
from limelight.models.detect import is_attention
from limelight.relevance.probing import (
    HINT,
    REFUSALS,
    activation_of,
    apart,
    elementwise,
    is_leaf,
    is_linear,
    require_finite,
    sample,
    slack,
)
from limelight.relevance.sparse_gate import kept, spread_of

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
        try:
            with torch.no_grad():
                out = module(x)
                out = out[0] if isinstance(out, tuple) else out
                if size > 1 and not bool(torch.isfinite(out).all()):
                    continue  # larger than float16 can hold
                require_finite(module, out)
                errors = {name: apart(way(x), out) for name, way in ways.items()}
        except REFUSALS:
            return None
        if not min(errors.values()) <= slack(out.dtype, 1e-3, 5e-2):
            return None
        total = {name: total[name] + error for name, error in errors.items()}
        if size > 1:
            break
    return min(total, key=lambda name: total[name])


def _unlike(module: nn.Module) -> UnknownKindError:
    return UnknownKindError(
        f"{type(module).__name__} looks like a gated MLP but does not compute down(act(gate) * up)", hint=HINT
    )
