"""``limelight audit``: which words of finished answers the media support."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from limelight.cli import options
from limelight.cli.bench import parse_shard, thoughts_of
from limelight.errors import SettingError

EXAMPLES = """
Examples:

    limelight audit answers.jsonl --model llava-hf/llava-1.5-7b-hf --out audit/

    limelight audit answers.jsonl --model MODEL --out audit/ --format csv,parquet --pages 50 --maps

    limelight audit answers.jsonl --model MODEL --out audit/ --engine ray --workers 8 --gpus 1

A row of answers.jsonl is `{"id": ..., "image": "photo.jpg", "prompt": ..., "answer": ...}`, or has OpenAI's `messages`, whose
last turn is the assistant's. The same command resumes an interrupted audit.
"""


def audit(
    answers: Annotated[
        Path,
        typer.Argument(
            help="JSON lines, a JSON array, CSV or TSV with media, prompt or messages, answer, and optionally an id."
        ),
    ],
    model: Annotated[str, typer.Option(help="Checkpoint folder, Hub name, or a shipped miniature.")] = "",
    out: Annotated[Path | None, typer.Option(help="Output folder of the audit.")] = None,
    turns: Annotated[
        str, typer.Option(help="last: audit each row's answer; all: every answer of its conversation.")
    ] = "last",
    limit: Annotated[int | None, typer.Option(min=1, help="Audit at most this many answers.")] = None,
    batch_size: Annotated[
        int, typer.Option("--batch", "--batch-size", help="Answers audited in one padded batch.")
    ] = 1,
    formats: Annotated[
        str, typer.Option("--format", help="Formats of the tables, separated by commas: csv, parquet.")
    ] = "csv",
    pages: Annotated[int, typer.Option(min=0, help="Number of the worst answers that get a page.")] = 20,
    maps: Annotated[
        bool, typer.Option("--maps", help="Add relevance maps of every word to the pages: one backward pass per token.")
    ] = False,
    composite: Annotated[str, typer.Option(help="Relevance rules: attnlrp or cp-lrp.")] = "attnlrp",
    calibration: Annotated[
        str, typer.Option(help="Calibration of the flag: a file, auto (this model's own, if any), or none.")
    ] = "auto",
    thoughts: Annotated[
        list[str] | None,
        typer.Option(
            help="Additional markers around a model's reasoning, as OPEN...CLOSE; repeat for several; 'none' keeps the "
            "reasoning in the answer."
        ),
    ] = None,
    shard: Annotated[
        str, typer.Option(help="i/n: every n-th answer starting from the i-th; 'auto' reads RANK and WORLD_SIZE.")
    ] = "0/1",
    engine: Annotated[str, typer.Option(help="local or ray.")] = "local",
    workers: Annotated[int, typer.Option(help="Ray workers, each with its own model.")] = 1,
    gpus: Annotated[float, typer.Option(help="GPUs per Ray worker.")] = 0.0,
    address: Annotated[str | None, typer.Option(help="Address of a running Ray cluster.")] = None,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    device_map: options.DeviceMap = None,
    trust_remote_code: options.TrustRemoteCode = False,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Skip and count rows that cannot be audited.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Audit finished answers: which words do the image, audio and video support? Nothing is generated."""
    from limelight.auditing.run import Auditor, audit_file
    from limelight.benchmarks.engine import Local
    from limelight.benchmarks.ray_engine import RayEngine
    from limelight.benchmarks.runner import shard_from_environment
    from limelight.benchmarks.tables import render, side_by_side

    if not model or out is None:
        raise SettingError(
            "--model and --out are needed", hint="limelight audit answers.jsonl --model MODEL --out audit/"
        )
    if engine not in ("local", "ray"):
        raise SettingError(f"unknown engine {engine!r}", hint="local or ray")
    auditor = Auditor(
        model,
        composite,
        thoughts_of(thoughts),
        dtype,
        device,
        device_map,
        revision,
        trust_remote_code,
        None if calibration == "none" else calibration,
    )
    make = partial(Local, auditor, auditor.many, batch_size)
    found = audit_file(
        answers,
        auditor,
        out,
        turns=turns,
        limit=limit,
        shard=shard_from_environment() if shard == "auto" else parse_shard(shard),
        batch_size=batch_size,
        engine=make()
        if engine == "local"
        else RayEngine(make, workers=workers, batch_size=batch_size, gpus=gpus, address=address),
        skip_bad_rows=skip_bad_rows,
        formats=[f.strip() for f in formats.split(",") if f.strip()],
        pages=pages,
        maps=maps,
        progress=not quiet,
    )
    typer.echo(render([side_by_side([found], names=[model])]))
    typer.echo(f"{out / 'index.html'} lists the worst answers; the tables are in the same folder")
    if found.run.errors or found.unscored:
        raise typer.Exit(1)


audit.__doc__ = f"{audit.__doc__}\n{EXAMPLES}"
