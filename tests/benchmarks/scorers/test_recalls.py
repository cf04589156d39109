from __future__ import annotations

import math

import pytest

from limelight.benchmarks.scorers.measure import evaluate
from limelight.benchmarks.scorers.recalls import recalls
from limelight.errors import DataError
from limelight.types import Record


def numbers(pairs: list[tuple[str, str]], **options: tuple[str, str, str]) -> dict[str, float]:
    records = [Record(str(i), answer, gold) for i, (answer, gold) in enumerate(pairs)]
    return {k: m.value for k, m in evaluate([recalls("", records, "dash-b", **options)], resamples=0).items()}


def test_by_hand() -> None:
    found = numbers(
        [("Yes", "yes"), ("no", "yes"), ("Yes", "yes"), ("?", "yes"), ("no", "no"), ("yes", "no"), ("", "no")]
    )
    assert found["TPR"] == pytest.approx(2 / 4)
    assert found["TNR"] == pytest.approx(1 / 3)
    assert found["harmonic mean"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))


def test_a_constant_answer_has_a_harmonic_mean_of_0() -> None:
    assert numbers([("yes", "yes"), ("yes", "no")])["harmonic mean"] == 0.0
    assert numbers([("no", "yes"), ("yes", "no")])["harmonic mean"] == 0.0  # never right
    assert math.isnan(numbers([("yes", "yes")])["harmonic mean"])  # no question labelled no
    assert all(math.isnan(v) for v in numbers([]).values())


def test_names_and_labels() -> None:
    assert list(numbers([("yes", "yes")], names=("", "", "PhD index"))) == ["PhD index"]
    with pytest.raises(DataError, match="maybe"):
        recalls("", [Record("1", "yes", "maybe")], "strict")
