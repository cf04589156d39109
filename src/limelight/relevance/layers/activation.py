"""Elementwise functions without parameters.

Rule: the identity rule, ``act(z)`` is treated as ``z * const(act(z) / z)`` (AttnLRP, section 3.3.1).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from limelight.relevance.blocks import activated
from limelight.relevance.kind import Attach, LayerKind, ModuleMatch, replaced
from limelight.relevance.mode import Mode
from limelight.relevance.probing import elementwise, is_leaf


def recognise(name: str, module: nn.Module) -> Iterator[ModuleMatch]:
    plain = is_leaf(module) and next(module.parameters(recurse=False), None) is None
    if plain and elementwise(module) == "activation":
        yield ModuleMatch("activation", name, module)


def run(match: ModuleMatch, mode: Mode) -> Iterator[Attach]:
    original = match.module.forward

    def forward(z: Tensor) -> Tensor:
        return original(z) if mode.plain(z) else activated(mode, original, z)

    yield replaced(match.module, forward)


KIND = LayerKind("activation", recognise, run, order=35)
