from __future__ import annotations

import math

import pytest

from limelight.benchmarks.scorers.measure import evaluate
from limelight.benchmarks.scorers.wer import PARSERS, quiet, speech
from limelight.types import Record


def numbers(block: object) -> dict[str, float]:
    return {k: m.value for k, m in evaluate([block], resamples=0).items()}  # type: ignore[list-item]


def test_error_rate_and_its_parts() -> None:
    records = [
        Record("1", "the cat sat", "the cat sat"),
        Record("2", "the dog sat down", "the cat sat"),  # one substitution, one insertion
        Record("3", "cat", "the cat"),  # one deletion
    ]
    found = numbers(speech("", records, "raw"))
    assert found["WER"] == pytest.approx(3 / 8)
    assert found["exact"] == pytest.approx(1 / 3)
    assert [found[k] for k in ("substitutions", "deletions", "insertions")] == pytest.approx([1 / 8] * 3)


def test_normalisation() -> None:
    assert PARSERS["basic"]("  Hello,   WORLD-wide — it's!  ") == "hello world wide its"
    assert PARSERS["basic"]("") == "" == PARSERS["basic"]("?!")
    assert PARSERS["raw"](" Hello,  World ") == "Hello, World"
    records = [Record("1", "Hello, world!", "HELLO WORLD")]
    assert numbers(speech("", records, "basic"))["WER"] == 0.0
    assert numbers(speech("", records, "raw"))["WER"] == 1.0


def test_an_error_rate_can_exceed_one_and_an_empty_answer_is_all_deletions() -> None:
    assert numbers(speech("", [Record("1", "a b c d", "x")], "raw"))["WER"] == 4.0
    assert numbers(speech("", [Record("1", "", "x y")], "raw"))["deletions"] == 1.0


def test_words_invented_on_silence() -> None:
    records = [
        Record("1", "", "", {"seconds": 30}),
        Record("2", "Thank you.", "", {"seconds": 30}),
        Record("3", "...", "", {"seconds": 60}),
    ]
    found = numbers(quiet("", records))
    assert found["invented words per clip"] == pytest.approx(2 / 3)
    assert found["invented words"] == 2
    assert found["clips with invented words"] == pytest.approx(1 / 3)
    assert found["invented words per minute"] == 1.0
    assert "invented words per minute" not in numbers(quiet("", [Record("1", "", "")]))


def test_empty() -> None:
    assert math.isnan(numbers(speech("", []))["WER"])
    assert math.isnan(numbers(quiet("", []))["invented words per clip"])
