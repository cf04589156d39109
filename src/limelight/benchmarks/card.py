"""A model card's section on results: the Hub's ``model-index`` as YAML, and a table with what it takes to reproduce it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from limelight.benchmarks.extras import need
from limelight.benchmarks.results import Results
from limelight.benchmarks.tables import render, side_by_side
from limelight.errors import SettingError


def model_card(groups: Sequence[Sequence[Results]], *, metrics: Sequence[str] = ()) -> str:
    """Return the snippet for runs of one model: front matter with every result, then one table per task.

    Percentages are written as numbers from 0 to 100. ``metrics``: patterns; a task's headline by default.

    Raises:
        SettingError: the runs are of several models.
    """
    hub = need("huggingface_hub", "bench")
    models = sorted({str(r.run.settings.get("model")) for group in groups for r in group})
    if len(models) != 1:
        raise SettingError(f"the runs are of several models: {models}", hint="pass the runs of one model")
    found = [entry for group in groups for r in group for entry in _entries(hub, r, metrics)]
    if not found:
        raise SettingError(f"no metric matches {list(metrics)}", hint="see limelight report --all")
    data = hub.ModelCardData(model_name=models[0], eval_results=found, tags=["limelight"])
    front = data.to_yaml()
    tables = render([side_by_side(list(group), metrics=metrics) for group in groups], "markdown")
    lines = [f"* {_how(r)}" for group in groups for r in group]
    return "\n".join(["---", front, "---", "", "## Evaluation", "", tables, "Settings:", "", *lines, ""])


def _entries(hub: Any, results: Results, metrics: Sequence[str]) -> list[Any]:
    task = results.run.task
    patterns = tuple(metrics) or task.headline
    kind = {"image": "image-text-to-text", "audio": "audio-text-to-text", "video": "video-text-to-text"}
    strategy = str(results.run.settings.get("strategy") or "")
    out = []
    for name, m in results.metrics.items():
        if math.isnan(m.value) or not any(fnmatchcase(name, p) for p in patterns):
            continue
        out.append(
            hub.EvalResult(
                task_type=kind.get(task.modality, "text-generation"), dataset_type=task.name, dataset_name=task.name,
                dataset_config=strategy or None, metric_type=name.rpartition("/")[2], metric_name=f"{name} ({strategy})" if strategy else name,
                metric_value=round(100 * m.value if m.unit == "%" else m.value, 4),
            )
        )  # fmt: skip
    return out


def _how(results: Results) -> str:
    run = results.run
    own, last = run.settings, run.manifest["sessions"][-1]
    chosen = ", ".join(f"{k}={v}" for k, v in (own.get("strategy_settings") or {}).items())
    versions = ", ".join(
        f"{k} {last['versions'][k]}" for k in ("limelight", "transformers", "torch") if last["versions"].get(k)
    )
    parser = f", parser {results.parser}" if results.parser else ""
    return (
        f"{run.task.name} with {own.get('strategy', 'greedy')}{f' ({chosen})' if chosen else ''}: {len(run.records)} of {run.total} rows, "
        f"splits {', '.join(run.manifest['identity']['splits'])}{parser}; {versions}"
    )
