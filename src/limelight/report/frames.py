"""Contact sheets: one word's relevance over the frames of a video."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from limelight.errors import SettingError
from limelight.report import heat
from limelight.report.figure import headline, new_figure, save, share_bar, top_words, write
from limelight.report.media import Media
from limelight.report.overlay import enlarged, unseen
from limelight.report.views import View, views
from limelight.report.words import text_words
from limelight.types import Clip, Relevance


def contact_sheet(
    relevance: Relevance,
    frames: Clip | Sequence[Image.Image] | Media,
    *,
    index: int = 0,
    word: str | None = None,
    strategy: str = "",
    columns: int = 4,
    top: int = 6,
    template: Collection[int] = (),
    path: str | Path | None = None,
) -> Figure:
    """Draw every frame with its heat and its share of the video's relevance, with bars below.

    Args:
        frames: the model's input frames, in order; a Media for several videos. A model that merges neighbouring frames
            (Qwen-VL: two) has fewer grids than frames; each grid is drawn over the middle one of its frames.
        index: which video of the prompt.

    Raises:
        SettingError: there is no such video, or its layout is unknown.
    """
    if not isinstance(frames, Media) and not len(frames):
        raise SettingError("no frames to draw on", hint="pass the model's input frames")
    media = frames if isinstance(frames, Media) else Media(videos=[frames])
    sheets = _sheets(relevance, frames, index)
    pictures = media.frames(index if isinstance(frames, Media) else 0)
    joined = np.concatenate([sheet[2].ravel() for sheet, _ in sheets])
    full, total = heat.limit(joined), float(np.abs(joined).sum()) or 1.0
    strength = heat.faintness(heat.media_share(relevance))
    columns = min(columns, len(sheets))
    rows = math.ceil(len(sheets) / columns)
    listed = min(top, len(text_words(relevance, template)))
    height = rows * 2.3 * min(pictures[0].height / pictures[0].width, 1.6) + rows * 0.2
    foot = 0.35 + 0.19 * listed if listed else 0.01
    figure = new_figure(columns * 2.3 + 0.9, height + foot + 0.9)
    write(figure.suptitle(headline(relevance, word, strategy), fontsize=10))
    grid = figure.add_gridspec(3, 2, width_ratios=[columns * 2.3, 0.16], height_ratios=[height, 0.3, foot])
    inner = grid[0, 0].subgridspec(rows, columns)
    for i, ((frame, label, values), view) in enumerate(sheets):
        axes = figure.add_subplot(inner[i // columns, i % columns])
        axes.imshow(heat.blend(enlarged(pictures[frame], 256), [(values, view.box)], full, strength))
        note = unseen(view, [view.box]) if view.span.region is not None else "visible part of the frame unknown"
        if note:
            axes.set_xlabel(note, fontsize=6)
        axes.set_title(f"{label}: {float(np.abs(values).sum()) / total:.0%}", fontsize=7)
        axes.set_xticks([])
        axes.set_yticks([])
    heat.colour_bar(figure.add_subplot(grid[0, 1]), full, joined, strength)
    share_bar(figure.add_subplot(grid[1, 0]), relevance)
    if listed:
        top_words(figure.add_subplot(grid[2, 0]), relevance, listed, full, template)
    if path is not None:
        save(figure, path)
    return figure


def frame_grids(
    relevance: Relevance, frames: Clip | Sequence[Image.Image] | Media, index: int = 0
) -> list[tuple[int, str, heat.Floats]]:
    """Return (frame to draw on, label, scores ``[rows, columns]``) of every grid of the ``index``-th video.

    Raises:
        SettingError: there is no such video, or its layout is unknown.
    """
    return [sheet for sheet, _ in _sheets(relevance, frames, index)]


def _sheets(
    relevance: Relevance, frames: Clip | Sequence[Image.Image] | Media, index: int
) -> list[tuple[tuple[int, str, heat.Floats], View]]:
    values = heat.scores(relevance)
    media = frames if isinstance(frames, Media) else Media(videos=[frames])
    spans = relevance.spans
    if not isinstance(frames, Media) and index > 0:  # the frames of one of several videos
        spans = relevance.spans_of("video")[index : index + 1]
        index = 0 if spans else index
    found = [v for v in views(spans, media) if v.steps and v.source == index]
    if not found:
        known = [s for s in spans if s.modality == "video"]
        if not known or index >= len(media.videos):
            raise SettingError(f"no video number {index} in this prompt", hint="count from 0")
        raise SettingError(
            f"the layout of the video's {sum(map(len, known))} positions is unknown",
            hint="use .scores[span.start:span.stop]",
        )
    return [
        ((*step, grid), view)
        for view in found
        for step, grid in zip(view.steps, view.cells(values).reshape(-1, *view.grid[-2:]), strict=True)
    ]
