"""Cues of SubRip and WebVTT subtitles, from text that a model said."""

from __future__ import annotations

import textwrap

LINE = 42  # characters of a line of subtitles


def document(cues: list[str], form: str) -> str:
    """A whole file of cues; ``form`` is srt or vtt."""
    return "\n".join(["WEBVTT\n", *cues] if form == "vtt" else cues)


def cue(start: float, stop: float, text: str, form: str, number: int) -> str:
    """One cue, from ``start`` to ``stop`` seconds; ``number`` counts from 1 (WebVTT cues have none).

    A blank line in the text would end the cue and an arrow begin another; in WebVTT ``&`` and ``<`` begin markup.
    """
    text = "\n".join(textwrap.wrap(" ".join(text.replace("-->", "→").split()), LINE))
    if form == "vtt":
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    point, head = (".", "") if form == "vtt" else (",", f"{number}\n")
    return f"{head}{clock(start, point)} --> {clock(stop, point)}\n{text}\n"


def clock(seconds: float, point: str = ".") -> str:
    """``hh:mm:ss.mmm``"""
    whole = round(seconds * 1000)
    hours, rest = divmod(whole, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
