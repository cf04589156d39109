"""Phi-4-multimodal: an image is the grid of its tiles without padding, followed by an overview grid.

Each row of both grids ends in a newline embedding, and another embedding separates the two grids.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from limelight.models.families import Family
from limelight.models.spans import Size, newline_grid, squares, tower_side
from limelight.types import Span


def pictures(span: Span, config: Any, sizes: deque[Size]) -> list[Span]:
    """Lay out a run as one image of the next size, that of its tile grid in pixels, including padding."""
    vision = config.vision_config
    tile = int(getattr(vision, "crop_size", None) or 0)
    half = (tower_side(config) or 1) // 2  # patches are pooled by two
    side = tile // int(vision.patch_size) // 2 if tile else half
    if span.modality != "image" or not sizes or not side:
        return squares(span, config)
    across = int(sizes[0][1]) * side // (tile or side)
    down = int(sizes[0][0]) * side // (tile or side)
    left = len(span) - 1 - side * (side + 1)
    for rows, columns in ((down, left // down - 1 if down else 0), (left // (across + 1), across)):
        if 0 < rows <= down and 0 < columns <= across and rows * (columns + 1) == left:
            sizes.popleft()
            tiles = newline_grid(span.start, rows, columns)
            return [tiles, Span(tiles.stop, tiles.stop + 1, "image"), newline_grid(tiles.stop + 1, side, side)]
    return [span]


FAMILY = Family(
    "phi4-multimodal",
    ("phi4_multimodal",),
    transcribe="Transcribe the audio clip into text.",
    pictures=pictures,
    whole_last=True,
)
