"""``limelight transcribe``: transcription of audio of any length; each word is marked with its support by the audio."""

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


@options.grouped
def transcribe(
    files: Annotated[list[Path], typer.Argument(help="Audio files or videos with audio, or a shipped recording such as example:dog.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A checkpoint folder, a Hub name, or demo-audio.", rich_help_panel=INPUT)],
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The prompt; the model's own transcription prompt by default.", rich_help_panel=INPUT)
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Language of the speech, inserted into the prompt ({language} in your own).", rich_help_panel=INPUT)
    ] = None,
    strategy: options.StrategyName = "greedy",
    settings: options.Settings = None,
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
    drop_invented: Annotated[
        bool,
        typer.Option(
            "--drop-invented", help="Leave out segments that the audio does not support, such as sentences printed over silence.",
            rich_help_panel=DECODING,
        ),
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Mean support, in logits, below which a segment counts as invented; default: from the model's calibration.",
            rich_help_panel=DECODING,
        ),
    ] = None,
    meter: Annotated[
        bool | None,
        typer.Option(
            "--meter/--no-meter", help="Measure each word's grounding; default: where the model allows it.", show_default=False,
            rich_help_panel=OUTPUT,
        ),
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
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write a page: the audio, and every word shaded by its grounding.", rich_help_panel=OUTPUT)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite finished files and restart.", rich_help_panel=OUTPUT)] = False,
    loading: options.Loading = options.Loading(),
    debug: options.Debug = False,
) -> None:  # fmt: skip
    """Transcribe speech with any audio model, and mark the words that the audio does not support.

    Long audio is split at silences into pieces that fit the model, without overlap. Words with a low grounding score are
    underlined in subtitles and coloured in the terminal; JSON has every word's grounding, shares, and the interval of
    audio that its support comes from (an estimate from relevance, not an alignment). --drop-invented removes segments
    whose mean support is below the model's calibrated threshold.

    **Examples**

        limelight transcribe talk.mp3 --model Qwen/Qwen2-Audio-7B-Instruct

        limelight transcribe meeting.wav --model whisper-base --drop-invented --format srt --html meeting.html

        limelight transcribe talk.m4a lecture.mp4 --model mistralai/Voxtral-Mini-3B-2507 --format srt --output subtitles

        limelight transcribe talk.wav --model demo-audio --strategy aad --output talk.json
    """
    from limelight.cli import terminal
    from limelight.cli.transcripts import FORMATS

    chosen = _format(form, output, FORMATS)
    targets = _targets(files, output, FORMATS[chosen])
    _check_marks(files, html, drop_invented, threshold, meter)
    failed: list[Path] = []
    with terminal.quiet():
        from limelight.cli.transcribing import Job, wanted
        from limelight.decoding.transcribe import CHUNK_SECONDS, prompt_for, segment_threshold
        from limelight.demo.example import resolved

        decoder = options.strategy_of(strategy, settings or [])
        files = [resolved(f, "audio") for f in files]
        todo = wanted(files, targets, overwrite, html)
        if not todo:
            return
        _check_files([file for file, _ in todo])
        adapter = terminal.load(model, loading)
        text = prompt_for(adapter, prompt, language)
        limit = segment_threshold(adapter, drop_invented if threshold is None else threshold)
        usual = SUBTITLE_SECONDS if chosen in ("srt", "vtt") else CHUNK_SECONDS
        documents: list[Any] = []
        for file, target in todo:
            job = Job(
                adapter, file, target, model, text, decoder, relevance, chunk_seconds, usual, max_new_tokens, overwrite,
                meter=True if drop_invented else meter, threshold=limit, drop_invented=drop_invented, html=html,
            )  # fmt: skip
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
    from limelight.demo.example import PREFIX

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
    names = [f.stem.removeprefix(PREFIX) + suffix for f in files]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise SettingError(f"several transcripts would be written to {twice[0]}", hint="transcribe them one at a time")
    output.mkdir(parents=True, exist_ok=True)
    return [output / n for n in names]


def _check_marks(
    files: Sequence[Path], html: Path | None, drop_invented: bool, threshold: float | None, meter: bool | None
) -> None:
    """Refuse combinations in which an option would have no effect."""
    if meter is False and (drop_invented or threshold is not None):
        raise SettingError("--drop-invented and --threshold need the meter", hint="omit --no-meter")
    if html is not None and meter is False:
        raise SettingError("the page shows what the meter measures", hint="omit --no-meter")
    if html is not None and len(files) > 1:
        raise SettingError(
            f"{len(files)} transcripts cannot be written to one page", hint="transcribe them one at a time"
        )
    if html is not None:
        from limelight.report.figure import checked

        checked(html, frozenset({".html", ".htm"}))


def _check_files(files: Sequence[Path]) -> None:
    """Refuse, before the model is loaded, files none of which can be read; one of several is reported in its turn."""
    from limelight.media.audio import check_installed
    from limelight.media.image import existing

    check_installed()
    if not any(file.is_file() for file in files):
        existing(files[0])


def _printer(target: Path | None, form: str) -> Callable[[dict[str, Any]], None]:
    """Print text to stdout piece by piece, flagged words in colour."""
    from limelight.cli import terminal
    from limelight.cli.transcripts import styled

    def show(row: dict[str, Any]) -> None:
        if target is None and form == "text" and row["text"]:
            terminal.out.print(styled(row))

    return show


def _finish(job: Job, form: str, head: dict[str, Any], found: list[dict[str, Any]], documents: list[Any]) -> None:
    """Write or print one transcript, and print warnings about it."""
    from limelight.cli import terminal
    from limelight.cli.transcripts import contents, kept_and_dropped, render
    from limelight.types import mean_parts

    rows, dropped = kept_and_dropped(head, found)
    if job.target is not None:
        job.target.write_text(render(form, head, found), encoding="utf-8")
        job.forget()
        terminal.err.print(f"{job.target}: {len(rows)} segments, {head['seconds']:.1f} s", markup=False)
    elif form == "json":
        documents.append(contents(head, found))
    elif form != "text":
        terminal.out.file.write(render(form, head, found))
        terminal.out.file.flush()
    if job.html is not None:
        job.write_page(head, found)
        terminal.err.print(str(job.html), markup=False)
    for name, label in (("shares", ""), ("contributions", " of the logits, by the meter")):
        parts = mean_parts([{m: v or 0.0 for m, v in r[name].items()} for r in rows if r["text"].strip()])
        if parts:
            terminal.err.print(terminal.bar(parts).append(label))
            break
    _report_support(head, rows, dropped)
    _report_empty(job.file.name, rows, dropped)
    cut = [f"{r['stop']:.1f} s" for r in rows if not r["ends_in_silence"]]
    if cut:
        terminal.err.print(f"no silence found near {', '.join(cut)}: a word may be split there", markup=False)
    endless = [f"{r['start']:.1f}–{r['stop']:.1f} s" for r in rows if not r["complete"]]
    if endless:
        terminal.err.print(f"token limit reached at {', '.join(endless)} (--max-new-tokens)", markup=False)


def _report_support(head: dict[str, Any], rows: list[dict[str, Any]], dropped: list[dict[str, Any]]) -> None:
    """Print what was dropped, what could be, and why nothing was measured."""
    from limelight.cli import terminal

    if head["unmeasured"]:
        terminal.err.print(f"no grounding scores: {head['unmeasured']}", markup=False)
    for r in dropped:
        told = f"dropped {r['start']:.1f}–{r['stop']:.1f} s, support {r['support']:.2f}: {r['text']}"
        terminal.err.print(told, markup=False)
    doubtful = [f"{r['start']:.1f}–{r['stop']:.1f} s" for r in rows if r["invented"]]
    if doubtful:
        terminal.err.print(
            f"the audio does not support the text at {', '.join(doubtful)} (--drop-invented leaves it out)",
            markup=False,
        )
    if head["threshold"] is not None and not head["calibrated"] and (dropped or doubtful):
        terminal.err.print(
            f"threshold {head['threshold']:g} was not calibrated for this model (limelight calibrate)", markup=False
        )


def _report_empty(name: str, rows: list[dict[str, Any]], dropped: list[dict[str, Any]]) -> None:
    """Explain an empty transcript, which would otherwise look like a failed run."""
    from limelight.cli import terminal

    if any(r["text"].strip() for r in rows):
        return
    removed = sum(bool(r["text"].strip()) for r in dropped)
    if removed:
        why = f"--drop-invented removed {'its only segment' if removed == 1 else f'all {removed} segments'} with text"
    else:
        why = "the model wrote no words for this audio (it may contain no speech)"
    terminal.err.print(f"{name}: nothing was transcribed; {why}", markup=False)
