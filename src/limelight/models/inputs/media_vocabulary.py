"""Ids beyond the words' table (Gemma 3n): a vision and an audio vocabulary, embedded by the modules that embed the media.

A model may generate such an id (an end-of-picture mark is one), and its own forward then takes the embedding from there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limelight.models.inputs.side_features import Embedder, SideFeatureKind


def hard_tokens(model: nn.Module, decoder: nn.Module | None = None) -> Embedder | None:
    """``(ids [B, N], embeddings of words [B, N, D])`` -> the embeddings the decoder receives; None where words are all."""
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


def _embeds_ids(module: Any) -> bool:
    offset, size = getattr(module, "vocab_offset", None), getattr(module, "vocab_size", None)
    table = getattr(module, "embedding", None)
    return isinstance(offset, int) and isinstance(size, int) and isinstance(table, nn.Embedding)


KIND = SideFeatureKind("media vocabulary", embedder=hard_tokens)
