"""A crash-safe JSON Lines log: each row is appended and fsynced, an incomplete last line is repaired, one writer only."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from limelight.errors import DataError, SettingError

Row = dict[str, Any]


class RowLog:
    """An open log. ``rows`` are the rows present at opening; ``append`` returns once the row is on disk.

    Raises:
        SettingError: another process is writing it.
        DataError: a line other than the last is corrupt, which an interrupted writer cannot cause; or the folder is not
            writable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        self._file: FileIO | None = None  # unbuffered: a buffer would retry, and fail again, on close
        self._end = 0
        self._lock = FileLock(path.with_name(path.name + ".lock"), timeout=0)

    def __enter__(self) -> RowLog:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout as error:
                raise SettingError(
                    f"another process is writing {self.path}",
                    hint="wait for it, or give this run its own --out or --shard",
                ) from error
            try:
                content = self.path.read_bytes() if self.path.exists() else b""
                self.rows, self._end = parse(self.path, content)
                self._file = FileIO(self.path, "r+" if self.path.exists() else "w+")
                self._file.truncate(self._end)
                os.fsync(self._file.fileno())
            except BaseException:
                self.__exit__(None, None, None)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # every row was synced when it was appended
                self._file.close()
            self._file = None
        self._lock.release()

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row and wait until it is on disk.

        Raises:
            DataError: it could not be written (disk full); the partial row is removed, and earlier rows are safe.
        """
        if self._file is None:
            raise SettingError(f"{self.path} is not open for writing", hint="use the log in a with statement")
        line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            with writing(self.path):
                self._file.seek(self._end)
                done = 0
                while done < len(line):
                    done += self._file.write(line[done:])
                os.fsync(self._file.fileno())
        except BaseException:
            with suppress(OSError):
                self._file.truncate(self._end)
            raise
        self._end += len(line)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert OS errors while writing ``path`` to DataError."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}",
            hint="earlier data is safe; "
            + ("free some space" if full else "make its folder writable, or pass another --out")
            + " and run the same command again",
        ) from error


def parse(path: Path, content: bytes) -> tuple[list[Row], int]:
    """Parse the rows, and return the number of bytes they occupy: an incomplete last line is excluded."""
    rows: list[Row] = []
    good, broken = 0, 0
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        row = _row(line)
        if row is None:
            broken = broken or number
        elif broken:
            raise DataError(f"line {broken} of {path} is corrupt, but later lines are not", hint="inspect that line")
        else:
            rows.append(row)
            good += len(line) + 1
    return rows, good


def read(path: Path) -> list[Row]:
    """Read the rows of a log that may be open for writing."""
    return parse(path, path.read_bytes())[0]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an inter-process lock; raises ``DataError`` where the lock file cannot be written."""
    lock = FileLock(path)
    with writing(path):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_answers(path: Path, rows: Iterable[Row]) -> None:
    """Raise ``DataError`` for an answer row with missing or invalid fields, naming the line and the expected fields."""
    for number, row in enumerate(rows, 1):
        place = row.get("place")
        plain = isinstance(place, list) and len(place) == 2 and all(type(x) is int for x in place)
        answered = (
            row.get("error") or row.get("dropped") or all(isinstance(row.get(k), t) for k, t in _ANSWERED.items())
        )
        if not plain or not answered or not isinstance(row.get("seconds"), (int, float)):
            lost = [k for k in ("place", "seconds", *(() if row.get("error") else _ANSWERED)) if k not in row]
            raise DataError(
                f"line {number} of {path} (question {row['id']!r}) is not a valid answer row: "
                + (f"it has no {', '.join(lost)}" if lost else "place, seconds, answer or meta has the wrong type"),
                hint="a row has place [split, position], seconds, answer and meta; delete that line, "
                "and its question is answered again",
            )


_ANSWERED: Mapping[str, type] = {"answer": str, "meta": dict, "prompt": str}


def latest(rows: Iterable[Row]) -> dict[str, Row]:
    """Map each id to its last row, in order of first appearance: a retried error is replaced by its answer."""
    return {str(row["id"]): row for row in rows}


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "id" in row else None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; raises ``DataError`` where it cannot be written."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; raises ``DataError`` where it cannot be written."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with writing(path):
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
