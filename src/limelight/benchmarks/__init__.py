"""Hallucination and grounding benchmarks for any ``answer(sample) -> str``: resumable runs, official scoring.

    from limelight.benchmarks import run, side_by_side, render

    results = run("pope", answer, "runs/mine", data="~/data/pope", settings={"model": "mine"})
    print(render([side_by_side([results])]))

``limelight bench`` and ``limelight report`` do this with the library's own models. docs/benchmarks.md describes the
tasks, their files and parsers, and the pitfalls.
"""

from limelight.benchmarks.compare import differing
from limelight.benchmarks.loading import load
from limelight.benchmarks.results import Results, Run, find_runs, open_results
from limelight.benchmarks.runner import run
from limelight.benchmarks.tables import paired_table, render, side_by_side
from limelight.benchmarks.task import Reply, Scoring, Task, tasks

__all__ = [
    "Reply",
    "Results",
    "Run",
    "Scoring",
    "Task",
    "differing",
    "find_runs",
    "load",
    "open_results",
    "paired_table",
    "render",
    "run",
    "side_by_side",
    "tasks",
]
