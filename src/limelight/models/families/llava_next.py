"""LLaVA-NeXT and LLaVA-OneVision: an image is a small overview grid, followed by the grid of its tiles without padding.

Each row of the tile grid ends in a newline embedding. An untiled image, and a video, end in a single newline.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch

from limelight.models.families import Family
from limelight.models.spans import Size, newline_grid, squares, tower_side
from limelight.types import Span


def tiled_grid(size: Size, config: Any) -> tuple[int, int]:
    """Return rows and columns (without newlines) of the tile grid of an image of ``size`` (height, width) in pixels."""
    from limelight.compat import get_anyres_image_grid_shape, unpad_image

    side, tile = tower_side(config) or 1, config.vision_config.image_size
    down, across = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, tile)
    padded = torch.empty(1, down * side, across * side, device="meta")
    rows, columns = (int(n) for n in unpad_image(padded, size).shape[1:])
    most = str(getattr(config, "vision_aspect_ratio", "")).removeprefix("anyres_max_")
    if most.isdigit():  # LLaVA-OneVision downsamples grids with too many positions
        ratio = math.sqrt(rows * columns / (int(most) * side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return rows, columns


def _picture(start: int, config: Any, size: Size | None) -> list[Span]:
    side = tower_side(config) or 1
    base = Span(start, start + side * side, "image", (side, side))
    if size is None:
        return [base, Span(base.stop, base.stop + 1, "image")]
    rows, columns = tiled_grid(size, config)
    if rows and columns:
        return [base, newline_grid(base.stop, rows, columns)]
    # so narrow that only newlines remain of its tile grid
    return [base, *([Span(base.stop, base.stop + rows, "image")] if rows else [])]


def _video(span: Span, config: Any) -> list[Span]:
    side = math.ceil((tower_side(config) or 1) / 2)
    frames, rest = divmod(len(span) - 1, side * side)
    if not frames or rest:
        return squares(span, config)
    stop = span.stop - 1
    return [Span(span.start, stop, "video", (frames, side, side)), Span(stop, span.stop, "video")]


def pictures(span: Span, config: Any, sizes: deque[Size]) -> list[Span]:
    """Split a run into tiled images of the next ``sizes``, else into untiled ones; unchanged if neither fits."""
    if span.modality == "video":
        return _video(span, config)
    for tiled in (True, False):
        laid: list[list[Span]] = []
        start = span.start
        while start < span.stop and not (tiled and len(laid) == len(sizes)):
            laid.append(_picture(start, config, sizes[len(laid)] if tiled else None))
            start = laid[-1][-1].stop
        if start == span.stop:
            for _ in laid[: len(sizes)]:
                sizes.popleft()
            return [piece for picture in laid for piece in picture]
    return [span]


FAMILY = Family("llava-next", ("llava_next", "llava_onevision"), pictures=pictures)
