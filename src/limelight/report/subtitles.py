"""Formatting of SubRip and WebVTT subtitles from a model's text."""

from __future__ import annotations

import textwrap

LINE = 42  # characters per subtitle line


def document(cues: list[str], form: str) -> str:
    """Join cues to a complete file; ``form`` is srt or vtt."""
    return "\n".join(["WEBVTT\n", *cues] if form == "vtt" else cues)


def cue(start: float, stop: float, text: str, form: str, number: int) -> str:
    """Format one cue from ``start`` to ``stop`` seconds; ``number`` counts from 1 (not used by WebVTT).

    Escapes blank lines, which would end the cue, arrows, which would start another, and WebVTT markup (``&``, ``<``).
    """
    text = "\n".join(textwrap.wrap(" ".join(text.replace("-->", "→").split()), LINE))
    if form == "vtt":
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    point, head = (".", "") if form == "vtt" else (",", f"{number}\n")
    return f"{head}{clock(start, point)} --> {clock(stop, point)}\n{text}\n"


def clock(seconds: float, point: str = ".") -> str:
    """``hh:mm:ss.mmm``"""
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
