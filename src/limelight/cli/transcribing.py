"""One file of ``limelight transcribe``: its pieces are transcribed one by one, and saved as they are done."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from limelight.benchmarks.rowlog import RowLog
from limelight.cli import terminal
from limelight.cli.transcripts import Row, row
from limelight.decoding.strategy import Strategy
from limelight.decoding.transcribe import MAX_SECONDS, Transcriber, cut
from limelight.errors import SettingError
from limelight.media.audio import read_audio
from limelight.models.adapter import Adapter
from limelight.models.prompts import sampling_rate
from limelight.types import Step


def wanted(
    files: Sequence[Path], targets: Sequence[Path | None], overwrite: bool, html: Path | None = None
) -> list[tuple[Path, Path | None]]:
    """Return the files that are not done yet; report those that are.

    Raises:
        SettingError: a page is to be written of a file that is done.
    """
    todo = []
    for file, target in zip(files, targets, strict=True):
        if target is not None and target.exists() and not overwrite:
            if html is not None and not html.exists():
                raise SettingError(
                    f"{target} already exists, so that {html} would not be written",
                    hint="add --overwrite, or write the transcript to another --output",
                )
            terminal.err.print(f"{target}: already exists, skipped (--overwrite)", markup=False)
        else:
            todo.append((file, target))
    return todo


@dataclass(frozen=True)
class Job:
    """One audio file and its transcription settings; with a ``target``, finished segments are saved next to it."""

    adapter: Adapter
    file: Path
    target: Path | None
    model: str
    prompt: str
    strategy: Strategy
    relevance: bool
    chunk_seconds: float | None
    usual_seconds: float
    max_new_tokens: int | None
    overwrite: bool = False
    meter: bool | None = None
    threshold: float | None = None
    drop_invented: bool = False
    html: Path | None = None

    @property
    def log(self) -> Path | None:
        return None if self.target is None else self.target.with_name(self.target.name + ".partial")

    def run(self, show: Callable[[Row], None]) -> tuple[Row, list[Row]]:
        """Transcribe the file; return its JSON header and segments. ``show`` is called with each finished segment that is
        not dropped.

        Raises:
            SettingError: the interrupted run had different settings or different audio.
            MediaError: see :mod:`limelight.media.audio`.
        """
        rate = sampling_rate(self.adapter)
        samples = read_audio(self.file, rate, max_seconds=MAX_SECONDS)
        parts = cut(self.adapter, samples, rate, self.chunk_seconds, self.usual_seconds)
        head = {
            "file": self.file.name, "model": self.model, "prompt": self.prompt, "strategy": self.strategy.name,
            "settings": {k: terminal.plain_value(v) for k, v in self.strategy.settings().items()},
            "seconds": round(samples.size / rate, 3), "chunk_seconds": self.chunk_seconds or self.usual_seconds,
            "max_new_tokens": self.max_new_tokens, "relevance": self.relevance, "meter": self.meter is not False,
            "drop_invented": self.drop_invented, "threshold": self.threshold,
            "calibrated": getattr(self.adapter.calibration, "segment_threshold", None) == self.threshold,
        }  # fmt: skip
        transcriber = Transcriber(
            self.adapter, samples, rate, self.prompt, self.strategy, relevance=self.relevance, meter=self.meter,
            threshold=self.threshold, max_new_tokens=self.max_new_tokens,
        )  # fmt: skip
        with self._kept(head) as (rows, keep), _progress(self.file.name, len(parts)) as moved:
            for done in rows:
                self._show(done, show)
            moved(len(rows), "")
            for i in range(len(rows), len(parts)):
                tail: list[str] = []

                def on_step(_: int, step: Step, tail: list[str] = tail, i: int = i) -> None:
                    tail.append(step.text)
                    moved(i, "".join(tail).replace("\n", " ").strip()[-32:])

                rows.append(row(transcriber.segment(parts[i], on_step=on_step)))
                keep(i, rows[-1])
                self._show(rows[-1], show)
                moved(i + 1, "")
        return {**head, "unmeasured": transcriber.unmeasured}, rows

    def _show(self, row: Row, show: Callable[[Row], None]) -> None:
        if not (self.drop_invented and row["invented"]):
            show(row)

    def write_page(self, head: Row, rows: Sequence[Row]) -> None:
        """Write the transcript as a page with its audio."""
        from limelight.report.transcript_page import save_transcript_page

        if self.html is not None:
            rate = sampling_rate(self.adapter)
            samples = read_audio(self.file, rate, max_seconds=MAX_SECONDS)
            save_transcript_page(self.html, head, rows, samples, rate)

    def forget(self) -> None:
        """Remove the saved segments of an unfinished run."""
        if self.log is not None:
            for path in (self.log, self.log.with_name(self.log.name + ".lock")):
                path.unlink(missing_ok=True)

    @contextmanager
    def _kept(self, head: Row) -> Iterator[tuple[list[Row], Callable[[int, Row], None]]]:
        """Yield the segments of an interrupted run, and a function to save further ones."""
        if self.log is None:
            yield [], lambda i, one: None
            return
        if self.overwrite:
            self.forget()
        identity = {"id": "settings", **head, "sound": hashlib.sha256(self.file.read_bytes()).hexdigest()}
        with RowLog(self.log) as log:
            if log.rows and log.rows[0] != identity:
                raise SettingError(
                    f"{self.log.name} was started with different settings or different audio",
                    hint="restart with --overwrite, or use another --output",
                )
            if not log.rows:
                log.append(identity)
            rows = [{k: v for k, v in r.items() if k != "id"} for r in log.rows[1:]]
            if rows:
                terminal.err.print(f"{self.file.name}: {len(rows)} segments already done", markup=False)
            yield rows, lambda i, one: log.append({"id": str(i), **one})


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int, str], None]]:
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
               MofNCompleteColumn(), TextColumn("pieces"), TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=terminal.err, transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done, tail: bar.update(task, completed=done, description=f"{name} {tail}".strip())
