"""Rank statistics against loops over pairs, and their weights against repeated units."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limelight.benchmarks.scorers import ranking
from limelight.benchmarks.scorers.measure import Array


def drawn(n: int = 60, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    positive = (rng.random(n) < 0.4).astype(np.float64)
    return np.round(rng.standard_normal(n) + positive, 1), positive  # rounded: there are ties


def pairs(score: Array, positive: Array, groups: Array | None = None) -> float:
    top = total = 0.0
    for i in np.flatnonzero(positive):
        for j in np.flatnonzero(1 - positive):
            if groups is None or groups[i] == groups[j]:
                total += 1
                top += 1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0
    return top / total


def one(n: int) -> Array:
    return np.ones((1, n))


@pytest.mark.parametrize("seed", range(3))
def test_auroc_is_the_share_of_pairs_in_order(seed: int) -> None:
    score, positive = drawn(seed=seed)
    assert ranking.auroc(one(60), score, positive)[0] == pytest.approx(pairs(score, positive))
    groups = np.arange(60) % 3.0
    assert ranking.within(one(60), score, positive, groups)[0] == pytest.approx(pairs(score, positive, groups))


def test_a_score_that_only_separates_groups_is_uninformative_within() -> None:
    groups = np.repeat([0.0, 1.0, 2.0], 20)
    positive = (np.random.default_rng(0).random(60) < groups / 3).astype(np.float64)
    assert ranking.auroc(one(60), groups, positive)[0] > 0.65
    assert ranking.within(one(60), groups, positive, groups)[0] == 0.5


def test_average_precision_and_false_positives_by_hand() -> None:
    score, positive = np.array([4.0, 3.0, 2.0, 1.0]), np.array([1.0, 0.0, 1.0, 0.0])
    assert ranking.average_precision(one(4), score, positive)[0] == pytest.approx((1 + 2 / 3) / 2)
    assert ranking.false_positives(one(4), score, positive)[0] == pytest.approx(0.5)
    assert ranking.false_positives(one(4), score, positive, recall=0.5)[0] == 0.0
    assert ranking.average_precision(one(4), np.ones(4), positive)[0] == pytest.approx(0.5)  # ties: one threshold


def test_calibration_error_by_hand() -> None:
    chance, positive = np.array([0.05, 0.05, 0.95, 0.95]), np.array([0.0, 1.0, 1.0, 1.0])
    assert ranking.calibration_error(one(4), chance, positive)[0] == pytest.approx((0.9 + 0.1) / 4)
    assert ranking.calibration_error(one(2), np.array([0.0, 1.0]), np.array([0.0, 1.0]))[0] == 0.0
    assert np.isnan(ranking.calibration_error(one(2), np.array([0.0, np.nan]), np.array([0.0, 1.0]))[0])


@given(st.lists(st.integers(0, 3), min_size=20, max_size=20).filter(any))
def test_weights_are_repetitions(counts: list[int]) -> None:
    score, positive = drawn(20)
    groups, chance = np.arange(20) % 2.0, (score - score.min()) / (np.ptp(score) + 1e-9)
    weights = np.array([counts], dtype=np.float64)
    where = np.repeat(np.arange(20), counts)
    for function, extra in (
        (ranking.auroc, (score, positive)),
        (ranking.within, (score, positive, groups)),
        (ranking.average_precision, (score, positive)),
        (ranking.false_positives, (score, positive)),
        (ranking.calibration_error, (chance, positive)),
    ):
        got = function(weights, *extra)
        want = function(np.ones((1, len(where))), *(e[where] for e in extra))
        np.testing.assert_allclose(got, want, rtol=1e-9, equal_nan=True)


def test_one_kind_alone_has_no_rank() -> None:
    score = np.array([1.0, 2.0])
    for positive in (np.zeros(2), np.ones(2)):
        assert np.isnan(ranking.auroc(one(2), score, positive)[0])
    assert np.isnan(ranking.false_positives(one(2), score, np.zeros(2))[0])


def test_logistic_regression_finds_the_odds() -> None:
    x = np.repeat([0.0, 1.0], [400, 400])
    positive = np.concatenate([np.repeat([1.0, 0.0], [100, 300]), np.repeat([1.0, 0.0], [300, 100])])
    slope, intercept = ranking.logistic(x[:, None], positive, ridge=0.0)
    assert (slope, intercept) == pytest.approx((2 * np.log(3), -np.log(3)), rel=1e-6)


def test_regressions_are_never_fitted_on_the_judged_cluster() -> None:
    """Units of one cluster share a label that their score predicts there and nowhere else."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(40), 5).astype(str)
    score = np.repeat(rng.standard_normal(40), 5)
    positive = np.repeat(rng.integers(0, 2, 40), 5).astype(np.float64)
    chance = ranking.cross_fitted(score[:, None], positive, clusters)
    assert np.all((chance > 0) & (chance < 1))
    moved = positive.copy()
    moved[clusters == "7"] = 1 - moved[clusters == "7"]
    again = ranking.cross_fitted(score[:, None], moved, clusters)
    np.testing.assert_array_equal(chance[clusters == "7"], again[clusters == "7"])
    assert not np.array_equal(chance, again)
