"""Metrics on tables small enough to count by hand."""

import numpy as np
import pytest

from bench import quality_score as score


def test_yes_no_counts() -> None:
    truth = np.array([True, True, False, False])
    margin = np.array([2.0, -1.0, 1.0, -3.0])
    got = score.yes_no(margin, margin > 0, truth)
    assert got == {"accuracy": 0.5, "f1": 0.5, "f1_no": 0.5, "auc": 0.75, "yes_ratio": 0.5}


def test_word_errors_and_words_out_of_nothing() -> None:
    got = score.word_errors(
        ["open door", "", "open the window", "play music", ""], ["open door", "turn left", "open door", "", ""]
    )
    assert got == [0, 2, 2, 2, 0]


def test_auc_of_ties_and_of_one_class() -> None:
    assert score.auc(np.zeros(4), np.array([True, False, True, False])) == 0.5
    assert score.auc(np.arange(3.0), np.array([True, True, True])) == 0.5
    assert score.auc(np.array([1.0, np.inf]), np.array([False, True])) == 1.0


def test_auc_of_many_draws_at_once() -> None:
    rng = np.random.default_rng(0)
    scores, truths = rng.integers(0, 4, (20, 30)).astype(float), rng.random((20, 30)) < 0.4
    scores[0, 0] = np.inf
    assert score.aucs(scores, truths) == pytest.approx([score.auc(s, t) for s, t in zip(scores, truths, strict=True)])


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 1.0])
def test_matched_has_the_same_yes_ratio(ratio: float) -> None:
    margin = np.random.default_rng(0).normal(size=40)
    moved = score.matched(margin, ratio)
    assert moved.mean() == ratio
    if 0 < ratio < 1:
        assert margin[moved].min() > margin[~moved].max()


def test_paired_interval_holds_the_difference_and_shrinks_with_no_difference() -> None:
    rng = np.random.default_rng(1)
    theirs = rng.random(2000) < 0.5
    ours = theirs | (rng.random(2000) < 0.2)
    mean, low, high = score.paired(ours, theirs)
    assert low < mean < high
    assert low > 0
    assert score.paired(theirs, theirs) == (0.0, 0.0, 0.0)


def test_chair() -> None:
    got = score.chair(
        [({"cup", "dog"}, frozenset({"cup"})), (set(), frozenset({"pig"})), ({"hat"}, frozenset({"hat"}))]
    )
    assert got == {
        "chair_s": pytest.approx(1 / 3),
        "chair_i": pytest.approx(1 / 3),
        "recall": pytest.approx(2 / 3),
        "mentions": 1.0,
    }
