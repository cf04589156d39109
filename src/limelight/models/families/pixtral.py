"""Models with Pixtral's vision encoder (Mistral 3): images of any size, a break token after each row, a final end token.

Break and end tokens are ordinary ids of the vocabulary, but they belong to the image and never to the question.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import Tensor

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


FAMILY = Family("pixtral", ("mistral3", "llava/pixtral", "lighton_ocr"), members=members, pictures=pictures)
