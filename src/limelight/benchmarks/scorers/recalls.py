"""Recall of each label: DASH-B's TPR and TNR, CMM's perception accuracy and hallucination resistance, the PhD index.

    recall of yes = yes answers to questions labelled yes / questions labelled yes
    recall of no  = no answers to questions labelled no / questions labelled no
    harmonic mean = 2 * recall of yes * recall of no / (recall of yes + recall of no)

A model that always says yes, or always no, has a harmonic mean of 0, whatever the share of the labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from limelight.benchmarks.scorers.measure import Array, Block, Measure, Sums, block, ratio, share
from limelight.benchmarks.scorers.yes_no import PARSERS, gold_label
from limelight.types import Record


def recalls(
    name: str,
    records: Sequence[Record],
    parser_name: str,
    names: tuple[str, str, str] = ("TPR", "TNR", "harmonic mean"),
) -> Block:
    """A block with the recall of yes, the recall of no and their harmonic mean, under ``names`` (``""`` omits one).

    Unparsed answers count as wrong. Rows with equal ``record.meta["cluster"]`` are resampled together.
    """
    parser = PARSERS[parser_name]
    rows = []
    for r in records:
        gold = gold_label(r)
        rows.append((r.id, {gold: 1.0, f"{gold}_right": float(parser(r.answer, gold) == gold)}))

    def harmonic(s: Sums) -> Array:
        yes, no = ratio(s["yes_right"], s["yes"]), ratio(s["no_right"], s["no"])
        return np.asarray(np.where(yes + no == 0, 0.0, ratio(2 * yes * no, yes + no)), dtype=np.float64)

    measures = [share(names[0], "yes_right", "yes"), share(names[1], "no_right", "no"), Measure(names[2], harmonic)]
    clusters = [str(r.meta.get("cluster", r.id)) for r in records]
    return block(name, rows, [m for m in measures if m.name], clusters, ("yes", "yes_right", "no", "no_right"))
