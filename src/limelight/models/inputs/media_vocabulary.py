"""Ids beyond the text embedding table (Gemma 3n): vision and audio vocabularies, embedded by the media embedders.

A model may generate such an id (for example an end-of-image token); its own forward then uses that embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limelight.models.inputs.side_features import Embedder, SideFeatureKind


def hard_tokens(model: nn.Module, decoder: nn.Module | None = None) -> Embedder | None:
    """Return ``(ids [B, N], text embeddings [B, N, D]) -> decoder embeddings``, or None if there are only text ids."""
    tables: list[Any] = [m for m in model.modules() if _embeds_ids(m)]
    if not tables:
        return None
    tables.sort(key=lambda m: int(m.vocab_offset))

    def embed(ids: Tensor, words: Tensor) -> Tensor:
        out = words
        for table in tables:
            own = ids - int(table.vocab_offset)
            here = (own >= 0) & (own < int(table.vocab_size))
            found = table(input_ids=ids.masked_fill(~here, int(table.vocab_offset)))
            out = torch.where(here[..., None].to(out.device), found.to(out), out)
        return out

    return embed


def vocabulary_size(model: nn.Module, table: Any) -> int | None:
    """Return the number of ids that the text embedding ``table`` and the media vocabularies embed; None if unknown."""
    count: int | None = getattr(table, "num_embeddings", None)
    ends = [int(m.vocab_offset) + int(m.vocab_size) for m in model.modules() if _embeds_ids(m)]  # type: ignore[arg-type]
    return None if count is None else max([count, *ends])


def _embeds_ids(module: Any) -> bool:
    offset, size = getattr(module, "vocab_offset", None), getattr(module, "vocab_size", None)
    table = getattr(module, "embedding", None)
    return isinstance(offset, int) and isinstance(size, int) and isinstance(table, nn.Embedding)


KIND = SideFeatureKind("media vocabulary", embedder=hard_tokens)
