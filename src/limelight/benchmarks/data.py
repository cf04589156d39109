"""Locating, reading and hashing benchmark files in the user's data folder. Nothing is downloaded."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limelight.errors import DataError, MediaError
from limelight.types import PathLike, Sample


@dataclass(frozen=True)
class Needed:
    """A required file (or folder, ending in ``/``) under any of several usual names, and its origin."""

    names: tuple[str, ...]
    origin: str
    required: bool = True

    def __str__(self) -> str:
        return f"{' or '.join(self.names)}  (from {self.origin})"


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used or scored: its location (file and line), the problem, and its id if known."""

    where: str
    problem: str
    id: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


class Row(dict[str, Any]):
    """A row of a file; ``where``: file and line; ``number``: how many rows, valid or not, precede it."""

    where: str = ""
    number: int = 0


@dataclass
class Rejected:
    """The invalid rows found so far. ``at``: location of the row being converted to a sample."""

    bad: list[BadRow] = field(default_factory=list)
    at: str = ""

    def add(self, row: BadRow) -> None:
        if row not in self.bad:  # several splits may read one file
            self.bad.append(row)

    @contextmanager
    def row(self, where: str) -> Iterator[None]:
        """Reject only this row when the block raises."""
        self.at = where
        try:
            yield
        except (DataError, MediaError) as error:
            self.add(BadRow(where, error.message))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError) as error:
            self.add(BadRow(where, f"a value does not match the format ({type(error).__name__}: {error})"))


@dataclass
class Folder:
    """A data folder. ``facts``: SHA-256, size and row count of every file read, for the results."""

    root: Path
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    rejected: Rejected = field(default_factory=Rejected)

    def __post_init__(self) -> None:
        self.root = Path(self.root)
        if not self.root.is_dir():
            raise DataError(f"the data folder {self.root} does not exist", hint="pass --data DIR with the task's files")

    def locate(self, needed: Needed) -> Path | None:
        """Return the first of the names that exists, or None."""
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

    def rows(self, needed: Needed) -> list[Row]:
        """Read the rows of a JSON array, JSON Lines, CSV or TSV file, detected from content and suffix.

        Raises:
            DataError: any row is malformed. For questions use ``samples``, which rejects only the bad rows.
        """
        path = self.find(needed)
        rows = parse_rows(path, self._read(path))
        self.facts[self._name(path)]["rows"] = len(rows)
        return rows

    def samples(self, needed: Needed, make: Callable[[Row], Sample | None]) -> Iterator[Sample]:
        """Yield a sample per row (None: the row is not part of the split); malformed rows and those for which ``make``
        raises are added to ``rejected``."""
        for row in self.each(needed):
            with self.rejected.row(row.where):
                if (sample := make(row)) is not None:
                    yield sample

    def each(self, needed: Needed) -> Iterator[Row]:
        """Yield the well-formed rows of a file; malformed ones are added to ``rejected``."""
        path = self.find(needed)
        rows = parsed_rows(path, self._read(path))
        self.facts[self._name(path)]["rows"] = len(rows)
        for number, row in enumerate(rows):
            if isinstance(row, BadRow):
                self.rejected.add(row)
                continue
            row.number = number
            yield row

    def media(self, folders: Needed, name: str) -> Path:
        """Return the path of an image or audio file: in the first folder that contains it, else in the first that exists.

        Names with accents are matched in either Unicode normal form, as archives and file systems change it.
        """
        bases = [self.root / f for f in folders.names if (self.root / f).is_dir()] or [self.root / folders.names[0]]
        spelled = dict.fromkeys((name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)))
        return next((b / n for n in spelled for b in bases if (b / n).is_file()), bases[0] / name)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _read(self, path: Path) -> str:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        self.facts.setdefault(self._name(path), {}).update(sha256=digest, bytes=len(content))
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text: {error}", hint="download the file again") from error


def missing(root: PathLike, needed: Iterable[Needed]) -> DataError:
    """Build the error that lists the missing files, where they were looked for, and their origin."""
    return DataError(
        f"files are missing under {Path(root).resolve()}; looked for\n" + "\n".join(f"    {n}" for n in needed),
        hint="download them into that folder, or use the Hub's copy with --data hub where the task has one",
    )


def parse_rows(path: Path, text: str) -> list[Row]:
    """Parse rows to dictionaries; raises ``DataError`` for the first malformed one."""
    rows = parsed_rows(path, text)
    for row in rows:
        if isinstance(row, BadRow):
            raise DataError(str(row), hint="download the file again, or correct that line")
    return [row for row in rows if isinstance(row, Row)]


def parsed_rows(path: Path, text: str) -> list[Row | BadRow]:
    """Parse valid and invalid rows, in order. In CSV and TSV files lines starting with ``#`` are comments; empty lines are
    skipped in all formats.

    Raises:
        DataError: the whole file cannot be read (a truncated JSON array).
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if path.suffix.lower() in (".csv", ".tsv"):
        return list(_table(path, text))
    if text.lstrip().startswith("["):
        return [_object(f"{path}, line {line}", value) for line, value in _array(path, text)]
    rows: list[Row | BadRow] = []
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{path}, line {number}"
        if line.strip():
            try:
                rows.append(_object(where, json.loads(line)))
            except ValueError as error:
                rows.append(BadRow(where, f"is not valid JSON: {error}"))
    return rows


def _object(where: str, value: Any) -> Row | BadRow:
    if not isinstance(value, dict):
        return BadRow(where, f"is a {type(value).__name__}, not an object")
    row = Row(value)
    row.where = where
    return row


def _array(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) of the elements of a JSON array."""
    _json(path, text)  # a single error for the file, with line and column
    decoder, at, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    while True:
        while text[at] in " \t\n,":
            at += 1
        if text[at] == "]":
            return
        line, counted = line + text.count("\n", counted, at), at
        value, at = decoder.raw_decode(text, at)
        yield line, value


def _table(path: Path, text: str) -> Iterator[Row | BadRow]:
    # skip comments and empty lines, keeping line numbers
    lines = [
        "" if line.startswith("#") or not line.strip() else line for line in text.split("\n")
    ]  # fmt: skip
    header: list[str] | None = None
    delimiter = "\t" if "\t" in next((line for line in lines if line), "") else ","
    reader = csv.reader(io.StringIO("\n".join(lines), newline=""), delimiter=delimiter, strict=True)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield BadRow(
                f"{path}, line {reader.line_num}",
                f"is not valid {path.suffix[1:].upper()}: {error} (an unclosed quote?)",
            )
            continue
        where = f"{path}, line {reader.line_num}"
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = [c.strip() for c in cells]
        elif len(cells) != len(header):
            yield BadRow(where, f"has {len(cells)} columns, but the header has {len(header)}")
        else:
            yield _object(where, dict(zip(header, cells, strict=True)))


def column(path: str, row: Mapping[str, Any], *names: str) -> Any:
    """Return the first of the named columns that the row has; raises ``DataError`` when it has none."""
    for name in names:
        if name in row:
            return row[name]
    raise DataError(
        f"a row of {path} has no column {' or '.join(names)}; it has {sorted(row)}",
        hint="the file is not in the task's official format: see docs/benchmarks.md",
    )


def text(path: str, row: Mapping[str, Any], *names: str) -> str:
    """Return the first of the named columns that the row has, as text; numbers are converted.

    Raises:
        DataError: the row has none of the columns, or the value is empty.
    """
    value = column(path, row, *names)
    name = next(n for n in names if n in row)
    plain = isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))
    if not plain or isinstance(value, bool) or not str(value).strip():
        raise DataError(
            f"expected text in the column {name!r}, got {json.dumps(value, default=str)[:80]}", hint="correct the row"
        )
    return str(value)


def check_media(samples: Sequence[Sample], origin: str) -> None:
    """Raise ``DataError`` when media files of the samples do not exist."""
    files = {Path(m) for s in samples for items in s.media.values() for m in items if isinstance(m, str | Path)}
    lost = sorted(f for f in files if not f.is_file())
    if lost:
        some = "\n".join([*(f"    {f}" for f in lost[:5]), *(["    ..."] if len(lost) > 5 else [])])
        raise DataError(
            f"{len(lost)} of {len(files)} media files are missing; looked for\n{some}",
            hint=f"get them from {origin}" if origin else "",
        )


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}", hint="download the file again") from error
