"""A transcript as a page: the audio, and every word shaded by how much the audio supports it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from limelight.calibration import spoken
from limelight.report import heat
from limelight.report.figure import checked
from limelight.report.page import template
from limelight.report.playable import LARGEST, playable
from limelight.report.subtitles import clock

FULL = 6.0  # a grounding from which on a word is not shaded


def render_transcript(
    about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], samples: heat.Floats | None = None, rate: int = 16000
) -> str:
    """Render the page as a string; it is self-contained.

    Args:
        about: ``file``, ``model``, ``strategy``, ``seconds``, ``drop_invented``, ``threshold``.
        rows: a mapping per segment with ``start``, ``stop``, ``text``, ``support``, ``invented``, ``flag``, and ``words``, each
            with ``text``, ``grounding``, ``flagged`` (:func:`limelight.cli.transcripts.row`).
        samples: the audio, mono; it can be played where it is not too long for a page.
    """
    sound, unheard = "", ""
    if samples is not None and samples.size <= LARGEST:  # a byte a sample at best: do not encode an hour in vain
        sound = playable(samples, rate)
        if len(sound) > LARGEST:
            sound = ""
    if samples is not None and not sound:
        unheard = f"The audio is too long to be played here: a page holds at most {LARGEST / 2**20:.0f} MB of it."
    drops = bool(about.get("drop_invented"))
    segments = [_segment(r, drops) for r in rows if r["text"].strip()]
    kept = [s for s in segments if not s["dropped"]]
    rule: Mapping[str, Any] = next((r["flag"] for r in rows if r.get("flag")), {})
    limit = about.get("threshold")
    return str(
        template("transcript.html.j2").render(
            title=f"Transcript of {about['file']}",
            note=f"{about['model']}, {about['strategy']}, {about['seconds']:.1f} s",
            facts=[
                ("segments", str(len(kept))),
                ("words", str(sum(len(s["words"]) for s in kept))),
                ("flagged words", str(sum(w["flagged"] for s in kept for w in s["words"]))),
                ("dropped segments" if drops else "unsupported segments", str(sum(s["invented"] for s in segments))),
            ],
            rule=spoken(rule),
            limit="" if limit is None else f"{limit:.2f}",
            segments=segments,
            sound=Markup(sound) if sound else "",
            unheard=unheard,
        )
    )


def save_transcript_page(
    path: str | Path,
    about: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    samples: heat.Floats | None = None,
    rate: int = 16000,
) -> Path:
    """Write :func:`render_transcript` to a file.

    Raises:
        SettingError: the file name does not end in .html, or its folder does not exist.
    """
    target = checked(path, frozenset({".html", ".htm"}))
    target.write_text(render_transcript(about, rows, samples, rate), encoding="utf-8")
    return target


def _segment(row: Mapping[str, Any], drops: bool) -> dict[str, Any]:
    """A segment's words, with the text before each, so that the transcript reads as it was written."""
    words: list[dict[str, Any]] = []
    at = 0
    for word in row["words"]:
        start = row["text"].find(word["text"], at)
        if start < 0:
            continue
        z = word["grounding"]
        support = "" if z is None else f"grounding {z:.2f}"
        words.append({
            "before": row["text"][at:start], "text": word["text"], "flagged": bool(word["flagged"]),
            "shade": 0.0 if z is None or not any(c.isalnum() for c in word["text"]) else round(1 - min(max(z, 0.0), FULL) / FULL, 2),
            "told": support + (", flagged: not supported by the audio" if word["flagged"] else ""),
        })  # fmt: skip
        at = start + len(word["text"])
    return {
        "start": row["start"], "times": f"{_short(row['start'])}–{_short(row['stop'])}",
        "support": "" if row["support"] is None else f"{row['support']:.2f}",
        "invented": bool(row["invented"]), "dropped": drops and bool(row["invented"]), "words": words, "after": row["text"][at:],
    }  # fmt: skip


def _short(seconds: float) -> str:
    return clock(seconds).removeprefix("00:")[:-2]
