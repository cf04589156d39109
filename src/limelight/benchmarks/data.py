"""Benchmark files in a folder of the user's: found, read, hashed. Nothing is ever downloaded from here."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limelight.errors import DataError
from limelight.types import PathLike, Sample


@dataclass(frozen=True)
class Needed:
    """A file (or folder, when it ends in ``/``) under any of several usual names, and where it comes from."""

    names: tuple[str, ...]
    origin: str
    required: bool = True

    def __str__(self) -> str:
        return f"{' or '.join(self.names)}  (from {self.origin})"


@dataclass
class Folder:
    """A data folder. ``facts`` collects SHA-256, size and row count of every file read, for the results."""

    root: Path
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = Path(self.root)
        if not self.root.is_dir():
            raise DataError(f"the data folder {self.root} does not exist", hint="pass --data DIR with the task's files")

    def locate(self, needed: Needed) -> Path | None:
        """The first of its names that exists, or None."""
        for name in needed.names:
            path = self.root / name
            if path.is_dir() if name.endswith("/") else path.is_file():
                return path
        return None

    def find(self, needed: Needed) -> Path:
        path = self.locate(needed)
        if path is None:
            raise missing(self.root, [needed])
        return path

    def text(self, needed: Needed) -> str:
        return self._read(self.find(needed))

    def json(self, needed: Needed) -> Any:
        path = self.find(needed)
        return _json(path, self._read(path))

    def rows(self, needed: Needed) -> list[dict[str, Any]]:
        """Rows of a JSON array, JSON lines, CSV or TSV file; which one is told by content and suffix."""
        path = self.find(needed)
        rows = parse_rows(path, self._read(path))
        self.facts[self._name(path)]["rows"] = len(rows)
        return rows

    def media(self, folders: Needed, name: str) -> Path:
        """Where a picture or sound should be: in the first of the folders that holds it, else in the first there is."""
        bases = [self.root / f for f in folders.names if (self.root / f).is_dir()] or [self.root / folders.names[0]]
        return next((b / name for b in bases if (b / name).is_file()), bases[0] / name)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _read(self, path: Path) -> str:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        self.facts.setdefault(self._name(path), {}).update(sha256=digest, bytes=len(content))
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is not UTF-8 text: {error}", hint="fetch the file again from its origin"
            ) from error


def missing(root: PathLike, needed: Iterable[Needed]) -> DataError:
    """The error that says exactly which files were looked for, where, and where they come from."""
    return DataError(
        f"files are missing under {Path(root).resolve()}; looked for\n" + "\n".join(f"    {n}" for n in needed),
        hint="fetch them from there into that folder, or read the Hub's copy with --data hub where the task has one",
    )


def parse_rows(path: Path, text: str) -> list[dict[str, Any]]:
    """Rows as dictionaries. Lines that begin with ``#`` are comments in CSV and TSV files."""
    if path.suffix.lower() in (".csv", ".tsv"):
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        tab = "\t" in lines[0] if lines else False
        table = csv.DictReader(io.StringIO("\n".join(lines)), delimiter="\t" if tab else ",")
        return [_whole_row(path, table.line_num, row) for row in table]
    if text.lstrip().startswith("["):
        rows = _json(path, text)
    else:
        rows = [_json(path, line, n) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(
                f"row {number} of {path} is a {type(row).__name__}, not an object", hint="check the file's origin"
            )
    return list(rows)


def column(path: str, row: Mapping[str, Any], *names: str) -> Any:
    """The first of the columns that the row has; raises ``DataError`` naming them when it has none."""
    for name in names:
        if name in row:
            return row[name]
    raise DataError(
        f"a row of {path} has no column {' or '.join(names)}; it has {sorted(row)}",
        hint="the file is not in the task's official format: compare with docs/benchmarks.md",
    )


def check_media(samples: Sequence[Sample], origin: str) -> None:
    """Raise ``DataError`` when files that the samples show or play do not exist."""
    files = {Path(m) for s in samples for items in s.media.values() for m in items if isinstance(m, str | Path)}
    lost = sorted(f for f in files if not f.is_file())
    if lost:
        some = "\n".join([*(f"    {f}" for f in lost[:5]), *(["    ..."] if len(lost) > 5 else [])])
        raise DataError(
            f"{len(lost)} of {len(files)} media files are missing; looked for\n{some}",
            hint=f"they come from {origin}" if origin else "",
        )


def _json(path: Path, text: str, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        where = f"{path}, line {line}" if line else str(path)
        raise DataError(f"{where} is not JSON: {error}", hint="fetch the file again from its origin") from error


def _whole_row(path: Path, line: int, row: dict[str | Any, Any]) -> dict[str, Any]:
    if None in row or None in row.values():
        raise DataError(
            f"{path}: row before line {line + 1} has another number of columns than the header", hint="check the file"
        )
    return dict(row)
