"""Overlays: one word's relevance over the image."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from limelight.errors import SettingError
from limelight.report import heat
from limelight.report.figure import headline, new_figure, save, share_bar, top_words, write
from limelight.report.input_pixels import pixel_grids
from limelight.report.media import Media
from limelight.report.views import View, stages, views
from limelight.report.words import text_words
from limelight.types import Box, Relevance

_COLUMNS = 4


def overlay(
    relevance: Relevance,
    pictures: Image.Image | Sequence[Image.Image] | Media,
    *,
    boxes: Sequence[Box] = (),
    word: str | None = None,
    strategy: str = "",
    top: int = 6,
    template: Collection[int] = (),
    path: str | Path | None = None,
) -> Figure:
    """Draw the heat map of one word over the image or images, a colour bar, modality bars and the top text tokens.

    Args:
        relevance: of one token (``attribute``) or one word (``words.word_relevance``).
        pictures: images in the order of the prompt. The heat is placed by the spans' regions (determined by
            ``Adapter.prepare`` from the processor); parts that the model did not see are darkened. Positions with unknown
            location are drawn as a separate grid, labelled as such. Relevance that was carried on through the encoder
            (``attribute(..., through_encoder=True)``) is drawn over the pixels instead, where their layout is known
            (:func:`limelight.report.input_pixels.pixel_grids`); the figure says which.
        boxes: for spans without a region: the part of each image that its grid covers, as fractions.
        word: the word in the title; the target token's text by default.
        top: number of words of the text to list; 0 for none.
        template: positions to leave out of that list (``Prompt.template``).
        path: also write the figure to this file.

    Raises:
        SettingError: the relevance has no image, or the path cannot be written.

    Example:
        >>> from limelight.report.overlay import overlay
        >>> overlay(relevance, picture, word="cup", path="cup.png")  # doctest: +SKIP
    """
    media = pictures if isinstance(pictures, Media) else Media(_listed(pictures), boxes)
    shown = [v for v in views(relevance.spans, media) if v.kind == "image"]
    if not shown:
        raise SettingError(
            "this relevance has no image positions",
            hint=f"its modalities are {', '.join(relevance.shares())}; see report.waveform and report.frames",
        )
    values = heat.scores(relevance)
    of_pixels = pixel_grids(relevance, shown)
    media_scores = of_pixels if of_pixels is not None else [v.cells(values) for v in shown]
    by_start = {v.span.start: cells for v, cells in zip(shown, media_scores, strict=True)}
    joined = np.concatenate([p.ravel() for p in media_scores])
    full, strength = heat.limit(joined), heat.faintness(heat.media_share(relevance))
    staged = stages(shown)
    columns = min(_COLUMNS, len(staged))
    rows = math.ceil(len(staged) / columns)
    side = 4.2 if len(staged) == 1 else 2.4
    aspect = max((_aspect(v, media) for v in shown), default=1.0)
    listed = min(top, len(text_words(relevance, template)))
    body, foot = rows * side * min(aspect, 1.6), 0.32 + (0.35 + 0.19 * listed if listed else 0)
    figure = new_figure(columns * side + 0.9, body + foot + 0.5)
    write(figure.suptitle(headline(relevance, word, strategy), fontsize=10))
    grid = figure.add_gridspec(
        3 if listed else 2, 2, width_ratios=[columns * side, 0.16],
        height_ratios=[body, 0.3, foot - 0.32] if listed else [body, 0.3],
    )  # fmt: skip
    inner = grid[0, 0].subgridspec(rows, columns)
    for i, together in enumerate(staged):
        axes = figure.add_subplot(inner[i // columns, i % columns])
        draw(
            axes,
            [(v, by_start[v.span.start]) for v in together],
            media,
            full,
            strength,
            kind_of_heat(relevance, of_pixels),
        )
        if len(staged) > 1:
            axes.set_title(together[0].label, fontsize=7)
    heat.colour_bar(figure.add_subplot(grid[0, 1]), full, joined, strength)
    share_bar(figure.add_subplot(grid[1, 0]), relevance)
    if listed:
        top_words(figure.add_subplot(grid[2, 0]), relevance, listed, full, template)
    if path is not None:
        save(figure, path)
    return figure


def draw(
    axes: Any,
    parts: Sequence[tuple[View, heat.Floats]],
    media: Media,
    full: float,
    strength: float = 1.0,
    note: str = "",
) -> None:
    """Draw one image with the heat of its views and a note below, or a separate grid where the location in the image is
    unknown."""
    axes.set_xticks([])
    axes.set_yticks([])
    view, values = parts[0]
    grid = values if values.ndim == 2 else values.reshape(1, -1)
    if view.source is None or view.span.grid is None:
        axes.imshow(
            heat.rgba(grid, full, strength), interpolation="nearest", aspect="equal" if len(grid) > 1 else "auto"
        )
        unknown = "location in the image unknown" if view.span.grid is not None else "layout unknown"
        axes.set_xlabel(f"{grid.size} positions in order ({unknown})", fontsize=7)
        return
    picture = enlarged(media.pictures[view.source])
    axes.imshow(heat.blend(picture, [(cells, v.box) for v, cells in parts], full, strength))
    notes = [n for n in (note, unseen(parts[0][0], [v.box for v, _ in parts])) if n]
    if notes:
        axes.set_xlabel("\n".join(notes), fontsize=7)


def kind_of_heat(relevance: Relevance, of_pixels: Sequence[heat.Floats] | None) -> str:
    """What the heat is of, where relevance was carried on through the encoder; else ""."""
    if not relevance.media_inputs:
        return ""
    return (
        "relevance of pixels"
        if of_pixels is not None
        else "relevance of positions: the layout of the pixels is unknown"
    )


def unseen(view: View, boxes: Sequence[Box]) -> str:
    """Return the note for an image of which the model saw only a part: "dark: not seen by the model (25 %)"; or ""."""
    seen = sum(max(0.0, min(b[2], 1.0) - max(b[0], 0.0)) * max(0.0, min(b[3], 1.0) - max(b[1], 0.0)) for b in boxes)
    return "" if view.source is None or seen > 0.995 else f"dark: not seen by the model ({1 - seen:.0%})"


def enlarged(picture: Image.Image, least: int = 448) -> Image.Image:
    """Enlarge a small image so that the heat is drawn smoothly."""
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
