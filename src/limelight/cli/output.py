"""Output of an answer as a JSON document, an image or a page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from limelight.cli.terminal import out, plain_value
from limelight.errors import SettingError
from limelight.media.image import read_image
from limelight.report import heat
from limelight.report.looks import place_of
from limelight.report.media import Media
from limelight.report.views import View, views
from limelight.report.word_times import moments, word_interval
from limelight.report.words import (
    Word,
    choose,
    perceptual,
    sentences,
    word_contributions,
    word_flagged,
    word_relevance,
    word_shares,
    word_support,
    words,
)
from limelight.types import MODALITIES, Generation, Prompt, Relevance, TakenView


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


def document(generation: Generation, *, scores: bool = False) -> dict[str, Any]:
    """Convert a generation to plain values: text, shares, words and steps; with ``scores`` every position's relevance.

    ``shares`` are parts of the relevance (backward pass), ``contributions`` of the logit (meter); either is {} where it
    was not computed.
    """
    rows = [(w, word_relevance(generation, w), word_shares(generation, w)) for w in words(generation)]
    out: dict[str, Any] = {
        "text": generation.text,
        "strategy": generation.strategy,
        "settings": {k: plain_value(v) for k, v in generation.settings.items()},
        "shares": rounded(generation.shares()),
        "contributions": rounded(generation.contributions()),
        "flag": plain_value(dict(generation.flag)),
        "sentences": [
            {
                "text": s.text,
                "tokens": [s.start, s.stop],
                "grounding": number(s.grounding),
                "margin": number(s.margin),
                "flagged": s.flagged,
            }
            for s in sentences(generation)
        ],
        "words": [
            {
                "text": w.text,
                "tokens": [w.start, w.stop],
                "perceptual_share": number(perceptual(shares)),
                "shares": rounded(shares),
                "contributions": rounded(word_contributions(generation, w)),
                **support_of(generation, w),
                **(summary(r, scores=scores) if r is not None else {}),
            }
            for w, r, shares in rows
        ],
        "steps": [
            {
                "token": s.token,
                "text": s.text,
                "logprob": number(s.logprob),
                "intervened": s.intervened,
                "plain": s.plain,
                "flagged": s.flagged,
                "grounding": number(s.grounding),
                "rival_grounding": number(s.rival_grounding),
                "grounding_by_modality": rounded(s.grounding_by_modality),
                "p_supported": number(s.p_supported),
                "shares": rounded(s.shares),
                "contributions": rounded(s.contributions),
                "losses": {k: [number(x) for x in v] for k, v in s.losses.items()},
                "candidates": [[i, t, number(logit), number(phi)] for i, t, logit, phi in s.candidates],
                **({"views": [view_document(v) for v in s.views]} if s.views else {}),
            }
            for s in generation.steps
        ],
    }
    if scores:
        out["tokens"] = list(generation.prompt.tokens)
        out["spans"] = [
            {
                "start": s.start,
                "stop": s.stop,
                "modality": s.modality,
                "grid": s.grid,
                "margin": s.margin,
                "seconds": s.seconds,
                "region": None if s.region is None else asdict(s.region),
                "interval": None if s.interval is None else asdict(s.interval),
            }
            for s in generation.prompt.spans
        ]
    return out


def view_document(view: TakenView) -> dict[str, Any]:
    """A view that was taken, as plain values."""
    found = asdict(view)
    rest = {"margin": number(view.margin), "evidence": number(view.evidence), "weight": number(view.weight)}
    return {**found, "box": view.box and [round(x, 1) for x in view.box], **rest}


def view_lines(generation: Generation) -> list[str]:
    """One line for each view that was taken: what it shows, its answer, its margin and its weight."""
    return [
        f"view {i}: {place_of(v)}: {v.answer.strip()!r}, {v.between[0].strip()} over {v.between[1].strip()} by {v.margin:.2f}, "
        f"weight {v.weight:.2g}"
        for step in generation.steps
        for i, v in enumerate(step.views, start=1)
    ]


def support_of(generation: Generation, word: Word) -> dict[str, Any]:
    """A word's grounding and flag, as JSON documents tell them; None where no meter ran."""
    known = word_support(generation, word)
    each = {k.removeprefix("grounding "): number(v) for k, v in known.items() if k.startswith("grounding ")}
    return {
        "grounding": number(known.get("grounding")),
        "p_supported": number(known.get("p_supported")),
        "flagged": word_flagged(generation, word),
        **({"grounding_by_modality": each} if each else {}),
    }


def summary(relevance: Relevance, *, scores: bool = False, top: int = 8) -> dict[str, Any]:
    """Return totals per modality and the most relevant positions; with ``scores`` all of them."""
    present = [m for m in MODALITIES if relevance.spans_of(m)]
    out: dict[str, Any] = {
        "logit": number(relevance.logit),
        "relevance": {m: number(relevance.total(m)) for m in present},
        "top": [[i, token, number(score)] for i, token, score in relevance.top(top)],
    }
    place = word_interval(relevance)
    if relevance.spans_of("audio"):
        out["heard"] = [number(t) for t in place] if place is not None else None
    if scores:
        out["scores"] = [number(v) for v in relevance.scores.tolist()]
    return out


def number(value: float | None) -> float | None:
    """Round to six significant digits; None for values that JSON does not support."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def rounded(shares: Any) -> dict[str, float | None]:
    return {k: number(v) for k, v in dict(shares).items()}


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
