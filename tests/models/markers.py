"""A spot on an original, and which positions of the prompt it reaches: the slow way to learn what each position shows.

The vision tower's attention is silenced, so that a position is reached by its own patches alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from limelight.models.adapter import Adapter
from limelight.types import Box, Clip, Prompt, Span

TOWER = ("vision", "visual", "tower", "image_embed", "vpm", "audio")


@contextmanager
def local(adapter: Adapter) -> Iterator[None]:
    """Inside the block no patch of a picture hears of another by attention."""

    def nothing(module: nn.Module, args: Any, out: Any) -> Any:
        first = out[0] if isinstance(out, tuple) else out
        return (first * 0, *out[1:]) if isinstance(out, tuple) else first * 0

    handles = [
        module.register_forward_hook(nothing)
        for name, module in adapter.parent_model.named_modules()
        if re.search(r"Attention\d*$|Attention(Flash|Sdpa)?$", type(module).__name__)
        and any(t in name for t in TOWER)
        and "pool" not in name.lower()
    ]
    assert handles, "the tower has no attention to silence"
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def spotted(size: tuple[int, int], spot: Box | None, base: int = 60) -> Image.Image:
    pixels = np.full((size[1], size[0], 3), base, np.uint8)
    if spot is not None:
        left, top, right, bottom = (round(v) for v in spot)
        pixels[top:bottom, left:right] = (255, 30, 200)
    return Image.fromarray(pixels)


def film(size: tuple[int, int], frames: int, spot: Box, at: int) -> Clip:
    shown = tuple(spotted(size, spot if i == at else None) for i in range(frames))
    return Clip(shown, tuple(i / 4 for i in range(frames)))


def embeds(adapter: Adapter, prompt: Prompt) -> torch.Tensor:
    with torch.no_grad():
        return adapter.capture(prompt.tensors).row(0).embeds[0]


def reached(adapter: Adapter, plain: Prompt, marked: Prompt) -> set[int]:
    """Positions whose embeddings differ."""
    with local(adapter):
        one, two = embeds(adapter, plain), embeds(adapter, marked)
    assert one.shape == two.shape
    change = (one - two).abs().amax(-1)
    return (
        set((change > 1e-3 * float(change.max().clamp_min(1e-9))).nonzero()[:, 0].tolist()) if change.max() else set()
    )


def cells(spans: Sequence[Span], kind: str) -> Iterator[tuple[int, int, int, Box, Span]]:
    """(position, step, source, box of the cell, span) of every position that has a place."""
    for span in spans:
        if span.modality != kind or span.region is None or span.grid is None:
            continue
        rows, columns = span.cells
        width = span.grid[-1]
        for step in range(span.grid[0] if len(span.grid) == 3 else 1):
            for row in range(rows):
                for column in range(columns):
                    at = span.start + (step * rows + row) * width + column
                    yield at, step, span.region.source, span.region.cell(row, column, (rows, columns)), span


def apart(one: Box, two: Box) -> float:
    """Pixels between two boxes; 0 or less where they touch or overlap."""
    return max(one[0] - two[2], two[0] - one[2], one[1] - two[3], two[1] - one[3])
