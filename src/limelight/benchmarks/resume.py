"""Deciding which stored answers are still valid when a run is resumed.

An answer is valid while its prompt and media are unchanged. A corrected label, or anything else that only scoring needs,
is stored with the old answer; a changed prompt or image is answered again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limelight.benchmarks.rowlog import Row, latest
from limelight.types import Sample

Placed = tuple[tuple[int, int], Sample]


@dataclass(frozen=True)
class ResumePlan:
    """What to do with a log: rows to append, samples to answer, and ids of answers whose question no longer exists."""

    rows: tuple[Row, ...]
    todo: Mapping[str, Placed]
    gone: tuple[str, ...]


def plan(log: Sequence[Row], mine: Iterable[Placed], everyone: frozenset[str]) -> ResumePlan:
    """Compare the rows of a shard's log with the shard's samples.

    Args:
        everyone: ids of all samples of the run, including other shards.
    """
    answered: dict[str, list[Row]] = {}
    for row in log:
        if "answer" in row and not row.get("error"):
            answered.setdefault(str(row["id"]), []).append(row)
    now, rows = latest(log), list[Row]()
    todo: dict[str, Placed] = {}
    for place, sample in mine:
        fitting = [r for r in answered.get(sample.id, ()) if answers(r, sample)]
        if not fitting:
            todo[sample.id] = (place, sample)
            continue
        wanted = fitting[-1] | json.loads(json.dumps(scored_by(place, sample)))
        if now[sample.id] != wanted:
            rows.append(wanted)
    gone = tuple(i for i, row in now.items() if i not in everyone and "answer" in row)
    return ResumePlan(tuple(rows), todo, gone)


def dropped(row: Row) -> Row:
    """Return the row that excludes an answer from scoring because its question became an invalid row."""
    return {"id": row["id"], "place": row["place"], "seconds": 0.0, "dropped": True}


def scored_by(place: tuple[int, int], sample: Sample) -> Row:
    """Return the fields of a row that only scoring depends on."""
    return {"place": list(place), "target": sample.target, "meta": dict(sample.meta)}


def inputs(sample: Sample) -> Row:
    """Return the fields of a row that the answer depends on: the prompt, media names, and fingerprints of their content."""
    return {
        "prompt": sample.prompt,
        "media": {m: [Path(x).name if isinstance(x, str | Path) else "in memory" for x in xs] for m, xs in sample.media.items()},
        "files": {m: [fact(x) for x in xs] for m, xs in sample.media.items()},
    }  # fmt: skip


def answers(row: Row, sample: Sample) -> bool:
    """Whether a row's answer is valid for the current sample."""
    names = {
        m: [Path(x).name if isinstance(x, str | Path) else "in memory" for x in xs] for m, xs in sample.media.items()
    }
    if row["prompt"] != sample.prompt or row.get("media", names) != names:
        return False
    files = row.get("files") or {}
    return all(
        same(old, x)
        for m, xs in sample.media.items()
        for old, x in zip(files.get(m, [None] * len(xs)), xs, strict=True)
    )


def same(old: Sequence[Any] | None, medium: Any) -> bool:
    """Whether a medium still matches its stored fingerprint; True where either is unknown."""
    if old is None:
        return True
    if isinstance(medium, str | Path):
        try:
            found = Path(medium).stat()
        except OSError:
            return True
        if [found.st_size, found.st_mtime_ns] == list(old[:2]):
            return True
    new = fact(medium)
    return new is None or new[2] == old[2]


def fact(medium: Any) -> list[Any] | None:
    """Fingerprint a medium: size, mtime and SHA-256 of a file; SHA-256 only for data in memory; None where unknown."""
    if isinstance(medium, str | Path):
        path = Path(medium)
        try:
            found = path.stat()
            with path.open("rb") as file:
                return [found.st_size, found.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest()]
        except OSError:
            return None
    content = _content(medium)
    return None if content is None else [None, None, hashlib.sha256(content).hexdigest()]


def _content(medium: Any) -> bytes | None:
    if isinstance(medium, Mapping):
        return medium["bytes"] if isinstance(medium.get("bytes"), bytes) else None
    if isinstance(medium, tuple) and len(medium) == 2:
        return None if (first := _content(medium[0])) is None else first + str(medium[1]).encode()
    to_bytes = getattr(medium, "tobytes", None)
    return to_bytes() + str(getattr(medium, "size", "")).encode() if callable(to_bytes) else None
