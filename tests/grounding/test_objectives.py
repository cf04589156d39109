"""Each loss against its formula written out, and what padding, groups and dtypes do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from limelight.errors import PromptError, SettingError
from limelight.grounding.objectives import (
    MARGIN,
    OBJECTIVES,
    PAPER,
    Objective,
    check_groups,
    chosen_logit,
    difference_loss,
    influence_loss,
    kl,
    margin,
    normalised_loss,
    objective,
    paper_loss,
)


def rows() -> tuple[Tensor, Tensor, Tensor]:
    """Two rows of six positions; the second starts with two of padding."""
    relevance = torch.randn(2, 6, dtype=torch.float64)
    modality = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0]]).bool()
    valid = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]).bool()
    relevance[1, :2] = 0
    return relevance, modality, valid


def test_paper_loss_is_the_mean_negative_log_softmax_over_the_media() -> None:
    relevance, modality, valid = rows()
    got = paper_loss(relevance, modality, valid, 0.1)
    for row in range(2):
        exponents = [float(r) / 0.1 for r, v in zip(relevance[row], valid[row], strict=True) if v]
        whole = math.log(sum(math.exp(e) for e in exponents))
        inside = [float(r) / 0.1 for r, m in zip(relevance[row], modality[row], strict=True) if m]
        assert float(got[row]) == pytest.approx(sum(whole - e for e in inside) / len(inside), abs=1e-10)


def test_paper_loss_is_signed_and_not_normalised() -> None:
    relevance, modality, valid = rows()
    base = paper_loss(relevance, modality, valid, 0.1)
    assert not torch.allclose(paper_loss(-relevance, modality, valid, 0.1), base)
    assert not torch.allclose(paper_loss(2 * relevance, modality, valid, 0.1), base)
    torch.testing.assert_close(paper_loss(2 * relevance, modality, valid, 0.2), base)


@pytest.mark.parametrize(
    "loss", [paper_loss, difference_loss, normalised_loss, influence_loss], ids=lambda f: f.__name__
)
def test_padding_takes_no_part_and_a_row_is_its_own(loss: object) -> None:
    relevance, modality, valid = rows()
    both = loss(relevance, modality, valid, 0.1)  # type: ignore[operator]
    alone = loss(relevance[1:, 2:], modality[1:, 2:], valid[1:, 2:], 0.1)  # type: ignore[operator]
    torch.testing.assert_close(both[1:], alone, atol=1e-12, rtol=0)
    noisy = relevance.clone()
    noisy[1, :2] = 100.0
    torch.testing.assert_close(loss(noisy, modality, valid, 0.1)[1], both[1])  # type: ignore[operator]


@pytest.mark.parametrize("loss", [paper_loss, difference_loss, normalised_loss], ids=lambda f: f.__name__)
def test_descending_raises_the_media_relevance_against_the_texts(loss: object) -> None:
    relevance, modality, valid = rows()
    leaf = relevance.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(leaf, modality, valid, 1.0).sum(), leaf)  # type: ignore[operator]
    step = -gradient
    for row in range(2):
        inside, outside = modality[row], valid[row] & ~modality[row]
        assert float(step[row][inside].mean()) > float(step[row][outside].mean())
        assert not step[row][~valid[row]].any()


def test_difference_is_the_two_sums() -> None:
    relevance, modality, valid = rows()
    want = -(relevance[0, 1] + relevance[0, 2] - relevance[0, [0, 3, 4, 5]].sum())
    torch.testing.assert_close(difference_loss(relevance, modality, valid, 0.1)[0], want)


def test_normalised_does_not_saturate_where_the_group_softmax_does() -> None:
    relevance, modality, valid = rows()
    for scale in (1e-3, 1.0, 1e3):
        leaf = (relevance * scale).requires_grad_(True)
        (gradient,) = torch.autograd.grad(normalised_loss(leaf, modality, valid, 0.1).sum(), leaf)
        assert float((gradient * scale).abs().max()) > 1e-2
    torch.testing.assert_close(
        normalised_loss(relevance * 7, modality, valid, 0.1), normalised_loss(relevance, modality, valid, 0.1)
    )


def test_normalised_survives_a_row_of_zeros_and_a_row_without_text() -> None:
    zeros = torch.zeros(1, 4)
    half = torch.tensor([[1, 1, 0, 0]]).bool()
    every = torch.ones(1, 4).bool()
    assert bool(torch.isfinite(normalised_loss(zeros, half, every, 0.1)).all())
    assert bool(torch.isfinite(normalised_loss(torch.ones(1, 4), every, every, 0.1)).all())


def test_influence_points_either_way() -> None:
    relevance, modality, valid = rows()
    got = influence_loss(relevance, modality, valid, 0.1)
    torch.testing.assert_close(got, influence_loss(-relevance, modality, valid, 0.1))
    assert float(got[0]) == pytest.approx(-abs(float(relevance[0, 1] + relevance[0, 2])))


def test_targets() -> None:
    logits = torch.tensor([[1.0, 4.0, 3.0], [0.0, -1.0, 5.0]])
    target = torch.tensor([2, 0])
    assert chosen_logit(logits, target).tolist() == [3.0, 0.0]
    assert margin(logits, target).tolist() == [1.0, 5.0]
    assert MARGIN.target is margin
    assert PAPER.target is chosen_logit


def test_kl_is_from_the_reference_in_float32() -> None:
    """KL(p_ref || p), zero for equal distributions, never negative; a bfloat16 model's logits are widened first."""
    a, b = torch.randn(3, 9, dtype=torch.float64), torch.randn(3, 9, dtype=torch.float64)
    p, q = torch.softmax(a, -1), torch.softmax(b, -1)
    got = kl(torch.log_softmax(a, -1), b)
    torch.testing.assert_close(got, (p * (p / q).log()).sum(-1), atol=1e-12, rtol=0)
    assert not torch.allclose(got, (q * (q / p).log()).sum(-1))
    assert bool((got > 0).all())
    torch.testing.assert_close(
        kl(torch.log_softmax(a, -1), a + 5), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0
    )
    half = b.bfloat16()
    assert kl(torch.log_softmax(a, -1).float(), half).dtype == torch.float32


def test_objectives_by_name() -> None:
    assert set(OBJECTIVES) == {"paper", "difference", "normalised", "margin"}
    assert objective("margin") is MARGIN
    own = Objective("own", difference_loss)
    assert objective(own) is own
    with pytest.raises(SettingError) as caught:
        objective("papr")
    assert "paper" in caught.value.hint


def test_a_row_with_nothing_to_reward_raises() -> None:
    relevance, modality, valid = rows()
    check_groups(modality, valid)
    modality[1] = False
    with pytest.raises(PromptError) as caught:
        check_groups(modality, valid)
    assert "row 1" in str(caught.value)
    assert caught.value.hint
    modality[1, 0] = True  # in the padding
    with pytest.raises(PromptError):
        check_groups(modality, valid)
