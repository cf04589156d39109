"""Layer kinds: how modules are recognised, and what is attached to them for either direction of relevance.

Each file of :mod:`limelight.relevance.layers` ends in ``KIND = LayerKind(...)``; all kinds are found by listing that folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import nn

from limelight.relevance.mode import Mode

Undo = Callable[[], None]
Attach = Callable[[], Undo]  # attaches something to a model and returns the function that removes it


@dataclass(frozen=True)
class ModuleMatch:
    """One module of a known kind.

    Attributes:
        kind: the name of its :class:`LayerKind`.
        name: its dotted name within the decoder.
        spec: the result of recognition, for :attr:`LayerKind.run`.
        covers: other modules that this match includes; they are not matched again.
    """

    kind: str
    name: str
    module: nn.Module
    spec: Any = None
    covers: tuple[nn.Module, ...] = ()


Rule = Callable[[ModuleMatch, Mode], Iterable[Attach]]


def nothing(match: ModuleMatch, mode: Mode) -> tuple[Attach, ...]:
    """The rule of linear modules: plain gradient, and tangents propagated like values."""
    return ()


@dataclass(frozen=True)
class LayerKind:
    """A kind of module and its rule.

    Attributes:
        name: its name in tables of rules (:class:`limelight.relevance.composites.Composite`).
        recognise: ``(dotted name, module) -> matches``, of the module itself or of modules inside it. It uses structure
            and probing, never class names, and raises UnknownKindError for modules that look like the kind but compute
            something different.
        run: ``(match, mode) -> attachments``, for both directions: if ``mode.backward`` is set the value is the model's
            own and the gradient is the rule's; otherwise rows are blocks, first the model and then its tangents (the
            Jacobian-vector product of the same rule).
        order: kinds are tried in ascending order, then by name; the first match of a module is used.
        of_decoder: matched against the whole decoder instead of the modules inside its layers.
    """

    name: str
    recognise: Callable[[str, nn.Module], Iterable[ModuleMatch]]
    run: Rule = nothing
    order: int = 0
    of_decoder: bool = False


class Replacement:
    """Sets ``forward`` on one instance when called; the undo restores exactly the previous one (accelerate sets its own).

    :class:`limelight.relevance.attachment.Attachment` exchanges many of these directly.
    """

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self.module, self.forward = module, forward

    def __call__(self) -> Undo:
        own = vars(self.module)
        before = own.get("forward")
        own["forward"] = self.forward
        return lambda: own.pop("forward") if before is None else own.update(forward=before)


def replaced(module: nn.Module, forward: Callable[..., Any]) -> Attach:
    """Return an attachment that sets ``forward`` on ``module``."""
    return Replacement(module, forward)


def hooked(*handles: Callable[[], Any]) -> Attach:
    """Return an attachment that registers hooks: each argument registers one and returns PyTorch's handle."""

    def attach() -> Undo:
        stack = ExitStack()
        for handle in handles:
            stack.callback(handle().remove)
        return stack.close

    return attach
