"""Classification of a decoder's modules into layer kinds, by structure and by probing, never by class name.

Every file of :mod:`limelight.relevance.layers` defines one kind, with its test and its rule. A module with parameters that
matches none of them raises an error, so that no rule is ever silently missing.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from functools import cache

from torch import nn

from limelight.errors import UnknownKindError
from limelight.models.runtime.wrappers import unwrapped
from limelight.relevance import layers
from limelight.relevance.kind import LayerKind, ModuleMatch
from limelight.relevance.layers import position_table
from limelight.relevance.layers.affine_container import bare_linears
from limelight.relevance.probing import HINT, is_leaf, is_linear


@cache
def layer_kinds() -> tuple[LayerKind, ...]:
    """Return all kinds in matching order: the ``KIND`` of each file of ``layers/``."""
    files = (
        importlib.import_module(f"{layers.__name__}.{info.name}") for info in pkgutil.iter_modules(layers.__path__)
    )
    found = [file.KIND for file in files if hasattr(file, "KIND")]
    return tuple(sorted(found, key=lambda kind: (kind.order, kind.name)))


def classify_modules(decoder: nn.Module) -> list[ModuleMatch]:
    """Match the modules of a decoder, in its layers and beside them, to their kinds.

    Raises:
        UnknownKindError: a module with parameters has no known kind.
    """
    matches = [m for kind in layer_kinds() if kind.of_decoder for m in kind.recognise("", decoder)]
    matches += match_modules(_parts(decoder), refuse_unknown)
    missing = {"norm", "attention"} - {match.kind for match in matches}
    if missing:
        raise UnknownKindError(
            f"expected norms and attention in {type(decoder).__name__}, found no {' and no '.join(sorted(missing))}",
            hint="run `limelight models --check` on this checkpoint",
        )
    return matches


def match_modules(
    modules: Iterable[tuple[str, nn.Module]], refuse: Callable[[str, nn.Module], None]
) -> list[ModuleMatch]:
    """Match modules to the first kind that recognises them; ``refuse`` is called with those of none.

    Raises:
        UnknownKindError: a module looks like a kind but computes something different.
    """
    matches: list[ModuleMatch] = []
    covered: set[int] = set()
    kinds = [kind for kind in layer_kinds() if not kind.of_decoder]
    for name, module in modules:
        if id(module) in covered:
            continue
        for kind in kinds:
            found = list(kind.recognise(name, module))
            matches += found
            covered.update(id(inner) for match in found for inner in match.covers)
            if any(match.module is module for match in found):
                break
        else:
            refuse(name, module)
    return matches


def _parts(decoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a decoder's forward: all within layers; besides them leaves, linears and learned positions."""
    for name, child in decoder.named_children():
        child = unwrapped(child)
        everything = name == "layers" or is_leaf(child)
        for inner, module in child.named_modules(prefix=name):
            beside = is_linear(module) or any(position_table.recognise(inner, module))
            if (everything or beside) and not is_rotary(module):
                yield inner, module


def is_rotary(module: nn.Module) -> bool:
    """Return whether a module computes angles or sinusoids of positions, which do not depend on the input's values."""
    return any("inv_freq" in n for n, _ in module.named_buffers(recurse=False))


def refuse_unknown(name: str, module: nn.Module) -> None:
    """Raise UnknownKindError, except for containers without matrices or linears of their own that would lack a rule."""
    own = list(module.named_parameters(recurse=False))
    if is_leaf(module):
        raise UnknownKindError(
            f"{name} ({type(module).__name__}, parameters {[tuple(p.shape) for _, p in own]}) is neither linear, norm "
            "nor elementwise activation",
            hint=HINT,
        )
    loose = [(n, tuple(p.shape)) for n, p in own if p.ndim > 1]
    linears = bare_linears(module)
    if loose or linears:
        raise UnknownKindError(
            f"{name} ({type(module).__name__}) has {loose or f'{len(linears)} linears without an activation module'}",
            hint=HINT,
        )
