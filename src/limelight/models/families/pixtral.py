"""Models with Pixtral's vision encoder (Mistral 3): images of any size, a break token after each row, a final end token.

Break and end tokens are ordinary ids of the vocabulary, but they belong to the image and never to the question.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from limelight.errors import MediaError
from limelight.models.families import Family
from limelight.models.spans import Size, newline_grid, squares
from limelight.types import Span


def members(ids: Tensor, modality: Tensor) -> Tensor:
    """Add the position after each run of placeholders to the image."""
    out = modality.clone()
    out[:, 1:][(modality[:, :-1] == 1) & (modality[:, 1:] == 0)] = 1
    return out


def pictures(span: Span, config: Any, sizes: deque[Size]) -> list[Span]:
    """Split a run into images of the next ``sizes``; unchanged if they do not fit."""
    if span.modality != "image":
        return squares(span, config)
    cell = int(config.vision_config.patch_size) * int(getattr(config, "spatial_merge_size", 1) or 1)
    laid: list[Span] = []
    start = span.start
    while start < span.stop and len(laid) < len(sizes):
        height, width = sizes[len(laid)]
        if height < cell or width < cell:
            break
        laid.append(newline_grid(start, height // cell, width // cell))
        start = laid[-1].stop
    if start != span.stop:
        return [span]
    for _ in laid:
        sizes.popleft()
    return laid


def _check_sizes(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Raise MediaError for a single position of media, on which transformers' code fails (it squeezes the features)."""
    sizes, config = inputs.get("image_sizes"), getattr(model.config, "vision_config", None)
    merge = getattr(model.config, "spatial_merge_size", None)
    if isinstance(sizes, Tensor) and merge and config is not None:
        cell = int(config.patch_size) * int(merge)
        if int((sizes // cell).prod(dim=-1).sum()) < 2:
            raise MediaError(
                f"an image of {tuple(sizes[0].tolist())} pixels is too small for {type(model).__name__}: it has only one position",
                hint=f"pass an image of more than {cell} pixels along one side",
            )
    return {}


FAMILY = Family(
    "pixtral",
    ("mistral3", "llava/pixtral", "lighton_ocr"),
    members=members,
    pictures=pictures,
    extra_inputs=_check_sizes,
)
