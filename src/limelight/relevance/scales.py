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

    It must be linear in it, or in it and others like it (a residual and what is added, each by a weight), which is asked
    at every run: then the plain gradient is the rule.
    """
    original = module.forward

    def differs(out: Tensor, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], alike: bool) -> bool:
        x = x.detach()

        def turned(value: Any) -> Any:
            like = alike and isinstance(value, Tensor) and value.shape == x.shape and value.is_floating_point()
            return value.detach().flip(-1) if like else value

        def added(value: Any) -> Any:
            return value if turned(value) is value else value.detach() + turned(value)

        both = original(x + x.flip(-1), *map(added, args), **{k: added(v) for k, v in kwargs.items()})
        other = original(x.flip(-1), *map(turned, args), **{k: turned(v) for k, v in kwargs.items()})
        return not apart(out.detach() + other, both) <= slack(out.dtype, 1e-4, 5e-2)

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = original(x, *args, **kwargs)
        with torch.no_grad():
            bent = all(differs(out, x, args, kwargs, alike) for alike in (False, True))
        if out.shape != x.shape or bent:
            raise UnknownKindError(f"{name} ({type(module).__name__}) is not linear in its first argument", hint=HINT)
        return out

    return forward


def takes_more(module: nn.Module) -> bool:
    """Whether forward requires arguments beside its input."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[2:]
    return any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
