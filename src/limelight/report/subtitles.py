"""Formatting of SubRip and WebVTT subtitles from a model's text; flagged words are underlined."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

LINE = 42  # characters per subtitle line
STYLE = "STYLE\n::cue(.flagged) { text-decoration: underline; color: #ff8a8f; }\n"
_OPEN, _CLOSE = "\ue000", "\ue001"  # stand for the tags while lines are wrapped and the text is escaped
_TAGS = {"srt": ("<u>", "</u>"), "vtt": ("<c.flagged>", "</c>")}
Marked = list[tuple[str, bool]]  # pieces of a text, and whether each is a flagged word


def marked(text: str, words: Sequence[tuple[str, bool]]) -> Marked:
    """Cut a text at its flagged words; ``words``: all of its words in order, and whether each is flagged."""
    found: Marked = []
    at = 0
    for word, flagged in words:
        start = text.find(word, at)
        if start < 0:
            continue
        if flagged:
            found += [(text[at:start], False)] * (start > at) + [(word, True)]
        else:
            found.append((text[at : start + len(word)], False))
        at = start + len(word)
    return [*found, (text[at:], False)] if at < len(text) else found


def document(cues: list[str], form: str) -> str:
    """Join cues to a complete file; ``form`` is srt or vtt."""
    if form == "srt":
        return "\n".join(cues)
    style = [STYLE] if any(_TAGS["vtt"][0] in c for c in cues) else []
    return "\n".join(["WEBVTT\n", *style, *cues])


def cue(start: float, stop: float, text: str | Marked, form: str, number: int) -> str:
    """Format one cue from ``start`` to ``stop`` seconds; ``number`` counts from 1 (not used by WebVTT).

    Flagged words are underlined: ``<u>`` in SubRip, the class ``flagged`` in WebVTT. Escapes blank lines, which would end
    the cue, arrows, which would start another, and WebVTT markup (``&``, ``<``).
    """
    parts = [(text, False)] if isinstance(text, str) else text
    plain = "".join(f"{_OPEN}{_bare(t)}{_CLOSE}" if flagged else _bare(t) for t, flagged in parts)
    lines = "\n".join(textwrap.wrap(" ".join(plain.replace("-->", "→").split()), LINE))
    if form == "vtt":
        lines = lines.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    before, after = _TAGS[form]
    lines = re.sub(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}", lambda m: before + m[1] + after, lines)
    point, head = (".", "") if form == "vtt" else (",", f"{number}\n")
    return f"{head}{clock(start, point)} --> {clock(stop, point)}\n{lines}\n"


def _bare(text: str) -> str:
    return text.replace(_OPEN, "").replace(_CLOSE, "")


def clock(seconds: float, point: str = ".") -> str:
    """``hh:mm:ss.mmm``"""
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
