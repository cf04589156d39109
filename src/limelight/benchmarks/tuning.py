"""Choosing settings on dev with an equal number of trials for every decoder.

    trials = plan(values, budget, default)          which settings to try
    best = choose(trials, keep=...)                  the best trial, of those that keep what must not get worse

The command ``limelight tune`` and the quality benches (``bench/``) choose by :func:`choose`.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from limelight.benchmarks.results import Results
from limelight.benchmarks.scorers.measure import Measure
from limelight.benchmarks.task import Task
from limelight.errors import SettingError

Settings = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One setting tried on dev. ``score``: higher is better; ``kept``: the value that must not get worse, if any."""

    settings: Settings
    score: float
    kept: float = math.nan
    metrics: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


def choose(trials: Sequence[Trial], floor: float = -math.inf) -> Trial:
    """Return the trial with the best score among those whose ``kept`` value is at least ``floor``.

    Of equal scores the higher ``kept`` value wins, then the first. Where no trial reaches the floor: the one that comes
    nearest, the better score first among equals. Trials without a score (NaN) are never chosen before others.
    """
    if not trials:
        raise SettingError("there are no trials to choose from", hint="try at least one setting")
    scored = [t for t in trials if not math.isnan(t.score)] or list(trials)
    fitting = [t for t in scored if math.isnan(t.kept) or t.kept >= floor]
    if fitting:
        return max(fitting, key=lambda t: (_known(t.score), _known(t.kept)))
    return max(scored, key=lambda t: (t.kept, _known(t.score)))


def _known(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def plan(values: Mapping[str, Sequence[Any]], budget: int, default: Mapping[str, Any], seed: int = 0) -> list[Settings]:
    """Return at most ``budget`` settings: the default first, then all combinations of the values, or a seeded sample of them.

    Every decoder gets the same budget. One with fewer combinations tries them all; one without settings is tried once.
    """
    if budget < 1:
        raise SettingError(
            f"the budget must be at least 1, got {budget}", hint="the number of settings to try per strategy"
        )
    every = [dict(zip(values, row, strict=True)) for row in product(*values.values())]
    published = {k: default[k] for k in values if default.get(k) is not None}  # None: the strategy's own choice
    others = [s for s in every if s != published]
    if len(others) > budget - 1:
        chosen = set(random.Random(seed).sample(range(len(others)), budget - 1))
        others = [s for i, s in enumerate(others) if i in chosen]
    return [published, *others]


def nearby(default: Any) -> list[Any]:
    """Return values to try for a setting without published ones: an eighth to four times a positive number, or both of a
    switch; nothing for other defaults."""
    if isinstance(default, bool):
        return [default, not default]
    if isinstance(default, float) and default > 0 and math.isfinite(default):
        factors = (0.25, 0.5, 1.0, 2.0) if default <= 1 else (0.5, 1.0, 2.0, 4.0)
        return [float(f"{default * f:.6g}") for f in factors]
    return []


@dataclass(frozen=True)
class Goal:
    """What to optimise: the mean of the metrics that match ``metric``, while the mean of those that match ``keep`` must not fall
    more than ``tolerance`` below the baseline's."""

    metric: str
    keep: str = ""
    tolerance: float = 0.0

    def trial(self, settings: Settings, results: Results) -> Trial:
        """Return the trial of a dev run."""
        better = directions(results)
        matched = _matching(results, self.metric)
        signs = {better.get(m) for m in matched}
        if None in signs or len(signs) > 1:
            raise SettingError(
                f"the metrics {sorted(matched)} are not all better when higher, or when lower",
                hint="choose others with --metric",
            )
        score = _mean(matched) * (1 if signs.pop() else -1)
        return Trial(settings, score, _mean(_matching(results, self.keep)) if self.keep else math.nan, matched)

    def floor(self, baseline: Trial) -> float:
        """Return the lowest acceptable value of ``keep``."""
        return baseline.kept - self.tolerance if self.keep else -math.inf


def directions(results: Results) -> dict[str, bool | None]:
    """Map each metric to whether higher is better."""
    found: dict[str, bool | None] = {}
    for block in results.run.blocks(results.parser):
        measures: Sequence[Measure] = block.measures
        found |= {block.named(m): m.higher_is_better for m in measures}
    return found


def goal_of(task: Task, metric: str = "", keep: str = "", tolerance: float = 0.0) -> Goal:
    """Return the goal of a task: its own unless ``metric`` is given.

    Raises:
        SettingError: the task has none, and no metric is given; or a tolerance below 0.
    """
    if tolerance < 0:
        raise SettingError(f"the tolerance must be at least 0, got {tolerance}", hint="a share such as 0.01")
    own = task.goal
    if not metric and not own:
        raise SettingError(
            f"{task.name} has no goal of its own", hint=f"choose a metric, such as one of {list(task.headline)}"
        )
    return Goal(metric or own[0], keep or ("" if metric or len(own) < 2 else own[1]), tolerance)


def _matching(results: Results, pattern: str) -> dict[str, float]:
    found = {k: m.value for k, m in results.metrics.items() if fnmatchcase(k, pattern)}
    if not found:
        raise SettingError(f"no metric matches {pattern!r}", hint=f"there are {sorted(results.metrics)}")
    return found


def _mean(values: Mapping[str, float]) -> float:
    known = [v for v in values.values() if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def key(settings: Mapping[str, Any]) -> str:
    """Return a short stable name for settings, for the folder of a trial."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:10]
