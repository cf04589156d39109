"""A row of the quality table: metrics of one decoder's answers, paired with greedy."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench import quality_score as score
from bench.quality_data import TEXT_CELLS
from bench.quality_decoders import Decoder

MIXTURES = (0.9, 0.7, 0.5)


def mixture(accuracy: dict[str, float], right: float) -> float:
    """Return the accuracy when a share ``right`` of the hints is right, over both kinds of hint and both visibilities."""
    parts = [
        right * accuracy[f"{kind}-right/{seen}"] + (1 - right) * accuracy[f"{kind}-wrong/{seen}"]
        for kind in ("E", "C")
        for seen in ("clear", "poor")
    ]
    return float(np.mean(parts))


def fixed_hint_auc(cells: dict[str, list[dict[str, Any]]], picked: np.ndarray[Any, Any] | None = None) -> float:
    """AUC among questions whose hint says the same (present, or absent), right as often as wrong.

    Within such a group the hint cannot tell yes from no, so a rule that only trusts the text less leaves it alone.
    ``picked``: the numbers of the questions to use, the same in every cell.
    """
    found = []
    for kind in ("E", "C"):
        for seen in ("clear", "poor"):
            for right, wrong in zip(cells[f"{kind}-right/{seen}"], cells[f"{kind}-wrong/{seen}"], strict=True):
                every = slice(None) if picked is None else picked
                both = [(np.array(r["margin"])[every], np.array(r["truth"])[every]) for r in (right, wrong)]
                for said in (True, False):
                    keep = [both[0][1] == said, both[1][1] != said]
                    margin = np.concatenate([m[k] for (m, _), k in zip(both, keep, strict=True)])
                    truth = np.concatenate([t[k] for (_, t), k in zip(both, keep, strict=True)])
                    found.append(score.auc(margin, truth))
    return float(np.mean(found))


def fixed_hint_difference(
    cells: dict[str, list[dict[str, Any]]], base: dict[str, list[dict[str, Any]]], draws: int = 500
) -> list[float]:
    """Difference of :func:`fixed_hint_auc` to ``base`` on the same questions, and its 95 % interval by bootstrap over them."""
    count = len(cells["E-right/clear"][0]["truth"])
    rng = np.random.default_rng(0)
    picks = [np.arange(count), *(rng.integers(0, count, count) for _ in range(draws))]
    first, *rest = [fixed_hint_auc(cells, p) - fixed_hint_auc(base, p) for p in picks]
    low, high = np.nanpercentile(rest, [2.5, 97.5])
    return [first, float(low), float(high)]


def row_of(decoder: Decoder, raw: dict[str, Any], greedy: dict[str, Any] | None) -> dict[str, Any]:
    """Numbers of one decoder, over its seeds; paired against greedy."""
    cells: dict[str, Any] = {}
    pairs: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
    for where, runs in raw["cells"].items():
        per = []
        right = []
        for run in runs:
            truth, yes = np.array(run["truth"]), np.array(run["yes"])
            per.append(score.yes_no(np.array(run["margin"]), yes, truth))
            right.append(yes == truth)
        numbers = {k: float(np.mean([p[k] for p in per])) for k in per[0]}
        numbers["unparsed"] = float(np.mean([run["unparsed"] for run in runs]))
        if greedy is not None:
            base = greedy["cells"][where][0]
            same = slice(0, len(runs[0]["truth"]))  # a costly row answers the first questions of each cell
            truth, margin = np.array(base["truth"])[same], np.array(base["margin"])[same]
            mine, theirs = np.mean(right, axis=0), np.array(base["yes"])[same] == truth
            numbers["vs_greedy"] = score.paired(mine, theirs)
            moved = score.matched(margin, numbers["yes_ratio"])
            numbers["greedy_at_same_yes_ratio"] = float((moved == truth).mean())
            numbers["fixed"] = int(((right[0]) & ~theirs).sum())
            numbers["broken"] = int((~right[0] & theirs).sum())
            if where in TEXT_CELLS:
                pairs.append((mine, theirs))
        cells[where] = numbers
    accuracy = {w: c["accuracy"] for w, c in cells.items()}
    out: dict[str, Any] = {
        "cells": cells,
        "questions": len(next(iter(raw["cells"].values()))[0]["truth"]),
        "mixtures": {str(m): mixture(accuracy, m) for m in MIXTURES},
        "auc_fixed_hint": fixed_hint_auc(raw["cells"]),
        "image_share": raw["share"],
        "seconds": raw["seconds"],
        "captions": {
            where: {
                k: float(np.mean([score.chair(_sets(r))[k] for r in runs]))
                for k in ("chair_s", "chair_i", "recall", "mentions")
            }
            for where, runs in raw["captions"].items()
        },
    }
    if pairs:
        out["text_cells_vs_greedy"] = score.paired(
            np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs])
        )
    return out


def _sets(run: dict[str, Any]) -> list[tuple[set[str], frozenset[str]]]:
    return [(set(s), frozenset(t)) for s, t in zip(run["said"], run["truth"], strict=True)]
