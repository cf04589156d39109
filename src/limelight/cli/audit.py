"""``limelight audit``: which words of finished answers the media support."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from limelight.cli.bench import parse_shard, thoughts_of
from limelight.errors import SettingError

EXAMPLES = """
Examples:

    limelight audit answers.jsonl --model llava-hf/llava-1.5-7b-hf --out audit/

    limelight audit answers.jsonl --model MODEL --out audit/ --format csv,parquet --pages 50 --maps

    limelight audit answers.jsonl --model MODEL --out audit/ --engine ray --workers 8 --gpus 1

A row of answers.jsonl is `{"id": ..., "image": "photo.jpg", "prompt": ..., "answer": ...}`, or has OpenAI's `messages`, whose
last turn is the assistant's. An audit that was interrupted is resumed by the same command.
"""


def audit(
    answers: Annotated[
        Path, typer.Argument(help="JSON lines, a JSON array, CSV or TSV: media, prompt or messages, answer, any id.")
    ],
    model: Annotated[str, typer.Option(help="Checkpoint folder, Hub name, or a shipped miniature.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of the audit.")] = None,
    turns: Annotated[
        str, typer.Option(help="last: each row's answer; all: every answer of its conversation.")
    ] = "last",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many answers.")] = None,
    batch_size: Annotated[
        int, typer.Option("--batch", "--batch-size", help="Answers audited in one padded batch.")
    ] = 1,
    formats: Annotated[str, typer.Option("--format", help="Of the tables, separated by commas: csv, parquet.")] = "csv",
    pages: Annotated[int, typer.Option(min=0, help="How many of the worst answers get a page.")] = 20,
    maps: Annotated[
        bool, typer.Option("--maps", help="Pages with relevance maps of every word; a backward pass a token.")
    ] = False,
    composite: Annotated[str, typer.Option(help="attnlrp or cp-lrp.")] = "attnlrp",
    calibration: Annotated[
        str, typer.Option(help="Of the flag: a file, auto (the one made for this model, if any), or none.")
    ] = "auto",
    thoughts: Annotated[
        list[str] | None,
        typer.Option(
            help="Further texts around a model's thoughts, as OPEN...CLOSE; repeat for several; 'none' takes answers with "
            "their thoughts."
        ),
    ] = None,
    shard: Annotated[
        str, typer.Option(help="i/n: every n-th answer from the i-th on; 'auto' reads RANK and WORLD_SIZE.")
    ] = "0/1",
    engine: Annotated[str, typer.Option(help="local or ray.")] = "local",
    workers: Annotated[int, typer.Option(help="Ray workers, one model each.")] = 1,
    gpus: Annotated[float, typer.Option(help="GPUs a Ray worker.")] = 0.0,
    address: Annotated[str | None, typer.Option(help="Of a running Ray cluster.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cuda:1.")] = None,
    dtype: Annotated[str, typer.Option(help="Such as bfloat16.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub name.")] = None,
    device_map: Annotated[
        str | None,
        typer.Option("--device-map", help="How to place the model's parts, such as auto; instead of --device."),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code from the checkpoint.")
    ] = False,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that cannot be audited, and count them.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Audit finished answers: which words do pictures, sounds and films support? Nothing is generated."""
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
        raise SettingError(f"no engine {engine!r}", hint="local or ray")
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
    typer.echo(f"{out / 'index.html'}: the worst answers; tables beside it")
    if found.run.errors or found.unscored:
        raise typer.Exit(1)


audit.__doc__ = f"{audit.__doc__}\n{EXAMPLES}"
