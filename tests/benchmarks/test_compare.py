"""Paired comparisons, against scipy and by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from limelight.benchmarks.compare import common, compare, compare_blocks, differing, mcnemar, verdicts
from limelight.benchmarks.results import Run
from limelight.benchmarks.scorers.measure import block, share
from limelight.benchmarks.scorers.yes_no import yes_no
from limelight.errors import SettingError
from limelight.types import Record
from tests.benchmarks.test_runner import go, toy


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 5), (12, 3), (0, 40), (700, 800), (1500, 1500)])
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected)


def accuracy(values: dict[str, float], clusters: bool = False):
    rows = [(i, {"n": 1.0, "correct": v}) for i, v in values.items()]
    return block("x", rows, [share("accuracy", "correct", "n")], [i[0] for i in values] if clusters else [])


def test_paired_difference_against_scipy() -> None:
    rng = np.random.default_rng(0)
    a = (rng.random(400) < 0.6).astype(float)
    b = np.where(rng.random(400) < 0.9, a, (rng.random(400) < 0.9)).astype(float)
    (found,) = compare_blocks(accuracy(dict(enumerate_(a))), accuracy(dict(reversed(enumerate_(b)))), resamples=4000)
    theirs = stats.bootstrap((b - a,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert found.difference == pytest.approx(float((b - a).mean()))
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)
    assert (found.only_a, found.only_b) == (int((a > b).sum()), int((b > a).sum()))
    assert found.mcnemar == pytest.approx(stats.binomtest(found.only_a, found.only_a + found.only_b).pvalue)
    # paired: much narrower than two intervals of their own
    alone = stats.bootstrap((b,), np.mean, n_resamples=2000, method="percentile", rng=1).confidence_interval
    assert found.high - found.low < alone.high - alone.low
    assert found.p < 0.05 if found.low > 0 or found.high < 0 else found.p >= 0.04


def enumerate_(values: np.ndarray) -> list[tuple[str, float]]:
    return [(f"id{k}", float(v)) for k, v in enumerate(values)]


def test_the_same_run_differs_in_nothing() -> None:
    (found,) = compare_blocks(accuracy({"a": 1.0, "b": 0.0}), accuracy({"a": 1.0, "b": 0.0}))
    assert (found.difference, found.low, found.high, found.p, found.mcnemar) == (0.0, 0.0, 0.0, 1.0, 1.0)


def test_only_common_units_are_compared() -> None:
    a, b = common(accuracy({"x": 1.0, "y": 0.0, "z": 1.0}), accuracy({"z": 0.0, "q": 1.0, "x": 1.0}))
    assert a.ids == b.ids == ("x", "z")
    assert b.columns["correct"].tolist() == [1.0, 0.0]
    assert compare_blocks(accuracy({"x": 1.0}), accuracy({"y": 1.0})) == []
    (one,) = compare_blocks(accuracy({"x": 1.0}), accuracy({"x": 0.0}))
    assert (one.difference, one.only_a, one.only_b, one.n) == (-1.0, 1, 0, 1)
    assert math.isnan(one.low)


def test_clusters_are_drawn_together_for_both() -> None:
    a = {f"{c}{k}": 0.0 for c in "abcdefghij" for k in range(20)}
    b = {i: float(i[0] in "abcde") for i in a}
    (apart,) = compare_blocks(accuracy(a), accuracy(b), resamples=2000)
    (together,) = compare_blocks(accuracy(a, True), accuracy(b, True), resamples=2000)
    assert together.high - together.low > 3 * (apart.high - apart.low)


def test_counts_have_neither_interval_nor_test() -> None:
    records = [Record(str(k), "yes", "yes") for k in range(5)]
    found = {d.name: d for d in compare_blocks(yes_no("", records, "strict"), yes_no("", records, "strict"))}
    assert math.isnan(found["unparsed"].p)
    assert found["unparsed"].only_a is None
    assert found["accuracy"].mcnemar == 1.0


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Run, Run]:
    a = go(tmp_path / "greedy", lambda s: "Yes.", settings={"strategy": "greedy"}).run
    b = go(tmp_path / "lime", lambda s: "no!" if s.id.endswith("/1") else "Yes.").run
    return a, b


def test_two_runs(runs: tuple[Run, Run]) -> None:
    found = {d.name: d for d in compare(*runs)}
    assert found["accuracy"].difference == pytest.approx(2 / 40)
    assert (found["accuracy"].only_a, found["accuracy"].only_b) == (0, 2)
    assert found["yes ratio"].difference == pytest.approx(-2 / 40)
    assert {p.id: p.verdict for p in differing(*runs)} == {"coco/random/1": "fixed", "coco/popular/1": "fixed"}
    (first, _) = differing(runs[1], runs[0])
    assert (first.verdict, first.a, first.b, first.target, first.prompt) == ("broken", "no!", "Yes.", "no", "1?")


def test_answers_without_right_and_wrong(runs: tuple[Run, Run]) -> None:
    assert verdicts([]) == {}
    official = differing(*runs, parser="official")  # "no!" is a yes to the official parser
    assert {p.verdict for p in official} == {"same"}


def test_runs_of_two_tasks(tmp_path: Path) -> None:
    a, b = go(tmp_path / "a", limit=1).run, go(tmp_path / "b", limit=1, task=toy(version="2")).run
    with pytest.raises(SettingError, match="toy 1, b of toy 2"):
        compare(a, b)
