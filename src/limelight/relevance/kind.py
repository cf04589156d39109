"""What a layer kind is: how its modules are recognised, and what is put on them for either direction of relevance.

Each file of :mod:`limelight.relevance.layers` ends in ``KIND = LayerKind(...)``; listing that folder finds them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from limelight.relevance.mode import Mode

Undo = Callable[[], None]
PutOn = Callable[[], Undo]  # puts something on a model and returns what takes it off again


@dataclass(frozen=True)
class ModuleMatch:
    """One module of a known kind.

    Attributes:
        kind: the name of its :class:`LayerKind`.
        name: its dotted name within the decoder.
        spec: what recognising it found out, for :attr:`LayerKind.run`.
        covers: further modules that this match accounts for; no other kind is asked about them.
    """

    kind: str
    name: str
    module: nn.Module
    spec: Any = None
    covers: tuple[nn.Module, ...] = ()


Rule = Callable[[ModuleMatch, Mode], Iterable[PutOn]]


def nothing(match: ModuleMatch, mode: Mode) -> tuple[PutOn, ...]:
    """The rule of what is linear: the plain gradient, and tangents that go the way of the values."""
    return ()


@dataclass(frozen=True)
class LayerKind:
    """A kind of module and its rule.

    Attributes:
        name: as tables of rules (:class:`limelight.relevance.composites.Composite`) call it.
        recognise: ``(dotted name, module) -> matches``, of the module itself or of modules inside it. It tells by
            structure and by probing, never by class names, and raises UnknownKindError for what looks like the kind
            and computes something else.
        run: ``(match, mode) -> what to put on``, for both directions: where ``mode.backward`` is set the value stays
            the model's own and the gradient is the rule's; otherwise rows are blocks, the model first and its tangents
            behind it (the Jacobian-vector product of the same rule).
        order: kinds are asked in ascending order, then by name. The first that matches a module ends its questions.
        of_decoder: asked about the decoder as a whole instead of the modules inside its layers.
    """

    name: str
    recognise: Callable[[str, nn.Module], Iterable[ModuleMatch]]
    run: Rule = nothing
    order: int = 0
    of_decoder: bool = False


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Undo:
    """Give one instance another forward; the undo puts back exactly what was there (accelerate puts its own)."""
    before = module.__dict__.get("forward")

    def undo() -> None:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before

    module.__dict__["forward"] = forward
    return undo


class Replacement:
    """What puts ``forward`` on ``module``. An attachment, which puts many on and takes them off, exchanges them itself."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self.module, self.forward = module, forward

    def __call__(self) -> Undo:
        return replace_forward(self.module, self.forward)


def replaced(module: nn.Module, forward: Callable[..., Any]) -> PutOn:
    """What puts ``forward`` on ``module``."""
    return Replacement(module, forward)


def hooked(*handles: Callable[[], Any]) -> PutOn:
    """What registers hooks: each argument registers one and returns PyTorch's handle."""

    def put_on() -> Undo:
        taken = [handle() for handle in handles]

        def undo() -> None:
            for one in taken:
                one.remove()

        return undo

    return put_on
