"""Metrics as functions of column sums, with bootstrap confidence intervals.

All metrics used here are functions of column sums: accuracy = sum(correct) / sum(1), F1 of sums of tp, fp, fn,
CHAIR_i = sum(hallucinated) / sum(mentions), word error rate = sum(errors) / sum(words). So a scorer only fills
columns, one row per unit; intervals and paired comparisons follow by resampling rows. Rows of one cluster (the
questions about one image) are resampled together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from limelight.errors import SettingError
from limelight.types import Record

Array = NDArray[np.float64]
Sums = Mapping[str, Array]
Unit = Literal["%", "", "count"]
WEIGHTS = "*weights"  # how often each unit was drawn, [b, n], in the input of ``ranked`` measures


@dataclass(frozen=True)
class Measure:
    """A number computed from column sums. ``%``: a fraction, shown in percent; ``count``: has no interval.

    ``ranked``: not a function of sums, but a rank statistic such as the area under a ROC curve. Its formula gets the
    columns themselves, ``[n]`` each, and under :data:`WEIGHTS` the units' weights ``[b, n]``; it returns ``[b]``.
    """

    name: str
    formula: Callable[[Sums], Array]
    unit: Unit = "%"
    higher_is_better: bool | None = True
    ranked: bool = False


@dataclass(frozen=True)
class Metric:
    """A measured value and its interval; NaN where undefined (no rows, nothing predicted)."""

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    unit: Unit = "%"

    def to_json(self) -> dict[str, Any]:
        numbers = {
            k: None if math.isnan(v) else v for k, v in (("value", self.value), ("low", self.low), ("high", self.high))
        }
        return {**numbers, "n": self.n, "unit": self.unit}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Metric:
        value, low, high = (math.nan if row[k] is None else float(row[k]) for k in ("value", "low", "high"))
        return cls(value, low, high, int(row["n"]), row["unit"])


@dataclass(frozen=True)
class Block:
    """Measures over one set of units (questions, captions, figures).

    Attributes:
        name: prefix of the metrics' names, ``""`` for none.
        ids: one per unit, unique.
        columns: name -> ``[n]`` float64. A column ``correct`` of 0 and 1 enables McNemar's test.
        measures: what to compute.
        clusters: one per unit; units of one cluster are resampled together. When empty, each unit is its own cluster.
    """

    name: str
    ids: tuple[str, ...]
    columns: Mapping[str, Array]
    measures: tuple[Measure, ...]
    clusters: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        n = len(self.ids)
        if len(set(self.ids)) != n:
            raise SettingError(f"block {self.name!r} has a duplicate id", hint="give every sample a unique id")
        wrong = {k: v.shape for k, v in self.columns.items() if v.shape != (n,)}
        if wrong or len(self.clusters) not in (0, n):
            raise SettingError(
                f"block {self.name!r} has {n} ids, but columns {wrong}, {len(self.clusters)} clusters",
                hint="give one entry per id in every column, and in clusters if used",
            )

    def named(self, measure: Measure) -> str:
        return f"{self.name}/{measure.name}" if self.name else measure.name


def block(
    name: str,
    rows: Sequence[tuple[str, Mapping[str, float]]],
    measures: Sequence[Measure],
    clusters: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> Block:
    """Build a ``Block`` from (id, columns) pairs. ``columns`` names the columns in case there are no rows; missing values are 0."""
    names = dict.fromkeys([*columns, *(k for _, row in rows for k in row)])
    table = {k: np.array([row.get(k, 0.0) for _, row in rows], dtype=np.float64) for k in names}
    return Block(name, tuple(i for i, _ in rows), table, tuple(measures), tuple(clusters))


def ratio(top: Array, bottom: Array) -> Array:
    """Return ``top / bottom``, NaN where the denominator is 0."""
    safe = np.where(bottom == 0, 1.0, bottom)
    return np.asarray(np.where(bottom == 0, np.nan, top / safe), dtype=np.float64)


def share(name: str, top: str, bottom: str, *, unit: Unit = "%", higher_is_better: bool | None = True) -> Measure:
    """The measure ``sum(top) / sum(bottom)``."""
    return Measure(name, lambda s: ratio(s[top], s[bottom]), unit, higher_is_better)


def count(name: str, column: str, *, higher_is_better: bool | None = False) -> Measure:
    """The measure ``sum(column)``, without an interval."""
    return Measure(name, lambda s: s[column], "count", higher_is_better)


def point(of: Block, measure: Measure) -> float:
    """Return the measure on the original rows."""
    if not of.ids:
        return math.nan
    if measure.ranked:
        return float(measure.formula({**of.columns, WEIGHTS: np.ones((1, len(of.ids)))})[0])
    return float(measure.formula({k: np.asarray(v.sum()) for k, v in of.columns.items()}))


def resampled(of: Block, resamples: int, seed: int, *, ranked: bool = False) -> Iterator[dict[str, Array]]:
    """Yield column sums of bootstrap resamples over clusters, ``[b]`` per column, in chunks that bound memory; ``ranked``:
    the input of ranked measures (:class:`Measure`)."""
    names, index = np.unique(np.array(of.clusters or of.ids), return_inverse=True)
    k = len(names)
    sums = {c: np.bincount(index, weights=v, minlength=k) for c, v in of.columns.items()}
    rng, done = np.random.default_rng(seed), 0
    chunk = max(1, min(resamples, 2_000_000 // max(len(of.ids) if ranked else k, 1)))
    while done < resamples:
        b = min(chunk, resamples - done)
        drawn = rng.integers(0, k, size=(b, k)) + np.arange(b)[:, None] * k
        weights = np.bincount(drawn.ravel(), minlength=b * k).reshape(b, k).astype(np.float64)
        yield {**of.columns, WEIGHTS: weights[:, index]} if ranked else {c: weights @ v for c, v in sums.items()}
        done += b


def interval(values: Array, level: float) -> tuple[float, float]:
    """Return the percentile interval; NaN when fewer than half of the resamples are defined."""
    defined = values[~np.isnan(values)]
    if not len(defined) or 2 * len(defined) < len(values):
        return math.nan, math.nan
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def evaluate(
    blocks: Sequence[Block], *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Metric]:
    """Compute every measure of every block, with a percentile bootstrap interval over clusters (none for fewer than two)."""
    out: dict[str, Metric] = {}
    for b in blocks:
        n = len(b.ids)
        with_interval = resamples > 0 and len(set(b.clusters or b.ids)) > 1
        for ranked in (False, True):
            selected = [m for m in b.measures if m.ranked is ranked]
            chunks = list(resampled(b, resamples, seed, ranked=ranked)) if with_interval and selected else []
            for m in selected:
                low = high = math.nan
                if chunks and m.unit != "count":
                    low, high = interval(np.concatenate([m.formula(c) for c in chunks]), level)
                out[b.named(m)] = Metric(point(b, m), low, high, n, m.unit)
    return out


def mean_block(name: str, blocks: Sequence[Block]) -> Block:
    """The unweighted mean of each measure over blocks with the same measures, such as the mean over splits.

    Its rows are those of all blocks, so that intervals respect clusters that span several blocks.
    """
    ids = tuple(f"{b.name}\n{i}" for b in blocks for i in b.ids)
    columns = {}
    start = 0
    for k, b in enumerate(blocks):
        for c, values in b.columns.items():
            columns[f"{k}.{c}"] = np.zeros(len(ids))
            columns[f"{k}.{c}"][start : start + len(b.ids)] = values
        start += len(b.ids)
    clusters = tuple(c for b in blocks for c in (b.clusters or b.ids))
    taken = [m for m in blocks[0].measures if m.unit != "count" and not m.ranked] if blocks else []
    measures = tuple(_mean(m, blocks) for m in taken)
    return Block(name, ids, columns, measures, clusters)


def _mean(measure: Measure, blocks: Sequence[Block]) -> Measure:
    # each block's own formula, since splits of a task may differ
    formulas = [next(m.formula for m in b.measures if m.name == measure.name) for b in blocks]

    def formula(sums: Sums) -> Array:
        parts = [
            f({c: sums[f"{k}.{c}"] for c in b.columns}) for k, (f, b) in enumerate(zip(formulas, blocks, strict=True))
        ]
        return np.asarray(np.mean(parts, axis=0), dtype=np.float64)

    return Measure(measure.name, formula, measure.unit, measure.higher_is_better)


def total_block(name: str, blocks: Sequence[Block], names: Sequence[str]) -> Block:
    """The sum of the named measures over blocks, such as MME's score over its four parts."""
    mean = mean_block(name, blocks)
    chosen = [m for m in mean.measures if m.name in names]

    def times(m: Measure) -> Measure:
        return Measure(m.name, lambda s: m.formula(s) * len(blocks), m.unit, m.higher_is_better)

    return Block(name, mean.ids, mean.columns, tuple(times(m) for m in chosen), mean.clusters)


def records_by_split(records: Sequence[Record], splits: Iterable[str]) -> dict[str, list[Record]]:
    """Return the records of every split that has some, in the order of ``splits``."""
    found = {split: [r for r in records if r.meta["split"] == split] for split in splits}
    return {split: rows for split, rows in found.items() if rows}
