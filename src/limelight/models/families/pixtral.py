"""Mistral3 and whoever else has Pixtral's tower: a picture of any size, a break token after each row, an end token last.

Break and end tokens are words of the vocabulary, yet they belong to the picture: they are never part of the question.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import Tensor

from limelight.models.families import Family
from limelight.models.spans import Size, newline_grid, squares
from limelight.types import Span


def members(ids: Tensor, modality: Tensor) -> Tensor:
    """The position after each run of placeholders is the picture's too."""
    out = modality.clone()
    out[:, 1:][(modality[:, :-1] == 1) & (modality[:, 1:] == 0)] = 1
    return out


def pictures(span: Span, config: Any, sizes: deque[Size]) -> list[Span]:
    """A run as pictures of the sizes to come; as it is where they do not come out even."""
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
