"""Reading a complete or partial run from its folder, and computing its metrics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from limelight.benchmarks import rowlog
from limelight.benchmarks.engine import describe
from limelight.benchmarks.manifest import compare, manifests, part_name, read_manifest, settled
from limelight.benchmarks.scorers.grounding import faithfulness
from limelight.benchmarks.scorers.measure import Block, Metric, evaluate
from limelight.benchmarks.scoring import scored
from limelight.benchmarks.task import Scoring, Task, task
from limelight.errors import DataError
from limelight.thinking import THINKING, Markers, markers_of
from limelight.types import PathLike, Record

ASSETS = "assets"
JUDGEMENTS = "judgements.jsonl"


@dataclass(frozen=True)
class Run:
    """A run read from its folder.

    Attributes:
        path: its folder; ``name`` is the folder's name.
        manifest: identity (task, settings, hashes), and sessions with versions.
        rows: the last row of every sample, answered or failed.
        total: number of samples of the run, over all shards.
        own_task: a custom task, not one of the library's.
    """

    path: Path
    manifest: Mapping[str, Any]
    rows: Mapping[str, rowlog.Row]
    total: int
    own_task: Task | None = None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def task(self) -> Task:
        return self.own_task or task(self.manifest["identity"]["task"])

    @property
    def settings(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.manifest["identity"]["settings"]
        return found

    @cached_property
    def errors(self) -> dict[str, Mapping[str, str]]:
        """Map each sample whose last attempt failed to its error."""
        return {i: row["error"] for i, row in self.rows.items() if row.get("error")}

    @property
    def complete(self) -> bool:
        """Whether every sample has an answer."""
        return len(self.rows) - len(self.errors) >= self.total

    @property
    def speed(self) -> float:
        """Tokens per second over the answers that report a token count; NaN when none does.

        Answers with perturbation curves are excluded: their time includes the curves.
        """
        replies = [(row.get("reply", {}), row["seconds"]) for row in self.rows.values()]
        pairs = [
            (reply["tokens"], seconds) for reply, seconds in replies if "tokens" in reply and "curves" not in reply
        ]
        seconds = sum(float(s) for _, s in pairs)
        return sum(int(n) for n, _ in pairs) / seconds if seconds else math.nan

    @property
    def peak_gb(self) -> float:
        """Peak device memory over all answers, in 10^9 bytes; NaN when none reports it."""
        return max(
            (float(row["reply"]["peak_gb"]) for row in self.rows.values() if "peak_gb" in row.get("reply", {})),
            default=math.nan,
        )

    @cached_property
    def markers(self) -> Markers:
        """The markers of reasoning in the answers: the run's own, and the one its strategy waits for."""
        found = markers_of(self.manifest.get("thoughts"))
        after = (self.settings.get("strategy_settings") or {}).get("after")
        own = isinstance(after, str) and after.strip() and after != THINKING
        return found.plus(("", str(after))) if found.pairs and own else found

    @property
    def bad_rows(self) -> Sequence[str]:
        """The skipped rows of the data, with their problems."""
        found: Sequence[str] = self.manifest.get("bad_rows") or ()
        return found

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """The answered samples without reasoning; the reply's meta, the prompt and judgements are merged into the sample's
        meta."""
        judged = {}
        if (self.path / JUDGEMENTS).exists():
            judged = {i: r["judgement"] for i, r in rowlog.latest(rowlog.read(self.path / JUDGEMENTS)).items()}
        return tuple(
            Record(
                i,
                row["answer"][int(row.get("reply", {}).get("answer_from", 0)) :],
                row.get("target"),
                {**row["meta"], **row.get("reply", {}), "prompt": row["prompt"]}
                | ({"judgement": judged[i]} if i in judged else {}),
                self.markers,
            )
            for i, row in self.rows.items()
            if not row.get("error")
        )

    def thoughts(self) -> dict[str, int]:
        """How many answers have reasoning, and how many of these have nothing else."""
        raw = {i: str(row["answer"]) for i, row in self.rows.items() if not row.get("error")}
        return {
            "answers": sum(r.answer != raw[r.id] for r in self.records),
            "without_an_answer": sum(not r.answer and bool(raw[r.id].strip()) for r in self.records),
        }

    def scoring(self, parser: str = "", **options: Any) -> Scoring:
        chosen = self.task.parser(parser or self.manifest.get("parser", ""))
        return Scoring(chosen, self.path / ASSETS if (self.path / ASSETS).is_dir() else None, options)

    def blocks(self, parser: str = "", **options: Any) -> list[Block]:
        """Return the scorer's blocks; see ``scorers.measure``. Answers that make the scorer raise are excluded."""
        return self._scored(parser, options)[0]

    def _scored(self, parser: str, options: Mapping[str, Any]) -> tuple[list[Block], dict[str, Exception]]:
        scoring = self.scoring(parser, **options)
        return scored(lambda records: [*self.task.score(records, scoring), *faithfulness(records)], self.records)

    def score(
        self, parser: str = "", *, resamples: int = 1000, level: float = 0.95, seed: int = 0, **options: Any
    ) -> Results:
        """Compute the metrics, with bootstrap intervals."""
        blocks, failed = self._scored(parser, options)
        metrics = evaluate(blocks, resamples=resamples, level=level, seed=seed)
        seconds = sum(float(row["seconds"]) for row in self.rows.values())
        unscored = {i: describe(error) for i, error in failed.items()}
        return Results(self, metrics, self.scoring(parser).parser, seconds, unscored)


@dataclass(frozen=True)
class Results:
    """Metrics of a run, by name; ``unscored``: id -> error of the answers that made the scorer raise."""

    run: Run
    metrics: Mapping[str, Metric]
    parser: str
    seconds: float
    unscored: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``results.json``: the metrics, their inputs, and everything needed to reproduce them."""
        run, identity = self.run, self.run.manifest["identity"]
        sessions = run.manifest["sessions"]
        return {
            "task": identity["task"],
            "task_version": identity["version"],
            "paper": run.task.paper,
            "parser": self.parser,
            "metrics": {k: m.to_json() for k, m in self.metrics.items()},
            "rows": len(run.records),
            "total": run.total,
            "complete": run.complete,
            "errors": {"count": len(run.errors), "types": dict(Counter(e["type"] for e in run.errors.values()))},
            "unscored": {"count": len(self.unscored), "rows": {i: e["message"] for i, e in self.unscored.items()}},
            "bad_rows": {"count": len(run.bad_rows), "rows": list(run.bad_rows)},
            "thoughts": run.thoughts(),
            "answer_seconds": round(self.seconds, 3),
            "tokens_per_second": None if math.isnan(run.speed) else round(run.speed, 3),
            "peak_gb": None if math.isnan(run.peak_gb) else round(run.peak_gb, 3),
            "identity": identity,
            "sessions": sessions,
            "mixed_versions": any(
                (s["versions"], s["git"]) != (sessions[0]["versions"], sessions[0]["git"]) for s in sessions
            ),
        }


def open_results(folder: PathLike, own_task: Task | None = None) -> Run:
    """Open the run in ``folder`` with all its shards. ``own_task`` is required for a custom task.

    Raises:
        DataError: the folder contains no run.
    """
    path = Path(folder)
    found = manifests(path) if path.is_dir() else []
    if not found:
        raise DataError(f"{path} contains no run", hint="pass a folder written by limelight bench --out")
    parts = [read_manifest(p) for p in found]
    for p, part in zip(found[1:], parts[1:], strict=True):
        compare(p, settled(part["identity"]), settled(parts[0]["identity"]))
    rows: dict[str, rowlog.Row] = {}
    for part in parts:
        log = path / part_name("rows", (part["shard"][0], part["shard"][1]), ".jsonl")
        found_rows = rowlog.read(log) if log.exists() else []
        rowlog.check_answers(log, found_rows)
        rows |= {i: row for i, row in rowlog.latest(found_rows).items() if not row.get("dropped")}
    ordered = dict(sorted(rows.items(), key=lambda item: tuple(item[1]["place"])))
    total = max(int(part["total"]) for part in parts)
    sessions = [s for part in parts for s in part["sessions"]]
    return Run(path, {**parts[0], "sessions": sessions}, ordered, total, own_task)


def find_runs(paths: Sequence[PathLike], own_tasks: Mapping[str, Task] | None = None) -> list[Run]:
    """Find all runs in the folders and their subfolders. ``own_tasks``: tasks outside the library's, by name."""
    found = {p.parent for root in map(Path, paths) for p in (*root.rglob("run.json"), *root.rglob("run.*of*.json"))}
    if not found:
        raise DataError(f"no runs in {', '.join(map(str, paths))}", hint="pass folders written by limelight bench")
    runs = [open_results(p) for p in sorted(found)]
    return [replace(r, own_task=(own_tasks or {}).get(r.manifest["identity"]["task"])) for r in runs]
