"""When to intervene."""

from __future__ import annotations

import math

import pytest
import torch

from limelight.errors import SettingError
from limelight.grounding.gate import KINDS, Gate, group_share

LOGITS = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.05, 0.05, 0.9]]))
PHI = torch.tensor([[-0.3, 5.0, 5.0], [-0.9, 9.0, 0.0], [0.0, 3.0, 0.0]])


def test_always() -> None:
    assert Gate().opens(LOGITS, PHI).tolist() == [True, True, True]


@pytest.mark.parametrize("threshold", [0.0, 0.39, 0.41, 0.69, 0.71, 0.95, 1.0])
def test_uncertain_opens_below_the_threshold(threshold: float) -> None:
    largest = [0.7, 0.4, 0.9]
    assert Gate("uncertain", threshold).opens(LOGITS, PHI).tolist() == [p < threshold for p in largest]


def test_uncertain_does_not_depend_on_a_shift_of_the_logits() -> None:
    gate = Gate("uncertain", 0.5)
    assert torch.equal(gate.opens(LOGITS, PHI), gate.opens(LOGITS + 100, PHI))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_ungrounded_opens_where_the_media_has_little_part_in_the_top_token(threshold: float) -> None:
    logits = torch.tensor([[2.0, 1.0], [3.0, 0.0], [-1.0, -4.0]])
    phi = torch.tensor([[1.5, 9.0], [-1.0, 9.0], [0.0, 9.0]])
    shares = [1.5 / 2.0, 1.0 / 5.0, 0.0]  # |Phi| / (|Phi| + |l - Phi|)
    assert Gate("ungrounded", threshold).opens(logits, phi).tolist() == [s < threshold for s in shares]


def test_group_share_is_between_0_and_1_and_handles_zeros() -> None:
    logit = torch.tensor([1.0, -2.0, 0.0, 5.0, 0.0])
    phi = torch.tensor([1.0, 3.0, 0.0, -5.0, 2.0])
    assert group_share(logit, phi).tolist() == pytest.approx([1.0, 3 / 8, 0.0, 1 / 3, 0.5])


@pytest.mark.parametrize("threshold", [-0.01, 1.01, math.nan, math.inf])
def test_a_threshold_outside_0_to_1(threshold: float) -> None:
    with pytest.raises(SettingError, match=r"\[0, 1\]") as caught:
        Gate("uncertain", threshold)
    assert caught.value.hint


def test_an_unknown_kind() -> None:
    with pytest.raises(SettingError, match="sometimes") as caught:
        Gate("sometimes")
    assert all(kind in caught.value.hint for kind in KINDS)
