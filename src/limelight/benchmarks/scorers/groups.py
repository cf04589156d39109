"""Accuracy over groups of questions that must all be correct: HallusionBench's qAcc and fAcc, MME's acc+."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from limelight.benchmarks.scorers.measure import Block, Measure, block, ratio, share
from limelight.benchmarks.scorers.yes_no import PARSERS, YesNo, columns_of
from limelight.types import Record


def correct(record: Record, parser_name: str, positive: YesNo = "yes") -> float:
    """Return 1.0 when the parsed answer equals the label, else 0.0."""
    return columns_of(record, PARSERS[parser_name], positive)["correct"]


def all_correct(
    name: str,
    measure: str,
    records: Sequence[Record],
    key: Callable[[Record], str | None],
    parser_name: str,
    cluster: Callable[[Record], str],
) -> Block:
    """The share of groups in which every answer is correct. Records whose key is None are in no group."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for r in records:
        if (k := key(r)) is not None:
            groups[k].append(r)
    rows = [(k, {"n": 1.0, "correct": float(all(correct(r, parser_name) for r in g))}) for k, g in groups.items()]
    return block(
        name, rows, [share(measure, "correct", "n")], [cluster(g[0]) for g in groups.values()], ("n", "correct")
    )


def pairs(name: str, records: Sequence[Record], parser_name: str, pictures: Callable[[Record], str]) -> Block:
    """MME's accuracy+ over images with two questions, and its score: 100 * (accuracy + accuracy+), of 200.

    An image with only one question asked (a limited run) has accuracy, but no accuracy+.
    """
    groups: dict[str, list[Record]] = defaultdict(list)
    for r in records:
        groups[pictures(r)].append(r)
    rows = []
    for k, g in groups.items():
        right = [correct(r, parser_name) for r in g]
        row = {"questions": float(len(g)), "right": sum(right)}
        rows.append((k, row | ({"pairs": 1.0, "both": float(all(right))} if len(g) == 2 else {})))
    score = Measure("score", lambda s: 100 * (ratio(s["right"], s["questions"]) + ratio(s["both"], s["pairs"])), "")
    return block(name, rows, [share("accuracy+", "both", "pairs"), score], (), ("questions", "right", "pairs", "both"))
