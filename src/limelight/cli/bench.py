"""``limelight bench``: run a benchmark with one or more decoding strategies."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from limelight.benchmarks.engine import Engine
from limelight.benchmarks.results import Results
from limelight.benchmarks.runner import run
from limelight.benchmarks.scorers.judge import RUBRIC
from limelight.benchmarks.tables import render, side_by_side
from limelight.benchmarks.task import task as task_named
from limelight.benchmarks.task import tasks
from limelight.benchmarks.trackers import PROJECT, check_tracker, log_results
from limelight.cli import options
from limelight.cli.answering import ModelAnswer
from limelight.cli.bench_options import Execution, Handling, Judging, Model, Questions
from limelight.cli.evidence import composites_of
from limelight.cli.faithfulness import methods_of
from limelight.cli.sweep import combinations, label, values_of
from limelight.errors import SettingError

EXAMPLES = """
Examples:

    limelight bench pope --model llava-hf/llava-1.5-7b-hf --data ~/data/pope --out runs/pope \\
        --strategies greedy,sampled,lime --split coco/random --suffix " Please answer this question with one word."

    limelight bench demo_vision --model demo-vision --split E-wrong/clear --limit 100 --out runs/demo

    limelight bench chair --model MODEL --data ~/data/coco --out runs/sweep --strategies greedy,relevance-contrastive \\
        --sweep alpha=0.5,1,2,4

    torchrun --nproc-per-node 8 --no-python limelight bench chair --model MODEL --data ~/data/coco --out runs/chair --shard auto

    limelight bench mmhal --model MODEL --data ~/data/mmhal --out runs/mmhal --judge-url http://localhost:8000/v1 \\
        --judge-model NAME

The same command resumes an interrupted run. `limelight bench --list` lists the tasks.
"""

SAMPLED = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}


@options.grouped
def bench(
    task: Annotated[str, typer.Argument(help="Name of the task; see --list.")] = "",
    model: Model = "",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; with several strategies, one subfolder for each.")
    ] = None,
    strategies: Annotated[
        str,
        typer.Option(
            "--strategies",
            "--strategy",
            help="Decoding strategies, separated by commas; 'sampled' is ordinary sampling.",
        ),
    ] = "greedy",
    questions: Questions = Questions(),
    limit: Annotated[int | None, typer.Option(help="Maximum number of rows per split.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Setting of the strategies, key=value; strategy.key=value for one of them."),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            help="Several values of a setting, key=value,value or strategy.key=value,value; repeat for several. One run for "
            "each combination; limelight report --frontier compares them.",
        ),
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Sample with every strategy.")] = False,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.")] = 1.0,
    seed: Annotated[
        int, typer.Option(help="Seed of the run; every row's seed is derived from it and the row's id.")
    ] = 0,
    relevance: Annotated[
        bool, typer.Option("--relevance", help="Record modality shares and relevance maps of every answer.")
    ] = False,
    faithfulness: Annotated[
        str,
        typer.Option(
            help="Insertion and deletion curves of these attributions, separated by commas: attnlrp, cp-lrp, "
            "reslrp, pa-lrp, gradient-input, ..., random and gradient-norm (controls)."
        ),
    ] = "",
    evidence: Annotated[
        str,
        typer.Option(
            help="Score every token with these composites, separated by commas (attnlrp, cp-lrp, reslrp, pa-lrp, ...), and "
            "with published detectors, and report how well each score detects invented words.",
        ),
    ] = "",
    prefix_cache: Annotated[
        int,
        typer.Option(
            min=0,
            help="Prompts whose prefill later ones with the same beginning share (several questions about one image), under "
            "strategies with a meter and without --batch; 0: none.",
        ),
    ] = 0,
    execution: Execution = Execution(),
    judging: Judging = Judging(),
    loading: options.Loading = options.Loading(),
    skip_media_check: Annotated[
        bool, typer.Option("--skip-media-check", help="Start even if media files are missing.")
    ] = False,
    handling: Handling = Handling(),
    thoughts: Annotated[
        list[str] | None,
        typer.Option(
            help="Further markers around a model's reasoning, as OPEN...CLOSE; repeat for several; 'none' scores answers "
            "with their reasoning. <think>...</think> and other common markers are built in."
        ),
    ] = None,
    log: Annotated[
        str,
        typer.Option("--log", help="Send the results to a tracker through its own client: trackio, wandb or mlflow."),
    ] = "",
    log_project: Annotated[str, typer.Option(help="Project (experiment) of --log.")] = PROJECT,
    show: Annotated[bool, typer.Option("--list", help="List the tasks.")] = False,
) -> None:
    """Run a benchmark. Every answer is saved, and an interrupted run is resumed by the same command."""
    if show:
        for t in tasks().values():
            typer.echo(
                f"{t.name:20} {t.about}\n{'':20} splits: {', '.join(_few(t.splits))}; parsers: {', '.join(t.parsers) or '-'}"
            )
        return
    if not task or not model or out is None:
        raise SettingError("a task, --model and --out are required", hint="see limelight bench --help and --list")
    chosen = task_named(task)
    names = list(dict.fromkeys(s.strip() for s in strategies.split(",") if s.strip()))
    if not names:
        raise SettingError("--strategies is empty", hint="for example greedy,sampled,lime; see limelight strategies")
    if log:
        check_tracker(log)
    elif log_project != PROJECT:
        raise SettingError("--log-project would have no effect", hint="add --log, or omit it")
    where = execution.part
    judge = judging.judge(chosen.rubric or RUBRIC)
    markers = thoughts_of(thoughts)
    generation: dict[str, Any] = {"max_new_tokens": questions.max_new_tokens or chosen.max_new_tokens}
    curves = methods_of(faithfulness)
    if prefix_cache and handling.batch_size > 1:
        raise SettingError(
            f"--prefix-cache {prefix_cache} with --batch {handling.batch_size}: beginnings are shared by prompts that run alone",
            hint="leave one of them out",
        )
    prepared: list[tuple[str, dict[str, Any], Engine]] = []
    swept = values_of(sweep or [], names)
    variants = [(name, own) for name in names for own in combinations(swept[name])]
    for name, own in variants:  # all are validated before the first one runs
        sampling = {**SAMPLED, "temperature": temperature} if sample or name == "sampled" else {"do_sample": False}
        answer = ModelAnswer(
            model=model,
            strategy="greedy" if name == "sampled" else name,
            settings={**settings_of(setting or [], name, names), **own},
            generation={**generation, **sampling},
            relevance=relevance or bool(chosen.wants - {"evidence"}),
            faithfulness=curves,
            evidence=composites_of(evidence) or (("attnlrp", "cp-lrp") if "evidence" in chosen.wants else ()),
            **asdict(loading),
            thoughts=markers,
            prefix_cache=prefix_cache,
            frames=questions.frames,
        )
        selected = execution.engine_for(answer, answer.many, handling.batch_size)
        prepared.append((label(name, own), answer.identity(), selected))
    finished: list[Results] = [
        run(
            chosen,
            out=out / name if len(prepared) > 1 else out,
            engine=selected,
            data=questions.data,
            splits=questions.split or (),
            limit=limit,
            suffix=questions.suffix,
            seed=seed,
            shard=where,
            settings=identity,
            parser=questions.parser,
            judge=judge,
            check=not skip_media_check,
            skip_bad_rows=handling.skip_bad_rows,
            thoughts=markers,
            progress=not handling.quiet,
        )
        for name, identity, selected in prepared
    ]
    for (name, _, _), results in zip(prepared, finished, strict=True):
        if log and results.run.complete:  # with shards, the last one
            log_results(results, log, project=log_project, name=f"{chosen.name}/{name}")
    typer.echo(render([side_by_side(finished, names=[name for name, _, _ in prepared])]))
    if any(r.run.errors or r.unscored for r in finished):
        raise typer.Exit(1)


bench.__doc__ = f"{bench.__doc__}\n{EXAMPLES}"


def thoughts_of(texts: list[str] | None) -> tuple[tuple[str, str], ...] | None:
    """Parse ``["<plan>...</plan>"]`` to pairs, and ``["none"]`` to no pairs; None is returned unchanged."""
    if not texts:
        return None
    if [t.strip().lower() for t in texts] == ["none"]:
        return ()
    parts = [t.partition("...") for t in texts]
    wrong = [t for t, (_, dots, close) in zip(texts, parts, strict=True) if not dots or not close.strip()]
    if wrong:
        raise SettingError(
            f"--thoughts {wrong[0]!r} is not OPEN...CLOSE", hint="for example '<plan>...</plan>', or none"
        )
    return tuple((a.strip(), b.strip()) for a, _, b in parts)


def settings_of(settings: list[str], name: str, names: list[str]) -> dict[str, Any]:
    """Parse the settings of strategy ``name``: ``key=value`` for all, ``name.key=value`` for one; values are JSON or text."""
    found: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        owner, dot, own = key.partition(".")
        if not equals or (dot and owner not in names):
            raise SettingError(f"--set {text!r} is not key=value or strategy.key=value", hint=f"strategies: {names}")
        if not dot or owner == name:
            try:
                found[own if dot else key] = json.loads(value)
            except ValueError:
                found[own if dot else key] = value
    return found


def _few(names: tuple[str, ...]) -> list[str]:
    return [*names[:6], f"... ({len(names)})"] if len(names) > 6 else list(names)
