from __future__ import annotations

import math

import pytest
import torch

from limelight.decoding.contrastive import amplified, check_choice, check_range, cut, details, guided, plausible
from limelight.errors import SettingError
from tests.slow_twins.full import dropped_below

INF = float("inf")


def test_plausible_tokens_are_within_beta_of_the_likeliest() -> None:
    logits = torch.randn(3, 40) * 3
    for beta in (0.01, 0.1, 0.5, 1.0):
        assert torch.equal(cut(logits, logits, beta), dropped_below(logits, logits, beta))
    assert bool(plausible(logits, 0.0).all())
    assert plausible(logits, 1.0).sum(-1).tolist() == [1, 1, 1]


def test_formulas() -> None:
    real, other = torch.randn(2, 9), torch.randn(2, 9)
    torch.testing.assert_close(amplified(real, other, 0.5, 0.0), 1.5 * real - 0.5 * other)
    s, s_other = real.log_softmax(-1), other.log_softmax(-1)
    wanted = s + 0.3 * (s - s_other)
    torch.testing.assert_close(guided(real, other, 0.3, 0.0).log_softmax(-1), wanted.log_softmax(-1))
    assert amplified(real, other, 0.0, 0.9) is real
    assert guided(real, other, 0.0, 0.9) is real


@pytest.mark.parametrize("lowest", [-INF, torch.finfo(torch.float32).min])
def test_tokens_that_the_model_bars_stay_barred(lowest: float) -> None:
    real = torch.tensor([[0.0, 1.0, lowest]])
    for out in (amplified(real, real, 1.0, 0.0), amplified(real, real, 0.5, 0.1), guided(real, real, 0.5, 0.0)):
        assert not bool(torch.isnan(out).any())
        assert float(out[0, 2]) < -1e30
        assert float(out[0, 1]) == pytest.approx(1.0)


def test_details_tell_what_changed() -> None:
    plain = torch.tensor([[0.0, 2.0], [3.0, 1.0]])
    out = torch.tensor([[0.0, 2.0], [1.0, 3.0]])
    first, second = details(plain, out)
    assert (first.intervened, first.plain) == (False, 1)
    assert (second.intervened, second.plain) == (True, 0)


def test_settings_are_checked() -> None:
    check_range("m", "x", 1, 0.0, 1.0, hint="")
    check_choice("m", "x", "a", ("a", "b"))
    for wrong in (-0.1, 1.1, "1", True, None, math.nan):
        with pytest.raises(SettingError, match=r"m: expected x of at least 0 and at most 1"):
            check_range("m", "x", wrong, 0.0, 1.0, hint="")
    with pytest.raises(SettingError, match="one of a, b"):
        check_choice("m", "x", "c", ("a", "b"))
