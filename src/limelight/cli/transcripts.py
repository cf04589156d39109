"""A transcript as text, JSON, SRT, WebVTT or TSV, from plain rows: one a segment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from limelight.cli.output import number, rounded, support_of
from limelight.cli.terminal import plain_value
from limelight.decoding.transcribe import Segment
from limelight.report.subtitles import cue, document
from limelight.report.word_times import word_interval
from limelight.report.words import word_contributions, word_relevance, word_shares, words

FORMATS = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt", "tsv": ".tsv"}
Row = dict[str, Any]


def row(segment: Segment) -> Row:
    """A segment as plain values; times in seconds from the start of the sound."""
    said = segment.generation
    listed = []
    for word in words(said):
        relevance = word_relevance(said, word)
        place = word_interval(relevance) if relevance is not None else None
        listed.append({
            "text": word.text,
            "shares": rounded(word_shares(said, word)),
            "contributions": rounded(word_contributions(said, word)),
            "heard": [number(segment.start + t) for t in place] if place else None,
            **support_of(said, word),
        })  # fmt: skip
    return {
        "start": round(segment.start, 3),
        "stop": round(segment.stop, 3),
        "text": segment.text,
        "quiet": segment.quiet,
        "complete": segment.complete,
        "shares": rounded(said.shares()),
        "contributions": rounded(said.contributions()),
        "flag": plain_value(dict(said.flag)),
        "words": listed,
    }


def render(form: str, head: Row, rows: Sequence[Row]) -> str:
    """The whole transcript; ``head`` is what JSON says of the file and the settings."""
    if form == "json":
        whole = {**head, "text": text_of(rows), "segments": list(rows)}
        return json.dumps(whole, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    if form == "tsv":
        lines = [f"{round(r['start'] * 1000)}\t{round(r['stop'] * 1000)}\t{' '.join(r['text'].split())}" for r in rows]
        return "\n".join(["start\tend\ttext", *lines]) + "\n"
    if form in ("srt", "vtt"):
        cues = [cue(r["start"], r["stop"], r["text"], form, i) for i, r in enumerate(_spoken(rows), start=1)]
        return document(cues, form)
    return text_of(rows) + "\n"


def text_of(rows: Sequence[Row]) -> str:
    return " ".join(r["text"] for r in rows if r["text"])


def _spoken(rows: Sequence[Row]) -> list[Row]:
    return [r for r in rows if r["text"].strip()]
