"""Modules that scale their first argument by a function of the others (queries by position): linear, so plain."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import UnknownKindError
from limelight.relevance.kind import Attach, LayerKind, ModuleMatch, replaced
from limelight.relevance.mode import Mode
from limelight.relevance.probing import HINT, agrees, is_leaf


def takes_more(module: nn.Module) -> bool:
    """Return whether forward requires arguments besides its input."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[2:]
    return any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)


def recognise(name: str, module: nn.Module) -> Iterator[ModuleMatch]:
    own = list(module.parameters(recurse=False))
    if is_leaf(module) and own and all(p.ndim == 1 for p in own) and takes_more(module):
        yield ModuleMatch("query_scale", name, module)


def run(match: ModuleMatch, mode: Mode) -> Iterator[Attach]:
    """Check at every run that the module is linear in its first argument, or jointly in it and others of its shape (a
    weighted residual sum); then the plain gradient is the rule.
    """
    if not mode.backward:  # limelight.relevance.forward.check tests all modules at once
        return
    module, original = match.module, match.module.forward

    def differs(out: Tensor, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], alike: bool) -> bool:
        x = x.detach()

        def turned(value: Any) -> Any:
            like = alike and isinstance(value, Tensor) and value.shape == x.shape and value.is_floating_point()
            return value.detach().flip(-1) if like else value

        def added(value: Any) -> Any:
            return value if turned(value) is value else value.detach() + turned(value)

        both = original(x + x.flip(-1), *map(added, args), **{k: added(v) for k, v in kwargs.items()})
        other = original(x.flip(-1), *map(turned, args), **{k: turned(v) for k, v in kwargs.items()})
        return not agrees(out.detach() + other, both, 1e-4)

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = original(x, *args, **kwargs)
        with torch.no_grad():
            bent = all(differs(out, x, args, kwargs, alike) for alike in (False, True))
        if out.shape != x.shape or bent:
            raise UnknownKindError(
                f"{match.name} ({type(module).__name__}) is not linear in its first argument", hint=HINT
            )
        return out

    yield replaced(module, forward)


KIND = LayerKind("query_scale", recognise, run, order=30)
