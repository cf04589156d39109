"""JSON lines that survive kill -9: appended and fsynced row by row, half a line at the end repaired, one writer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from limelight.errors import DataError, SettingError

Row = dict[str, Any]


class RowLog:
    """An open log. ``rows`` holds what it held when it was opened; ``append`` returns when the row is on the disk.

    Raises:
        SettingError: another process is writing it.
        DataError: a line that is not the last one is broken, which no interrupted writer leaves behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        self.repaired = 0
        self._file: BinaryIO | None = None
        self._lock = FileLock(path.with_name(path.name + ".lock"), timeout=0)

    def __enter__(self) -> RowLog:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise SettingError(
                f"another process is writing {self.path}", hint="wait for it, or give this run its own --out or --shard"
            ) from error
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
            self.rows, good = parse(self.path, content)
            self.repaired = len(content) - good
            self._file = self.path.open("r+b" if self.path.exists() else "w+b")
            self._file.truncate(good)
            self._file.seek(0, os.SEEK_END)
            self._sync()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.release()

    def append(self, row: Mapping[str, Any]) -> None:
        """Write the row and wait until it is on the disk."""
        if self._file is None:
            raise SettingError(f"{self.path} is not open for writing", hint="use it in a with statement")
        self._file.write(
            json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"
        )
        self._sync()

    def _sync(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())


def parse(path: Path, content: bytes) -> tuple[list[Row], int]:
    """Rows, and how many bytes of the content they fill: an unfinished or torn tail is left out."""
    rows: list[Row] = []
    good, broken = 0, 0
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        row = _row(line)
        if row is None:
            broken = broken or number
        elif broken:
            raise DataError(
                f"line {broken} of {path} is broken, but later lines are not", hint="look at that line by hand"
            )
        else:
            rows.append(row)
            good += len(line) + 1
    return rows, good


def read(path: Path) -> list[Row]:
    """The rows of a log, while it may be written to."""
    return parse(path, path.read_bytes())[0]


def latest(rows: Iterable[Row]) -> dict[str, Row]:
    """id -> its last row, in order of first appearance: a retried error is replaced by its answer."""
    return {str(row["id"]): row for row in rows}


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "id" in row else None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
