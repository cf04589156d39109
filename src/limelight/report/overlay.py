"""Relevance over the picture, for one word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from limelight.errors import SettingError
from limelight.report import heat
from limelight.report.figure import headline, new_figure, save, share_bar, top_words, write
from limelight.report.media import Box, Media
from limelight.report.views import View, views
from limelight.types import Relevance

_COLUMNS = 4


def overlay(
    relevance: Relevance,
    pictures: Image.Image | Sequence[Image.Image] | Media,
    *,
    boxes: Sequence[Box] = (),
    word: str | None = None,
    strategy: str = "",
    top: int = 6,
    path: str | Path | None = None,
) -> Figure:
    """The heat map of one word over the picture or pictures, a colour bar, modality bars and the top text tokens.

    Args:
        relevance: of one token (``attribute``) or one word (``words.word_relevance``).
        pictures: in the order of the prompt. Tiles, whose place in the picture is not known, are drawn bare.
        boxes: the part of each picture that the model saw, as fractions (``media.seen_box``); the whole by default.
        word: what the title calls the word; the target's spelling by default.
        top: how many text tokens to list; 0 for none.
        path: also write the figure there.

    Raises:
        SettingError: the relevance has no picture, or the path cannot be written.

    Example:
        >>> from limelight.report.overlay import overlay
        >>> overlay(relevance, picture, word="cup", path="cup.png")  # doctest: +SKIP
    """
    media = pictures if isinstance(pictures, Media) else Media(_listed(pictures), boxes)
    shown = [v for v in views(relevance.spans, media) if v.kind == "image"]
    if not shown:
        raise SettingError(
            "this relevance covers no picture",
            hint=f"its modalities are {', '.join(relevance.shares())}; see report.waveform and report.frames",
        )
    values = heat.scores(relevance)
    percept = [v.cells(values) for v in shown]
    joined = np.concatenate([p.ravel() for p in percept])
    full = heat.limit(joined)
    columns = min(_COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    side = 4.2 if len(shown) == 1 else 2.4
    aspect = max((_aspect(v, media) for v in shown), default=1.0)
    listed = min(top, sum(len(s) for s in relevance.spans_of("text")))
    body, foot = rows * side * min(aspect, 1.6), 0.32 + (0.35 + 0.19 * listed if listed else 0)
    figure = new_figure(columns * side + 0.9, body + foot + 0.5)
    write(figure.suptitle(headline(relevance, word, strategy), fontsize=10))
    grid = figure.add_gridspec(
        3 if listed else 2, 2, width_ratios=[columns * side, 0.16],
        height_ratios=[body, 0.3, foot - 0.32] if listed else [body, 0.3],
    )  # fmt: skip
    inner = grid[0, 0].subgridspec(rows, columns)
    for i, view in enumerate(shown):
        axes = figure.add_subplot(inner[i // columns, i % columns])
        draw(axes, view, percept[i], media, full)
        if len(shown) > 1:
            axes.set_title(view.label, fontsize=7)
    heat.colour_bar(figure.add_subplot(grid[0, 1]), full, joined)
    share_bar(figure.add_subplot(grid[1, 0]), relevance)
    if listed:
        top_words(figure.add_subplot(grid[2, 0]), relevance, listed, full)
    if path is not None:
        save(figure, path)
    return figure


def draw(axes: Any, view: View, values: heat.Floats, media: Media, full: float) -> None:
    """One picture with its heat; a bare grid where its place is not known."""
    axes.set_xticks([])
    axes.set_yticks([])
    grid = values if values.ndim == 2 else values.reshape(1, -1)
    if view.source is None or view.span.grid is None:
        axes.imshow(heat.rgba(grid, full), interpolation="nearest", aspect="equal" if len(grid) > 1 else "auto")
        if view.span.grid is None:
            axes.set_xlabel(f"{grid.size} positions in order (layout not known)", fontsize=7)
        return
    axes.imshow(heat.blend(enlarged(media.pictures[view.source]), grid, full, view.box))


def enlarged(picture: Image.Image, least: int = 448) -> Image.Image:
    """A small picture brought to a size at which the heat is smooth."""
    longest = max(picture.size)
    if longest >= least:
        return picture
    factor = least / longest
    return picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.LANCZOS)


def _listed(pictures: Image.Image | Sequence[Image.Image]) -> list[Image.Image]:
    return [pictures] if isinstance(pictures, Image.Image) else list(pictures)


def _aspect(view: View, media: Media) -> float:
    if view.source is None:
        rows, columns = view.grid[-2:]
        return max(rows / columns, 0.25)
    shape = media.pictures[view.source]
    return shape.height / shape.width
