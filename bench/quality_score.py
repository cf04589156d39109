"""Metrics of decisions: accuracy, F1, AUC, yes ratio, paired intervals, CHAIR. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def yes_no(margin: Array, says_yes: Array, truth: Array) -> dict[str, float]:
    """``margin`` = l(yes) - l(no), ``says_yes`` the decision, ``truth`` the label; all [n].

    ``f1``: positive class yes; ``f1_no``: positive class no.
    """
    return {
        "accuracy": float((says_yes == truth).mean()),
        "f1": _f1(says_yes, truth),
        "f1_no": _f1(~says_yes, ~truth),
        "auc": auc(margin, truth),
        "yes_ratio": float(says_yes.mean()),
    }


def _f1(said: Array, truth: Array) -> float:
    return float(2 * (said & truth).sum() / max(said.sum() + truth.sum(), 1))


def word_errors(texts: list[str], truth: list[str]) -> list[float]:
    """Substitutions, deletions and insertions of each text; the words written where nothing was said."""
    from limelight.benchmarks.scorers.wer import transcript_columns

    return [
        transcript_columns(said, text)["errors"] if said else float(len(text.split()))
        for text, said in zip(texts, truth, strict=True)
    ]


def auc(score: Array, truth: Array) -> float:
    """Chance that a true yes scores above a true no; ties count half. 0.5 where a class is missing."""
    if truth.all() or not truth.any():
        return 0.5
    from scipy.stats import rankdata

    ranks = rankdata(np.nan_to_num(score, posinf=1e9, neginf=-1e9))
    positive = int(truth.sum())
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * (len(truth) - positive)))


def aucs(scores: Array, truths: Array) -> Array:
    """:func:`auc` of every row of ``[R, N]``, each with both classes."""
    from scipy.stats import rankdata

    ranks = rankdata(np.nan_to_num(scores, posinf=1e9, neginf=-1e9), axis=1)
    positive = truths.sum(1)
    out: Array = ((ranks * truths).sum(1) - positive * (positive + 1) / 2) / (positive * (truths.shape[1] - positive))
    return out


def matched(margin: Array, yes_ratio: float) -> Array:
    """Greedy's decisions with its threshold moved so that it says yes as often as another decoder."""
    count = round(yes_ratio * len(margin))
    out = np.zeros(len(margin), dtype=bool)
    out[np.argsort(-margin, kind="stable")[:count]] = True
    return out


def paired(ours: Array, theirs: Array, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean difference of paired per-item scores and its 95 % bootstrap interval."""
    difference = ours.astype(float) - theirs.astype(float)
    rng = np.random.default_rng(seed)
    means = difference[rng.integers(0, len(difference), (resamples, len(difference)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


def chair(rows: Iterable[tuple[set[str], frozenset[str]]]) -> dict[str, float]:
    """CHAIR_s, CHAIR_i and recall from (objects mentioned, objects there); each word of this world is its own node."""
    pairs = list(rows)
    wrong = [len(said - there) for said, there in pairs]
    said = sum(len(s) for s, _ in pairs)
    found = sum(len(s & t) for s, t in pairs)
    return {
        "chair_s": float(np.mean([w > 0 for w in wrong])),
        "chair_i": sum(wrong) / max(said, 1),
        "recall": found / max(sum(len(t) for _, t in pairs), 1),
        "mentions": said / max(len(pairs), 1),
    }
