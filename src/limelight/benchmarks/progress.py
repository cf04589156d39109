"""Progress of a run on stderr, with rich: rows done, rate, time left, failures."""

from __future__ import annotations

import time
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
    """A progress bar with rate and time left; without a terminal, one line every 10 % instead."""

    def __init__(self, title: str, total: int, done: int, *, quiet: bool = False) -> None:
        self.title, self.total, self.done, self.errors = title, total, done, 0
        self._console = Console(stderr=True, quiet=quiet, markup=False, highlight=False)
        self._bar: Bar | None = None
        self._before, self._start = done, time.monotonic()

    def __enter__(self) -> Progress:
        if self.done:
            self._console.print(f"{self.title}: {self.done} of {self.total} rows already done")
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
                f"{self.title}: {self.errors} rows failed; run the same command again to retry them", style="red"
            )

    def step(self, error: str | None = None) -> None:
        """Advance by one row; ``error``: why it failed, if it did."""
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
            each = (time.monotonic() - self._start) / max(self.done - self._before, 1)
            left = each * (self.total - self.done)
            about = f", about {duration(left)} left" if self.done < self.total else ""
            self._console.print(f"{self.title}: {self.done} of {self.total}, {rate(each)}{about}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(rate(1 / speed) if speed else "")


def rate(seconds: float) -> str:
    """Format a rate as rows per second, or as seconds per row where that is more than one."""
    return f"{seconds:.1f} s/row" if seconds > 1 else f"{1 / max(seconds, 1e-6):.2f} rows/s"


def duration(seconds: float) -> str:
    """Format seconds for reading: 40 s, 12 min, 3.5 h."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
