"""The yes/no parsers disagree as documented; the measures follow the official scripts."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from limelight.benchmarks.data import parse_rows
from limelight.benchmarks.scorers.measure import evaluate
from limelight.benchmarks.scorers.yes_no import PARSERS, gold_label, yes_no
from limelight.benchmarks.task import tasks
from limelight.errors import DataError
from limelight.types import Record
from tests.conftest import SHARED

# answer, then what each parser makes of it with gold yes / gold no; "-" is unparsed
TABLE = [
    #                                      official  vcd    lmms   strict exact  cascade mme   vlmevalkit token-set
    ("Yes", "yy", "yy", "yy", "yy", "yy", "yy", "yy", "yy", "yy"),
    ("No", "nn", "nn", "nn", "nn", "nn", "nn", "nn", "nn", "nn"),
    ("yes", "yy", "yy", "yy", "yy", "--", "yy", "yy", "yy", "yy"),
    ("no", "nn", "nn", "nn", "nn", "--", "--", "nn", "nn", "nn"),
    ("Yes.", "yy", "yy", "--", "yy", "--", "yy", "yy", "yy", "yy"),
    ("NO", "yy", "nn", "nn", "nn", "--", "--", "nn", "nn", "nn"),
    ("", "yy", "ny", "--", "--", "--", "--", "--", "--", "yy"),
    ("No, there is no dog.", "nn", "nn", "--", "nn", "--", "nn", "nn", "nn", "nn"),
    ("There is not a dog.", "nn", "nn", "--", "--", "--", "nn", "--", "--", "nn"),
    ("I do not know.", "nn", "nn", "--", "--", "--", "nn", "--", "--", "nn"),
    ("A dog. No cat.", "yy", "nn", "--", "nn", "--", "nn", "--", "nn", "nn"),
    ("Yes and no.", "nn", "yn", "--", "--", "--", "yy", "yy", "--", "nn"),
    ("There is snow.", "yy", "nn", "--", "--", "--", "--", "--", "--", "yy"),
    ("The audio does not contain rain.", "nn", "nn", "--", "--", "--", "nn", "--", "--", "nn"),
    ("The audio contains rain.", "yy", "ny", "--", "--", "--", "yy", "--", "--", "yy"),
    ("there is no sound", "nn", "nn", "--", "nn", "--", "nn", "--", "nn", "nn"),
    ("I can't hear it", "yy", "ny", "--", "--", "--", "nn", "--", "--", "nn"),
    ("Nothing", "yy", "nn", "--", "--", "--", "nn", "nn", "--", "yy"),
]
NAMES = ("official", "vcd", "lmms-eval", "strict", "exact", "cascade", "mme", "vlmevalkit", "token-set")
LETTER = {"yes": "y", "no": "n", None: "-"}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: repr(row[0]))
def test_parsers(row: tuple[str, ...]) -> None:
    answer, *expected = row
    found = ["".join(LETTER[PARSERS[n](answer, gold)] for gold in ("yes", "no")) for n in NAMES]
    assert dict(zip(NAMES, found, strict=True)) == dict(zip(NAMES, expected, strict=True))


# of the newer benchmarks' own scripts
NEWER = [
    #                        dash-b videoh. eventh. cmm
    ("Yes", "yy", "yy", "yy", "yy"),
    ("no.", "nn", "nn", "nn", "nn"),
    (" Yes. It is.", "yy", "yy", "--", "yy"),
    ("No, I do not see yes.", "yy", "--", "nn", "nn"),
    ("I don't know", "nn", "--", "--", "--"),
    ("Nothing", "nn", "--", "nn", "nn"),
    ("eyes, no", "yy", "--", "--", "yy"),
    ("YESNO", "yy", "--", "yy", "yn"),
    ("", "--", "--", "--", "--"),
]
NEWER_NAMES = ("dash-b", "videohallucer", "eventhallusion", "cmm")


@pytest.mark.parametrize("row", NEWER, ids=lambda row: repr(row[0]))
def test_parsers_of_the_newer_benchmarks(row: tuple[str, ...]) -> None:
    answer, *expected = row
    found = ["".join(LETTER[PARSERS[n](answer, gold)] for gold in ("yes", "no")) for n in NEWER_NAMES]
    assert dict(zip(NEWER_NAMES, found, strict=True)) == dict(zip(NEWER_NAMES, expected, strict=True))


@pytest.mark.parametrize(
    ("answer", "parsed"),
    [
        ("(yes)", "yes"),  # a mark becomes a space
        ("yes-no", None),
        ("it is 1,000: yes-man", None),  # a number with a comma: marks are deleted, which joins words
        ("e.g. no.", "no"),
        ("yes. no.5", "yes"),  # a full stop before a digit stays
        ("no-one is there ", "no"),
        ("no-one - nobody", None),
        ("Yes, yes!", "yes"),
    ],
)
def test_vlmevalkit_removes_punctuation_like_the_vqa_evaluation(answer: str, parsed: str | None) -> None:
    assert PARSERS["vlmevalkit"](answer, "yes") == parsed
    assert PARSERS["vlmevalkit"](answer, "no") == parsed


def test_every_yes_no_task_accepts_the_parsers_of_other_harnesses() -> None:
    asking = [t for t in tasks().values() if set(t.parsers) & {"vcd", "mme", "cascade", "exact", "cmm", "dash-b"}]
    assert len(asking) >= 9
    for t in asking:
        assert t.parser("vlmevalkit") == "vlmevalkit"
        assert t.parser("token-set") == "token-set"


def records(pairs: list[tuple[str, str]]) -> list[Record]:
    return [Record(str(i), answer, gold) for i, (answer, gold) in enumerate(pairs)]


def scores(pairs: list[tuple[str, str]], parser: str, positive: str = "yes") -> dict[str, float]:
    return {
        k: m.value for k, m in evaluate([yes_no("", records(pairs), parser, positive=positive)], resamples=0).items()
    }


HAND = [("yes", "yes")] * 3 + [("no", "yes")] * 1 + [("yes", "no")] * 2 + [("no", "no")] * 4


@pytest.mark.parametrize(("positive", "p", "r"), [("yes", 3 / 5, 3 / 4), ("no", 4 / 5, 4 / 6)])
def test_measures_by_hand(positive: str, p: float, r: float) -> None:
    found = scores(HAND, "strict", positive)
    assert (found["precision"], found["recall"]) == pytest.approx((p, r))
    assert found["F1"] == pytest.approx(2 * p * r / (p + r))
    assert found["accuracy"] == 0.7
    assert found["yes ratio"] == 0.5
    assert found["unparsed"] == 0


def test_unparsed_answers_are_wrong() -> None:
    found = scores([*HAND, ("maybe", "yes"), ("", "no")], "strict")
    assert found["accuracy"] == pytest.approx(7 / 12)
    assert found["unparsed"] == 2
    assert found["empty"] == 1
    assert found["recall"] == pytest.approx(3 / 5)
    assert found["precision"] == pytest.approx(3 / 5)


def test_lmms_eval_leaves_unparsed_answers_out_of_recall() -> None:
    found = scores([*HAND, ("Yes.", "yes")], "lmms-eval")
    assert found["recall"] == pytest.approx(3 / 4)
    assert found["accuracy"] == pytest.approx(7 / 11)


def test_cascade_counts_unparsed_answers_as_predicted_no() -> None:
    found = scores([("No", "no"), ("hm", "yes"), ("hm", "no"), ("Yes", "yes")], "cascade", "no")
    assert found["precision"] == pytest.approx(1 / 3)
    assert found["recall"] == pytest.approx(1 / 2)
    assert found["F1"] == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))


def test_yes_ratio_is_that_of_the_predictions() -> None:
    assert scores([("yes", "no")] * 4, "strict")["yes ratio"] == 1.0


def test_empty_single_and_all_unparsed() -> None:
    nothing = scores([], "strict")
    assert all(math.isnan(nothing[k]) for k in ("accuracy", "F1", "yes ratio"))
    one = scores([("yes", "yes")], "strict")
    assert one["accuracy"] == one["F1"] == 1.0
    lost = scores([("?", "yes"), ("!", "no")], "strict")
    assert lost["accuracy"] == 0.0
    assert lost["F1"] == 0.0
    assert lost["unparsed"] == 2
    assert math.isnan(lost["precision"])


def test_labels() -> None:
    assert [gold_label(Record("a", "", t)) for t in ("Yes", " no", "1", 0)] == ["yes", "no", "yes", "no"]
    with pytest.raises(DataError, match="maybe"):
        gold_label(Record("a", "", "maybe"))


POPE = SHARED / "data" / "pope"


@pytest.mark.skipif(not POPE.is_dir(), reason="no question files (set LIMELIGHT_SHARED)")
@pytest.mark.parametrize("file", ["coco/coco_pope_random.json", "aokvqa/aokvqa_pope_seem_adversarial.json"])
def test_constant_answers_on_the_question_files(file: str) -> None:
    path = POPE / file
    rows = parse_rows(path, path.read_text())
    labels = Counter(r["label"] for r in rows)
    assert labels == {"yes": 1500, "no": 1500}
    for answer, accuracy, f1, ratio in (("Yes, there is.", 0.5, 2 / 3, 1.0), ("No.", 0.5, 0.0, 0.0)):
        for parser in ("official", "vcd", "strict"):
            found = scores([(answer, r["label"]) for r in rows], parser)
            assert (found["accuracy"], found["F1"], found["yes ratio"]) == pytest.approx((accuracy, f1, ratio))
    perfect = scores([(r["label"], r["label"]) for r in rows], "lmms-eval")
    assert perfect["accuracy"] == perfect["F1"] == 1.0
    assert perfect["yes ratio"] == 0.5


AMBER = SHARED / "data" / "amber" / "annotations.json"


@pytest.mark.skipif(not AMBER.is_file(), reason="no annotations (set LIMELIGHT_SHARED)")
def test_constant_answers_on_amber() -> None:
    truths = [a["truth"] for a in json.loads(Path(AMBER).read_text()) if a["type"] != "generative"]
    share_no = truths.count("no") / len(truths)
    found = scores([("No", t) for t in truths], "exact", "no")
    assert len(truths) == 14216
    assert found["recall"] == 1.0
    assert found["precision"] == found["accuracy"] == pytest.approx(share_no)
