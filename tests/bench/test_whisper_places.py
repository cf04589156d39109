"""bench.whisper_places: two sentences with silence around them, and where relevance falls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bench.whisper_places import binned, measured, pairs, spoken, table

from bench import whisper_places


def tone(seconds: float) -> Any:
    quiet, loud = np.zeros(8000, np.float32), np.sin(np.arange(int(seconds * 16000)) / 5).astype(np.float32)
    return np.concatenate([quiet, loud, quiet])


def test_a_recording_is_two_sentences_of_a_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [(f"{voice}/{i}", f"sentence {i}", lambda: tone(2.0)) for voice in ("one", "two") for i in range(4)]
    monkeypatch.setattr(whisper_places, "sentences", lambda: iter([*made, ("one/long", "too long", lambda: tone(9.0))]))
    found = list(pairs(3))
    assert [p.id for p in found] == ["one/0 + one/1", "two/0 + two/1", "one/2 + one/3"]
    assert [len(list(pairs(n))) for n in (1, 9)] == [1, 4]
    for pair in found:
        assert pair.texts[0] != pair.texts[1]
        (a, b), (c, d) = pair.spans
        assert 1 <= a <= 3 and 1 <= c - b <= 3 and 1 <= len(pair.samples) / 16000 - d <= 3
        assert b - a == pytest.approx(2, abs=0.06) == d - c
        loud = np.abs(pair.samples) > 0.1
        assert loud[int(a * 16000) : int(b * 16000)].mean() > 0.8
        assert (
            not loud[: int((a - 0.01) * 16000)].any()
            and not loud[int((b + 0.01) * 16000) : int((c - 0.01) * 16000)].any()
        )
    assert len(spoken(tone(1.0))) == pytest.approx(16000, abs=400)


def test_shares_of_a_span() -> None:
    scores = np.zeros(100)  # 20 ms each: two seconds, of which one and a half are the recording
    scores[10:15], scores[60:62], scores[90] = -1.0, 2.0, 99.0
    parts = binned(scores, 0.02, 1.5)
    assert parts.tolist() == [0, 0, 5, *[0] * 9, 4, 0, 0]
    assert measured(parts, (0.0, 1.0)) == {"share": pytest.approx(5 / 9), "hit": 1.0}
    assert measured(parts, (1.0, 1.5)) == {"share": pytest.approx(4 / 9), "hit": 0.0}
    assert measured(np.zeros(4), (0.0, 1.0))["share"] == 0


def test_the_table_has_intervals_over_recordings() -> None:
    def row(i: int, composite: str) -> dict[str, Any]:
        return {
            "composite": composite,
            "chance": 0.25,
            "states": {"share": 0.5 + i / 10, "hit": 1.0},
            "frames": {"share": 0.3, "hit": i % 2},
        }

    rows = [{"id": str(i), "rows": [row(i, c) for c in whisper_places.COMPOSITES]} for i in range(4)]
    text = table(rows)
    assert "4 recordings, one word of each. Chance: .25 (.25–.25)." in text
    (line,) = (x for x in text.splitlines() if x.startswith("| cp-lrp"))
    assert line.split(" | ")[1].startswith(".65 (") and line.split(" | ")[3:] == [
        "1.00 (1.00–1.00)",
        ".50 (.00–1.00) |",
    ]
