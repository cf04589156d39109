"""AMBER's description measures by hand and on its annotations."""

from __future__ import annotations

import json
import math

import pytest

from limelight.benchmarks.scorers.amber import Vocabulary, amber_score, description_columns, generative
from limelight.benchmarks.scorers.measure import evaluate
from limelight.errors import DataError
from limelight.types import Record
from tests.conftest import SHARED

FOLDER = SHARED / "data" / "amber"
WORDS = Vocabulary.build(
    {
        "sky": [],
        "dog": ["puppy"],
        "cloud": [],
        "cat": ["kitten"],
        "person": ["man", "woman"],
        "light": [],
        "tree": ["leave"],
    },
    "light\n\nline",
)


def test_nouns_of_the_vocabulary() -> None:
    assert WORDS.nouns("Two puppies, a man and the Sky with some leaves.") == ["puppy", "man", "sky", "leave"]
    assert WORDS.nouns("He leaves. They quickly leave.") == []
    assert WORDS.nouns("") == []


def test_columns_by_hand() -> None:
    text = "A puppy and a dog with a woman, a kitten, a cloud and a light."
    found = description_columns(text, ["dog", "sky"], ["cat", "tree"], WORDS)
    # nouns: puppy dog woman kitten cloud light; light is safe; puppy and dog are the dog; three are wrong
    assert (found["nouns"], found["wrong"], found["covered"], found["imagined"]) == (6, 3, 1, 1)
    assert found["with_hallucination"] == 1
    assert found["true"] == 2
    assert found["likely"] == 2


def test_measures_sum_before_they_divide() -> None:
    target = {"truth": ["dog", "sky"], "hallu": ["cat"]}
    records = [Record("1", "A dog, a cat, a man, a tree.", target), Record("2", "The sky and a dog.", target)]
    found = {k: m.value for k, m in evaluate([generative(records, WORDS)], resamples=0).items()}
    assert found["generative/CHAIR"] == pytest.approx(3 / 6)
    assert found["generative/Hal"] == 0.5
    assert found["generative/Cover"] == pytest.approx(3 / 4)
    assert found["generative/Cog"] == pytest.approx(1 / 2)
    questions = [
        Record("q1", "No", "no"),
        Record("q2", "No", "yes"),
        Record("q3", "Yes", "yes"),
        Record("q4", "?", "no"),
    ]
    score = evaluate([amber_score(records, questions, WORDS)], resamples=0)["AMBER score"].value
    f1 = 2 * 1 / (2 * 1 + 1 + 1)
    assert score == pytest.approx(((100 - 50) + 100 * f1) / 2)


def test_empty_and_unknown_objects() -> None:
    assert all(math.isnan(m.value) for m in evaluate([generative([], WORDS)]).values())
    with pytest.raises(DataError, match="unicorn"):
        description_columns("a dog", ["unicorn"], [], WORDS)


@pytest.mark.skipif(not FOLDER.is_dir(), reason="no annotations (set LIMELIGHT_SHARED)")
def test_true_descriptions_of_all_pictures() -> None:
    words = Vocabulary.build(
        json.loads((FOLDER / "relation.json").read_text()), (FOLDER / "safe_words.txt").read_text()
    )
    rows = [a for a in json.loads((FOLDER / "annotations.json").read_text()) if a["type"] == "generative"]
    assert len(rows) == 1004

    def described(key: str) -> dict[str, float]:
        records = [Record(str(a["id"]), "There is " + ", ".join(f"a {w}" for w in a[key]) + ".", a) for a in rows]
        return {k.split("/")[1]: m.value for k, m in evaluate([generative(records, words)], resamples=0).items()}

    def credited(word: str, objects: list[str]) -> int:
        """The official script's look-up: related words of all objects first, then the objects themselves."""
        flat = [(w, i) for i, o in enumerate(objects) for w in words.related[o]] + [
            (o, i) for i, o in enumerate(objects)
        ]
        return next(i for w, i in flat if w == word)

    def nameable(key: str) -> float:
        """What can be covered: safe words never, and an object related to an earlier one only by its other words."""
        covered = [{credited(w, a[key]) for w in a[key] if w not in words.safe} for a in rows]
        return sum(map(len, covered)) / sum(len(a[key]) for a in rows)

    true, false = described("truth"), described("hallu")
    assert true["CHAIR"] == true["Hal"] == 0.0
    assert nameable("truth") * 0.99 < true["Cover"] <= nameable("truth")
    assert 0.85 < false["Cog"] <= nameable("hallu")  # some of its words are related to true objects
    assert false["CHAIR"] > 0.9
