"""Measures as functions of column sums, and their bootstrap intervals, against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from limelight.benchmarks.scorers.measure import (
    Measure,
    Metric,
    block,
    count,
    evaluate,
    interval,
    mean_block,
    point,
    ratio,
    resampled,
    share,
    total_block,
)
from limelight.errors import SettingError


def accuracy(values: list[float], name: str = "a", clusters: list[str] | None = None):
    rows = [(f"{name}{i}", {"n": 1.0, "correct": v}) for i, v in enumerate(values)]
    return block(
        name, rows, [share("accuracy", "correct", "n"), count("right", "correct")], clusters or [], ("n", "correct")
    )


def test_ratio_is_nan_where_undefined() -> None:
    assert ratio(np.array([1.0, 2.0]), np.array([2.0, 0.0])).tolist()[0] == 0.5
    assert math.isnan(ratio(np.array(1.0), np.array(0.0)))


def test_value_and_interval_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    values = (rng.random(300) < 0.8).astype(float)
    found = evaluate([accuracy(values.tolist())], resamples=4000)["a/accuracy"]
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert found.value == values.mean()
    assert found.n == 300
    assert found.low == pytest.approx(theirs.low, abs=0.006)
    assert found.high == pytest.approx(theirs.high, abs=0.006)


def test_clusters_are_drawn_together() -> None:
    # ten answers a picture, all right or all wrong: ten pictures tell as much as ten answers, not a hundred
    values = [float(i % 2) for i in range(10) for _ in range(10)]
    together = evaluate([accuracy(values, clusters=[str(i) for i in range(10) for _ in range(10)])], resamples=2000)
    alone = evaluate([accuracy(values)], resamples=2000)
    ten = evaluate([accuracy([float(i % 2) for i in range(10)])], resamples=2000)
    width = {k: m["a/accuracy"].high - m["a/accuracy"].low for k, m in (("t", together), ("a", alone), ("ten", ten))}
    assert width["t"] == pytest.approx(width["ten"], abs=0.03)
    assert width["t"] > 2.5 * width["a"]


def test_resampling_is_seeded_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    of = accuracy([1.0, 0.0, 1.0])
    first, again = (evaluate([of], resamples=50, seed=3) for _ in range(2))
    assert first == again
    assert first != evaluate([of], resamples=50, seed=4)
    large = block("x", [(str(i), {"n": 1.0}) for i in range(300_000)], [], [], ("n",))
    chunks = list(resampled(large, 14, 0))
    assert [len(c["n"]) for c in chunks] == [6, 6, 2]
    assert all((c["n"] == 300_000).all() for c in chunks)


def test_empty_and_single_row() -> None:
    empty = evaluate([accuracy([])])
    assert math.isnan(empty["a/accuracy"].value)
    assert empty["a/accuracy"].n == 0
    assert math.isnan(empty["a/right"].value)
    one = evaluate([accuracy([1.0])])["a/accuracy"]
    assert one.value == 1.0
    assert math.isnan(one.low)
    assert math.isnan(one.high)


def test_counts_have_no_interval() -> None:
    found = evaluate([accuracy([1.0, 0.0, 1.0])])["a/right"]
    assert found.value == 2.0
    assert math.isnan(found.low)
    assert found.unit == "count"


def test_interval_needs_half_of_the_resamples() -> None:
    values = np.array([0.0, 1.0, np.nan, np.nan, np.nan])
    assert all(map(math.isnan, interval(values, 0.95)))
    assert interval(np.linspace(0, 1, 101), 0.9) == pytest.approx((0.05, 0.95))


def test_mean_and_total_over_blocks() -> None:
    parts = [accuracy([1.0] * 9 + [0.0], "a"), accuracy([0.0, 1.0], "b")]
    mean, total = mean_block("mean", parts), total_block("total", parts, ("accuracy",))
    assert evaluate([mean])["mean/accuracy"].value == pytest.approx(0.7)  # not 10 / 12
    assert evaluate([total])["total/accuracy"].value == pytest.approx(1.4)
    assert "mean/right" not in evaluate([mean])
    assert mean_block("mean", []).ids == ()


def test_a_block_checks_its_columns() -> None:
    with pytest.raises(SettingError, match="duplicate id"):
        block("a", [("x", {}), ("x", {})], [])
    with pytest.raises(SettingError, match="1 clusters"):
        block("a", [("x", {}), ("y", {})], [], ["c"])


def test_metric_to_json_and_back() -> None:
    metric = Metric(0.5, math.nan, 1.0, 3, "")
    stored = metric.to_json()
    assert stored == {"value": 0.5, "low": None, "high": 1.0, "n": 3, "unit": ""}
    back = Metric.from_json(stored)
    assert math.isnan(back.low)
    assert (back.value, back.high, back.n, back.unit) == (0.5, 1.0, 3, "")


def test_a_measure_of_several_columns() -> None:
    f1 = Measure("F1", lambda s: ratio(2 * s["tp"], 2 * s["tp"] + s["fp"] + s["fn"]))
    of = block("", [("a", {"tp": 1.0}), ("b", {"fp": 1.0}), ("c", {"tp": 1.0}), ("d", {"fn": 1.0})], [f1])
    assert point(of, f1) == pytest.approx(4 / 6)
