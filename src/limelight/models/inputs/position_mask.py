"""Media positions marked by a mask beside the ids (Kosmos-2, Kosmos-2.5), in decoders that insert the media themselves.

There is no placeholder token, so the mask determines the media positions. The leaf of relevance is the decoder's starting
point: text embeddings with the media inserted, before it scales them and adds positions (which are biases).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limelight.models.inputs.side_features import Placed, SideFeatureKind

PLACES, FEATURES = "image_embeds_position_mask", "image_embeds"


def placed(decoder: Any, got: Mapping[str, Any]) -> Placed | None:
    """Return the merged embeddings ``[B, T, D]`` of a decoder call that contains ids, media and their mask; else None."""
    ids, where, features = (got.get(name) for name in ("input_ids", PLACES, FEATURES))
    if not (isinstance(ids, Tensor) and isinstance(where, Tensor) and isinstance(features, Tensor)):
        return None
    with torch.no_grad():
        embeds: Tensor = decoder.get_input_embeddings()(ids).clone()
        embeds[where.to(embeds.device) != 0] = features.to(embeds).reshape(-1, embeds.shape[-1])
    return Placed(embeds, {k: v for k, v in got.items() if k not in ("input_ids", FEATURES)})


def places(inputs: Mapping[str, Any]) -> Tensor | None:
    """Return int64 ``[B, T]``, 1 at an image, or None if the inputs contain no position mask."""
    where, ids = inputs.get(PLACES), inputs.get("input_ids")
    if not isinstance(where, Tensor) or not isinstance(ids, Tensor):
        return None
    marked = (where != 0).long()
    return torch.nn.functional.pad(marked, (0, ids.shape[1] - marked.shape[1]))  # generated tokens are text


KIND = SideFeatureKind("position mask", place=placed, places=places)


def is_positions(module: nn.Module) -> bool:
    """Return whether this is a parameter-free table of positions (sinusoids): not an nn.Embedding, but also a bias."""
    if next(module.children(), None) is not None or next(module.parameters(), None) is not None:
        return False
    tables = [b for b in module.buffers(recurse=False) if b.ndim == 2]
    counted = hasattr(module, "num_positions") and hasattr(module, "padding_idx")
    return len(tables) == 1 and (counted or list(inspect.signature(module.forward).parameters) == ["position_ids"])
