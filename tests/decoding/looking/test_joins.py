"""Joins: weights of views, and how far they depart from empty media."""

from __future__ import annotations

import pytest
import torch

from limelight.decoding.looking import joins

VIEWS = torch.tensor([[2.0, 0.0, 0.0], [2.1, 0.0, 0.0], [0.0, 3.0, 0.0]])
EMPTY = torch.tensor([2.0, 0.0, 0.0])


def test_departure_is_the_divergence() -> None:
    found = joins.departure(VIEWS, EMPTY)
    want = torch.nn.functional.kl_div(EMPTY.log_softmax(-1), VIEWS.log_softmax(-1), log_target=True, reduction="none")
    torch.testing.assert_close(found, want.sum(-1))
    assert float(found[0]) == pytest.approx(0.0, abs=1e-6)
    barred = torch.tensor([[0.0, float("-inf"), 1.0]])
    assert bool(torch.isfinite(joins.departure(barred, torch.zeros(3))).all())


@pytest.mark.parametrize(
    ("join", "want"),
    [("mean", [1 / 3] * 3), ("crops", [0, 0.5, 0.5]), ("evidence", [0, 0, 1]), ("second-picture", [0, 0, 1])],
)
def test_weights(join: str, want: list[float]) -> None:
    found = joins.weights(join, VIEWS, EMPTY)
    assert found.tolist() == pytest.approx(want) and float(found.sum()) == pytest.approx(1)
    assert joins.weights(join, VIEWS[:1], EMPTY).tolist() == [1.0]


def test_any_view_that_says_yes_speaks_for_all() -> None:
    yes = torch.tensor([-1.0, 0.5, -3.0])
    assert joins.weights("any", VIEWS, EMPTY, yes).tolist() == [0, 1, 0]
    assert joins.weights("any", VIEWS, EMPTY).tolist() == [0, 0, 1]  # another decision: by evidence
    assert joins.weights("evidence", VIEWS, EMPTY, yes).tolist() == [0, 0, 1]
