"""CHAIR by hand, and on caption logs against a slow twin."""

from __future__ import annotations

import json
import math
import re

import pytest

from limelight.benchmarks.scorers.chair import Lexicon, caption_block, chair
from limelight.benchmarks.scorers.measure import evaluate
from limelight.errors import DataError
from limelight.types import Record
from tests.benchmarks.official import SYNONYMS
from tests.benchmarks.scorers import chair_twin
from tests.conftest import SHARED

FOLDER = SHARED / "data" / "chair"
OFFICIAL, LVLM = Lexicon.parse(SYNONYMS, "official"), Lexicon.parse(SYNONYMS)


@pytest.mark.parametrize(
    ("caption", "official", "lvlm"),
    [
        ("Two dogs and a puppy.", "dog dog", "dog dog"),
        ("A bus and three buses.", "bus", "bus bus"),  # "bus" is "bu" to the singulariser of 2018
        ("He wears ties and a bow tie.", "tie", "tie tie"),
        ("A man in a bow-tie near two wine glasses", "person wine_glass", "person wine_glass"),
        ("Hot dogs!", "hot_dog", "hot_dog"),
        ("A baby dog, an adult dog, a passenger train.", "dog dog train", "dog dog train"),
        ("A train on the train tracks", "train train", "train"),
        ("The seat of the toilet.", "toilet", "toilet"),
        ("A seat, a toilet seat.", "toilet", "toilet"),
        ("People ride; children sit.", "person person", "person person"),
        ("The rider's dog.", "person dog", "person dog"),
        ("", "", ""),
        ("Nothing of the list", "", ""),
    ],
)
def test_mentions(caption: str, official: str, lvlm: str) -> None:
    for lexicon, expected in ((OFFICIAL, official), (LVLM, lvlm)):
        assert lexicon.mentions(caption) == [w.replace("_", " ") for w in expected.split()]


def numbers(records: list[Record], lexicon: Lexicon = LVLM) -> dict[str, float]:
    return {k: m.value for k, m in evaluate([chair(records, lexicon)], resamples=0).items()}


def test_measures_by_hand() -> None:
    truth = {"objects": ["dog"], "captions": ["A man walks.", "A person and a cup."]}  # dog, person, cup
    records = [
        Record("1", "A dog, a dog, a train and a bus.", truth),  # 2 of 4 mentions wrong, recalls dog
        Record("2", "A man with a cup.", truth),  # none wrong, recalls two
        Record("3", "A fine day.", truth),
    ]
    found = numbers(records)
    assert found["CHAIR_s"] == pytest.approx(1 / 3)
    assert found["CHAIR_i"] == pytest.approx(2 / 6)
    assert found["recall"] == pytest.approx(3 / 9)
    assert found["length"] == pytest.approx((12 + 6 + 4) / 3)


def test_measures_adjusted_for_length_by_hand() -> None:
    truth = {"objects": ["dog"], "captions": []}
    early = "A dog. " + "word " * 48 + "train bus"  # 3 tokens, 48 words: the train and the bus are the 52nd and 53rd
    records = [Record("1", early, truth), Record("2", "A train.", truth)]
    found = numbers(records)
    assert found["CHAIR_s"] == 1.0
    assert found["CHAIR_s, first 50 words"] == pytest.approx(1 / 2)
    assert found["CHAIR_i"] == pytest.approx(3 / 4)
    assert found["CHAIR_i, first 50 words"] == pytest.approx(1 / 2)
    assert found["recall, first 50 words"] == pytest.approx(1 / 2)
    assert found["hallucinated per 100 words"] == pytest.approx(100 * 3 / (53 + 3))
    # of a short caption the first words are the whole
    short = numbers([Record("1", "A dog, a bus.", truth)])
    assert short["CHAIR_i, first 50 words"] == short["CHAIR_i"] == 0.5


def test_empty_single_and_no_objects() -> None:
    assert all(math.isnan(v) for v in numbers([]).values())
    one = numbers([Record("1", "", {"objects": ["dog"], "captions": []})])
    assert one["CHAIR_s"] == 0.0
    assert math.isnan(one["CHAIR_i"])
    assert one["recall"] == 0.0
    assert caption_block("", []).ids == ()


def test_categories_must_be_in_the_synonyms() -> None:
    with pytest.raises(DataError, match="unicorn"):
        LVLM.truth(["unicorn"], [])
    with pytest.raises(DataError, match=r"synonyms\.txt"):
        Lexicon.parse("dog")


needs_logs = pytest.mark.skipif(not FOLDER.is_dir(), reason="no caption logs (set LIMELIGHT_SHARED)")


@needs_logs
def test_caption_logs_against_the_slow_twin() -> None:
    synonyms = (FOLDER / "synonyms.txt").read_text()
    official, lvlm = Lexicon.parse(synonyms, "official"), Lexicon.parse(synonyms)
    files = {name: (FOLDER / f"captions_llava15_{name}.jsonl").read_text() for name in ("greedy", "opera")}
    rows = {name: [json.loads(line) for line in text.splitlines()] for name, text in files.items()}
    logs = {name: {r["image_id"]: r["caption"] for r in found} for name, found in rows.items()}
    assert set(logs["greedy"]) == set(logs["opera"])
    assert len(logs["greedy"]) == 500
    theirs = {n: [chair_twin.mentions(c, synonyms) for c in log.values()] for n, log in logs.items()}
    ours = {n: [official.mentions(c) for c in log.values()] for n, log in logs.items()}
    assert ours == theirs
    assert {n: sum(map(len, m)) for n, m in ours.items()} == {"greedy": 3740, "opera": 3604}
    # the other log's objects stand in for the annotations, which are not at hand
    opera = dict(zip(logs["opera"], theirs["opera"], strict=True))
    truths = [set(opera[i]) for i in logs["greedy"]]
    expected = chair_twin.chair(theirs["greedy"], truths)
    records = [Record(str(i), c, {"objects": sorted(opera[i]), "captions": []}) for i, c in logs["greedy"].items()]
    found = numbers(records, official)
    assert {k: found[k] for k in expected} == pytest.approx(expected)
    # all that the lemmatising rules change: the singular "bus" and "ties" count, "train tracks" do not
    text = " ".join(c.lower() for log in logs.values() for c in log.values())
    bus, ties, tracks = (len(re.findall(p, text)) for p in (r"\bbus\b", r"\bties\b", r"\btrain tracks?\b"))
    assert (bus, ties, tracks) == (93, 10, 5)
    assert (
        sum(len(lvlm.mentions(c)) for log in logs.values() for c in log.values()) == 3740 + 3604 + bus + ties - tracks
    )


@needs_logs
def test_every_synonym_is_found_again_in_the_plural() -> None:
    lexicon = Lexicon.parse((FOLDER / "synonyms.txt").read_text())
    assert len(set(lexicon.nodes.values())) == 80
    single = {w: n for w, n in lexicon.nodes.items() if w.isalpha() and w.islower()}
    lost = {w for w, n in single.items() if lexicon.mentions(f"many {w}") != [n]}
    assert lost == set()
    plural = {p: single[w] for p, w in lexicon.known.plurals.items() if w in single}
    wrong = {p for p, n in plural.items() if lexicon.mentions(f"many {p}") != [n]}
    assert len(plural) > 250
    assert wrong == set()
