"""``limelight tune``: choose every decoder's settings on dev with equal budgets, then report on test."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from limelight.benchmarks import rowlog
from limelight.benchmarks.compare import compare
from limelight.benchmarks.engine import Local
from limelight.benchmarks.frontier import holm
from limelight.benchmarks.parts import Part
from limelight.benchmarks.results import Results
from limelight.benchmarks.runner import run
from limelight.benchmarks.scorers.judge import RUBRIC
from limelight.benchmarks.tables import Table, number, render, side_by_side
from limelight.benchmarks.task import Task
from limelight.benchmarks.task import task as task_named
from limelight.benchmarks.tuning import Goal, Settings, Trial, choose, goal_of, key, plan
from limelight.cli import options
from limelight.cli.answering import ModelAnswer
from limelight.cli.bench_options import Handling, Judging, Model, Questions
from limelight.cli.spaces import defaults_of, space_of
from limelight.cli.sweep import values_of
from limelight.errors import SettingError

EXAMPLES = """
Examples:

    limelight tune pope --model llava-hf/llava-1.5-7b-hf --data ~/data/pope --out runs/tuned --split coco/adversarial \\
        --strategies relevance-contrastive,vcd,m3id --budget 8

    limelight tune chair --model MODEL --data ~/data/coco --out runs/tuned --strategies vcd --space vcd.alpha=0.5,1,2

    limelight tune demo_vision --model demo-vision --split E-wrong/clear --limit 60 --strategies vcd --budget 4 --out runs/demo

The same command resumes an interrupted run. DIR/tuning.json has every trial; DIR/dev and DIR/test are folders of limelight bench.
"""


@options.grouped
def tune(
    task: Annotated[str, typer.Argument(help="Name of the task; see limelight bench --list.")],
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder of the trials, the test runs and tuning.json.")],
    strategies: Annotated[
        str,
        typer.Option(
            "--strategies", "--strategy", help="Decoding strategies, separated by commas; greedy is the baseline."
        ),
    ],
    budget: Annotated[int, typer.Option(min=1, help="Settings tried per strategy, its default among them.")] = 8,
    space: Annotated[
        list[str] | None,
        typer.Option("--space", help="Values to try, key=value,value or strategy.key=value,value; repeat for several."),
    ] = None,
    questions: Questions = Questions(),
    dev_split: Annotated[
        list[str] | None,
        typer.Option("--dev-split", help="Choose on these splits instead of a part of --split; repeat for several."),
    ] = None,
    dev_share: Annotated[
        float, typer.Option(help="Share of the images (or clips) of --split that are dev; the others are test.")
    ] = 0.3,
    limit: Annotated[int | None, typer.Option(help="Maximum number of rows per split, dev and test together.")] = None,
    metric: Annotated[
        str, typer.Option(help="Metric to optimise, * allowed (the mean counts); the task's own by default.")
    ] = "",
    keep: Annotated[
        str,
        typer.Option(
            help="Metric that must not fall below greedy's on dev, * allowed; for captions recall by default."
        ),
    ] = "",
    tolerance: Annotated[float, typer.Option(help="How far --keep may fall, as a share.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Seed of the runs and of the choice of settings.")] = 0,
    judging: Judging = Judging(),
    loading: options.Loading = options.Loading(),
    handling: Handling = Handling(),
) -> None:
    """Choose every decoder's settings on dev with the same number of trials, then compare them on test."""
    chosen = task_named(task)
    names = [n for n in dict.fromkeys(s.strip() for s in strategies.split(",") if s.strip()) if n != "greedy"]
    if not names:
        raise SettingError("--strategies names none besides greedy", hint="for example relevance-contrastive,vcd")
    if "sampled" in names:
        raise SettingError("sampled has no settings to choose", hint="compare it with limelight bench")
    given = values_of(space or [], names, "--space")
    plans = {n: plan(space_of(n, given[n]), budget, defaults_of(n), seed) for n in names}
    both = sorted(set(dev_split or ()) & set(questions.split or ()))
    if both:
        raise SettingError(f"{both[0]} is dev and test", hint="use different splits, or --dev-share")
    generation = {"max_new_tokens": questions.max_new_tokens or chosen.max_new_tokens, "do_sample": False}

    def answer(name: str, settings: Settings) -> ModelAnswer:
        return ModelAnswer(
            model=model, strategy=name, settings=settings, generation=generation,
            relevance=bool(chosen.wants - {"evidence"}),
            evidence=("attnlrp", "cp-lrp") if "evidence" in chosen.wants else (),
            frames=questions.frames, **asdict(loading),
        )  # fmt: skip

    for name, tried in plans.items():
        for settings in tried:
            answer(name, settings).identity()  # raises for settings that the strategy refuses, before the first run
    judge = judging.judge(chosen.rubric or RUBRIC)
    one = partial(
        run, chosen, data=questions.data, limit=limit, suffix=questions.suffix, seed=seed, parser=questions.parser,
        judge=judge, skip_bad_rows=handling.skip_bad_rows, progress=not handling.quiet,
    )  # fmt: skip

    def on(part: str, folder: Path, name: str, settings: Settings) -> Results:
        asked = answer(name, settings)
        splits = dev_split if dev_split and part == "dev" else questions.split
        return one(
            out=folder, engine=Local(asked, asked.many, handling.batch_size), settings=asked.identity(), splits=splits or (),
            part=None if dev_split else Part(part, dev_share),
        )  # fmt: skip

    tuned = Tuning(out, chosen, goal_of(chosen, metric, keep, tolerance), {"budget": budget, "seed": seed})
    baseline = tuned.tried("greedy", {}, on("dev", out / "dev" / "greedy", "greedy", {}))
    for name, tried in plans.items():
        for settings in tried:
            tuned.tried(name, settings, on("dev", out / "dev" / name / key(settings), name, settings))
        tuned.decide(name, baseline)
    finished = {"greedy": on("test", out / "test" / "greedy", "greedy", {})}
    for name in names:
        finished[name] = on("test", out / "test" / name, name, tuned.best[name].settings)
    tables = [
        tuned.table(),
        side_by_side(list(finished.values()), names=list(finished)),
        against(finished, tuned.goal.metric),
    ]
    typer.echo(render(tables))
    if any(r.run.errors or r.unscored for r in finished.values()):
        raise typer.Exit(1)


tune.__doc__ = f"{tune.__doc__}\n{EXAMPLES}"


@dataclass
class Tuning:
    """The trials so far and what was chosen, kept in ``tuning.json``."""

    folder: Path
    task: Task
    goal: Goal
    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.trials: dict[str, list[Trial]] = {}
        self.best: dict[str, Trial] = {}

    def tried(self, name: str, settings: Settings, results: Results) -> Trial:
        """Add a trial; raises ``SettingError`` where a row failed, since trials on different rows cannot be compared."""
        if not results.run.complete:
            raise SettingError(
                f"{len(results.run.errors)} rows of {results.run.path} failed",
                hint="run the same command again to retry them",
            )
        trial = self.goal.trial(settings, results)
        self.trials.setdefault(name, []).append(trial)
        self._save()
        return trial

    def decide(self, name: str, baseline: Trial) -> None:
        """Choose the best trial of a strategy."""
        self.best[name] = choose(self.trials[name], self.goal.floor(baseline))
        self._save()

    def _save(self) -> None:
        content = {
            "task": self.task.name, "metric": self.goal.metric, "keep": self.goal.keep, "tolerance": self.goal.tolerance,
            **self.facts,
            "trials": {n: [t.to_json() for t in trials] for n, trials in self.trials.items()},
            "chosen": {n: t.settings for n, t in self.best.items()},
        }  # fmt: skip
        rowlog.write_json(self.folder / "tuning.json", content)

    def table(self) -> Table:
        """One row per strategy: its number of trials, the chosen settings, the goal on dev."""
        keep = (self.goal.keep,) if self.goal.keep else ()
        rows = []
        for name, trials in self.trials.items():
            best = self.best.get(name, trials[0])
            chosen = ", ".join(f"{k}={json.dumps(v)}" for k, v in best.settings.items())
            kept = [number(best.kept)] if keep else []
            values = [t.score for t in trials if not math.isnan(t.score)]
            span = f"{number(abs(min(values)))} to {number(abs(max(values)))}" if values else "-"
            rows.append((name, str(len(trials)), chosen, number(abs(best.score)), *kept, span))
        header = ("", "trials", "chosen", self.goal.metric, *keep, "worst to best trial")
        notes = (f"on dev; {keep[0]} may be {number(self.goal.tolerance)} below greedy's",) if keep else ("on dev",)
        return Table(f"{self.task.name}: settings", header, tuple(rows), notes)


def against(finished: Mapping[str, Results], metric: str) -> Table:
    """Compare every strategy with greedy on test, with p-values corrected by Holm's method over the table."""
    rows: list[tuple[str, ...]] = []
    ps: list[float] = []
    base = finished["greedy"]
    for name, results in finished.items():
        if name == "greedy":
            continue
        for d in compare(base.run, results.run, base.parser):
            if fnmatchcase(d.name, metric):
                low, high = number(d.low, d.unit, signed=True), number(d.high, d.unit, signed=True)
                gap = f"{number(d.difference, d.unit, signed=True)} [{low}, {high}]"
                rows.append((name, d.name, number(d.a, d.unit), number(d.b, d.unit), gap))
                ps.append(d.p)
    corrected = holm(ps)
    shown = tuple((*row, "" if math.isnan(p) else f"{p:.3f}") for row, p in zip(rows, corrected, strict=True))
    header: Sequence[str] = ("", "metric", "greedy", "tuned", "difference", "p")
    notes = ("on test, paired by question; p: paired bootstrap, corrected by Holm's method over this table",)
    return Table(f"{base.run.task.name}: tuned decoders against greedy", tuple(header), shown, notes)
