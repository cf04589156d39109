"""Where a word was heard: the shortest stretch with half of the support, against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limelight.report.word_times import word_interval
from limelight.types import Relevance, Span


def of(scores: list[float], each: float | None = 0.5) -> Relevance:
    n = len(scores)
    spans = (Span(0, n, "audio", None, each), Span(n, n + 1, "text"))
    return Relevance(torch.tensor([*scores, 9.0]), ("a",) * (n + 1), spans, 1)


def test_a_peak() -> None:
    assert word_interval(of([0.1, 0.1, 3.0, 0.1, -5.0])) == (1.0, 1.5)
    assert word_interval(of([1.0, 1.0, 1.0, 1.0])) == (0.0, 1.0)
    assert word_interval(of([-1.0, 0.0])) is None
    assert word_interval(of([1.0], None)) is None
    two = (Span(0, 2, "audio", None, 1.0), Span(2, 3, "text"), Span(3, 5, "audio", None, 1.0))
    windows = Relevance(torch.tensor([0.0, 0.1, 7.0, 5.0, 0.1]), ("a",) * 5, two, 1)
    assert word_interval(windows) == (2.0, 3.0)  # the second window begins where the first ends


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12), st.floats(0.05, 1.0))
@settings(max_examples=80, deadline=None)
def test_no_shorter_stretch_holds_as_much(scores: list[float], part: float) -> None:
    weights = np.array(scores)
    found = word_interval(of(scores, 1.0), part)
    if weights.sum() < 1e-3:
        return
    assert found is not None
    a, b = (round(t) for t in found)
    assert weights[a:b].sum() >= (part - 1e-5) * weights.sum()
    for i, j in itertools.combinations(range(len(scores) + 1), 2):
        if j - i < b - a:
            assert weights[i:j].sum() <= (part + 1e-5) * weights.sum()
    assert found == pytest.approx((a, b))
