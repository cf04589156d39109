"""Requests' extra arguments, and the methods on the rows of a batch against the strategies' own formulas."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from limelight.decoding.formulas import amplified, boosted, guided
from limelight.decoding.registry import strategies
from limelight.engines.contrast import At, Contrast, chunked
from limelight.engines.requests import SETTINGS, asked, check_sampling

V = 11


def told(method: str, pair: str = "", role: str = "answer", **settings: Any) -> dict[str, Any]:
    extra = {"limelight": method, **{f"limelight_{k}": v for k, v in settings.items()}}
    return {**extra, **({"limelight_pair": pair, "limelight_role": role} if pair else {})}


def batch(*extras: dict[str, Any] | None) -> Contrast:
    state = Contrast()
    for key, extra in enumerate(extras):
        state.add(key, asked(extra))
    return state


def rows(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, V, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"limelight": "pai"}, "unknown method 'pai'"),
        ({"limelight_alpha": 1}, "unknown method None"),
        ({"limelight": "vcd"}, "needs limelight_pair"),
        ({"limelight": "flb", "limelight_pair": "a"}, "flb has no second request"),
        ({"limelight": "vcd", "limelight_pair": "a", "limelight_role": "third"}, "answer or contrast"),
        ({"limelight": "flb", "limelight_alpha": 1}, "has no setting 'alpha'"),
        ({"limelight": "flb", "limelight_beta": 2}, "at most 1"),
        ({"limelight": "flb", "limelight_gamma": -1}, "at least 0"),
        ({"limelight": "flb", "limelight_gamma": "much"}, "got 'much'"),
        ({"limelight": "flb", "limelight_gamma": float("inf")}, "got inf"),
    ],
)
def test_wrong_arguments(extra: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        asked(extra)


def test_arguments_of_others_are_left_alone() -> None:
    assert asked(None) is asked({}) is asked({"other": 1}) is None
    found = asked(told("vcd", "7", "contrast", alpha="2"))  # a number may come as text
    assert found is not None
    assert (found.method, found.pair, found.contrast) == ("vcd", "7", True)
    assert found.settings == {"alpha": 2.0, "beta": 0.1}


def test_defaults_are_those_of_the_strategies() -> None:
    known = strategies()
    for method, settings in SETTINGS.items():
        if method not in known:
            continue
        own = known[method]().settings()
        assert {k: own[k] for k in settings if own.get(k) is not None}.items() <= settings.items(), method


@pytest.mark.parametrize(
    ("sampling", "says"),
    [
        ({"temperature": 1.0}, "needs a seed"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"n": 2}, "n=1"),
    ],
)
def test_sampling_that_would_part_a_pair(sampling: dict[str, Any], says: str) -> None:
    plain = {"temperature": 0.0, "seed": None, "extra_args": told("vcd", "a")}
    check_sampling(SimpleNamespace(**plain))
    check_sampling(SimpleNamespace(**{**plain, "temperature": 1.0, "seed": 3}))
    with pytest.raises(ValueError, match=says):
        check_sampling(SimpleNamespace(**{**plain, **sampling}))
    check_sampling(SimpleNamespace(**{**plain, **sampling, "extra_args": told("flb")}))


def test_flb_remembers_each_request_s_first_logits() -> None:
    state = batch(told("flb", gamma=0.5, decay=0.2, beta=0.1), None, told("flb"))
    first, later = rows(3), rows(3, 1)
    out = state.apply(first.clone(), {0: At(0, 0), 1: At(1, 5), 2: At(2, 0)})
    assert torch.equal(out[1], first[1])
    assert torch.equal(out[0].argmax(), first[0].argmax())  # the weight of the first token is 0
    # rows have been reordered, and request 2 is two tokens further than request 0
    out = state.apply(later.clone(), {2: At(0, 3), 0: At(1, 1), 1: At(2, 6)})
    torch.testing.assert_close(out[1], boosted(later[1:2], first[0:1], 1, 0.5, 0.2, 0.1)[0])
    torch.testing.assert_close(out[0], boosted(later[0:1], first[2:3], 3, 0.3, 0.05, 0.1)[0])
    assert torch.equal(out[2], later[2])
    assert state.counts["flb"] == 2


def test_boosted_by_hand() -> None:
    logits, first = torch.tensor([[2.0, 1.9, -5.0]]), torch.tensor([[0.0, 4.0, -math.inf]])
    out = boosted(logits, first, 10, 0.3, 0.05, 0.1)
    weight = 0.3 * (1 - math.exp(-0.5))
    assert out[0].tolist() == pytest.approx([2.0, 1.9 + 4 * weight, -math.inf])  # the third is cut
    assert torch.equal(boosted(logits, first, 10, 0.0, 0.05, 0.1), logits)


@pytest.mark.parametrize("method", ["vcd", "icd", "aad", "m3id"])
def test_a_pair_shares_the_combined_logits(method: str) -> None:
    settings = {"decay": 0.3, "gate": 1.0, "beta": 0.1} if method == "m3id" else {"alpha": 1.5, "beta": 0.05}
    state = batch(told(method, "a", **settings), None, told(method, "a", "contrast", **settings))
    for t in range(3):
        logits = rows(3, t)
        out = state.apply(logits.clone(), {0: At(2, t), 1: At(1, t), 2: At(0, t)})
        own, other = logits[2:3], logits[0:1]
        wanted = (
            guided(own, other, math.expm1(0.3 * (t + 1)), 0.1) if method == "m3id" else amplified(own, other, 1.5, 0.05)
        )
        torch.testing.assert_close(out[2], wanted[0])
        assert torch.equal(out[0], out[2])
        assert torch.equal(out[1], logits[1])
    assert state.counts == {"flb": 0, "paired": 1, "alone": 0, "parted": 0}


def test_m3id_s_gate_leaves_sure_tokens_alone() -> None:
    state = batch(told("m3id", "a", gate=0.3, decay=1.0), told("m3id", "a", "contrast"))
    logits = torch.zeros(2, V)
    logits[0, 3] = 10.0
    assert torch.equal(state.apply(logits.clone(), {0: At(0, 0), 1: At(1, 0)})[0], logits[0])


def test_an_absent_partner_means_plain_decoding_and_is_counted() -> None:
    state = batch(told("vcd", "a"), told("vcd", "b", "contrast"))
    logits = rows(2)
    assert torch.equal(state.apply(logits.clone(), {0: At(0, 0), 1: At(1, 0)}), logits)
    assert state.counts["alone"] == 2
    # its partner comes later: it stays alone, since what it has said was not contrasted
    state.add(5, asked(told("vcd", "a", "contrast")))
    late = rows(2, 1)
    assert torch.equal(state.apply(late.clone(), {0: At(0, 0 + 1), 5: At(1, 0)}), late)
    assert torch.equal(state.apply(late.clone(), {0: At(0, 2), 5: At(1, 1)}), late)
    assert state.counts == {"flb": 0, "paired": 0, "alone": 3, "parted": 0}


def test_a_partner_that_ends_before() -> None:
    state = batch(told("icd", "a"), told("icd", "a", "contrast"))
    state.apply(rows(2), {0: At(0, 0), 1: At(1, 0)})
    state.add(1, None)
    logits = rows(2, 1)
    assert torch.equal(state.apply(logits.clone(), {0: At(0, 1)}), logits)
    assert state.counts == {"flb": 0, "paired": 1, "alone": 0, "parted": 1}


def test_an_incomplete_prompt_is_not_contrasted_with() -> None:
    state = batch(told("vcd", "a"), told("vcd", "a", "contrast"))
    logits = rows(2)
    out = state.apply(logits.clone(), {0: At(0, 0, ready=False), 1: At(1, 0, ready=False)})
    assert torch.equal(out, logits)
    assert sum(state.counts.values()) == 0  # neither has chosen a token
    state.apply(logits.clone(), {0: At(0, 0), 1: At(1, 0)})
    assert state.counts["paired"] == 1


def test_a_recycled_slot_forgets_the_former_request() -> None:
    state = batch(told("flb", gamma=1.0, decay=9.0))
    state.apply(rows(1), {0: At(0, 0)})
    state.add(0, asked(told("flb", gamma=1.0, decay=9.0)))
    new = rows(1, 4)
    state.apply(new.clone(), {0: At(0, 0)})
    later = rows(1, 5)
    torch.testing.assert_close(state.apply(later.clone(), {0: At(0, 1)}), boosted(later, new, 1, 1.0, 9.0, 0.1))


def test_chunked_prefill() -> None:
    assert not chunked([100, 100], 3, 203)
    assert chunked([100, 100], 4, 203)
