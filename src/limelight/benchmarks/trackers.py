"""Sending the results of runs to an experiment tracker (trackio, Weights & Biases, MLflow) through its own client.

A run appears under its folder's name, with its identity (task, model, strategy, settings, data hashes) as configuration and
one value per metric, and the ends of its interval as ``metric/low`` and ``metric/high``. Answers and media are not sent.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from limelight.benchmarks.extras import need
from limelight.benchmarks.results import Results
from limelight.errors import SettingError

PROJECT = "limelight"
_PARAM_LENGTH = 500  # the shortest limit of the three on a parameter's text


def check_tracker(name: str) -> None:
    """Raise before a long run when a tracker is unknown (``SettingError``) or its client is not installed
    (``MissingExtraError``)."""
    if name not in TRACKERS:
        raise SettingError(f"unknown tracker {name!r}", hint=f"one of {', '.join(TRACKERS)}")
    need(name, name)


def log_results(results: Results, tracker: str, *, project: str = PROJECT, name: str = "") -> None:
    """Send a run's metrics and identity to a tracker; logging the same folder again updates the same entry, where the
    tracker can (Weights & Biases).

    Raises:
        SettingError: unknown tracker. MissingExtraError: its client is not installed.
    """
    check_tracker(tracker)
    TRACKERS[tracker](results, project, name or results.run.name)


def configuration(results: Results) -> dict[str, Any]:
    """Return the run's identity with nested keys joined by ``.``, its parser and its versions."""
    identity = results.run.manifest["identity"]
    last = results.run.manifest["sessions"][-1]
    return {**_flat(identity), "parser": results.parser, "git": last["git"], **_flat(last["versions"], "versions")}


def values(results: Results) -> dict[str, float]:
    """Return the metrics and the ends of their intervals, without undefined ones."""
    found: dict[str, float] = {}
    for metric, m in results.metrics.items():
        for end, value in (("", m.value), ("/low", m.low), ("/high", m.high)):
            if not math.isnan(value):
                found[metric + end] = float(value)
    known = {
        "rows": float(len(results.run.records)),
        "tokens_per_second": results.run.speed,
        "peak_gb": results.run.peak_gb,
    }
    return found | {k: v for k, v in known.items() if not math.isnan(v)}


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for key, x in value.items() for k, v in _flat(x, f"{at}.{key}" if at else str(key)).items()}
    return {at: value if isinstance(value, (str, int, float, bool)) or value is None else str(value)}


def _trackio(results: Results, project: str, name: str) -> None:
    client = need("trackio", "trackio")
    client.init(project=project, name=name, config=configuration(results))
    try:
        client.log(values(results))
    finally:
        client.finish()


def _wandb(results: Results, project: str, name: str) -> None:
    client = need("wandb", "wandb")
    key = hashlib.sha256(str(results.run.path.resolve()).encode()).hexdigest()[:16]
    run = client.init(project=project, name=name, id=key, resume="allow", config=configuration(results))
    try:
        run.log(values(results))
    finally:
        run.finish()


def _mlflow(results: Results, project: str, name: str) -> None:
    client = need("mlflow", "mlflow")
    client.set_experiment(project)
    with client.start_run(run_name=name):
        client.log_params({_name(k): str(v)[:_PARAM_LENGTH] for k, v in configuration(results).items()})
        client.log_metrics({_name(k): v for k, v in values(results).items()})


def _name(text: str) -> str:
    """MLflow allows letters, digits, and a few marks in names."""
    return re.sub(r"[^\w\-. :/]", "_", text.replace("+", " plus"))


TRACKERS: Mapping[str, Callable[[Results, str, str], None]] = {"trackio": _trackio, "wandb": _wandb, "mlflow": _mlflow}
