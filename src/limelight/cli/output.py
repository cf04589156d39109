"""Output of an answer as a JSON document, an image or a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limelight.cli.terminal import out
from limelight.errors import SettingError
from limelight.media.image import read_image
from limelight.report import heat
from limelight.report.document import decision as decision
from limelight.report.document import document as document
from limelight.report.looks import place_of
from limelight.report.media import Media
from limelight.report.views import View, views
from limelight.report.word_times import moments
from limelight.report.words import (
    Word,
    choose,
    word_relevance,
)
from limelight.types import Generation, Prompt, Relevance


def shown_media(prompt: Prompt) -> Media:
    """Return the prompt's decoded media; the prompt's spans give the part that the model saw."""
    pictures = [read_image(i) for i in prompt.media.get("image", ())]
    return Media(pictures, (), prompt.media.get("audio", ()), prompt.media.get("video", ()))


def draw_word(generation: Generation, media: Media, which: str | None, path: Path) -> Word:
    """Draw one word's relevance over the image, the frames or the waveform to a file; return the word.

    Raises:
        SettingError: unknown word, or no relevance was computed.
    """
    from limelight.report.frames import contact_sheet
    from limelight.report.overlay import overlay
    from limelight.report.waveform import waveform

    word = choose(generation, which)
    relevance = word_relevance(generation, word)
    if relevance is None:
        raise SettingError(
            f"{generation.strategy} computed no relevance for {word.text!r}, so there is nothing to draw",
            hint="omit --no-relevance, or use `limelight attribute`",
        )
    kinds = {s.modality for s in relevance.spans}
    if kinds == {"text"}:
        raise SettingError(
            "the prompt has no image, audio or video to draw relevance over",
            hint="omit --overlay; `limelight attribute` lists the most relevant text, --html shows it",
        )
    named: dict[str, Any] = {"word": word.text, "strategy": generation.strategy, "path": path}
    named["template"] = generation.prompt.template
    shown = views(relevance.spans, media)
    if media.videos and ("video" in kinds or not media.pictures):
        contact_sheet(relevance, media, index=_strongest(relevance, shown, "video"), **named)
    elif "image" in kinds:
        overlay(relevance, media, **named)
    else:
        index = _strongest(relevance, shown, "audio")
        samples, rate = media.sounds[index] if media.sounds else (None, 16000)
        waveform(relevance, samples, rate, index=index, **named)
    return word


def _strongest(relevance: Relevance, shown: Sequence[View], kind: str) -> int:
    """Return which of several videos or audio clips has the largest share of the relevance."""
    scores = heat.scores(relevance)
    sums: dict[int, float] = {}
    for view in shown:
        if view.kind == kind and view.source is not None:
            sums[view.source] = sums.get(view.source, 0.0) + float(abs(view.cells(scores)).sum())
    return max(sums, key=lambda i: sums[i]) if sums else 0


def view_lines(generation: Generation) -> list[str]:
    """One line for each view that was taken: what it shows, its answer, its margin and its weight."""
    return [
        f"view {i}: {place_of(v)}: {v.answer.strip()!r}, {v.between[0].strip()} over {v.between[1].strip()} by {v.margin:.2f}, "
        f"weight {v.weight:.2g}"
        for step in generation.steps
        for i, v in enumerate(step.views, start=1)
    ]


def print_json(value: Any) -> None:
    """Print one JSON document to stdout."""
    out.file.write(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
    out.file.flush()


def place(relevance: Relevance, media: Media | None = None) -> str:
    """Describe the location of the strongest support: "row 2 of 7, column 3 of 7 (x 160–240, y 80–160)" in pixels of the
    original where known, "frame 3 · 1.0 s, row ...", "1.20–1.24 s", "padding after the end of the audio"; or ""."""
    shown = views(relevance.spans, media if media is not None else Media())
    scores = heat.scores(relevance)
    best = max(shown, key=lambda v: float(v.cells(scores).max()), default=None)
    if best is None:
        return ""
    cells = best.cells(scores)
    at = int(cells.argmax())
    if best.kind == "audio":
        if best.span.seconds is None:
            return f"position {at + 1} of {cells.size}"
        start, stop = moments(best.span)[at]
        return f"{start:.2f}–{stop:.2f} s" if stop > start else "padding after the end of the audio"
    if best.span.grid is None:
        return ""
    rows, columns = best.grid[-2:]
    step, cell = divmod(at, rows * columns)
    found = [best.steps[step][1]] if best.steps else [best.label] if len(shown) > 1 else []
    if len(best.grid) == 3 and not best.steps:
        found.append(f"step {step + 1} of {best.grid[0]}")
    row, column = divmod(cell, columns)
    text = ", ".join([*found, f"row {row + 1} of {rows}, column {column + 1} of {columns}"])
    if best.span.region is None:
        return text
    region = best.span.region
    left, top, right, bottom = (round(v) for v in region.cell(row, column, (rows, columns)))
    if not region.shown((rows, columns))[row][column]:
        return f"{found} (padding)"
    (left, right), (top, bottom) = (
        (max(a, 0), min(b, n)) for a, b, n in zip((left, top), (right, bottom), region.size, strict=True)
    )
    return f"{text} (x {left}–{right}, y {top}–{bottom})"
