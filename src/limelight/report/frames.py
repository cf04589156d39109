"""Relevance over the frames of a video, for one word: a contact sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from limelight.errors import SettingError
from limelight.report import heat
from limelight.report.figure import headline, new_figure, save, share_bar, top_words, write
from limelight.report.media import Media, views
from limelight.report.overlay import enlarged
from limelight.types import Relevance


def contact_sheet(
    relevance: Relevance,
    frames: Sequence[Image.Image],
    *,
    index: int = 0,
    word: str | None = None,
    strategy: str = "",
    columns: int = 4,
    top: int = 6,
    path: str | Path | None = None,
) -> Figure:
    """Every frame with its heat and its share of the video's relevance; bars of both below.

    Args:
        frames: the frames the model was given, in order. A model that merges neighbours (Qwen-VL: two) has fewer grids
            than frames; each grid is drawn over the frame in the middle of those it stands for.
        index: which video of the prompt.

    Raises:
        SettingError: there is no such video, or its layout is not known.
    """
    if not frames:
        raise SettingError("no frames to draw on", hint="pass the frames the model was given")
    sheets = frame_grids(relevance, frames, index)
    joined = np.concatenate([grid.ravel() for _, _, grid in sheets])
    full, whole = heat.limit(joined), float(np.abs(joined).sum()) or 1.0
    columns = min(columns, len(sheets))
    rows = math.ceil(len(sheets) / columns)
    listed = min(top, sum(len(s) for s in relevance.spans_of("text")))
    height = rows * 2.3 * min(frames[0].height / frames[0].width, 1.6) + rows * 0.2
    foot = 0.35 + 0.19 * listed if listed else 0.01
    figure = new_figure(columns * 2.3 + 0.9, height + foot + 0.9)
    write(figure.suptitle(headline(relevance, word, strategy), fontsize=10))
    grid = figure.add_gridspec(3, 2, width_ratios=[columns * 2.3, 0.16], height_ratios=[height, 0.3, foot])
    inner = grid[0, 0].subgridspec(rows, columns)
    for i, (frame, label, values) in enumerate(sheets):
        axes = figure.add_subplot(inner[i // columns, i % columns])
        axes.imshow(heat.blend(enlarged(frames[frame], 256), values, full, (0, 0, 1, 1)))
        axes.set_title(f"{label}: {float(np.abs(values).sum()) / whole:.0%}", fontsize=7)
        axes.set_xticks([])
        axes.set_yticks([])
    heat.colour_bar(figure.add_subplot(grid[0, 1]), full, joined)
    share_bar(figure.add_subplot(grid[1, 0]), relevance)
    if listed:
        top_words(figure.add_subplot(grid[2, 0]), relevance, listed, full)
    if path is not None:
        save(figure, path)
    return figure


def frame_grids(
    relevance: Relevance, frames: Sequence[Image.Image], index: int = 0
) -> list[tuple[int, str, heat.Floats]]:
    """(frame to draw on, name, scores ``[rows, columns]``) of every grid of the ``index``-th video.

    Raises:
        SettingError: there is no such video, or its layout is not known.
    """
    values = heat.scores(relevance)
    single = views(relevance.spans, Media(videos=[list(frames)]))
    if single and all(v.frame is not None for v in single):
        return [(v.frame or 0, v.label, values[v.span.start : v.span.stop].reshape(v.grid)) for v in single]
    spans = relevance.spans_of("video")
    if not 0 <= index < len(spans):
        raise SettingError(f"no video number {index}: this prompt has {len(spans)}", hint="count from 0")
    span = spans[index]
    if span.grid is None or len(span.grid) != 3:
        raise SettingError(
            f"the layout of the video's {len(span)} positions is not known", hint="use .scores[span.start:span.stop]"
        )
    grids = values[span.start : span.stop].reshape(span.grid)
    return [(*frame_of(t, len(grids), len(frames)), one) for t, one in enumerate(grids)]


def frame_of(grid: int, grids: int, frames: int) -> tuple[int, str]:
    """The middle one of the frames that the ``grid``-th of ``grids`` stands for, and what to call them."""
    first = min(frames - 1, int(grid * frames / grids))
    last = max(first, min(frames, int((grid + 1) * frames / grids)) - 1)
    label = f"frame {first + 1}" if first == last else f"frames {first + 1}–{last + 1}"
    return (first + last) // 2, label
