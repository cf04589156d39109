"""Writing an audit's scores as tables of answers, sentences, words and tokens, in CSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from limelight.auditing.audited import Audit, rounded, sentence_row, word_row
from limelight.benchmarks.extras import need
from limelight.benchmarks.rowlog import write_bytes
from limelight.errors import SettingError

FORMATS = ("csv", "parquet")
Rows = Iterator[dict[str, Any]]


def answer_rows(audit: Audit) -> Rows:
    """Yield one row with the question, the answer, its statistics, and the other columns of the input row."""
    own = {"question": audit.row.question, "answer": audit.text, **rounded(audit.summary)}
    parts = own.pop("contributions")
    extra = {k if k not in own else f"row {k}": v for k, v in audit.row.extra.items()}
    yield {**own, **_parts(parts), **extra}


def sentence_rows(audit: Audit) -> Rows:
    for number, sentence in enumerate(audit.sentences):
        yield {"sentence": number, **sentence_row(sentence)}


def word_rows(audit: Audit) -> Rows:
    for number, word in enumerate(audit.words):
        own = word_row(audit, word)
        yield {"word": number, **{k: v for k, v in own.items() if k != "contributions"}, **_parts(own["contributions"])}


def token_rows(audit: Audit) -> Rows:
    for number, (step, own) in enumerate(zip(audit.steps, audit.answered, strict=True)):
        measured = ("grounding", "rival_grounding", "flagged", "p_supported", "logprob", "plain")
        by_modality = {f"grounding of {k}": v for k, v in step.grounding_by_modality.items()}
        yield {
            "token": number,
            "id_of_token": step.token,
            "text": step.text,
            "thought": not own,
            **rounded({k: getattr(step, k) for k in measured} | by_modality | _parts(step.contributions)),
        }


def _parts(contributions: Mapping[str, Any]) -> dict[str, Any]:
    return {f"contribution of {k}": v for k, v in contributions.items()}


TABLES: dict[str, Callable[[Audit], Rows]] = {
    "answers": answer_rows, "sentences": sentence_rows, "words": word_rows, "tokens": token_rows
}  # fmt: skip


def check_formats(formats: Sequence[str]) -> None:
    """Raise SettingError for an unknown format, and MissingExtraError if Parquet is requested without pyarrow."""
    unknown = [f for f in formats if f not in FORMATS]
    if unknown or not formats:
        raise SettingError(f"unknown table format {unknown[0] if unknown else ''!r}", hint=" or ".join(FORMATS))
    if "parquet" in formats:
        need("pyarrow.parquet", "audit")


def table(name: str, audits: Sequence[Audit]) -> list[dict[str, Any]]:
    """Return the rows of a table of :data:`TABLES`, all with the same columns, starting with id and turn of the answer."""
    rows = [{"id": a.id, "turn": a.row.turn, **row} for a in audits for row in TABLES[name](a)]
    columns = dict.fromkeys(k for row in rows for k in row)
    return [{c: row.get(c) for c in columns} for row in rows]


def write_tables(folder: Path, audits: Sequence[Audit], formats: Sequence[str] = ("csv",)) -> list[Path]:
    """Write every table in every format into the folder; each file is written atomically.

    Raises:
        MissingExtraError: Parquet without pyarrow. DataError: the folder cannot be written.
    """
    check_formats(formats)
    written = []
    for name in TABLES:
        rows = table(name, audits)
        for form in formats:
            path = folder / f"{name}.{form}"
            write_bytes(path, _csv(rows) if form == "csv" else _parquet(rows))
            written.append(path)
    return written


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(rows[0] if rows else [])
    writer.writerows([_cell(v) for v in row.values()] for row in rows)
    return buffer.getvalue().encode("utf-8", "backslashreplace")


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    arrow, parquet = need("pyarrow", "audit"), need("pyarrow.parquet", "audit")
    columns = {k: _typed([row[k] for row in rows]) for k in (rows[0] if rows else ())}
    buffer = io.BytesIO()
    parquet.write_table(arrow.table(columns), buffer)
    return buffer.getvalue()


def _typed(values: list[Any]) -> list[Any]:
    """Return the values of one column, converted to text if they have several types or are lists or objects."""
    kinds = {type(v) for v in values if v is not None}
    if kinds <= {int, float} or (len(kinds) <= 1 and not kinds & {list, dict}):
        return [float(v) if v is not None and kinds == {int, float} else v for v in values]
    return [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
