"""Running a benchmark: answers a task's samples, stores every answer, resumes after any interruption, and scores.

    DIR/run.json        manifest: task, version, settings, file hashes, seed; versions and git hash per session
    DIR/rows.jsonl      one line per answer (or error), appended and fsynced
    DIR/assets/         files needed for rescoring
    DIR/results.json    the metrics

With shards, ``run.1of4.json`` and ``rows.1of4.jsonl`` are in the same folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from limelight.benchmarks import manifest, resume, rowlog
from limelight.benchmarks.data import BadRow
from limelight.benchmarks.engine import Engine, Local, Outcome, describe
from limelight.benchmarks.loading import Loaded, complaint, load
from limelight.benchmarks.parts import Part
from limelight.benchmarks.progress import Progress
from limelight.benchmarks.results import ASSETS, JUDGEMENTS, Results, Run, open_results
from limelight.benchmarks.scorers.judge import Judge
from limelight.benchmarks.scoring import unscorable
from limelight.benchmarks.task import Answer, AnswerMany, Task
from limelight.benchmarks.task import task as task_named
from limelight.errors import DataError, SettingError
from limelight.thinking import markers_of
from limelight.types import PathLike, Sample


def run(
    task: Task | str,
    answer: Answer | None = None,
    out: PathLike = "runs/run",
    *,
    data: PathLike | None = None,
    splits: Sequence[str] = (),
    limit: int | None = None,
    suffix: str = "",
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    settings: Mapping[str, Any] | None = None,
    answer_many: AnswerMany | None = None,
    batch_size: int = 1,
    engine: Engine | None = None,
    parser: str = "",
    judge: Judge | None = None,
    check: bool = True,
    skip_bad_rows: bool = False,
    thoughts: Sequence[Sequence[str]] | None = None,
    part: Part | None = None,
    progress: bool = True,
    max_errors_in_a_row: int = 25,
) -> Results:
    """Run or resume a benchmark: samples with an answer in ``out`` are skipped, failed ones are retried.

    All rows of the data are checked before the first answer. An answer is valid while its prompt and media are unchanged:
    a corrected label is scored with the old answer, a changed image is answered again.

    Args:
        answer, answer_many, batch_size: the callable that answers one sample or a batch; ``sample.meta["seed"]`` is the
            sample's seed, independent of order, batch and shard.
        engine: used instead of the callables, to answer elsewhere (``ray_engine.RayEngine``).
        data, splits, limit, suffix, check, skip_bad_rows: see :func:`limelight.benchmarks.loading.load`.
        shard: (i, n): every n-th sample starting from the i-th; all shards share ``out``.
        settings: JSON values that the answers depend on (model, strategy, generation settings). A run cannot be resumed
            with different settings.
        parser: the answer parser's name; used only for scoring.
        thoughts: pairs of markers around reasoning, in addition to the usual ones (:data:`limelight.thinking.MARKERS`);
            ``()`` scores answers unchanged. Reasoning is stored in the rows and excluded from scoring.
        judge: rates the answers afterwards (MMHal-Bench).
        part: answer only the dev or the test part of the rows (after ``limit``); see :class:`limelight.benchmarks.parts.Part`.
        max_errors_in_a_row: stop after this many consecutive errors, which indicate a persistent problem.

    Raises:
        SettingError: ``out`` contains a run with different settings, or is being written by another process.
        DataError: files are missing, rows are invalid, ``out`` cannot be written, or too many consecutive errors.
    """
    chosen = task_named(task) if isinstance(task, str) else task
    parser = chosen.parser(parser)
    i, n = shard
    if not 0 <= i < n:
        raise SettingError(f"shard {i}/{n} does not exist", hint=f"i must be in 0..{n - 1}")
    markers_of(thoughts)  # raises for invalid markers
    loaded = load(
        chosen, data, splits=splits, limit=limit, suffix=suffix, seed=seed, check=check, skip_bad_rows=skip_bad_rows
    )
    loaded = _scorable(chosen, loaded, parser, skip_bad_rows)
    loaded = part.of(loaded) if part is not None else loaded
    folder = Path(out)
    identity = _identity(chosen, loaded, suffix, seed, settings or {}, part)
    bad = [str(row) for row in loaded.bad]
    start = manifest.Start(identity, shard, len(loaded.samples), limit, parser, thoughts, bad)
    start.check(folder)
    with rowlog.RowLog(folder / manifest.part_name("rows", shard, ".jsonl")) as log:
        rowlog.check_answers(log.path, log.rows)
        # by place, not by index in the list: a shard stays the same when the limit grows
        mine = [(place, s) for place, s in zip(loaded.places, loaded.samples, strict=True) if sum(place) % n == i]
        plan = resume.plan(log.rows, mine, frozenset(s.id for s in loaded.samples))
        if len(plan.gone) > len(loaded.bad):
            _lost(folder, shard, identity, plan.gone)
        with rowlog.locked(folder / "run.lock"):
            start.check(folder)  # again: another shard may have started with different settings
            start.write(folder, {"asks": len(plan.todo), "corrects": len(plan.rows), "drops": len(plan.gone)})
            for name, text in loaded.assets.items():
                with rowlog.writing(folder / ASSETS):
                    (folder / ASSETS).mkdir(exist_ok=True)
                rowlog.write_bytes(folder / ASSETS / name, text.encode())
        now = rowlog.latest(log.rows)
        for row in (*plan.rows, *(resume.dropped(now[key]) for key in plan.gone)):
            log.append(row)
        todo = dict(plan.todo)
        with _bar(progress, chosen.name, len(mine), len(mine) - len(todo)) as bar:
            _answer(log, engine or Local(answer, answer_many, batch_size), todo, bar, max_errors_in_a_row)
    # one shard at a time: the last one sees all rows
    with rowlog.locked(folder / "results.json.lock"):
        finished = open_results(folder, chosen)
        if judge is not None and (n == 1 or finished.complete):
            finished = rate(finished, judge, progress=progress)
        results = finished.score(parser)
        rowlog.write_json(folder / "results.json", results.to_json())
    return results


def _scorable(task: Task, loaded: Loaded, parser: str, skip_bad_rows: bool) -> Loaded:
    """Return the samples with a valid reference; raises ``DataError`` for others unless they are skipped."""
    bad = unscorable(task, loaded.samples, loaded.assets, parser)
    if not bad:
        return loaded
    rows = [BadRow(loaded.where.get(i, row.where), row.problem, i) for i, row in bad.items()]
    kept = [k for k, s in enumerate(loaded.samples) if s.id not in bad]
    if not skip_bad_rows or not kept:
        raise complaint(task, [*loaded.bad, *rows], len(kept))
    return replace(
        loaded,
        samples=tuple(loaded.samples[k] for k in kept),
        places=tuple(loaded.places[k] for k in kept),
        bad=(*loaded.bad, *rows),
    )


def _lost(folder: Path, shard: tuple[int, int], identity: Mapping[str, Any], gone: Sequence[str]) -> None:
    """Raise because answered questions are no longer in the data: the data have changed."""
    path = folder / manifest.part_name("run", shard, ".json")
    there = manifest.read_manifest(path)["identity"]
    lines = [
        f"    {k}: was {a!r}, now {b!r}" for k, a, b in manifest.differences(there["data"], identity["data"], "data")
    ]
    raise SettingError(
        f"{folder} has answers to {len(gone)} questions, first {gone[0]}, that are no longer in the data:\n"
        + "\n".join(lines),
        hint="use the original data to resume the run, or another --out for these data",
    )


def shard_from_environment(environment: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Return this process's shard under torchrun or accelerate launch (RANK and WORLD_SIZE); (0, 1) otherwise."""
    env = os.environ if environment is None else environment
    if "RANK" not in env and "WORLD_SIZE" not in env:
        return 0, 1
    try:
        return int(env["RANK"]), int(env["WORLD_SIZE"])
    except (KeyError, ValueError) as error:
        raise SettingError(
            f"RANK={env.get('RANK')!r} and WORLD_SIZE={env.get('WORLD_SIZE')!r} are not a valid shard",
            hint="start with torchrun or accelerate launch, or pass --shard i/n",
        ) from error


def rate(run: Run, judge: Judge, *, progress: bool = True) -> Run:
    """Rate the answers that have no judgement yet with a judge; judgements are stored row by row like answers."""
    made_by: dict[str, Any] = getattr(judge, "settings", dict)()
    with rowlog.RowLog(run.path / JUDGEMENTS) as log:
        old = rowlog.latest(log.rows)
        for row in old.values():
            manifest.compare(run.path / JUDGEMENTS, row["judge"], made_by)
        todo = [r for r in run.records if old.get(r.id, {}).get("answer") != r.answer]
        failed: dict[str, str] | None = None
        with _bar(progress, f"{run.task.name}: judge", len(run.records), len(run.records) - len(todo)) as bar:
            for record in todo:
                try:
                    judgement = judge(record)
                except Exception as error:  # noqa: BLE001 - the other answers can still be rated; raised below
                    failed = describe(error)
                    bar.step(failed["message"])
                    continue
                log.append({"id": record.id, "answer": record.answer, "judgement": judgement, "judge": made_by})
                bar.step()
    if failed is not None:
        raise DataError(
            f"the judge failed on some answers, last with {failed['type']}: {failed['message']}",
            hint="judgements so far are saved; run the same command again",
        )
    return open_results(run.path, run.own_task)


def _identity(
    task: Task, loaded: Loaded, suffix: str, seed: int, settings: Mapping[str, Any], part: Part | None
) -> dict[str, Any]:
    return {
        "task": task.name,
        "version": task.version,
        "splits": list(loaded.splits),
        "suffix": suffix,
        "seed": seed,
        "settings": dict(settings),
        "data": {name: dict(fact) for name, fact in sorted(loaded.facts.items())},
        **({"part": part.to_json()} if part is not None else {}),
    }


def _answer(
    log: rowlog.RowLog,
    engine: Engine,
    todo: dict[str, tuple[tuple[int, int], Sample]],
    bar: Progress,
    max_errors_in_a_row: int,
) -> None:
    errors = 0
    for outcome in engine([s for _, s in todo.values()]):
        if outcome.id not in todo:
            continue  # an engine that retries may answer twice
        log.append(_row(*todo.pop(outcome.id), outcome))
        bar.step(outcome.error["message"] if outcome.error else None)
        errors = errors + 1 if outcome.error else 0
        if outcome.error and errors >= max_errors_in_a_row:
            raise DataError(
                f"{errors} answers in a row raised, last {outcome.error['type']}: {outcome.error['message']}",
                hint=f"fix the cause and run the same command again; tracebacks are in {log.path}",
            )
    if todo:
        raise DataError(
            f"{len(todo)} samples were not answered, first {next(iter(todo))}", hint="run the same command again"
        )


def _row(place: tuple[int, int], sample: Sample, outcome: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {"id": sample.id, "place": list(place), "seconds": round(outcome.seconds, 4)}
    if outcome.reply is None:
        return row | {"error": outcome.error}
    row |= {"answer": outcome.reply.text, **resume.inputs(sample), **resume.scored_by(place, sample)}
    return row | ({"reply": dict(outcome.reply.meta)} if outcome.reply.meta else {})


def _bar(show: bool, title: str, total: int, done: int) -> AbstractContextManager[Progress]:
    return Progress(title, total, done) if show else nullcontext(Progress(title, total, done, quiet=True))
