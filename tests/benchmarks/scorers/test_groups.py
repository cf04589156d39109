"""qAcc, fAcc and accuracy+, by hand, and on HallusionBench's questions against a count of their own."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from pathlib import Path

import pytest

from limelight.benchmarks.loading import load
from limelight.benchmarks.scorers.groups import pairs
from limelight.benchmarks.scorers.measure import evaluate
from limelight.benchmarks.task import Scoring, task
from limelight.types import Record
from tests.conftest import SHARED

FOLDER = SHARED / "data" / "hallusionbench"


def numbers(records: list[Record]) -> dict[str, float]:
    block = pairs("", records, "mme", lambda r: str(r.meta["cluster"]))
    return {k: m.value for k, m in evaluate([block], resamples=0).items()}


def asked(*answers: tuple[str, str, str]) -> list[Record]:
    return [Record(str(i), a, gold, {"cluster": picture}) for i, (picture, a, gold) in enumerate(answers)]


def test_accuracy_plus_wants_both() -> None:
    found = numbers(asked(("a", "Yes", "yes"), ("a", "No", "no"), ("b", "Yes", "yes"), ("b", "Yes", "no")))
    assert found["accuracy+"] == 0.5
    assert found["score"] == pytest.approx(75 + 50)


def test_half_a_pair_has_no_accuracy_plus() -> None:
    found = numbers(asked(("a", "Yes", "yes"), ("a", "No", "no"), ("b", "Yes", "yes")))
    assert found["accuracy+"] == 1.0
    assert math.isnan(numbers(asked(("b", "Yes", "yes")))["accuracy+"])
    assert math.isnan(numbers([])["score"])


@pytest.mark.skipif(not FOLDER.is_dir(), reason="no questions (set LIMELIGHT_SHARED)")
def test_hallusionbench_against_a_count_of_its_own() -> None:
    samples = load(task("hallusionbench"), FOLDER, check=False).samples
    rows = json.loads(Path(FOLDER / "HallusionBench.json").read_text())
    assert len(samples) == len(rows) == 1129
    assert sum(not s.media for s in samples) == 178
    rng = random.Random(0)
    right = [rng.random() < 0.7 for _ in rows]
    said = [
        ("Yes" if r["gt_answer"] == "1" else "No") if ok else "Who knows" for r, ok in zip(rows, right, strict=True)
    ]
    records = [Record(s.id, a, s.target, s.meta) for s, a in zip(samples, said, strict=True)]
    found = {
        k: m.value for k, m in evaluate(task("hallusionbench").score(records, Scoring("strict")), resamples=0).items()
    }
    questions, figures = defaultdict(list), defaultdict(list)
    for r, ok in zip(rows, right, strict=True):
        key = (r["category"], r["subcategory"], r["set_id"])
        questions[*key, r["question_id"]].append(ok)
        if not (r["category"] == "VS" and r["figure_id"] == "0"):
            figures[*key, r["figure_id"]].append(ok)
    assert found["aAcc"] == pytest.approx(sum(right) / 1129)
    assert found["unparsed"] == 1129 - sum(right)
    assert found["qAcc"] == pytest.approx(sum(map(all, questions.values())) / len(questions))
    assert found["fAcc"] == pytest.approx(sum(map(all, figures.values())) / len(figures))
