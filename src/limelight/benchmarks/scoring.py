"""Fault-tolerant scoring: rows that make a scorer raise are identified and excluded."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from limelight.benchmarks.data import BadRow
from limelight.benchmarks.scorers.measure import Block
from limelight.benchmarks.task import Scoring, Task
from limelight.errors import DataError, MissingExtraError
from limelight.types import Record, Sample

Score = Callable[[Sequence[Record]], Sequence[Block]]


def scored(score: Score, records: Sequence[Record]) -> tuple[list[Block], dict[str, Exception]]:
    """Score all records except those that make the scorer raise; return the blocks and the excluded records' errors.

    Raises:
        Exception: the scorer's error when no single record causes it, or when every record does.
    """
    try:
        return list(score(records)), {}
    except MissingExtraError:
        raise
    except Exception as error:
        guilty = _guilty(score, records)
        kept = [r for r in records if r.id not in guilty]
        if not guilty or not kept:
            raise
        try:
            return list(score(kept)), guilty
        except Exception:  # noqa: BLE001 - the first error says more
            raise error from None


def _guilty(score: Score, records: Sequence[Record]) -> dict[str, Exception]:
    """Find the records that make the scorer raise, by bisection; return id -> error."""
    error = _raises(score, records)
    if error is None or not records:
        return {}
    if len(records) == 1:
        return {records[0].id: error}
    half = len(records) // 2
    return _guilty(score, records[:half]) | _guilty(score, records[half:])


def _raises(score: Score, records: Sequence[Record]) -> Exception | None:
    try:
        score(records)
    except Exception as error:  # noqa: BLE001 - the answer to the question
        return error
    return None


def unscorable(task: Task, samples: Sequence[Sample], assets: Mapping[str, str], parser: str) -> dict[str, BadRow]:
    """Find samples whose reference is invalid, by scoring empty answers; return id -> problem.

    Only a ``DataError`` counts: other errors may be caused by the empty answer.

    Raises:
        MissingExtraError: scoring needs a package that is not installed (reported before any answer is generated).
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, text in assets.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        blank = [Record(s.id, "", s.target, {**s.meta, "prompt": s.prompt}) for s in samples]
        scoring = Scoring(parser, Path(folder) if assets else None)

        def score(records: Sequence[Record]) -> Sequence[Block]:
            return task.score(records, scoring)

        if isinstance(error := _raises(score, blank), MissingExtraError):
            raise error
        guilty = _guilty(score, blank) if isinstance(error, DataError) else {}
    return {i: BadRow(f"question {i}", error.message, i) for i, error in guilty.items() if isinstance(error, DataError)}
