"""The trade between hallucination and recall over several runs of a caption task, such as a sweep over ``alpha``.

Every run is compared with a baseline on the same captions:

    difference       mean over images of (run - baseline)
    at equal length  c0 of the regression  d_i = c0 + c1 * l_i  over images i, where d_i is the difference of "has a
                     hallucinated object" and l_i that of the number of words: what remains when both are equally long

p-values are paired bootstrap over clusters. A sweep tests many settings, so all p-values of a table are corrected together by
Holm's step-down method: the chance of any false finding among them is at most the level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from limelight.benchmarks.compare import common, two_sided
from limelight.benchmarks.results import Run
from limelight.benchmarks.scorers.measure import Array, Block, Measure, Sums, interval, point, ratio, resampled
from limelight.benchmarks.tables import Table, labels, number
from limelight.errors import SettingError

NEEDED = ("CHAIR_s", "CHAIR_i", "recall", "length")
TESTED = ("CHAIR_s", "CHAIR_s at equal length", "CHAIR_i", "recall")


@dataclass(frozen=True)
class Effect:
    """A run's difference from the baseline in one measure; ``holm``: the p-value corrected over the whole frontier."""

    difference: float
    low: float
    high: float
    p: float
    holm: float = math.nan


@dataclass(frozen=True)
class Point:
    """One run: its measures, its effects by measure (none for the baseline), and whether no other run has both a lower
    CHAIR_i and a higher recall."""

    name: str
    measures: Mapping[str, float]
    effects: Mapping[str, Effect] = field(default_factory=dict)
    on_front: bool = False


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p-values by Holm's step-down method: the i-th smallest of m (from 0) times m - i, kept in order, at most 1.

    NaN (no test) stays NaN and is not counted. Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = sorted((i for i, p in enumerate(ps) if not math.isnan(p)), key=lambda i: ps[i])
    out, largest = [math.nan] * len(ps), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * ps[i]))
        out[i] = largest
    return out


def frontier(
    runs: Sequence[Run], baseline: Run, parser: str = "", *, block: str = "", resamples: int = 5000, seed: int = 0
) -> list[Point]:
    """Compare runs of one caption task with a baseline; the baseline is the first point.

    Args:
        block: the captions to compare, where a task has several sets (``caption-none`` of the demo tasks).

    Raises:
        SettingError: a run has no captions, or several sets of them and ``block`` names none.
    """
    others = [r for r in runs if r.path != baseline.path]
    if not others:
        raise SettingError(
            "a frontier needs at least two runs", hint="such as limelight bench chair ... --sweep alpha=1,2,4"
        )
    name = dict(zip([r.path for r in (baseline, *others)], labels([baseline, *others]), strict=True))
    base = caption_blocks(baseline, parser, block)
    points = [Point(name[baseline.path], _measures(base))]
    effects = []
    for run in others:
        own = caption_blocks(run, parser, block or base.name)
        points.append(Point(name[run.path], _measures(own)))
        effects.append(compared(base, own, resamples=resamples, seed=seed))
    flat = [(i, key) for i, of in enumerate(effects) for key in of]
    for (i, key), p in zip(flat, holm([effects[i][k].p for i, k in flat]), strict=True):
        found = effects[i][key]
        effects[i][key] = Effect(found.difference, found.low, found.high, found.p, p)
    return [
        Point(p.name, p.measures, e, not any(_dominates(q.measures, p.measures) for q in points))
        for p, e in zip(points, [{}, *effects], strict=True)
    ]


def caption_blocks(run: Run, parser: str = "", name: str = "") -> Block:
    """Return the run's block of captions called ``name``, or the only one."""
    found = {b.name: b for b in run.blocks(parser) if set(NEEDED) <= {m.name for m in b.measures}}
    if name in found:
        return found[name]
    if len(found) == 1 and not name:
        return next(iter(found.values()))
    listed = ", ".join(map(repr, found)) or "none"
    raise SettingError(
        f"{run.name} has no captions{f' called {name!r}' if name else ' to compare'}; its sets of captions: {listed}",
        hint="choose one by its name (--captions)" if found else "a frontier is for caption tasks such as chair",
    )


def compared(a: Block, b: Block, *, resamples: int = 5000, seed: int = 0) -> dict[str, Effect]:
    """Return run b minus baseline a in every tested measure, on their common captions."""
    a, b = common(a, b)
    if not a.ids:
        raise SettingError("the runs have no caption in common", hint="compare runs of the same images")
    columns = {f"{side}.{c}": v for side, x in (("a", a), ("b", b)) for c, v in x.columns.items()}
    d = b.columns["with_hallucination"] - a.columns["with_hallucination"]
    length = b.columns["words"] - a.columns["words"]
    columns |= {"n": np.ones(len(a.ids)), "d": d, "l": length, "dl": d * length, "ll": length * length}
    joint = Block(a.name, a.ids, columns, (), a.clusters)
    measures = [
        _difference(a, b, "CHAIR_s"),
        Measure(TESTED[1], intercept),
        *(_difference(a, b, k) for k in TESTED[2:]),
    ]
    drawn = len(set(a.clusters or a.ids)) > 1 and resamples > 0
    chunks = list(resampled(joint, resamples, seed)) if drawn else []
    out = {}
    for m in measures:
        values = np.concatenate([m.formula(c) for c in chunks]) if chunks else np.array([])
        low, high = interval(values, 0.95) if chunks else (math.nan, math.nan)
        out[m.name] = Effect(point(joint, m), low, high, two_sided(values))
    return out


def intercept(s: Sums) -> Array:
    """Return c0 of ``d = c0 + c1 l`` by least squares, from the sums of d, l, d l, l l and n; the mean of d where l never
    varies."""
    centred = s["ll"] - ratio(s["l"] * s["l"], s["n"])
    slope = np.where(centred > 1e-9, ratio(s["dl"] - ratio(s["d"] * s["l"], s["n"]), np.maximum(centred, 1e-9)), 0.0)
    return np.asarray(ratio(s["d"] - slope * s["l"], s["n"]), dtype=np.float64)


def _difference(a: Block, b: Block, name: str) -> Measure:
    of_a, of_b = (next(m for m in x.measures if m.name == name) for x in (a, b))

    def formula(s: Sums) -> Array:
        sides = [{c[2:]: v for c, v in s.items() if c.startswith(f"{side}.")} for side in ("a", "b")]
        return np.asarray(of_b.formula(sides[1]) - of_a.formula(sides[0]), dtype=np.float64)

    return Measure(name, formula)


def _measures(of: Block) -> dict[str, float]:
    return {m.name: point(of, m) for m in of.measures}


def _dominates(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    better = a["CHAIR_i"] <= b["CHAIR_i"] and a["recall"] >= b["recall"]
    return better and (a["CHAIR_i"] < b["CHAIR_i"] or a["recall"] > b["recall"])


def frontier_table(runs: Sequence[Run], baseline: Run, parser: str = "", **options: Any) -> Table:
    """Build the table of a frontier, ordered by recall; see :func:`frontier`."""
    points = frontier(runs, baseline, parser, **options)
    ordered = [baseline, *(r for r in runs if r.path != baseline.path)]
    settings = {p.name: _varied(run, ordered) for p, run in zip(points, ordered, strict=True)}
    rows = []
    for p in sorted(points, key=lambda p: p.measures["recall"]):
        values = [number(p.measures[k], "" if k == "length" else "%") for k in NEEDED]
        tests = [_cell(p.effects.get(k)) for k in TESTED]
        rows.append((p.name, settings[p.name], *values, *tests, "yes" if p.on_front else ""))
    header = (
        "",
        "settings",
        "CHAIR_s",
        "CHAIR_i",
        "recall",
        "words",
        *(f"{k}, difference" for k in TESTED),
        "on the frontier",
    )
    notes = (
        f"differences from {points[0].name}: [95 % paired bootstrap interval], p corrected by Holm's method over all tests here",
        "at equal length: the intercept of the regression of the difference on that of the number of words",
        "on the frontier: no other run has both a lower CHAIR_i and a higher recall",
    )
    return Table(f"{baseline.task.name}: hallucination and recall", header, tuple(rows), notes)


def _varied(run: Run, runs: Sequence[Run]) -> str:
    """The settings in which the run differs from another one with the same strategy."""
    own = dict(run.settings.get("strategy_settings") or {})
    same = [
        dict(r.settings.get("strategy_settings") or {})
        for r in runs
        if r.settings.get("strategy") == run.settings.get("strategy")
    ]
    return ", ".join(f"{k}={v}" for k, v in own.items() if any(other.get(k) != v for other in same))


def _cell(effect: Effect | None) -> str:
    if effect is None:
        return ""
    bounds = f" [{number(effect.low, signed=True)}, {number(effect.high, signed=True)}]"
    p = "" if math.isnan(effect.holm) else f" p{'<.001' if effect.holm < 0.001 else f'={effect.holm:.3f}'}"
    return number(effect.difference, signed=True) + ("" if math.isnan(effect.low) else bounds) + p
