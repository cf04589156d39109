"""The data of the page: words, shares and heat, compact enough for hundreds of words over thousands of positions."""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from limelight.calibration import spoken
from limelight.errors import SettingError
from limelight.report import heat
from limelight.report.media import Media
from limelight.report.pictures import data_url, encoded
from limelight.report.playable import playable
from limelight.report.views import View, stages, views
from limelight.report.waveform import decibels, peaks
from limelight.report.word_times import moments, stretch
from limelight.report.words import (
    CONTRIBUTIONS,
    Word,
    aligned,
    known_parts,
    perceptual,
    text_words,
    word_contributions,
    word_flagged,
    word_parts,
    word_relevance,
    word_shares,
    word_support,
    words,
)
from limelight.types import MODALITIES, Generation, Relevance, Span

LONGEST_SIDE = {"image": 900, "video": 320}
TOP_TEXT, TOP_WORDS = 40, 12
_LEAST = 1e-9


@dataclass(frozen=True)
class Case:
    """One prompt with its answers, which the page shows side by side.

    Attributes:
        generations: one or more; they share the prompt.
        media: the prompt's media; by default taken from the prompt (required for audio and video files).
        title, question, truth, note: shown above the answers.
        verdicts: correct, wrong or unknown, one per answer.
        decisions: relevances of one word rather than another (:func:`limelight.decoding.compare.decided`), over the prompt and
            the beginning that the answers share. With any, the page shows the first of them, and one panel for all answers: a
            word's own relevance is a click away.
        spell: maps a token id to its text, for tokens that greedy decoding would have chosen (``adapter.tokens``).
    """

    generations: Sequence[Generation]
    media: Media | None = None
    title: str = ""
    question: str = ""
    truth: str = ""
    note: str = ""
    verdicts: Sequence[bool | None] = ()
    spell: Callable[[int], str] | None = None
    decisions: Sequence[Relevance] = ()

    def __post_init__(self) -> None:
        if not self.generations:
            raise SettingError("a case needs at least one answer", hint="Case([generation])")
        if self.verdicts and len(self.verdicts) != len(self.generations):
            raise SettingError(
                f"{len(self.verdicts)} verdicts for {len(self.generations)} answers",
                hint="give one per answer, or none",
            )
        lengths = {len(g.prompt.tokens) for g in self.generations}
        if any(d.against is None or len(d.tokens) < min(lengths) for d in self.decisions):
            raise SettingError(
                "a decision is the relevance of one word rather than another, over the prompt of the answers",
                hint="limelight.compare(...) returns them, or limelight.attribute(..., target='yes', against='no')",
            )
        if len(lengths) > 1:
            raise SettingError(
                f"the answers come from prompts of {sorted(lengths)} positions", hint="put them into separate cases"
            )


def case_payload(case: Case) -> dict[str, Any]:
    """Return the page's data of one case as plain values for JSON."""
    first = case.generations[0]
    media = case.media if case.media is not None else Media.of(first.prompt)
    spans = first.prompt.spans
    shown = views(spans, media)
    spelled = [[w.text for w in words(g)] for g in case.generations]
    columns = [_column(g, shown, case.spell) for g in case.generations]
    for i, column in enumerate(columns):
        if case.verdicts and case.verdicts[i] is not None:
            column["right"] = bool(case.verdicts[i])
        if i == 0:
            continue
        pairs, left, right = aligned(spelled[0], spelled[i])
        column["pairs"] = [[a, b] for a, b in pairs.items()]
        _mark(column, right)
        if len(columns) == 2:
            _mark(columns[0], left)
    columns += [_decision(d, first, shown) for d in case.decisions]
    for column in columns[: len(case.generations)]:
        column["start"] = _start(column)
    return {
        "together": bool(case.decisions),
        "media": media_payload(media),
        "views": _views(shown),
        "prompt": _prompt_items(first, spans, shown),
        "columns": columns,
    }


def _decision(found: Relevance, generation: Generation, shown: Sequence[View]) -> dict[str, Any]:
    """Return a decision as a column of one word."""
    length, template = len(generation.prompt.tokens), generation.prompt.template
    totals = {m: _short(found.total(m)) for m in MODALITIES if found.spans_of(m)}
    word = {"t": found.explains, "k": [0, 1], "sh": _rounded(found.shares()), "p": round(heat.media_share(found), 4)}
    word |= {"to": totals, "on": found.target_token.strip(), **_heat(found, shown, length, template)}
    return {
        "name": "decision", "settings": "", "shares": {}, "contributions": {}, "flag": "", "by_meter": False, "audited": False,
        "generated": list(found.tokens[length:]), "words": [word], "pairs": [], "start": 0,
    }  # fmt: skip


def _mark(column: dict[str, Any], differing: set[int]) -> None:
    for i in differing:
        column["words"][i]["d"] = 1


def _start(column: dict[str, Any]) -> int:
    """Return the word to show first: the first that differs, else the first flagged one, else the one with the largest
    media share."""
    rows = column["words"]
    marked = [i for i, w in enumerate(rows) if w.get("d") and "h" in w] or [i for i, w in enumerate(rows) if w.get("f")]
    if marked or not rows:
        return marked[0] if marked else -1
    return max(range(len(rows)), key=lambda i: (rows[i].get("p") or 0.0) * (0.1 if rows[i].get("u") else 1.0))


def _column(generation: Generation, shown: Sequence[View], spell: Callable[[int], str] | None) -> dict[str, Any]:
    found = words(generation)
    known = {s.token: s.text for s in generation.steps}
    length = len(generation.prompt.tokens)

    def text_of(token: int) -> str:
        return spell(token) if spell is not None else known.get(token, f"#{token}")

    return {
        "name": generation.strategy or "answer",
        "settings": " · ".join(f"{k} {v}" for k, v in generation.settings.items() if v is not None),
        "shares": _rounded(generation.shares()),
        "contributions": _rounded(generation.contributions()),
        "flag": spoken(generation.flag),
        "by_meter": known_parts(generation) == CONTRIBUTIONS,
        "audited": generation.strategy == "audit",
        "generated": [s.text for s in generation.steps],
        "words": [_word(generation, w, shown, text_of, length) for w in found],
    }


def _word(
    generation: Generation, word: Word, shown: Sequence[View], spelling: Callable[[int], str], length: int
) -> dict[str, Any]:
    steps = generation.steps[word.start : word.stop]
    shares, contributions, parts = (f(generation, word) for f in (word_shares, word_contributions, word_parts))
    out: dict[str, Any] = {"t": word.text, "k": [word.start, word.stop]}
    if word.space:
        out["s"] = 1
    if word.punctuation:
        out["u"] = 1
    if shares:
        out["sh"] = _rounded(shares)
    if contributions:
        out["co"] = _rounded(contributions)
    if parts:
        out["p"] = round(perceptual(parts) or 0.0, 4)
    relevance = word_relevance(generation, word)
    if relevance is not None:
        out |= _heat(relevance, shown, length, generation.prompt.template)
    logprob = sum(s.logprob for s in steps)
    if logprob == logprob and logprob > -1e30:
        out["lp"] = round(float(np.exp(logprob)), 4)
    if any(s.intervened for s in steps):
        out["i"] = 1
    if support := word_support(generation, word):
        out["gr"] = {k: _short(v) for k, v in support.items()}
    if word_flagged(generation, word):
        out["f"] = 1
    changed = next((s for s in steps if s.plain is not None and s.plain != s.token), None)
    if changed is not None and changed.plain is not None:
        out["g"] = spelling(changed.plain)
    elif any(s.plain is not None for s in steps):
        out["same"] = 1
    losses = next((s.losses for s in steps if s.losses), {})
    if losses:
        out["l"] = {n: [_short(v[0]), _short(v[-1])] for n, v in losses.items() if v}
    measured = [s for s in steps if s.candidates]
    if measured:
        chosen = next((s for s in measured if s.plain is not None and s.plain != s.token), measured[0])
        out["c"] = [
            [text, _short(logit), _short(phi), (token == chosen.token) + 2 * (token == chosen.plain)]
            for token, text, logit, phi in chosen.candidates[:6]
        ]
        if len(steps) > 1:
            out["ct"] = chosen.text
    return out


def _rounded(parts: dict[str, float]) -> dict[str, float]:
    return {m: round(v, 4) for m, v in parts.items()}


def _heat(relevance: Relevance, shown: Sequence[View], length: int, template: Collection[int]) -> dict[str, Any]:
    """Media scores as int8 of ``full`` (base64), how strong the media are, the largest text scores by number of the prompt
    item and by word, and for each audio clip with support (its first view), the shortest interval with half of it."""
    values = heat.scores(relevance)
    parts = [v.cells(values).ravel() for v in shown]
    media_scores = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    full = heat.limit(media_scores) if media_scores.size else 1.0
    packed = np.rint(np.clip(media_scores / full, -1, 1) * 127).astype(np.int8)
    text = [i for s in relevance.spans_of("text") for i in range(s.start, s.stop)]
    strength = np.abs(values[text])
    order = [text[i] for i in np.argsort(-strength, kind="stable")[:TOP_TEXT] if strength[i] > _LEAST]
    out: dict[str, Any] = {
        "h": base64.b64encode(packed.tobytes()).decode("ascii"),
        "m": _short(full),
        "st": [round(heat.faintness(heat.media_share(relevance)), 3), heat.named(heat.media_share(relevance))],
        "tx": [[t, _short(v)] for t, v in text_words(relevance, template)[:TOP_WORDS]],
        "x": [[i if i < length else -1 - (i - length), _short(float(values[i]))] for i in order],
        "lo": _short(relevance.logit),
    }
    if media_scores.size and float(np.abs(media_scores).max()) > 1.2 * full:
        out["cl"] = 1
    at = {id(view): i for i, view in enumerate(shown)}
    for together in stages(shown):
        timed = [v for v in together if v.kind == "audio" and v.span.seconds is not None]
        if not timed:
            continue
        sound = np.concatenate([parts[at[id(v)]] for v in timed])
        found = stretch(sound, np.concatenate([moments(v.span) for v in timed]))
        if found is not None:
            out.setdefault("w", []).append([at[id(timed[0])], *(round(t, 3) for t in found)])
    return out


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _views(shown: Sequence[View]) -> list[dict[str, Any]]:
    out, at = [], 0
    for view in shown:
        count = int(np.prod(view.grid))
        row: dict[str, Any] = {
            "kind": view.kind, "label": view.label, "source": view.source, "grid": list(view.grid), "at": at,
            "n": count, "known": view.span.grid is not None, "stage": view.stage,
        }  # fmt: skip
        if view.kind != "audio":
            row["box"] = [round(f, 5) for f in view.box]
        if view.steps:
            row["frames"] = [list(step) for step in view.steps]
            row["placed"] = view.span.region is not None
        if view.kind == "audio":
            row["seconds"] = view.span.seconds
            if view.span.interval is not None:
                times = moments(view.span)
                row["from"] = round(float(times[0, 0]), 4)
                row["real"] = int((times[:, 1] > times[:, 0]).sum())  # positions before padding
        out.append(row)
        at += count
    return out


def _prompt_items(generation: Generation, spans: Sequence[Span], shown: Sequence[View]) -> list[Any]:
    """Return the prompt in reading order: [position, text] for a text token, {label, n} for media."""
    labels = {v.span.start: v.label for v in shown}
    items: list[Any] = []
    for span in spans:
        if span.modality == "text":
            items += [[i, generation.prompt.tokens[i]] for i in range(span.start, span.stop)]
        else:
            items.append({"label": labels.get(span.start, span.modality), "n": len(span), "kind": span.modality})
    return items


def media_payload(media: Media) -> dict[str, Any]:
    """Convert images and frames to data URLs, and audio to data URLs, peaks and a spectrogram."""
    return {
        "pictures": [{"src": data_url(p, LONGEST_SIDE["image"]), "w": p.width, "h": p.height} for p in media.pictures],
        "videos": [[data_url(f, LONGEST_SIDE["video"]) for f in media.frames(i)] for i in range(len(media.videos))],
        "sounds": [_sound(samples, rate) for samples, rate in media.sounds],
    }


def _sound(samples: heat.Floats, rate: int) -> dict[str, Any]:
    level, top = decibels(samples, rate, columns=480)
    loud = Image.fromarray(np.clip(255 + level / 70 * 255, 0, 255).astype(np.uint8)[::-1]).resize((480, 96))
    packed = np.rint(peaks(samples, 600) * 127).astype(np.int8)
    return {
        "seconds": round(samples.size / rate, 4),
        "src": playable(samples, rate),
        "peaks": base64.b64encode(packed.tobytes()).decode("ascii"),
        "spectrogram": encoded(Image.merge("LA", (Image.new("L", loud.size), loud)), "png"),
        "top_khz": round(top / 1000, 2),
    }
