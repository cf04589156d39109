"""``limelight calibrate``: fit the threshold of a model's grounding flag and the probability of each score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limelight.cli import options


@options.grouped
def calibrate(
    model: options.ModelName,
    rows: Annotated[
        Path, typer.Argument(help="JSON lines, a JSON array, CSV or TSV with media, prompt, answer and word labels.")
    ],
    held_out: Annotated[
        Path | None, typer.Option("--held-out", help="Labelled rows for evaluation only; quality is reported on them.")
    ] = None,
    objective: Annotated[
        str, typer.Option(help="Criterion for the threshold: youden, recall=0.9, precision=0.9 or false-flags=0.05.")
    ] = "youden",
    curve: Annotated[str, typer.Option(help="Probability curve: logistic, or isotonic for many words.")] = "logistic",
    composite: Annotated[str, typer.Option(help="Relevance rules of the meter: attnlrp or cp-lrp.")] = "attnlrp",
    max_new_tokens: options.MaxNewTokens = 64,
    batch_size: Annotated[int, typer.Option("--batch", "--batch-size", min=1, help="Answers per padded batch.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most this many rows.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Output file; by default the cache, where loading this model finds it."),
    ] = None,
    as_json: options.AsJson = False,
    loading: options.Loading = options.Loading(),
    debug: options.Debug = False,
) -> None:  # fmt: skip
    """Calibrate a model's grounding flag: which words of its answers are likely to be invented.

    A row is `{"image": "photo.jpg", "prompt": ..., "answer": ..., "supported": ["cup"], "invented": ["dog"]}`; instead of the
    lists, `correct` (true or false) labels the first word of an answer, and `reference` the words of a transcript. Rows without
    `answer` are answered by the model. Rows without any labels are answered twice, with and without the media, and words generated
    only without them count as invented: rough labels.

    The rows' scores are kept beside the output (`NAME.rows.jsonl`): after an interruption the same command continues there, and
    another objective or curve needs no new measurements.

    Without a calibration the flag uses a default threshold and reports that it does.

    **Examples**

        limelight calibrate llava-hf/llava-1.5-7b-hf labelled.jsonl --held-out test.jsonl

        limelight calibrate ./checkpoint pictures.jsonl --objective recall=0.9 --out ./checkpoint/calibration.json
    """
    from limelight.cli import output as writer
    from limelight.cli import terminal

    with terminal.quiet():
        from dataclasses import asdict

        from limelight.calibrating.run import calibrate as fitted
        from limelight.calibration import NONE as NO_CALIBRATION
        from limelight.calibration import cache_file

        adapter = terminal.load(model, loading, calibration=NO_CALIBRATION)
        path = output or cache_file(model)
        log = path.with_name(f"{path.stem}.rows.jsonl")
        with terminal.row_progress("rows") as moved:
            found = fitted(
                adapter, rows, held_out=held_out, limit=limit, name=options.public_name(model), objective=objective, curve=curve,
                composite=composite, max_new_tokens=max_new_tokens, batch_size=batch_size, log=log, progress=moved,
            )  # fmt: skip
        found.save(path)
    if as_json:
        writer.print_json({"file": str(path), **asdict(found)})
        return
    counts = ", ".join(f"{n} {k}" for k, n in found.counts.items())
    terminal.out.print(
        f"threshold {found.threshold:g}" + (", with a rival" if found.needs_rival else ", without a rival")
    )
    if found.segment_threshold is not None:
        terminal.out.print(f"segment threshold {found.segment_threshold:g}")
    for name, value in found.measures.items():
        terminal.out.print(f"{name.replace('_', ' ')} {value:.3f}")
    terminal.err.print(f"{counts} words; labels: {found.labels}", markup=False)
    terminal.err.print(f"{path}: used whenever {model} is loaded" if output is None else str(path), markup=False)
    terminal.err.print(f"{log}: scores of the rows; delete it if they are no longer needed", markup=False)
