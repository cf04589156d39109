"""Progress of a run: how many rows, at what rate, until when, how many failed. To stderr, by rich."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bar,
)
from rich.text import Text


class Progress:
    """A progress bar with rate and estimate. Off a terminal it prints a line every tenth of the way instead."""

    def __init__(self, title: str, total: int, done: int, *, quiet: bool = False) -> None:
        self.title, self.total, self.done, self.errors = title, total, done, 0
        self._console = Console(stderr=True, quiet=quiet, markup=False, highlight=False)
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        if self.done:
            self._console.print(f"{self.title}: {self.done} of {self.total} rows are there already")
        if self._console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(),
                TextColumn("{task.fields[errors]}"), console=self._console,
            )  # fmt: skip
            self._bar.start()
            self._id = self._bar.add_task(self.title, total=self.total, completed=self.done, errors="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self.errors:
            self._console.print(
                f"{self.title}: {self.errors} rows failed; the same command asks them again", style="red"
            )

    def step(self, error: str | None = None) -> None:
        """One row more; ``error`` says why it failed."""
        self.done += 1
        if error is not None:
            self.errors += 1
            if self.errors == 1:
                self._console.print(
                    f"{self.title}: a row failed: {error.splitlines()[0] if error else error}", style="red"
                )
        if self._bar is not None:
            self._bar.update(self._id, completed=self.done, errors=f"{self.errors} failed" if self.errors else "")
        elif self.done * 10 // max(self.total, 1) > (self.done - 1) * 10 // max(self.total, 1):
            self._console.print(f"{self.title}: {self.done} of {self.total}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.2f} rows/s" if speed >= 1 else f"{1 / speed:.1f} s/row")
