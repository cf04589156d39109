"""Scoring of yes/no questions: published answer parsers by name; accuracy, precision, recall, F1, yes ratio.

The parsers disagree on the same answers (docs/benchmarks.md has examples), so always report the parser's name with a
number. A parser maps (answer, gold label) to "yes", "no" or None: unparsed, which counts as wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from limelight.benchmarks.scorers.measure import Array, Block, Measure, Sums, block, count, ratio, share
from limelight.errors import DataError
from limelight.types import Record

YesNo = Literal["yes", "no"]
Parser = Callable[[str, YesNo], "YesNo | None"]


def official(answer: str, gold: YesNo) -> YesNo | None:
    """POPE's evaluate.py: the text before the first ".", without ",", split at spaces; "no" if a word is No, not or no,
    else "yes". So the empty answer is a "yes", "NO" is a "yes", and so is "no!"."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def vcd(answer: str, gold: YesNo) -> YesNo | None:
    """VCD's eval_pope.py: lower-case substring chosen by the gold label. Gold yes is right iff "yes" occurs; gold no is
    right iff "no" occurs (also in "not", "know", "snow"), else it counts as a predicted yes."""
    text = answer.lower()
    if gold == "yes":
        return "yes" if "yes" in text else "no"
    return "no" if "no" in text else "yes"


def lmms_eval(answer: str, gold: YesNo) -> YesNo | None:
    """lmms-eval's pope task: the whole answer, stripped and lower-case, must be the label; "Yes." is unparsed."""
    text = answer.lower().strip()
    return "yes" if text == "yes" else "no" if text == "no" else None


def strict(answer: str, gold: YesNo) -> YesNo | None:
    """Exactly one of the words yes and no, in any case."""
    words = set(re.findall(r"[a-z]+", answer.lower()))
    if ("yes" in words) == ("no" in words):
        return None
    return "yes" if "yes" in words else "no"


def exact(answer: str, gold: YesNo) -> YesNo | None:
    """AMBER's inference.py: exactly "Yes" or exactly "No"."""
    return {"Yes": "yes", "No": "no"}.get(answer)  # type: ignore[return-value]


def cascade(answer: str, gold: YesNo) -> YesNo | None:
    """Audio-Hallucination-QA's evaluation.py: the first to occur of Yes/yes, No, "there is no", "does not contain",
    "doesn't contain", "contain", "not"/"unable"/"can't"; case matters (a lower-case "no" alone is unparsed)."""
    for needles, label in _CASCADE:
        if any(n in answer for n in needles):
            return label
    return None


_CASCADE: tuple[tuple[tuple[str, ...], YesNo], ...] = (
    (("Yes", "yes"), "yes"),
    (("No",), "no"),
    (("there is no",), "no"),
    (("does not contain", "doesn't contain"), "no"),
    (("contain",), "yes"),
    (("not", "unable", "can't"), "no"),
)


def mme(answer: str, gold: YesNo) -> YesNo | None:
    """MME's calculation.py: yes or no in the first four characters, lower-case."""
    text = answer.lower().strip()[:4]
    return "yes" if "yes" in text else "no" if "no" in text else None


_PUNCTUATION = (*';/[]"{}()=+\\_-><@`,?!',)


def without_punctuation(text: str) -> str:
    """The punctuation step of the VQA evaluation, which VLMEvalKit and TextVQA's script use too.

    A mark next to a space anywhere in the text, or any mark in a text with a number such as "1,000", is deleted; other marks
    become spaces. A full stop is deleted unless a digit follows it.
    """
    out, digits = text, re.search(r"\d,\d", text) is not None
    for mark in _PUNCTUATION:
        out = out.replace(mark, "" if digits or f"{mark} " in text or f" {mark}" in text else " ")
    # 32 is the value of re.UNICODE, which the original passes in the place of ``count``
    return re.sub(r"(?!<=\d)\.(?!\d)", "", out, count=32)


def vlmevalkit(answer: str, gold: YesNo) -> YesNo | None:
    """VLMEvalKit's YOrN_Extraction: lower case, without punctuation; exactly one of the words yes and no.

    Differs from the kit, which passes what is unparsed here on to a language model, where one is configured.
    """
    words = without_punctuation(answer.lower()).split()
    if ("yes" in words) == ("no" in words):
        return None
    return "yes" if "yes" in words else "no"


def token_set(answer: str, gold: YesNo) -> YesNo | None:
    """OPERA's ``recorder`` (pope_eval.py), which many decoders' POPE and MME scripts copy: full stops and commas are deleted;
    "no" if a word is No, not, no or NO, or ends in "n't", else "yes". So the empty answer is a "yes"."""
    words = answer.replace(".", "").replace(",", "").split(" ")
    negative = bool({"No", "not", "no", "NO"} & set(words)) or any(w.endswith("n't") for w in words)
    return "no" if negative else "yes"


def dash_b(answer: str, gold: YesNo) -> YesNo | None:
    """DASH-B's and RePOPE's eval_utils.py: the substring "yes" in any case, else the substring "no" ("not", "know")."""
    text = answer.lower()
    return "yes" if "yes" in text else "no" if "no" in text else None


def videohallucer(answer: str, gold: YesNo) -> YesNo | None:
    """VideoHallucer's evaluation_utils.py: the text before the first ".", stripped and lower-case, must be the label."""
    return lmms_eval(answer.split(".")[0], gold)


def eventhallusion(answer: str, gold: YesNo) -> YesNo | None:
    """EventHallusion's eval.py: the answer starts with yes or no, in any case ("nothing" is a "no")."""
    text = answer.lower()
    return "yes" if text.startswith("yes") else "no" if text.startswith("no") else None


def cmm(answer: str, gold: YesNo) -> YesNo | None:
    """CMM's calculate_score.py: right iff the label occurs in the first five characters, stripped and lower-case."""
    head = answer.strip().lower()[:5]
    other: YesNo = "no" if gold == "yes" else "yes"
    return gold if gold in head else other if other in head else None


PARSERS: Mapping[str, Parser] = {
    "official": official,
    "vcd": vcd,
    "lmms-eval": lmms_eval,
    "strict": strict,
    "exact": exact,
    "cascade": cascade,
    "mme": mme,
    "vlmevalkit": vlmevalkit,
    "token-set": token_set,
    "dash-b": dash_b,
    "videohallucer": videohallucer,
    "eventhallusion": eventhallusion,
    "cmm": cmm,
}
COMMON = ("vlmevalkit", "token-set")  # parsers of other harnesses, which every yes/no task accepts

_COLUMNS = ("n", "correct", "tp", "fp", "tn", "fn", "lost_positive", "lost_negative", "yes", "unparsed", "empty")


_YES, _NO = ("yes", "y", "true", "t", "1", "1.0"), ("no", "n", "false", "f", "0", "0.0")


def label(value: Any) -> YesNo:
    """Normalise a label to "yes" or "no" from any spelling: "Yes ", "yes.", true, 1, "FALSE".

    Raises:
        DataError: it is neither.
    """
    spelled = str(value).strip(" \t\r\n.,;:!\"'").lower()
    if spelled in _YES:
        return "yes"
    if spelled in _NO:
        return "no"
    raise DataError(
        f"the label {value!r} is not yes or no",
        hint="correct it: yes, no, true, false, 1 and 0 are accepted, in any case",
    )


def gold_label(record: Record) -> YesNo:
    """Return the record's target as "yes" or "no"; raises ``DataError`` when it is neither."""
    try:
        return label(record.target)
    except DataError as error:
        raise DataError(
            f"question {record.id} has the label {record.target!r}, not yes or no", hint="check the question file"
        ) from error


def columns_of(record: Record, parser: Parser, positive: YesNo) -> dict[str, float]:
    """Return the record's columns: n, correct, tp, fp, tn, fn, lost_* (unparsed, by gold label), yes, unparsed, empty."""
    gold = gold_label(record)
    parsed = parser(record.answer, gold)
    row = {
        "n": 1.0,
        "correct": float(parsed == gold),
        "yes": float(parsed == "yes"),
        "empty": float(not record.answer.strip()),
    }
    if parsed is None:
        row |= {"unparsed": 1.0, "lost_positive" if gold == positive else "lost_negative": 1.0}
    elif parsed == positive:
        row["tp" if gold == positive else "fp"] = 1.0
    else:
        row["fn" if gold == positive else "tn"] = 1.0
    return row


def yes_no_measures(parser_name: str) -> list[Measure]:
    """Accuracy, precision, recall, F1, yes ratio of the predictions, unparsed and empty counts.

    Unparsed answers count as wrong: they lower accuracy and recall. Two official scripts differ, and are reproduced
    under their parser's name: ``lmms-eval`` excludes them from recall, ``cascade`` counts them as predicted "no" in
    precision.
    """

    def predicted(s: Sums) -> Array:
        return s["tp"] + s["fp"] + (s["unparsed"] if parser_name == "cascade" else 0.0)

    def true(s: Sums) -> Array:
        return s["tp"] + s["fn"] + (0.0 if parser_name == "lmms-eval" else s["lost_positive"])

    return [
        share("accuracy", "correct", "n"),
        Measure("precision", lambda s: ratio(s["tp"], predicted(s))),
        Measure("recall", lambda s: ratio(s["tp"], true(s))),
        Measure("F1", lambda s: ratio(2 * s["tp"], predicted(s) + true(s))),
        share("yes ratio", "yes", "n", higher_is_better=None),
        count("unparsed", "unparsed"),
        count("empty", "empty"),
    ]


def yes_no(
    name: str, records: Sequence[Record], parser_name: str, *, positive: YesNo = "yes", cluster: str = "cluster"
) -> Block:
    """A block of yes/no questions; rows with equal ``record.meta[cluster]`` (image or clip) are resampled together."""
    parser = PARSERS[parser_name]
    rows = [(r.id, columns_of(r, parser, positive)) for r in records]
    clusters = [str(r.meta.get(cluster, r.id)) for r in records]
    return block(name, rows, yes_no_measures(parser_name), clusters, _COLUMNS)
