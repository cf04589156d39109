"""Paired comparison of two runs of one task: intervals, McNemar's test, and the answers that differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from limelight.benchmarks.results import Run
from limelight.benchmarks.scorers.measure import (
    WEIGHTS,
    Array,
    Block,
    Measure,
    Sums,
    Unit,
    interval,
    point,
    resampled,
)
from limelight.errors import SettingError


@dataclass(frozen=True)
class Difference:
    """One metric of run ``b`` minus that of run ``a``, over their common units.

    Attributes:
        low, high: paired bootstrap interval of the difference; ``p``: its two-sided p-value.
        only_a, only_b: units that only a, or only b, answered correctly, where correctness is defined.
        mcnemar: exact two-sided p-value of McNemar's test on those two counts.
    """

    name: str
    a: float
    b: float
    low: float
    high: float
    p: float
    n: int
    unit: Unit
    only_a: int | None = None
    only_b: int | None = None
    mcnemar: float = math.nan

    @property
    def difference(self) -> float:
        return self.b - self.a


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value of McNemar's test: binomial, ``only_a`` successes in ``only_a + only_b`` fair trials."""
    n, k = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, 2 * tail / (1 << n))


def two_sided(drawn: Array) -> float:
    """Return the two-sided p-value of a difference from its bootstrap resamples, NaN ones excluded; NaN without any."""
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return math.nan
    return min(1.0, 2 * (min(int((drawn <= 0).sum()), int((drawn >= 0).sum())) + 1) / (len(drawn) + 1))


def common(a: Block, b: Block) -> tuple[Block, Block]:
    """Restrict both blocks to their common units, in a's order."""
    there = {i: k for k, i in enumerate(b.ids)}
    kept = [(k, there[i]) for k, i in enumerate(a.ids) if i in there]
    ka, kb = [x for x, _ in kept], [y for _, y in kept]
    return _take(a, ka), _take(b, kb)


def compare_blocks(
    a: Block, b: Block, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> list[Difference]:
    """Compare every measure that both blocks have. Each resample draws the same units for both."""
    a, b = common(a, b)
    if not a.ids:
        return []
    joint = Block(
        a.name,
        a.ids,
        {f"{side}.{c}": v for side, x in (("a", a), ("b", b)) for c, v in x.columns.items()},
        (),
        a.clusters,
    )
    drawn = len(set(a.clusters or a.ids)) > 1 and resamples > 0
    kinds = {m.ranked for m in a.measures} if drawn else set()
    chunks = {ranked: list(resampled(joint, resamples, seed, ranked=ranked)) for ranked in kinds}
    counts: tuple[int, int] | None = None
    if "correct" in a.columns and "correct" in b.columns:
        right = a.columns["correct"] > 0, b.columns["correct"] > 0
        counts = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    return [
        _difference(joint, a, b, m, n, chunks.get(m.ranked, []), level, counts)
        for m in a.measures
        for n in b.measures
        if m.name == n.name and m.ranked is n.ranked
    ]


def compare(
    a: Run, b: Run, parser: str = "", *, resamples: int = 1000, level: float = 0.95, seed: int = 0, **options: Any
) -> list[Difference]:
    """Compute the difference of every metric between two runs of one task.

    Raises:
        SettingError: the runs are of different tasks or versions of a task.
    """
    same_task(a, b)
    theirs = b.blocks(parser, **options)
    out: list[Difference] = []
    for block in a.blocks(parser, **options):
        names = {m.name for m in block.measures}
        other = next((o for o in theirs if o.name == block.name and names & {m.name for m in o.measures}), None)
        if other is not None:
            out += compare_blocks(block, other, resamples=resamples, level=level, seed=seed)
    return out


@dataclass(frozen=True)
class Pair:
    """One question that two runs answered differently; ``right_*`` is None where correctness is not defined."""

    id: str
    prompt: str
    target: Any
    a: str
    b: str
    right_a: bool | None
    right_b: bool | None

    @property
    def verdict(self) -> str:
        """``fixed`` (b correct, a wrong), ``broken`` (the reverse), or ``same``."""
        if self.right_a is None or self.right_b is None or self.right_a == self.right_b:
            return "same"
        return "fixed" if self.right_b else "broken"


def differing(a: Run, b: Run, parser: str = "", **options: Any) -> list[Pair]:
    """Return the questions whose answers differ, fixed and broken ones first."""
    same_task(a, b)
    right_a, right_b = verdicts(a.blocks(parser, **options)), verdicts(b.blocks(parser, **options))
    theirs = {r.id: r for r in b.records}
    pairs = [
        Pair(r.id, str(r.meta["prompt"]), r.target, r.answer, theirs[r.id].answer, right_a.get(r.id), right_b.get(r.id))
        for r in a.records
        if r.id in theirs and theirs[r.id].answer != r.answer
    ]
    order = ["fixed", "broken", "same"]
    return sorted(pairs, key=lambda p: order.index(p.verdict))


def verdicts(blocks: Sequence[Block]) -> Mapping[str, bool]:
    """Map each id to whether it was answered correctly, from the blocks whose units are single answers."""
    return {
        i: bool(c > 0)
        for b in blocks
        if "correct" in b.columns
        for i, c in zip(b.ids, b.columns["correct"], strict=True)
    }


def same_task(a: Run, b: Run) -> None:
    """Raise ``SettingError`` unless the runs are of the same version of the same task."""
    of_a, of_b = [(r.manifest["identity"]["task"], r.manifest["identity"]["version"]) for r in (a, b)]
    if of_a != of_b:
        raise SettingError(
            f"{a.name} is a run of {of_a[0]} {of_a[1]}, {b.name} of {of_b[0]} {of_b[1]}",
            hint="compare runs of one task",
        )


def _take(block: Block, index: Sequence[int]) -> Block:
    chosen = np.array(index, dtype=int)
    columns = {c: v[chosen] for c, v in block.columns.items()}
    clusters = tuple(block.clusters[i] for i in index) if block.clusters else ()
    return Block(block.name, tuple(block.ids[i] for i in index), columns, block.measures, clusters)


def _difference(
    joint: Block,
    a: Block,
    b: Block,
    of_a: Measure,
    of_b: Measure,
    chunks: Sequence[dict[str, Array]],
    level: float,
    counts: tuple[int, int] | None,
) -> Difference:
    low = high = p = math.nan
    if chunks and of_a.unit != "count":
        drawn = np.concatenate([of_b.formula(_side(c, "b")) - of_a.formula(_side(c, "a")) for c in chunks])
        low, high = interval(drawn, level)
        p = two_sided(drawn)
    name = joint.named(of_a)
    found = Difference(name, point(a, of_a), point(b, of_b), low, high, p, len(a.ids), of_a.unit)
    if counts is None or of_a.unit == "count":
        return found
    return Difference(name, found.a, found.b, low, high, p, found.n, of_a.unit, counts[0], counts[1], mcnemar(*counts))


def _side(sums: Sums, side: str) -> dict[str, Array]:
    own = {c.removeprefix(f"{side}."): v for c, v in sums.items() if c.startswith(f"{side}.")}
    return own | ({WEIGHTS: sums[WEIGHTS]} if WEIGHTS in sums else {})
