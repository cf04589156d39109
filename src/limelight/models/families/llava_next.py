"""LLaVA-NeXT and LLaVA-OneVision: a picture of any resolution is a small base grid, then the unpadded tiles in rows.

Each row of the tiles ends in a newline embedding. A picture that was not tiled, and a video, end in one newline.
Differs from LLaVA-1.5 only in that layout, so the paper's LLaVA settings are its defaults.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, islice, tee
from typing import Any

from limelight.models.families import Family
from limelight.models.spans import Size, newline_grid, squares, tower_side
from limelight.types import Span


def best_resolution(size: Size, pinpoints: Sequence[Size]) -> Size:
    """The resolution (height, width) that keeps most of the picture's pixels and wastes the fewest of its own."""

    def merit(resolution: Size) -> tuple[int, int]:
        scale = min(resolution[1] / size[1], resolution[0] / size[0])
        kept = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
        return kept, kept - resolution[0] * resolution[1]

    return max(pinpoints, key=merit)


def tiled_grid(size: Size, config: Any) -> tuple[int, int]:
    """Rows and columns (newlines not counted) of the tiles of one picture of ``size`` (height, width) in pixels."""
    side, tile = tower_side(config) or 1, int(config.vision_config.image_size)
    height, width = best_resolution(size, [(int(h), int(w)) for h, w in config.image_grid_pinpoints])
    rows, columns = height // tile * side, width // tile * side
    if size[1] / size[0] > columns / rows:
        cut = (rows - int(round(size[0] * (columns / size[1]), 7))) // 2
        rows -= 2 * cut
    else:
        cut = (columns - int(round(size[1] * (rows / size[0]), 7))) // 2
        columns -= 2 * cut
    most = str(getattr(config, "vision_aspect_ratio", "")).removeprefix("anyres_max_")
    if most.isdigit():  # LLaVA-OneVision shrinks what would be too many positions
        ratio = math.sqrt(rows * columns / (int(most) * side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return rows, columns


def _tiled(start: int, size: Size, config: Any) -> list[Span]:
    side = tower_side(config) or 1
    base = Span(start, start + side * side, "image", (side, side))
    return [base, newline_grid(base.stop, *tiled_grid(size, config))]


def _whole(start: int, config: Any) -> list[Span]:
    side = tower_side(config) or 1
    base = Span(start, start + side * side, "image", (side, side))
    return [base, Span(base.stop, base.stop + 1, "image")]


def _laid(span: Span, config: Any, sizes: Iterator[Size] | None) -> list[Span] | None:
    """The whole run as tiled pictures (with sizes) or as untiled ones, or None when that does not come out even."""
    out: list[Span] = []
    start = span.start
    while start < span.stop:
        size = next(sizes, None) if sizes is not None else None
        if sizes is not None and size is None:
            return None
        out += _whole(start, config) if size is None else _tiled(start, size, config)
        start = out[-1].stop
    return out if start == span.stop else None


def pictures(span: Span, config: Any, sizes: Iterator[Size]) -> list[Span]:
    if span.modality == "video":
        side = math.ceil((tower_side(config) or 1) / 2)
        frames, rest = divmod(len(span), side * side)
        if frames and rest == 1:
            stop = span.start + frames * side * side
            return [Span(span.start, stop, "video", (frames, side, side)), Span(stop, span.stop, "video")]
        return squares(span, config)
    here, kept = tee(sizes)
    found = _laid(span, config, here)
    if found is None:
        found = _laid(span, config, None)
    used = sum(s.margin == 0 and s.grid is not None for s in found or ())
    del here, kept, chain, islice
    return found or [span]


FAMILY = Family("llava-next", ("llava_next", "llava_onevision"), pictures=pictures)
