"""Modules that need no rule of their own: identities, and containers that are affine apart from their child modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from limelight.relevance.kind import LayerKind, ModuleMatch
from limelight.relevance.layers.router import routers
from limelight.relevance.probing import (
    activation_of,
    agrees,
    answer,
    elementwise,
    is_leaf,
    is_linear,
    require_finite,
    sample,
)


def bare_linears(module: nn.Module) -> list[nn.Module]:
    """Return a container's non-router linears if there is no activation module, so that the function between is unknown."""
    deciding = _deciding(module)
    linears = [c for c in module.children() if is_linear(c) and id(c) not in deciding]
    return linears if len(linears) > 1 and activation_of(module) is None else []


def _deciding(module: nn.Module) -> set[int]:
    return {id(inner) for _, router in routers(module) for inner in router.modules()}


def affine(module: nn.Module) -> bool:
    """Return whether the module is affine when every non-linear child is replaced by the identity.

    Routers, whose outputs are constants under the rules, run unchanged.
    """
    linears: list[Any] = [c for c in module.children() if is_linear(c)]
    if not linears:
        return False
    deciding = _deciding(module)
    x = sample((4, 3, int(linears[0].in_features)), module)
    x, y = x[:2], x[2:]
    with ExitStack() as stack:
        for child in module.children():
            if not is_linear(child) and id(child) not in deciding:
                stack.callback(child.register_forward_hook(lambda _, args, __: args[0]).remove)
        found = answer(lambda: [module(v) for v in (x + y, x, y, torch.zeros_like(x))])
    if found is None or not isinstance(found[0], Tensor):
        return False
    both, one, other, none = found
    require_finite(module, both)
    return agrees(one + other, both + none, 1e-4)


def side_branch(module: nn.Module) -> bool:
    """Return whether this is a low-rank branch (LAuReL), ``x + norm(B A x)``, whose parts have their own rules."""
    linears: list[Any] = [c for c in module.children() if is_linear(c)]
    norms: list[Any] = [c for c in module.children() if not is_linear(c)]
    if len(linears) != 2 or len(norms) != 1 or next(module.parameters(recurse=False), None) is not None:
        return False
    down, up = linears
    if (down.in_features, down.out_features) != (up.out_features, up.in_features):
        return False
    x = sample((2, 3, int(down.in_features)), module)
    out, want = answer(module, x), answer(lambda: x + norms[0](up(down(x))))
    return isinstance(out, Tensor) and isinstance(want, Tensor) and agrees(out, want)


def recognise(name: str, module: nn.Module) -> Iterator[ModuleMatch]:
    own = list(module.parameters(recurse=False))
    if is_leaf(module):
        found = isinstance(module, (nn.Dropout, nn.Identity)) or (not own and elementwise(module) == "identity")
    else:
        loose = any(p.ndim > 1 for p in own)
        found = not loose and bool(bare_linears(module)) and (side_branch(module) or affine(module))
    if found:
        yield ModuleMatch("affine_container", name, module)


KIND = LayerKind("affine_container", recognise, order=60)
