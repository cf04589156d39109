"""Scoring of multiple-choice answers: parsing the letter of an answer, and accuracy."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from limelight.benchmarks.scorers.measure import Block, block, count, share
from limelight.errors import DataError
from limelight.types import Record

LETTERS = "ABCD"


def official(answer: str) -> str | None:
    """AIR-Bench's score_foundation.py: the first character if it is A-D, else the second to last ("It is A.")."""
    text = answer.strip().replace("\n", "")
    if not text or text == "None":
        return None
    if text[0] in LETTERS:
        return text[0]
    return text[-2] if len(text) > 1 and text[-2] in LETTERS else None


def strict(answer: str) -> str | None:
    """The only capital letter A-D that is a word by itself; the "A" of "A dog" counts only at the very end or before
    punctuation."""
    found = set(re.findall(r"(?<![A-Za-z])([A-D])(?=[.):,]|\s*$)", answer))
    return found.pop() if len(found) == 1 else None


_LETTER = (
    r"^([A-D])",  # "Also" too
    r"(?:THE\s+)?(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+([A-D])",
    r"\(([A-D])\)",
    r"([A-D])\s*[.)\]]",
    r"(?:^|\s)([A-D])(?:\s|$)",
)


def lmms_eval(answer: str) -> str | None:
    """lmms-eval's vstar_bench task, in upper case: a leading letter A-D, one after "answer", "choice" or "option", one in or
    before a bracket, one by itself; else the only letter A-D of the answer ("Also" is an A)."""
    text = answer.strip().upper()
    found = next((m.group(1) for p in _LETTER if (m := re.search(p, text))), None)
    if found is None and len(letters := re.findall(r"[A-D]", text)) == 1:
        return str(letters[0])
    return found


PARSERS: Mapping[str, Callable[[str], str | None]] = {"official": official, "strict": strict, "lmms-eval": lmms_eval}


def gold_letter(record: Record) -> str:
    """Return the letter of the correct choice. ``record.target`` is the text of the answer, ``meta["choices"]`` the choices."""
    choices = list(record.meta["choices"])
    if record.target not in choices:
        raise DataError(
            f"question {record.id}: the answer {record.target!r} is not one of {choices}", hint="check the meta file"
        )
    return LETTERS[choices.index(record.target)]


def choice(name: str, records: Sequence[Record], parser_name: str) -> Block:
    """Accuracy over parsed answers, as the official script computes it, and over all answers; unparsed count."""
    rows = []
    for r in records:
        parsed = PARSERS[parser_name](r.answer)
        right = float(parsed == gold_letter(r))
        rows.append(
            (r.id, {"n": 1.0, "parsed": float(parsed is not None), "unparsed": float(parsed is None), "correct": right})
        )
    measures = [
        share("accuracy", "correct", "parsed"),
        share("accuracy over all", "correct", "n"),
        count("unparsed", "unparsed"),
    ]
    clusters = [str(r.meta.get("cluster", r.id)) for r in records]
    return block(name, rows, measures, clusters, ("n", "parsed", "unparsed", "correct"))
