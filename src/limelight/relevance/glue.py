"""A container that does nothing of its own: between the modules inside, which have their rules, all is linear."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from limelight.relevance.probing import REFUSALS, apart, is_linear, require_finite, sample, slack


def linear_around(module: nn.Module, deciding: Collection[int] = ()) -> bool:
    """Whether the module is affine once every child that is not linear hands on what it gets.

    ``deciding``: ids of modules that are constants of the rules (routers), which run as they are.
    """
    linears: list[Any] = [c for c in module.children() if is_linear(c)]
    if not linears:
        return False
    x = sample((4, 3, int(linears[0].in_features)), module)
    x, y = x[:2], x[2:]
    try:
        with ExitStack() as stack, torch.no_grad():
            for child in module.children():
                if not is_linear(child) and id(child) not in deciding:
                    stack.callback(child.register_forward_hook(_handed_on).remove)
            both, one, other, none = (module(v) for v in (x + y, x, y, torch.zeros_like(x)))
    except REFUSALS:
        return False
    if not isinstance(both, Tensor):
        return False
    require_finite(module, both)
    return apart(one + other, both + none) <= slack(both.dtype, 1e-4, 5e-2)


def _handed_on(_: nn.Module, args: tuple[Any, ...], __: Any) -> Any:
    return args[0]
