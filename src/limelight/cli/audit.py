"""``limelight audit``: which words of finished answers the media support."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from limelight.cli import options
from limelight.cli.bench import thoughts_of
from limelight.cli.bench_options import Execution, Handling, Model
from limelight.errors import SettingError

EXAMPLES = """
Examples:

    limelight audit answers.jsonl --model llava-hf/llava-1.5-7b-hf --out audit/

    limelight audit answers.jsonl --model MODEL --out audit/ --format csv,parquet --pages 50 --maps

    limelight audit answers.jsonl --model MODEL --out audit/ --engine ray --workers 8 --gpus 1

A row of answers.jsonl is `{"id": ..., "image": "photo.jpg", "prompt": ..., "answer": ...}`, or has OpenAI's `messages`, whose
last turn is the assistant's. The same command resumes an interrupted audit.
"""


@options.grouped
def audit(
    answers: Annotated[
        Path,
        typer.Argument(
            help="JSON lines, a JSON array, CSV or TSV with media, prompt or messages, answer, and optionally an id."
        ),
    ],
    model: Model = "",
    out: Annotated[Path | None, typer.Option(help="Output folder of the audit.")] = None,
    turns: Annotated[
        str, typer.Option(help="last: audit each row's answer; all: every answer of its conversation.")
    ] = "last",
    limit: Annotated[int | None, typer.Option(min=1, help="Audit at most this many answers.")] = None,
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
    execution: Execution = Execution(),
    loading: options.Loading = options.Loading(),
    handling: Handling = Handling(),
) -> None:
    """Audit finished answers: which words do the image, audio and video support? Nothing is generated."""
    from limelight.auditing.run import Auditor, audit_file
    from limelight.benchmarks.tables import render, side_by_side

    if not model or out is None:
        raise SettingError(
            "--model and --out are needed", hint="limelight audit answers.jsonl --model MODEL --out audit/"
        )
    auditor = Auditor(
        model,
        composite,
        thoughts_of(thoughts),
        calibration=None if calibration == "none" else calibration,
        **asdict(loading),
    )
    found = audit_file(
        answers,
        auditor,
        out,
        turns=turns,
        limit=limit,
        shard=execution.part,
        batch_size=handling.batch_size,
        engine=execution.engine_for(auditor, auditor.many, handling.batch_size),
        skip_bad_rows=handling.skip_bad_rows,
        formats=[f.strip() for f in formats.split(",") if f.strip()],
        pages=pages,
        maps=maps,
        progress=not handling.quiet,
    )
    typer.echo(render([side_by_side([found], names=[model])]))
    typer.echo(f"{out / 'index.html'} lists the worst answers; the tables are in the same folder")
    if found.run.errors or found.unscored:
        raise typer.Exit(1)


audit.__doc__ = f"{audit.__doc__}\n{EXAMPLES}"
