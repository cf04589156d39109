"""Formatting of transcripts as text, JSON, SRT, WebVTT or TSV, from one plain row per segment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from limelight.cli.terminal import plain_value
from limelight.decoding.transcribe import Segment
from limelight.report.document import number, rounded, support_of
from limelight.report.subtitles import cue, document
from limelight.report.word_times import word_interval
from limelight.report.words import word_contributions, word_relevance, word_shares, words

FORMATS = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt", "tsv": ".tsv"}
Row = dict[str, Any]


def row(segment: Segment) -> Row:
    """Convert a segment to plain values; times are in seconds from the start of the audio."""
    generation = segment.generation
    listed = []
    for word in words(generation):
        relevance = word_relevance(generation, word)
        place = word_interval(relevance) if relevance is not None else None
        listed.append({
            "text": word.text,
            "shares": rounded(word_shares(generation, word)),
            "contributions": rounded(word_contributions(generation, word)),
            "heard": [number(segment.start + t) for t in place] if place else None,
            **support_of(generation, word),
        })  # fmt: skip
    return {
        "start": round(segment.start, 3),
        "stop": round(segment.stop, 3),
        "text": segment.text,
        "quiet": segment.quiet,
        "complete": segment.complete,
        "shares": rounded(generation.shares()),
        "contributions": rounded(generation.contributions()),
        "flag": plain_value(dict(generation.flag)),
        "words": listed,
    }


def render(form: str, head: Row, rows: Sequence[Row]) -> str:
    """Format a transcript; ``head``: the JSON fields about the file and the settings."""
    if form == "json":
        contents = {**head, "text": text_of(rows), "segments": list(rows)}
        return json.dumps(contents, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
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
