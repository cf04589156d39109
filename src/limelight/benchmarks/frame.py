"""The results of many runs as a pandas frame."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limelight.benchmarks.extras import need
from limelight.benchmarks.manifest import manifests
from limelight.benchmarks.results import open_results
from limelight.errors import DataError
from limelight.types import PathLike

if TYPE_CHECKING:
    import pandas

COLUMNS = (
    "run", "task", "model", "strategy", "parser", "metric", "value", "low", "high", "n", "unit", "rows", "complete", "folder",
)  # fmt: skip


def results(runs: PathLike | Sequence[PathLike] = "runs") -> pandas.DataFrame:
    """Return the metrics of all runs in folders and their subfolders, one row per run and metric.

    Columns: ``run`` (the folder's name), ``task``, ``model``, ``strategy``, ``parser``, ``metric``, ``value``, ``low`` and
    ``high`` (95 % interval), ``n``, ``unit`` (``%``: ``value`` is a share, 1.0 being 100 %), ``rows`` (answered),
    ``complete``, ``folder``, and one column ``setting.NAME`` for every setting of a strategy. Audits are included. A run
    without ``results.json`` (interrupted) is scored as far as it has answers.

    Raises:
        DataError: a folder does not exist, or there is no run. MissingExtraError: pandas is not installed.
    """
    frames = need("pandas", "pandas")
    roots = [Path(runs)] if isinstance(runs, (str, Path)) else [Path(r) for r in runs]
    lost = [r for r in roots if not r.is_dir()]
    if lost:
        raise DataError(f"{lost[0]} is not a folder", hint="pass folders written by limelight bench")
    folders = sorted({p.parent for root in roots for p in root.rglob("run*.json") if p in manifests(p.parent)})
    if not folders:
        raise DataError(f"no runs in {', '.join(map(str, roots))}", hint="pass folders written by limelight bench")
    rows = [row for folder in folders for row in _rows(folder)]
    settings = sorted({k for row in rows for k in row if k.startswith("setting.")})
    return frames.DataFrame(rows, columns=[*COLUMNS, *settings])


def _rows(folder: Path) -> list[dict[str, Any]]:
    content = _content(folder)
    own: Mapping[str, Any] = content["identity"]["settings"]
    about = {
        "run": folder.name, "task": content["task"], "model": own.get("model"), "strategy": own.get("strategy"),
        "parser": content["parser"] or None, "rows": content["rows"], "complete": content["complete"], "folder": str(folder),
        **{f"setting.{k}": v for k, v in (own.get("strategy_settings") or {}).items()},
    }  # fmt: skip
    return [{**about, "metric": name, **m} for name, m in content["metrics"].items()]


def _content(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    if not path.is_file():
        return open_results(folder).score().to_json()
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path} is not valid JSON: {error}", hint="run the same limelight bench command again"
        ) from error
    return content
