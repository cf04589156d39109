"""Formatting of transcripts as text, JSON, SRT, WebVTT or TSV, from one plain row per segment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from limelight.cli.terminal import plain_value
from limelight.decoding.transcribe import Segment
from limelight.report.document import number, rounded, support_of
from limelight.report.subtitles import Marked, cue, document, marked
from limelight.report.word_times import word_interval
from limelight.report.words import word_contributions, word_relevance, word_shares, words

FORMATS = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt", "tsv": ".tsv"}
Row = dict[str, Any]


def row(segment: Segment) -> Row:
    """Convert a segment to plain values; times are in seconds from the start of the audio. All words of a segment that the
    audio does not support are flagged."""
    generation = segment.generation
    listed = []
    for word in words(generation):
        relevance = word_relevance(generation, word)
        place = word_interval(relevance) if relevance is not None else None
        told = support_of(generation, word)
        listed.append({
            "text": word.text,
            "shares": rounded(word_shares(generation, word)),
            "contributions": rounded(word_contributions(generation, word)),
            "interval": [number(segment.start + t) for t in place] if place else None,
            **told,
            "flagged": told["flagged"] or (segment.invented and not word.punctuation),
        })  # fmt: skip
    return {
        "start": round(segment.start, 3),
        "stop": round(segment.stop, 3),
        "text": segment.text,
        "grounding": number(segment.grounding),
        "support": number(segment.support),
        "invented": segment.invented,
        "ends_in_silence": segment.ends_in_silence,
        "complete": segment.complete,
        "shares": rounded(generation.shares()),
        "contributions": rounded(generation.contributions()),
        "flag": plain_value(dict(generation.flag)),
        "words": listed,
    }


def kept_and_dropped(head: Row, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The segments of a transcript, and those that ``--drop-invented`` leaves out."""
    drops = head.get("drop_invented", False)
    return [r for r in rows if not (drops and r["invented"])], [r for r in rows if drops and r["invented"]]


def contents(head: Row, rows: Sequence[Row]) -> Row:
    """The JSON document of a transcript."""
    kept, dropped = kept_and_dropped(head, rows)
    return {**head, "text": text_of(kept), "segments": kept, "dropped": dropped}


def render(form: str, head: Row, rows: Sequence[Row]) -> str:
    """Format a transcript; ``head``: the JSON fields about the file and the settings."""
    if form == "json":
        return json.dumps(contents(head, rows), ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    kept = kept_and_dropped(head, rows)[0]
    if form == "tsv":
        lines = [f"{round(r['start'] * 1000)}\t{round(r['stop'] * 1000)}\t{' '.join(r['text'].split())}" for r in kept]
        return "\n".join(["start\tend\ttext", *lines]) + "\n"
    if form in ("srt", "vtt"):
        cues = [cue(r["start"], r["stop"], pieces(r), form, i) for i, r in enumerate(_spoken(kept), start=1)]
        return document(cues, form)
    return text_of(kept) + "\n"


def pieces(row: Row) -> Marked:
    """A segment's text in pieces: which of them are flagged words."""
    return marked(row["text"], [(w["text"], w["flagged"]) for w in row["words"]])


def styled(row: Row) -> Text:
    """A segment for the terminal, flagged words underlined in red."""
    text = Text()
    for piece, flagged in pieces(row):
        text.append(piece, style="red underline" if flagged else "")
    return text


def text_of(rows: Sequence[Row]) -> str:
    return " ".join(r["text"] for r in rows if r["text"])


def _spoken(rows: Sequence[Row]) -> list[Row]:
    return [r for r in rows if r["text"].strip()]
