"""The tables of detection from made-up answers; no model."""

from __future__ import annotations

from bench.detection import COMBINED, rows, table

from limelight.benchmarks.scorers.detection import detection
from tests.benchmarks.scorers.test_detection import units


def test_rows_and_their_table() -> None:
    found = rows(detection("captions", units()))
    block = found["captions"]
    assert (block["units"], block["media"]) == (200, 100)
    names = [s["score"] for s in block["scores"]]
    assert set(names[:2]) == {"z", COMBINED}  # ours first, then the published, then the controls
    assert names[2:] == ["log-probability", *sorted(("position", "word frequency"), key=names.index)]
    assert set(block["splits"]) == {"a", "b"}
    pairs = [(p["score"], p["minus"]) for p in block["pairs"]]
    assert len(pairs) == len(set(pairs))
    assert ("z", "log-probability") in pairs
    text = table({"models": {"demo-vision": found}})
    assert "**demo-vision, captions**: 200 units of 100 media" in text
    assert all(line.count("|") == 7 for line in text.splitlines() if line.startswith("|"))
