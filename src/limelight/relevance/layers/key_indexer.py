"""Key indexers of sparse attention: they choose the indices of the keys per query, a constant under the rules."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn

from limelight.errors import UnsupportedError
from limelight.models.detect import is_attention
from limelight.relevance.blocks import decided
from limelight.relevance.kind import Attach, LayerKind, ModuleMatch, replaced
from limelight.relevance.mode import FALLBACK, Mode


def recognise(name: str, module: nn.Module) -> Iterator[ModuleMatch]:
    indexer = getattr(module, "indexer", None) if is_attention(module) else None
    if indexer is not None:
        yield ModuleMatch("key_indexer", f"{name}.indexer", indexer, covers=tuple(indexer.modules()))


def run(match: ModuleMatch, mode: Mode) -> Iterator[Attach]:
    """Keep the indexer's choice constant.

    Raises:
        UnsupportedError: in forward mode.
    """
    if not mode.backward:
        raise UnsupportedError(
            f"{match.name}: sparse attention selects keys with an indexer that has its own cache; forward mode does not "
            "support it",
            hint=FALLBACK,
        )
    yield replaced(match.module, partial(decided, mode, match.module.forward))


KIND = LayerKind("key_indexer", recognise, run)
