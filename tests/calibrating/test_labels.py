"""Which words of an answer a row's columns speak of."""

from __future__ import annotations

from typing import Any

import pytest

from limelight.calibrating.labels import INVENTED, OTHER, SUPPORTED, check_labels, has_labels, word_labels
from limelight.errors import DataError
from tests.report.examples import generation, prompt

PROMPT = prompt(("image", 16, (4, 4), None))


def labels(pieces: list[str], row: dict[str, Any]) -> dict[str, int]:
    said = generation(PROMPT, pieces, details=False)
    return {f"{i}:{w.text}": label for i, (w, label) in enumerate(word_labels(said, row)) if label != OTHER}


def test_the_first_mention_of_each_phrase_is_labelled() -> None:
    pieces = [" A", " Cup", ",", " two", " red", " hats", " and", " a", " cup", ".", " No", " dog", "s"]
    row = {"supported": ["cup", "red hat", "sofa"], "invented": ["dog"]}
    assert labels(pieces, row) == {"1:Cup": SUPPORTED, "3:red": SUPPORTED, "9:dogs": INVENTED}


def test_the_answer_of_a_question_is_its_first_word() -> None:
    assert labels([" No", ",", " it", " is"], {"correct": True}) == {"0:No": SUPPORTED}
    assert labels([" No", ","], {"correct": False}) == {"0:No": INVENTED}
    assert labels([], {"correct": False}) == {}


def test_a_transcript_is_aligned_with_the_answer() -> None:
    pieces = [" Thank", " you", " for", " the", " ship", "."]
    got = labels(pieces, {"reference": "Thank you, the sheep"})
    assert got == {"0:Thank": 1, "1:you": 1, "2:for": 0, "3:the": 1, "4:ship": 0}
    assert set(labels(pieces, {"reference": ""}).values()) == {INVENTED}  # nobody speaks
    assert labels([" a"], {"reference": "a"}) == {"0:a": SUPPORTED}


def test_columns_that_contradict_each_other() -> None:
    with pytest.raises(DataError, match="'Yes' both as supported"):
        labels([" Yes"], {"correct": True, "invented": ["yes"]})
    with pytest.raises(DataError, match="'red hat' is both supported and invented"):
        check_labels({"supported": ["Red Hat"], "invented": ["red  hat", "cup"]})


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"supported": "cup"}, "a list of words as supported"),
        ({"invented": [" "]}, "a list of words as invented"),
        ({"invented": [3]}, "a list of words as invented"),
        ({"correct": 1}, "true or false as correct"),
        ({"reference": None, "correct": "yes"}, "true or false as correct"),
        ({"reference": ["a"]}, "text as reference"),
    ],
)
def test_columns_of_the_wrong_kind(row: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        check_labels(row)
    assert caught.value.hint


def test_rows_without_labels() -> None:
    assert not has_labels({"prompt": "?", "correct": None})
    assert has_labels({"correct": False}) and has_labels({"reference": ""}) and has_labels({"supported": []})
    check_labels({"prompt": "?"})
