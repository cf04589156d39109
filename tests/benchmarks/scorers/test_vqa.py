"""Soft accuracy against a slow twin that leaves out one person at a time, and its normalisation by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limelight.benchmarks.scorers.measure import evaluate
from limelight.benchmarks.scorers.vqa import agreement, normalised, soft_accuracy
from limelight.types import Record


def twin(answer: str, people: list[str]) -> float:
    """The mean, over each person left out, of min(1, matches among the others / 3)."""
    mine, theirs = normalised(answer), [normalised(p) for p in people]
    if mine not in theirs:
        return 0.0
    accuracies = [min(1, sum(t == mine for j, t in enumerate(theirs) if j != i) / 3) for i in range(len(theirs))]
    return sum(accuracies) / len(accuracies)


@given(
    st.lists(st.sampled_from(["stop", "Stop.", "go", "halt", "the stop"]), min_size=10, max_size=10),
    st.sampled_from(["stop", "go", "x"]),
)
def test_agreement_is_the_mean_over_people_left_out(people: list[str], answer: str) -> None:
    assert agreement(answer, people) == pytest.approx(twin(answer, people))


@pytest.mark.parametrize(("k", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_agreement_by_count(k: int, expected: float) -> None:
    assert agreement("stop", ["stop"] * k + [f"other {i}" for i in range(10 - k)]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Stop Sign.", "stop sign"),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("1,000", "1000"),
        ("mcdonald's", "mcdonald 's"),
        ("dont walk", "don't walk"),
        ("Don't walk!", "don't walk"),
        ("couldn'tve", "couldn't've"),
        ("shes well", "shes well"),
        ("12.5", "12.5"),
        ("12.", "12"),
        ("a - b", "b"),
        ("yes/no", "yes no"),
        ("line\nbreak\t", "line break"),
        ("Why?", "why"),
        ("", ""),
    ],
)
def test_normalisation(answer: str, expected: str) -> None:
    assert normalised(answer) == expected


def test_block() -> None:
    people = ["stop"] * 2 + ["go"] * 8
    rows = [
        Record("1", "Stop", people, {"cluster": "a"}),
        Record("2", "go", people, {"cluster": "a"}),
        Record("3", "", people),
    ]
    found = evaluate([soft_accuracy("", rows)], resamples=0)
    assert found["accuracy"].value == pytest.approx((0.6 + 1.0 + 0.0) / 3)
    assert found["empty"].value == 1
