"""Each score against its definition in plain Python, in float64; padding, barred tokens, ties, and media that say nothing."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from limelight.errors import SettingError
from limelight.grounding.score import (
    SCORES,
    centred,
    check_score,
    counted,
    flagged,
    moments,
    moments_of_known,
    rank,
    raw,
    rival_score,
    scores,
    standardised,
    z_score,
)


def a_batch(rows: int = 3, size: int = 11) -> Tensor:
    return torch.randn(rows, size, dtype=torch.float64) * 3 + 5


def slow(name: str, phi: list[float], token: int, among: list[int]) -> float:
    values = [phi[i] for i in among]
    mean = statistics.fmean(values)
    if name == "z":
        return (phi[token] - mean) / statistics.pstdev(values)
    if name == "centred":
        return phi[token] - mean
    if name == "phi":
        return phi[token]
    return sum(v < phi[token] for v in values) / len(values) + sum(v == phi[token] for v in values) / len(values) / 2


@pytest.mark.parametrize("name", list(SCORES))
@pytest.mark.parametrize("known", [None, 8])
def test_scores_are_their_definitions(name: str, known: int | None) -> None:
    phi = a_batch()
    phi[0, 3] = phi[0, 4]
    among = list(range(11 if known is None else known))
    got = scores(name, phi, counted(phi, known=known))
    assert got.dtype == torch.float64 and got.shape == phi.shape
    for row in range(3):
        for token in range(11):
            assert float(got[row, token]) == pytest.approx(slow(name, phi[row].tolist(), token, among), abs=1e-12)


def test_barred_and_infinite_entries_do_not_count() -> None:
    phi, logits = a_batch(1, 6), torch.zeros(1, 6, dtype=torch.float64)
    phi[0, 1], phi[0, 2], logits[0, 3] = math.nan, -math.inf, -math.inf
    among = counted(phi, logits)
    assert among.tolist() == [[True, False, False, False, True, True]]
    for name in SCORES:
        got = scores(name, phi, among)[0]
        for token in (0, 3, 4, 5):  # the barred token itself is measured against those that count
            assert float(got[token]) == pytest.approx(slow(name, phi[0].tolist(), token, [0, 4, 5]))
        assert name == "phi" or got[[1, 2]].isnan().all()
    nothing = counted(torch.full((1, 3), math.nan))
    assert z_score(torch.full((1, 3), math.nan), nothing).isnan().all()


@pytest.mark.parametrize("known", [None, 40, 64, 100])
def test_moments_in_few_passes(known: int | None) -> None:
    phi = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * 3 + 7
    phi[1] = 2.5  # constant over the vocabulary
    phi[2] = 1e4 + 1e-4 * phi[2]  # within rounding error
    mean, deviation = moments_of_known(phi, known)
    want_mean, want = moments(phi, counted(phi, None, known))
    torch.testing.assert_close(mean, want_mean)
    torch.testing.assert_close(deviation, want)
    assert deviation[1] == deviation[2] == 0


def test_no_rival_stays_infinite() -> None:
    value = torch.tensor([[1.0], [-math.inf]])
    assert standardised(value, torch.zeros(2, 1), torch.zeros(2, 1)).tolist() == [[0.0], [-math.inf]]


@pytest.mark.parametrize("value", [0.0, 5.0, -3e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_media_that_tell_no_tokens_apart_score_zero(value: float, dtype: torch.dtype) -> None:
    phi = torch.full((2, 50), value, dtype=dtype)
    phi[1] *= 1 + 4 * torch.finfo(dtype).eps * torch.randn(50, dtype=dtype)  # noise of rounding
    assert (z_score(phi) == 0).all() and (moments(phi)[1] == 0).all()
    assert (rank(phi)[0] == 0.5).all()


def test_z_has_no_scale_and_no_offset() -> None:
    phi = a_batch()
    torch.testing.assert_close(z_score(4 * phi - 9), z_score(phi))
    torch.testing.assert_close(centred(phi - 9), centred(phi))
    assert torch.equal(rank(torch.exp(phi)), rank(phi))  # nor does a rank have a shape
    z = z_score(phi)
    torch.testing.assert_close(z.mean(-1), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(z.std(-1, correction=0), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_float32(dtype: torch.dtype) -> None:
    phi = (torch.randn(2, 40) * 100).to(dtype)
    for name in SCORES:
        assert scores(name, phi).dtype == torch.float32
        torch.testing.assert_close(scores(name, phi), scores(name, phi.float()))
    assert torch.equal(raw(phi), phi.float())


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    phi = a_batch(4)
    for name in SCORES:
        torch.testing.assert_close(scores(name, phi)[2], scores(name, phi[2]))


@pytest.mark.parametrize(
    ("chosen", "other", "probability", "needs_rival", "want"),
    [
        (1.0, 5.0, 0.01, True, True),
        (1.0, 5.0, 1e-4, True, False),  # the supported rival is not possible
        (1.0, 2.9, 0.01, True, False),  # the possible rival is not supported
        (3.0, 5.0, 0.01, True, False),  # the choice is supported: the threshold itself is no longer below it
        (1.0, 2.9, 1e-4, False, True),  # no rival is asked for
        (3.0, 5.0, 0.4, False, False),
        (math.nan, 5.0, 0.4, True, False),  # no score, no flag
        (math.nan, 5.0, 0.4, False, False),
    ],
)
def test_flags(chosen: float, other: float, probability: float, needs_rival: bool, want: bool) -> None:
    z = torch.tensor([[chosen, other, -9.0], [chosen, other, -9.0]], dtype=torch.float64)
    rest = torch.tensor([1 - probability - 1e-6, probability, 1e-6])
    logits = rest.log().expand(2, 3) + torch.tensor([[0.0], [40.0]])
    rival = rival_score(z, logits, torch.tensor([0, 0]))
    assert rival.tolist() == [other if probability >= 1e-3 else -math.inf] * 2
    assert flagged(z[:, 0], rival, 3.0, needs_rival=needs_rival).tolist() == [want, want]
    lower = want or (chosen < 3 and probability >= 1e-3)  # all rivals here reach 2.5
    assert flagged(z[:, 0], rival, 3.0, needs_rival=needs_rival, margin=0.5).tolist() == [lower, lower]


def test_rivals_are_the_best_of_the_possible_tokens_but_the_chosen_one() -> None:
    logits, z = torch.randn(2, 4, 30, dtype=torch.float64) * 4, torch.randn(2, 4, 30, dtype=torch.float64)
    z[0, 0, 3] = math.nan
    tokens = torch.randint(30, (2, 4))
    got = rival_score(z, logits, tokens, 0.01)
    for row in range(2):
        for at in range(4):
            p = torch.softmax(logits[row, at], -1).tolist()
            values = [
                v
                for i, v in enumerate(z[row, at].tolist())
                if p[i] >= 0.01 and i != int(tokens[row, at]) and not math.isnan(v)
            ]
            assert float(got[row, at]) == max(values, default=-math.inf)


def test_unknown_scores_are_refused() -> None:
    with pytest.raises(SettingError, match="unknown grounding score 'zz'") as caught:
        check_score("zz")
    assert "centred" in caught.value.hint
