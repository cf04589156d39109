"""Looking again on the miniatures: localisers, budgets, gates, joins, peers and oracles on large pictures, long sounds and films.

    python -m bench.look_again                    everything that is not in .cache/look_again yet; resumable
    python -m bench.look_again --cells 2x2/2 --rows "look again" greedy
    python -m bench.look_again --table            print the table from the committed bench/results/look_again.json

One run per (cell, row) takes all views of the largest budget with the gate open (bench/look_again_data.py). Settings are
chosen on dev (``--dev``), reported on test. A question on a picture that the model already sees in full detail is not looked
at again; the old cells show what that costs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

RESULTS = Path(__file__).parent / "results" / "look_again.json"
QUESTIONS = 60
CELLS = ("plain/3", "plain/4", "texture/3", "2x2/2", "3x3/3", "4x4/4", "relation/3")
SOUND_CELLS = ("event/4", "event/20")
FILM_CELLS = ("brief/3", "brief/6", "small/3", "brief-small/6")
# smol-vision: needs `make real` and the recipe's cut-outs, and must be asked for by --cells
REAL_CELLS = ("scenes/3",)
OLD_CELLS = ("none/clear", "none/poor", "E-wrong/clear", "adversarial/clear")
GATE = 0.9  # the default threshold of "auto" and "uncertain"
Floats = npt.NDArray[np.float64]
BASE: dict[str, Any] = {"when": "always", "join": "evidence"}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        settings: of look-again; empty: greedy. views: recorded, the first one included.
        kind: ours, localiser, peer, oracle or control.
        join, gate: of the answers; ``truth``: an oracle.
        extra: forwards of the localiser beside the views: (forward passes, backward passes).
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    views: int = 1
    kind: str = "localiser"
    join: str = "evidence"
    gate: str = "always"
    extra: tuple[int, int] = (1, 1)
    cells: tuple[str, ...] = (*CELLS, *REAL_CELLS)

    @property
    def recorded(self) -> dict[str, Any]:
        if not self.settings:
            return {}
        join = self.join if self.join == "second-picture" else "evidence"
        return {**BASE, **self.settings, "join": join, "views": self.views}


OURS = "look again"
VICROP = {"sizes": [1.0, 1.2, 1.4, 1.6, 1.8, 2.0], "context": 0.0, "pick": "sharpest"}
ROWS = (
    Row("greedy", kind="control", extra=(0, 0), cells=(*CELLS, *REAL_CELLS, "event/4", *FILM_CELLS, *OLD_CELLS)),
    Row(OURS, {"where": "blend"}, 5, "ours", extra=(2, 2), cells=(*CELLS, *REAL_CELLS, *FILM_CELLS)),
    Row("look again, quarters", {"where": "attnlrp-positive", "search": "quarters"}, 5, "ours", cells=(*CELLS, *REAL_CELLS, *FILM_CELLS)),
    Row("oracle box", {"where": "given", "boxes": "oracle"}, 2, "oracle", extra=(0, 0), cells=(*CELLS, *REAL_CELLS, *FILM_CELLS)),
    Row("signed AttnLRP", {"where": "attnlrp"}, 3, cells=(*CELLS, *REAL_CELLS, *FILM_CELLS)),
    Row("positive AttnLRP", {"where": "attnlrp-positive"}, 3),
    Row("gradient norm", {"where": "gradient"}, 3, cells=(*CELLS, *REAL_CELLS, *FILM_CELLS)),
    Row("attention, mean", {"where": "attention"}, 3, extra=(1, 0), cells=(*CELLS, *REAL_CELLS, *FILM_CELLS)),
    Row("random", {"where": "random"}, 3, "control", extra=(0, 0), cells=(*CELLS, *REAL_CELLS, *FILM_CELLS)),
    Row("ViCrop, relative attention", {"where": "relative-attention", "generic": "Describe the picture.", **VICROP}, 2, "peer", join="mean", extra=(2, 0)),
    Row("ViCrop, attention x gradient", {"where": "attention-gradient", **VICROP}, 2, "peer", join="mean"),
    Row("ViCrop, gradient", {"where": "pixel-gradient", "generic": "Describe the picture.", **VICROP}, 2, "peer", join="mean", extra=(2, 2)),
    Row("FOCUS, value similarity", {"where": "value-similarity"}, 3, "peer", join="crops", extra=(1, 0)),
    Row("ZoomEye, tree by confidence", {"where": "random", "search": "quarters", "overlap": 0.0, "order": "confidence"}, 5, "peer", join="last", extra=(0, 0)),
    Row("LookWise, confidence gate", {"where": "attention"}, 2, "peer", join="mean", gate="uncertain", extra=(1, 0)),
    Row("absolute AttnLRP", {"where": "attnlrp-absolute"}, 3),
    Row("CP-LRP", {"where": "cp-lrp"}, 3),
    Row("forward-mode Phi", {"where": "phi"}, 3, extra=(5, 0)),
    Row("attention, largest head", {"where": "attention-head"}, 3, extra=(1, 0)),
    Row("entropy gradient", {"where": "entropy-gradient"}, 3),
    Row("ViCrop, crop as second picture", {"where": "relative-attention", "generic": "Describe the picture.", **VICROP}, 2, "peer", join="second-picture", extra=(2, 0)),
    Row("windows of a long sound", {"where": "attnlrp-positive"}, 2, "ours", extra=(0, 0), cells=("event/20",)),
    Row("listen again", {"where": "attnlrp-positive"}, 8, "ours", cells=("event/20",)),
    Row("listen again, 3 views", {"where": "attnlrp-positive"}, 3, "ours", cells=("event/4",)),
    Row("as set by default", {"when": "auto"}, 2, "ours", cells=OLD_CELLS),
    Row("forced to look", {"when": "auto", "least_gain": 0.0}, 2, "control", cells=OLD_CELLS),
)  # fmt: skip
BY_NAME = {r.name: r for r in ROWS}


def margins(raw: dict[str, Any], budget: int, join: str, gate: str = "always", threshold: float = GATE) -> Floats:
    """The joined margins of a recorded run within a budget of views.

    ``join`` and ``gate`` ``truth``: the best view that was taken; look only where the first view is wrong.
    """
    views, final = raw["views"], np.array(raw["margin"], dtype=float)
    truth = np.array(raw["truth"], dtype=bool)
    if (
        not views
        or any(not v for v in views)
        or any(x[0] is None for v in views for x in v)
        or join == "second-picture"
    ):
        return final
    out = np.empty(len(views))
    for i, row in enumerate(views):
        own = row[:budget]
        values = np.array([x[0] for x in own], dtype=float)
        evidence = np.array([np.nan if x[1] is None else x[1] for x in own], dtype=float)
        if join == "evidence":
            out[i] = values[int(np.nanargmax(evidence))]
        elif join == "mean":
            out[i] = values.mean()
        elif join == "crops":
            out[i] = values[1:].mean() if len(values) > 1 else values[0]
        elif join == "any":
            out[i] = values.max()
        elif join == "last":  # the crop that is surest of a yes
            out[i] = values[1:].max() if len(values) > 1 else values[0]
        else:
            out[i] = values.max() if truth[i] else values.min()
        first = values[0]
        sure = abs(2 / (1 + np.exp(-first)) - 1) >= threshold
        if (gate == "uncertain" and sure) or (gate == "truth" and (first > 0) == truth[i]):
            out[i] = first
    return out


def looked(raw: dict[str, Any], gate: str, threshold: float = GATE) -> float:
    """The share of questions for which a gate opens."""
    views = raw["views"]
    if not views or not views[0]:
        return float(np.mean([bool(v) for v in views])) if views else 0.0
    first = np.array([v[0][0] if v and v[0][0] is not None else 0.0 for v in views], dtype=float)
    if gate == "uncertain":
        return float((np.abs(2 / (1 + np.exp(-first)) - 1) < threshold).mean())
    if gate == "truth":
        return float(((first > 0) != np.array(raw["truth"])).mean())
    return 1.0


def intervals(scores: Sequence[Floats], truth: npt.NDArray[np.bool_], resamples: int = 1000) -> list[list[float]]:
    """AUC of each with its 95 % bootstrap interval over questions, and of each minus the first: [auc, low, high, difference,
    low, high]."""
    from bench.quality_score import auc, aucs

    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(truth), (resamples, len(truth)))
    drawn = drawn[truth[drawn].any(1) & ~truth[drawn].all(1)]
    each = np.array([aucs(s[drawn], truth[drawn]) for s in scores])
    out = []
    for s, own in zip(scores, each, strict=True):
        low, high = np.percentile(own, [2.5, 97.5])
        below, above = np.percentile(own - each[0], [2.5, 97.5])
        difference = auc(s, truth) - auc(scores[0], truth)
        out.append([round(float(x), 4) for x in (auc(s, truth), low, high, difference, below, above)])
    return out


def budgets(row: Row) -> tuple[int, ...]:
    return tuple(b for b in (2, 3, 5, 8) if b <= row.views) if row.settings else (1,)


def entries(row: Row, raw: dict[str, Any]) -> dict[str, Floats]:
    """Named scores of a recorded row: each budget, and for ours joins, gates and oracles."""
    if "event/20" in row.cells:
        return {f"{row.name}": margins(raw, 99, row.join)}
    found = {f"{row.name} @{b}": margins(raw, b, row.join, row.gate) for b in budgets(row)}
    if row.name == OURS:
        for b in budgets(row):
            found |= {f"{OURS}, {j} @{b}": margins(raw, b, j) for j in ("any", "mean", "crops", "truth")}
            found |= {f"{OURS}, gate {g} @{b}": margins(raw, b, "evidence", g) for g in ("uncertain", "truth")}
    return found


def summary(cell: str, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The numbers of one cell from its recorded rows."""
    truth = np.array(next(iter(found.values()))["truth"], dtype=bool)
    named: dict[str, Floats] = {}
    for name, raw in found.items():
        named |= entries(BY_NAME[name], raw)
    reference = next((n for n in (f"{OURS} @2", "greedy @1") if n in named), next(iter(named)))
    names = [reference, *(n for n in named if n != reference)]
    rows = dict(zip(names, intervals([named[n] for n in names], truth), strict=True))
    greedy = found.get("greedy", {}).get("seconds")
    return {
        "questions": len(truth),
        "reference": reference,
        "auc": {n: rows[n] for n in named},
        "accuracy": {n: round(float(((s > 0) == truth).mean()), 4) for n, s in named.items()},
        "seconds": {n: round(raw["seconds"], 2) for n, raw in found.items()},
        "ratio": {n: round(raw["seconds"] / greedy, 2) for n, raw in found.items()} if greedy else {},
        "looked": {n: round(looked(raw, "uncertain"), 3) for n, raw in found.items() if BY_NAME[n].settings},
    }


def run(cells: Sequence[str], rows: Sequence[Row], n: int, split: str, save: Callable[[dict[str, Any]], None]) -> None:
    from bench.look_again_data import record

    known: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:  # the most important rows of every cell first
        for cell in cells:
            if cell not in row.cells:
                continue
            started = time.time()
            strategy = "look-again" if row.settings else "greedy"
            known.setdefault(cell, {})[row.name] = record(split, cell, n, strategy, row.recorded)
            print(f"{cell} {row.name}: {time.time() - started:.0f} s", file=sys.stderr, flush=True)
    save({cell: summary(cell, found) for cell, found in known.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", nargs="+", default=[*CELLS, *SOUND_CELLS, *FILM_CELLS, *OLD_CELLS])
    parser.add_argument("--rows", nargs="+", default=[r.name for r in ROWS], help=", ".join(BY_NAME))
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="a cell")
    parser.add_argument("--dev", action="store_true", help="on dev, where settings are chosen; writes nothing")
    parser.add_argument("--table", action="store_true", help="print the committed table, run nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    from bench.look_again_table import render

    if args.table:
        print(render(json.loads(args.out.read_text())))
        return
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    def save(found: dict[str, Any]) -> None:
        results = {"questions": args.questions, "split": "dev" if args.dev else "test", "cells": found}
        if args.dev:
            print(render(results))
            return
        args.out.write_text(json.dumps(results, indent=1) + "\n")

    run(args.cells, [BY_NAME[name] for name in args.rows], args.questions, "dev" if args.dev else "test", save)
    if not args.dev:
        print(render(json.loads(args.out.read_text())))


if __name__ == "__main__":
    main()
