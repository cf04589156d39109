"""Modules that scale their first argument by what the others say (queries by their position)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import UnknownKindError
from limelight.relevance.probing import HINT, apart, slack


def scale_rule(name: str, module: nn.Module) -> Callable[..., Tensor]:
    """The forward of a module that scales its first argument by what the others say (queries by their position).

    It must be linear in it, which is asked at every run: then the plain gradient is the rule.
    """
    original = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = original(x, *args, **kwargs)
        with torch.no_grad():
            other = x.detach().flip(-1)
            both = original(x.detach() + other, *args, **kwargs)
            parts = out.detach() + original(other, *args, **kwargs)
        if out.shape != x.shape or not apart(parts, both) <= slack(out.dtype, 1e-4, 5e-2):
            raise UnknownKindError(f"{name} ({type(module).__name__}) is not linear in its first argument", hint=HINT)
        return out

    return forward


def takes_more(module: nn.Module) -> bool:
    """Whether forward requires arguments beside its input."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[2:]
    return any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
