"""One module under its kind's rule, outside any model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn

from limelight.relevance.classify import layer_kinds
from limelight.relevance.kind import ModuleMatch
from limelight.relevance.mode import Mode

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
            for put_on in parts:
                stack.callback(put_on())
            return match.module(*args, **kwargs)

    return call


def backward(divisors: tuple[int, int, int] = (4, 4, 2)) -> Mode:
    return Mode(graph="surrogate", backward=True, divisors=divisors)
