"""The page of a transcript: everything that is said once, marks where they belong, audio that is not too long."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limelight.errors import SettingError
from limelight.report import transcript_page
from limelight.report.transcript_page import render_transcript, save_transcript_page

FLAG = {"threshold": 2.0, "needs_rival": False, "margin": 0.0, "default": True}
ABOUT = {
    "file": "<talk>.wav",
    "model": "m",
    "strategy": "greedy",
    "seconds": 4.0,
    "drop_invented": True,
    "threshold": 3.0,
}


def row(text: str, start: float, z: float | None, *, flagged: bool = False, invented: bool = False) -> dict[str, Any]:
    words = [{"text": w, "grounding": z, "flagged": flagged} for w in re.findall(r"[\w<>&]+|[.,]", text)]
    return {
        "start": start,
        "stop": start + 2,
        "text": text,
        "support": z,
        "invented": invented,
        "flag": FLAG,
        "words": words,
    }


ROWS = [
    row("It <rains> & pours, here.", 0.0, 5.0),
    row("Thank you.", 2.0, 0.5, flagged=True, invented=True),
    row("", 3.0, None),
]


def plain(page: str) -> str:
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]*>", "", body))


def test_it_shows_the_transcript_and_marks_unsupported_words() -> None:
    page = render_transcript(ABOUT, ROWS, np.zeros(4 * 16000, np.float32), 16000)
    assert "It <rains> & pours, here." in plain(page)
    assert "<rains>" not in page
    assert "Transcript of &lt;talk&gt;.wav" in page
    assert page.count("<mark") == 3  # two words and a full stop, as the row says
    assert page.count('class="invented dropped"') == 1
    shades = [float(s) for s in re.findall(r"--shade:([\d.]+)\"", page)]
    assert min(shades) == 0.0
    assert max(shades) == pytest.approx(0.92)
    assert page.count("<audio controls") == 1
    assert page.count('data-start="') == 2  # an empty segment is not listed
    assert "http:" not in page and "https:" not in page
    kept = render_transcript({**ABOUT, "drop_invented": False}, ROWS)
    assert "dropped" not in plain(kept)
    assert "unsupported" in plain(kept)
    assert "<audio controls" not in kept
    assert "<button" not in kept


def test_long_audio_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 16000).astype(np.float32)
    monkeypatch.setattr(transcript_page, "LARGEST", 20_000)
    page = render_transcript(ABOUT, ROWS, noise, 16000)
    assert "<audio controls" not in page
    assert "too long to be played" in plain(page)
    monkeypatch.setattr(transcript_page, "playable", lambda *_: pytest.fail("encoded in vain"))
    assert "too long" in plain(render_transcript(ABOUT, ROWS, np.zeros(20_001, np.float32), 16000))


def test_files(tmp_path: Path) -> None:
    assert save_transcript_page(tmp_path / "a.html", ABOUT, ROWS).read_text().startswith("<!doctype html>")
    for bad in (tmp_path / "a.txt", tmp_path / "none" / "a.html"):
        with pytest.raises(SettingError):
            save_transcript_page(bad, ABOUT, ROWS)
    assert "No words." in render_transcript(ABOUT, [])
