"""Which words of an answer are true: labels from the columns of a row.

| column | what it says |
|---|---|
| ``supported``, ``invented`` | lists of words or phrases: the first mention of each in the answer is true, or invented |
| ``correct`` | true or false: of the answer's first word, for yes/no questions |
| ``reference`` | what is really said: words of a transcript that it does not have in that place are invented |

A row may have several of them. Words that none of them tells of have no label.
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
    """Whether a row has any of the columns."""
    return any(row.get(name) is not None for name in COLUMNS)


def check_labels(row: Mapping[str, Any]) -> None:
    """Raise DataError for a column that does not hold what it should."""
    for name in ("supported", "invented"):
        value = row.get(name)
        listed = isinstance(value, (list, tuple)) and all(isinstance(v, str) and v.split() for v in value)
        if value is not None and not listed:
            raise DataError(f"expected a list of words as {name}, got {value!r:.60}", hint='such as ["cup", "red hat"]')
    both = {_key(v) for v in row.get("supported") or ()} & {_key(v) for v in row.get("invented") or ()}
    if both:
        raise DataError(f"{' '.join(min(both))!r} is both supported and invented", hint="leave it in one of the lists")
    if row.get("correct") is not None and not isinstance(row["correct"], bool):
        raise DataError(f"expected true or false as correct, got {row['correct']!r:.60}", hint="of the whole answer")
    if row.get("reference") is not None and not isinstance(row["reference"], str):
        raise DataError(
            f"expected words as reference, got {row['reference']!r:.60}", hint='what is said; "" where nobody speaks'
        )


def word_labels(generation: Generation, row: Mapping[str, Any]) -> list[tuple[Word, int]]:
    """The answer's words, punctuation left out, each with SUPPORTED, INVENTED or OTHER.

    Raises:
        DataError: two columns say different things of a word.
    """
    spoken = [w for w in words(generation) if not w.punctuation]
    found: dict[int, int] = {}

    def say(at: int, label: int) -> None:
        if found.setdefault(at, label) != label:
            raise DataError(
                f"the row says of {spoken[at].text!r} both that it is supported and that it is invented",
                hint="leave out one of the columns",
            )

    for name, label in (("supported", SUPPORTED), ("invented", INVENTED)):
        for phrase in row.get(name) or ():
            if (at := _mention(spoken, _key(phrase))) is not None:
                say(at, label)
    if row.get("correct") is not None and spoken:
        say(0, SUPPORTED if row["correct"] else INVENTED)
    if row.get("reference") is not None:
        said, really = [_bare(w.text) for w in spoken], [_bare(w) for w in row["reference"].split() if _bare(w)]
        pairs, wrong, _ = aligned(said, really)
        for at in range(len(said)):
            say(at, SUPPORTED if at in pairs and at not in wrong else INVENTED)
    return [(w, found.get(i, OTHER)) for i, w in enumerate(spoken)]


def _mention(spoken: Sequence[Word], phrase: tuple[str, ...]) -> int | None:
    """Where a phrase is first said, its last word perhaps in the plural."""
    texts = [_bare(w.text) for w in spoken]
    for at in range(len(texts) - len(phrase) + 1):
        *before, last = texts[at : at + len(phrase)]
        if tuple(before) == phrase[:-1] and last in (phrase[-1], f"{phrase[-1]}s", f"{phrase[-1]}es"):
            return at
    return None


def _key(phrase: str) -> tuple[str, ...]:
    return tuple(_bare(w) for w in phrase.split())


def _bare(word: str) -> str:
    return word.casefold().strip(".,;:!?…\"'“”()[]-")
