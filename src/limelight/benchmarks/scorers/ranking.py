"""Weighted rank statistics of a score for two classes, vectorised over bootstrap resamples.

Everywhere ``weights`` is ``[b, n]`` (how often each unit was drawn), ``score`` ``[n]`` (the higher, the more positive),
``positive`` ``[n]`` of 0 and 1, and the result ``[b]``; NaN where one of the two kinds is missing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from limelight.benchmarks.scorers.measure import Array, ratio

RECALL = 0.95
BINS = 10


def auroc(weights: Array, score: Array, positive: Array) -> Array:
    """Area under the ROC curve: P(a positive's score > a negative's), ties counting one half."""
    top, below, both = _pairs(weights, score, positive)
    return ratio(top + below / 2, both)


def within(weights: Array, score: Array, positive: Array, groups: Array) -> Array:
    """AUROC over pairs within groups: the score's information beyond the group (such as the position in the answer)."""
    parts = [
        _pairs(weights[:, groups == g], score[groups == g], positive[groups == g]) for g in np.unique(groups)
    ]  # fmt: skip
    top, ties, both = (np.sum([p[i] for p in parts], axis=0) for i in range(3))
    return ratio(top + ties / 2, both)


def average_precision(weights: Array, score: Array, positive: Array) -> Array:
    """Area under the precision-recall curve, as scikit-learn's ``average_precision_score`` sums it."""
    tp, fp, own, _ = _descending(weights, score, positive)
    precision = np.nan_to_num(ratio(tp, tp + fp))  # 0/0 above the highest drawn score
    return ratio((own * precision).sum(1), tp[:, -1])


def false_positives(weights: Array, score: Array, positive: Array, recall: float = RECALL) -> Array:
    """False positive rate at the highest threshold that flags ``recall`` of the positives."""
    tp, fp, _, _ = _descending(weights, score, positive)
    at = (tp >= recall * tp[:, -1:] - 1e-9).argmax(1)  # the first sufficient threshold
    found = ratio(fp[np.arange(len(fp)), at], fp[:, -1])
    return np.where(tp[:, -1] > 0, found, np.nan)


def calibration_error(weights: Array, chance: Array, positive: Array, bins: int = BINS) -> Array:
    """Expected calibration error over bins of equal width (Naeini et al., 2015): ``sum_b |sum of p - y| / n``.

    NaN where a probability is unknown (too few units for a regression).
    """
    if np.isnan(chance).any():
        return np.full(len(weights), np.nan)
    where = np.minimum((chance * bins).astype(int), bins - 1)
    gaps = [np.abs(weights[:, where == b] @ (chance - positive)[where == b]) for b in range(bins)]
    return ratio(np.sum(gaps, axis=0), weights.sum(1))


def logistic(features: Array, positive: Array, ridge: float = 1e-3, steps: int = 50) -> Array:
    """Coefficients ``[k + 1]`` (the last is the intercept) of a logistic regression on ``[n, k]``, by Newton's method."""
    x = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    penalty = ridge * np.diag([1.0] * features.shape[1] + [0.0]) * len(x)
    beta = np.zeros(x.shape[1])
    for _ in range(steps):
        p = _sigmoid(x @ beta)
        gradient = x.T @ (p - positive) + penalty @ beta
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + penalty + 1e-9 * np.eye(len(beta)), gradient)
        beta -= step
        if float(np.abs(step).max()) < 1e-8:
            break
    return beta


def cross_fitted(features: Array, positive: Array, clusters: Array, folds: int = 5, seed: int = 0) -> Array:
    """P(positive) ``[n]`` by cross-fitted logistic regression on the other clusters' units; features are standardised.

    NaN where the other clusters' units are all of one class.
    """
    centre, spread = features.mean(0), features.std(0)
    x = (features - centre) / np.where(spread == 0, 1.0, spread)
    names, index = np.unique(clusters, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(names))[index] % folds
    out = np.full(len(positive), np.nan)
    for k in np.unique(fold):
        train, test = fold != k, fold == k
        if 0 < positive[train].sum() < train.sum():
            beta = logistic(x[train], positive[train])
            out[test] = _sigmoid(x[test] @ beta[:-1] + beta[-1])
    return out


def _sigmoid(x: Array) -> Array:
    out: Array = 0.5 * (1 + np.tanh(x / 2))
    return out


def _grouped(weights: Array, score: Array, positive: Array, order: NDArray[np.intp]) -> tuple[Array, Array]:
    """Weights of positives and negatives ``[b, m]`` at each of the ``m`` distinct scores, in order."""
    ranked = score[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]])) if len(ranked) else np.array([], int)
    if not len(starts):
        return np.zeros((len(weights), 1)), np.zeros((len(weights), 1))
    w = weights[:, order]
    own, other = (np.add.reduceat(w * side, starts, axis=1) for side in (positive[order], 1 - positive[order]))
    return own, other


def _pairs(weights: Array, score: Array, positive: Array) -> tuple[Array, Array, Array]:
    own, other = _grouped(weights, score, positive, np.argsort(score, kind="stable"))
    below = np.cumsum(other, axis=1) - other
    return (own * below).sum(1), (own * other).sum(1), own.sum(1) * other.sum(1)


def _descending(weights: Array, score: Array, positive: Array) -> tuple[Array, Array, Array, Array]:
    own, other = _grouped(weights, score, positive, np.argsort(-score, kind="stable"))
    return np.cumsum(own, axis=1), np.cumsum(other, axis=1), own, other
