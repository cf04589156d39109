"""Labelling the words of an answer as supported or invented, from columns of its row.

| column | content |
|---|---|
| ``supported``, ``invented`` | lists of words or phrases; the first mention of each in the answer gets this label |
| ``correct`` | true or false: whether the answer's first word is supported, for yes/no questions |
| ``reference`` | the correct transcript: words of the answer that do not align with it are invented |

A row may have several of these columns. Words that no column applies to have no label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limelight.errors import DataError
from limelight.report.words import Word, aligned, words
from limelight.types import Generation

COLUMNS = ("supported", "invented", "correct", "reference")
SUPPORTED, INVENTED, OTHER = 1, 0, -1


def has_labels(row: Mapping[str, Any]) -> bool:
    """Return whether a row has any label column."""
    return any(row.get(name) is not None for name in COLUMNS)


def check_labels(row: Mapping[str, Any]) -> None:
    """Raise DataError for a label column with an invalid value."""
    for name in ("supported", "invented"):
        value = row.get(name)
        listed = isinstance(value, (list, tuple)) and all(isinstance(v, str) and v.split() for v in value)
        if value is not None and not listed:
            raise DataError(f"expected a list of words as {name}, got {value!r:.60}", hint='such as ["cup", "red hat"]')
    both = {_key(v) for v in row.get("supported") or ()} & {_key(v) for v in row.get("invented") or ()}
    if both:
        raise DataError(
            f"{' '.join(min(both))!r} is both supported and invented", hint="remove it from one of the lists"
        )
    if row.get("correct") is not None and not isinstance(row["correct"], bool):
        raise DataError(
            f"expected true or false as correct, got {row['correct']!r:.60}", hint="it labels the answer's first word"
        )
    if row.get("reference") is not None and not isinstance(row["reference"], str):
        raise DataError(
            f"expected text as reference, got {row['reference']!r:.60}",
            hint='the correct transcript; "" if there is no speech',
        )


def word_labels(generation: Generation, row: Mapping[str, Any]) -> list[tuple[Word, int]]:
    """Return the answer's words, without punctuation, each labelled SUPPORTED, INVENTED or OTHER.

    Raises:
        DataError: two columns label a word differently.
    """
    answer = [w for w in words(generation) if not w.punctuation]
    labels: dict[int, int] = {}

    def assign(at: int, label: int) -> None:
        if labels.setdefault(at, label) != label:
            raise DataError(
                f"the row labels {answer[at].text!r} both as supported and as invented",
                hint="remove one of the columns",
            )

    for name, label in (("supported", SUPPORTED), ("invented", INVENTED)):
        for phrase in row.get(name) or ():
            if (at := _mention(answer, _key(phrase))) is not None:
                assign(at, label)
    if row.get("correct") is not None and answer:
        assign(0, SUPPORTED if row["correct"] else INVENTED)
    if row.get("reference") is not None:
        texts, reference = [_bare(w.text) for w in answer], [_bare(w) for w in row["reference"].split() if _bare(w)]
        pairs, wrong, _ = aligned(texts, reference)
        for at in range(len(texts)):
            assign(at, SUPPORTED if at in pairs and at not in wrong else INVENTED)
    return [(w, labels.get(i, OTHER)) for i, w in enumerate(answer)]


def _mention(answer: Sequence[Word], phrase: tuple[str, ...]) -> int | None:
    """Return the index of a phrase's first mention, whose last word may be plural."""
    texts = [_bare(w.text) for w in answer]
    for at in range(len(texts) - len(phrase) + 1):
        *before, last = texts[at : at + len(phrase)]
        if tuple(before) == phrase[:-1] and last in (phrase[-1], f"{phrase[-1]}s", f"{phrase[-1]}es"):
            return at
    return None


def _key(phrase: str) -> tuple[str, ...]:
    return tuple(_bare(w) for w in phrase.split())


def _bare(word: str) -> str:
    return word.casefold().strip(".,;:!?…\"'“”()[]-")
