"""``limelight transcribe``: transcription of audio of any length, with each word's share from the audio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limelight.cli import options
from limelight.cli.options import DECODING, INPUT, OUTPUT
from limelight.errors import LimelightError, SettingError

if TYPE_CHECKING:
    from limelight.cli.transcribing import Job

SUBTITLE_SECONDS = 10.0


def transcribe(
    files: Annotated[list[Path], typer.Argument(help="Audio files, or videos with audio.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A checkpoint folder, a Hub name, or demo-audio.", rich_help_panel=INPUT)],
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The prompt; the model's own transcription prompt by default.", rich_help_panel=INPUT)
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Language of the speech, inserted into the prompt ({language} in your own).", rich_help_panel=INPUT)
    ] = None,
    strategy: Annotated[
        str, typer.Option("--strategy", "-s", help="Decoding strategy; see `limelight strategies`.", rich_help_panel=DECODING)
    ] = "greedy",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the strategy, key=value; repeat for several.", rich_help_panel=DECODING)
    ] = None,
    chunk_seconds: Annotated[
        float | None,
        typer.Option(
            help="Maximum piece length in seconds, split at silences; default: 30 (10 for subtitles) or the model's window.",
            rich_help_panel=DECODING,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum tokens per piece; default: 64 plus 12 per second.", rich_help_panel=DECODING)
    ] = None,
    relevance: Annotated[
        bool,
        typer.Option(
            "--relevance/--no-relevance", help="Compute each word's location in the audio; decoding is faster without.",
            rich_help_panel=OUTPUT,
        ),
    ] = True,
    form: Annotated[
        str | None, typer.Option("--format", "-f", help="text, json, srt, vtt or tsv; default: from --output's extension, else text.", rich_help_panel=OUTPUT)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="A file (.txt, .json, .srt, .vtt, .tsv), or a folder with one file per input; stdout by default. "
            "An interrupted run is resumed.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite finished files and restart.", rich_help_panel=OUTPUT)] = False,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    device_map: options.DeviceMap = None,
    trust_remote_code: options.TrustRemoteCode = False,
    debug: options.Debug = False,
) -> None:  # fmt: skip
    """Transcribe speech with any audio model, and show each word's share from the audio.

    Long audio is split at silences into pieces that fit the model, without overlap. JSON has every word's shares and the
    interval of audio that its support comes from (an estimate from relevance, not an alignment).

    **Examples**

        limelight transcribe talk.mp3 --model Qwen/Qwen2-Audio-7B-Instruct

        limelight transcribe talk.m4a lecture.mp4 --model mistralai/Voxtral-Mini-3B-2507 --format srt --output subtitles

        limelight transcribe talk.wav --model demo-audio --strategy aad --output talk.json
    """
    from limelight.cli import terminal
    from limelight.cli.transcripts import FORMATS

    chosen = _format(form, output, FORMATS)
    targets = _targets(files, output, FORMATS[chosen])
    failed: list[Path] = []
    with terminal.quiet():
        from limelight.cli.transcribing import Job, wanted
        from limelight.decoding.transcribe import CHUNK_SECONDS, prompt_for

        decoder = options.strategy_of(strategy, settings or [])
        todo = wanted(files, targets, overwrite)
        if not todo:
            return
        adapter = terminal.load(model, dtype, device, trust_remote_code, revision=revision, device_map=device_map)
        text = prompt_for(adapter, prompt, language)
        usual = SUBTITLE_SECONDS if chosen in ("srt", "vtt") else CHUNK_SECONDS
        documents: list[Any] = []
        for file, target in todo:
            job = Job(
                adapter, file, target, model, text, decoder, relevance, chunk_seconds, usual, max_new_tokens, overwrite
            )
            if len(todo) > 1 and target is None and chosen != "json":
                terminal.out.print(f"== {file.name}", markup=False)
            try:
                head, rows = job.run(_printer(target, chosen))
            except LimelightError as error:
                if len(todo) == 1 or debug:
                    raise
                failed.append(file)
                terminal.err.print(f"{file}:", markup=False)
                terminal.complain(error)
                continue
            _finish(job, chosen, head, rows, documents)
    if documents:
        from limelight.cli.output import print_json

        print_json(documents[0] if len(files) == 1 else documents)
    if failed:
        terminal.err.print(f"{len(failed)} of {len(files)} files could not be transcribed", markup=False)
        raise typer.Exit(2)


def _format(form: str | None, output: Path | None, known: dict[str, str]) -> str:
    ending = output.suffix.lower() if output is not None else ""
    by_ending = next((name for name, suffix in known.items() if suffix == ending), None)
    if form is not None and form not in known:
        raise SettingError(f"unknown format {form!r}", hint=f"one of {', '.join(known)}")
    if form is not None and by_ending is not None and form != by_ending:
        raise SettingError(f"--format {form} and --output {output} do not match", hint="omit --format")
    return form or by_ending or "text"


def _targets(files: Sequence[Path], output: Path | None, suffix: str) -> list[Path | None]:
    """Return the output file of each transcript; None is stdout."""
    if output is None:
        return [None] * len(files)
    if output.suffix.lower() == suffix:
        if len(files) > 1:
            raise SettingError(
                f"{len(files)} transcripts cannot be written to one file", hint="pass a folder as --output"
            )
        if not output.parent.is_dir():
            raise SettingError(f"there is no folder {str(output.parent)!r}", hint="create it first")
        return [output]
    if output.suffix and not output.is_dir():
        raise SettingError(
            f"cannot write {output.name!r}",
            hint="use a folder, or a file name ending in .txt, .json, .srt, .vtt or .tsv",
        )
    names = [f.stem + suffix for f in files]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise SettingError(f"several transcripts would be written to {twice[0]}", hint="transcribe them one at a time")
    output.mkdir(parents=True, exist_ok=True)
    return [output / n for n in names]


def _printer(target: Path | None, form: str) -> Callable[[dict[str, Any]], None]:
    """Print text to stdout piece by piece."""
    from limelight.cli import terminal

    def show(row: dict[str, Any]) -> None:
        if target is None and form == "text" and row["text"]:
            terminal.out.print(row["text"], markup=False)

    return show


def _finish(job: Job, form: str, head: dict[str, Any], rows: list[dict[str, Any]], documents: list[Any]) -> None:
    """Write or print one transcript, and print warnings about it."""
    from limelight.cli import terminal
    from limelight.cli.transcripts import render, text_of
    from limelight.types import mean_parts

    if job.target is not None:
        job.target.write_text(render(form, head, rows), encoding="utf-8")
        job.forget()
        terminal.err.print(f"{job.target}: {len(rows)} segments, {head['seconds']:.1f} s", markup=False)
    elif form == "json":
        documents.append({**head, "text": text_of(rows), "segments": rows})
    elif form != "text":
        terminal.out.file.write(render(form, head, rows))
        terminal.out.file.flush()
    for name, label in (("shares", ""), ("contributions", " of the logits, by the meter")):
        parts = mean_parts([{m: v or 0.0 for m, v in r[name].items()} for r in rows])
        if parts:
            terminal.err.print(terminal.bar(parts).append(label))
            break
    cut = [f"{r['stop']:.1f} s" for r in rows if not r["quiet"]]
    if cut:
        terminal.err.print(f"no silence found near {', '.join(cut)}: a word may be split there", markup=False)
    endless = [f"{r['start']:.1f}–{r['stop']:.1f} s" for r in rows if not r["complete"]]
    if endless:
        terminal.err.print(f"token limit reached at {', '.join(endless)} (--max-new-tokens)", markup=False)
