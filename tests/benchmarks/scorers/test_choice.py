from __future__ import annotations

import math

import pytest

from limelight.benchmarks.scorers.choice import PARSERS, choice, gold_letter
from limelight.benchmarks.scorers.measure import evaluate
from limelight.errors import DataError
from limelight.types import Record


@pytest.mark.parametrize(
    ("answer", "official", "strict"),
    [
        ("A", "A", "A"),
        ("B. a dog", "B", "B"),
        ("The answer is C.", "C", "C"),
        ("The answer is C", None, "C"),
        (" \nD\n", "D", "D"),
        ("(A)", "A", "A"),
        ("A dog barks", "A", None),  # the article
        ("Both A. and B.", "B", None),
        ("Dogs", "D", None),  # the first letter of a word
        ("none", None, None),
        ("None", None, None),
        ("", None, None),
        ("B", "B", "B"),
        ("x", None, None),
    ],
)
def test_parsers(answer: str, official: str | None, strict: str | None) -> None:
    assert (PARSERS["official"](answer), PARSERS["strict"](answer)) == (official, strict)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("C", "C"),
        ("(b) left", "B"),
        ("c. green", "C"),
        ("The answer is D", "D"),
        ("Option: B", "B"),
        ("It must be (C), not D.", "C"),
        ("I would say B because", "B"),
        ("Also the left one", "A"),  # the first letter of a word
        ("The x is b.", "B"),
        ("Left", None),
        ("Red", "D"),  # its only letter among A to D
        ("", None),
        ("none", None),
    ],
)
def test_lmms_eval_letter(answer: str, letter: str | None) -> None:
    assert PARSERS["lmms-eval"](answer) == letter


def record(number: int, answer: str) -> Record:
    return Record(str(number), answer, "cat", {"choices": ["dog", "cat", "cow"]})


def numbers(answers: list[str]) -> dict[str, float]:
    block = choice("", [record(i, a) for i, a in enumerate(answers)], "official")
    return {k: m.value for k, m in evaluate([block], resamples=0).items()}


def test_failures_leave_the_denominator_and_are_counted() -> None:
    found = numbers(["B", "A", "hm", "B."])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["accuracy over all"] == 0.5
    assert found["unparsed"] == 1


def test_empty_single_and_all_unparsed() -> None:
    assert math.isnan(numbers([])["accuracy"])
    assert numbers(["B"])["accuracy"] == 1.0
    lost = numbers(["hm", ""])
    assert math.isnan(lost["accuracy"])
    assert lost["accuracy over all"] == 0.0
    assert lost["unparsed"] == 2


def test_the_answer_must_be_a_choice() -> None:
    assert gold_letter(record(0, "")) == "B"
    with pytest.raises(DataError, match="horse"):
        gold_letter(Record("1", "A", "horse", {"choices": ["dog", "cat"]}))
