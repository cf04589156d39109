"""Benchmark files in a folder of the user's: found, read, hashed. Nothing is ever downloaded from here."""

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
    """A file (or folder, when it ends in ``/``) under any of several usual names, and where it comes from."""

    names: tuple[str, ...]
    origin: str
    required: bool = True

    def __str__(self) -> str:
        return f"{' or '.join(self.names)}  (from {self.origin})"


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be asked or scored: where it stands (file and line), what is wrong with it, its id if it got one."""

    where: str
    problem: str
    id: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


class Row(dict[str, Any]):
    """A row of a file; ``where`` says file and line, ``number`` how many rows, good and bad, stand before it."""

    where: str = ""
    number: int = 0


@dataclass
class Rejected:
    """The bad rows met so far. ``at`` is where the row stands that is being made into a sample."""

    bad: list[BadRow] = field(default_factory=list)
    at: str = ""

    def add(self, row: BadRow) -> None:
        if row not in self.bad:  # several splits may read one file
            self.bad.append(row)

    @contextmanager
    def row(self, where: str) -> Iterator[None]:
        """What goes wrong inside the block costs this row alone."""
        self.at = where
        try:
            yield
        except (DataError, MediaError) as error:
            self.add(BadRow(where, error.message))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError) as error:
            self.add(BadRow(where, f"a value is not what the format has there ({type(error).__name__}: {error})"))


@dataclass
class Folder:
    """A data folder. ``facts`` collects SHA-256, size and row count of every file read, for the results."""

    root: Path
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    rejected: Rejected = field(default_factory=Rejected)

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

    def rows(self, needed: Needed) -> list[Row]:
        """Rows of a JSON array, JSON lines, CSV or TSV file; which one is told by content and suffix.

        Raises:
            DataError: any of them is malformed. For questions use ``samples``, where a bad row costs itself alone.
        """
        path = self.find(needed)
        rows = parse_rows(path, self._read(path))
        self.facts[self._name(path)]["rows"] = len(rows)
        return rows

    def samples(self, needed: Needed, make: Callable[[Row], Sample | None]) -> Iterator[Sample]:
        """A sample of each row (None: the row belongs elsewhere); rows that are malformed or make ``make`` raise are
        kept in ``rejected``."""
        path = self.find(needed)
        rows = parsed_rows(path, self._read(path))
        self.facts[self._name(path)]["rows"] = len(rows)
        for number, row in enumerate(rows):
            if isinstance(row, BadRow):
                self.rejected.add(row)
                continue
            row.number = number
            with self.rejected.row(row.where):
                if (sample := make(row)) is not None:
                    yield sample

    def media(self, folders: Needed, name: str) -> Path:
        """Where a picture or sound should be: in the first of the folders that holds it, else in the first there is.

        A name with accents is found in either Unicode normal form: archives and file systems change it.
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
            raise DataError(
                f"{path} is not UTF-8 text: {error}", hint="fetch the file again from its origin"
            ) from error


def missing(root: PathLike, needed: Iterable[Needed]) -> DataError:
    """The error that says exactly which files were looked for, where, and where they come from."""
    return DataError(
        f"files are missing under {Path(root).resolve()}; looked for\n" + "\n".join(f"    {n}" for n in needed),
        hint="fetch them from there into that folder, or read the Hub's copy with --data hub where the task has one",
    )


def parse_rows(path: Path, text: str) -> list[Row]:
    """Rows as dictionaries; raises ``DataError`` for the first that is malformed."""
    rows = parsed_rows(path, text)
    for row in rows:
        if isinstance(row, BadRow):
            raise DataError(str(row), hint="fetch the file again from its origin, or correct that line")
    return [row for row in rows if isinstance(row, Row)]


def parsed_rows(path: Path, text: str) -> list[Row | BadRow]:
    """Rows, good and bad, in order. Lines that begin with ``#`` are comments in CSV and TSV files; empty lines are none
    anywhere.

    Raises:
        DataError: the file as a whole cannot be read (a JSON array that is cut short).
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
                rows.append(BadRow(where, f"is not JSON: {error}"))
    return rows


def _object(where: str, value: Any) -> Row | BadRow:
    if not isinstance(value, dict):
        return BadRow(where, f"is a {type(value).__name__}, not an object")
    row = Row(value)
    row.where = where
    return row


def _array(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(line, value) of the elements of a JSON array."""
    _json(path, text)  # one error for the whole of it, with line and column
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
    # comments and empty lines go, and take no line number with them
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
                f"is not {path.suffix[1:].upper()}: {error} (a quote that never ends?)",
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
            yield BadRow(where, f"has another number of columns than the header: {len(cells)}, not {len(header)}")
        else:
            yield _object(where, dict(zip(header, cells, strict=True)))


def column(path: str, row: Mapping[str, Any], *names: str) -> Any:
    """The first of the columns that the row has; raises ``DataError`` naming them when it has none."""
    for name in names:
        if name in row:
            return row[name]
    raise DataError(
        f"a row of {path} has no column {' or '.join(names)}; it has {sorted(row)}",
        hint="the file is not in the task's official format: compare with docs/benchmarks.md",
    )


def text(path: str, row: Mapping[str, Any], *names: str) -> str:
    """The first of the columns that the row has, as text; a number is spelled.

    Raises:
        DataError: the row has none of the columns, or nothing is in it.
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
    """Raise ``DataError`` when files that the samples show or play do not exist."""
    files = {Path(m) for s in samples for items in s.media.values() for m in items if isinstance(m, str | Path)}
    lost = sorted(f for f in files if not f.is_file())
    if lost:
        some = "\n".join([*(f"    {f}" for f in lost[:5]), *(["    ..."] if len(lost) > 5 else [])])
        raise DataError(
            f"{len(lost)} of {len(files)} media files are missing; looked for\n{some}",
            hint=f"they come from {origin}" if origin else "",
        )


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}", hint="fetch the file again from its origin") from error
