"""Relevance over the pixels of pictures, where it was carried on through the encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limelight.report import heat
from limelight.report.views import View
from limelight.types import Relevance

FINEST = 64  # cells per side that are drawn: relevance of single pixels is noisy


def pixel_grids(relevance: Relevance, shown: Sequence[View], finest: int = FINEST) -> list[heat.Floats] | None:
    """Return the relevance of the pixels that each view shows, ``[rows, columns]``, signed, in units of the logit: every
    cell of the view's grid in as many equal parts as ``finest`` cells per side allow. None where relevance was not carried on to
    pixels, or their layout is not one tile ``[channels, height, width]`` per view.

    Args:
        relevance: of ``attribute(..., through_encoder=True)``.
        shown: the views of all its image spans.
    """
    tiles = _tiles(relevance)
    if tiles is None or len(tiles) != len(shown):
        return None
    if any(v.span.grid is None or v.span.region is None or v.span.region.tiles for v in shown):
        return None
    height, width = tiles.shape[2:]
    if any(len(v.grid) != 2 or v.grid[0] > height or v.grid[1] > width for v in shown):
        return None
    if any(height // v.grid[0] != width // v.grid[1] for v in shown):  # a grid without the padding that the tile has
        return None
    return [heat.array(_divided(t.sum(0), v.grid, finest)) for t, v in zip(tiles, shown, strict=True)]


def _tiles(relevance: Relevance) -> Tensor | None:
    """``[tiles, channels, height, width]`` of the one tensor of pictures among the model's inputs."""
    pictures = [x for name, x in relevance.media_inputs.items() if name not in relevance.media_times and x.ndim > 3]
    if len(pictures) != 1:
        return None
    found = pictures[0][0] if pictures[0].ndim == 5 and len(pictures[0]) == 1 else pictures[0]
    return found if found.ndim == 4 and found.shape[1] in (1, 3) else None


def _divided(pixels: Tensor, grid: Sequence[int], finest: int) -> Tensor:
    """Sum pixels ``[height, width]`` over equal parts of the cells of ``grid``. What is left over beyond complete cells is
    not read by the encoder's convolution."""
    out = pixels
    for axis, cells in enumerate(grid):
        per_cell = out.shape[axis] // cells
        parts = max((d for d in range(1, per_cell + 1) if per_cell % d == 0 and d * cells <= finest), default=1)
        used = out.narrow(axis, 0, cells * per_cell)
        out = torch.stack(torch.split(used, per_cell // parts, axis)).sum(axis + 1).movedim(0, axis)
    return out
