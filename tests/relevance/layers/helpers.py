"""One module under its kind's rule, outside any model: its values, and its tangents against the adjoint of the rule."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limelight.relevance.classify import layer_kinds
from limelight.relevance.kind import ModuleMatch
from limelight.relevance.mode import Mode

CHANNELS, B, T, D = 3, 2, 5, 8

KINDS = {kind.name: kind for kind in layer_kinds()}


def recognised(module: nn.Module, kind: str) -> ModuleMatch:
    """The module as a kind of it takes it to be."""
    (match,) = KINDS[kind].recognise("m", module)
    return match


def ruled(module: nn.Module | ModuleMatch, kind: str, mode: Mode) -> Callable[..., Any]:
    """The module's call under the kind's rule, which comes off again after each."""
    match = module if isinstance(module, ModuleMatch) else recognised(module, kind)
    parts = list(KINDS[kind].run(match, mode))

    def call(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for attach in parts:
                stack.callback(attach())
            return match.module(*args, **kwargs)

    return call


def backward(divisors: tuple[int, int, int] = (4, 4, 2)) -> Mode:
    return Mode(graph="surrogate", backward=True, divisors=divisors)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


graphs = pytest.mark.parametrize("graph", ["none", "surrogate", "true"])
layouts = pytest.mark.parametrize("flat", [False, True], ids=["rows", "flattened"])


def check(rows: Any, by_rule: Any, value: Any, shape: tuple[int, ...] = (B, T, D), flat: bool = False) -> None:
    """Values are the module's own; <g, out'> = <(gradient of <g, out> under the rule), x'>; nothing depends on how rows and positions are laid out."""
    x = noise(1, CHANNELS, *shape)
    given = x.reshape(-1, shape[-1]) if flat else x.reshape(-1, *shape[1:])
    out = rows(given)
    assert out.shape[:-1] == given.shape[:-1]
    out = out.reshape(CHANNELS, *shape[:-1], out.shape[-1])
    torch.testing.assert_close(out[0], value(x[0]), atol=1e-12, rtol=0)
    leaf = x[0].clone().requires_grad_(True)
    under = by_rule(leaf)
    torch.testing.assert_close(under.detach(), out[0].detach(), atol=1e-9, rtol=0)
    g = noise(2, *under.shape)
    (gradient,) = torch.autograd.grad((g * under).sum(), leaf)
    for c in range(1, CHANNELS):
        torch.testing.assert_close((g * out[c]).sum(), (gradient * x[c]).sum(), atol=1e-11, rtol=0)


def check_in(graph: str, flat: bool, make: Any, by_rule: Any, value: Any, shape: tuple[int, ...] = (B, T, D)) -> None:
    rows = make(Mode(batch=B, channels=CHANNELS, graph=graph))
    with torch.set_grad_enabled(True):
        check(rows if graph != "none" else torch.no_grad()(rows), by_rule, value, shape, flat)


def second_order(rows: Any, graph: str, *, sees: bool) -> None:
    """Whether the gradient of a tangent sees block 0; in the true graph it is that of the tangent itself."""
    base, tangent, g = noise(1, 1, 1, D), noise(2, 1, 1, D), noise(3, 1, 1, D)
    leaf = base.clone().requires_grad_(True)
    out = rows(torch.cat([leaf, tangent]))
    (gradient,) = torch.autograd.grad((g * out[1]).sum(), leaf, allow_unused=True, materialize_grads=True)
    assert bool(gradient.any()) == sees
    if graph == "true":
        step, way = 1e-6, noise(4, 1, 1, D)
        ends = [(g * rows(torch.cat([base + s * step * way, tangent]))[1]).sum().detach() for s in (1, -1)]
        assert float(ends[0] - ends[1]) / (2 * step) == pytest.approx(float((gradient * way).sum()), abs=1e-8)
