"""Sparse attention: an indexer chooses, as whole numbers, which keys a query sees. Its choice is a constant of the rules."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn

from limelight.errors import UnsupportedError
from limelight.models.detect import is_attention
from limelight.relevance.blocks import decided
from limelight.relevance.kind import LayerKind, ModuleMatch, PutOn, replaced
from limelight.relevance.mode import FALLBACK, Mode


def recognise(name: str, module: nn.Module) -> Iterator[ModuleMatch]:
    indexer = getattr(module, "indexer", None) if is_attention(module) else None
    if indexer is not None:
        yield ModuleMatch("key_indexer", f"{name}.indexer", indexer, covers=tuple(indexer.modules()))


def run(match: ModuleMatch, mode: Mode) -> Iterator[PutOn]:
    """
    Raises:
        UnsupportedError: in forward mode.
    """
    if not mode.backward:
        raise UnsupportedError(
            f"{match.name}: sparse attention chooses its keys by an indexer with a cache of its own, for which there "
            "is no forward mode",
            hint=FALLBACK,
        )
    yield replaced(match.module, partial(decided, mode, match.module.forward))


KIND = LayerKind("key_indexer", recognise, run)
