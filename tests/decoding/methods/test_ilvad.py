from __future__ import annotations

from typing import Any

import pytest
import torch

from limelight.decoding.methods.greedy import greedy
from limelight.decoding.methods.ilvad import Ilvad, clipped, ilvad, salient, text_factors
from limelight.errors import SettingError
from tests.decoding.peers import (
    CLOSE,
    FAMILIES,
    check_alone_and_in_a_batch,
    check_deep_twin,
    check_refusals,
    deep,
    deep_inputs,
    emitted,
    intervened,
    run,
)
from tests.slow_twins import ilvad as twin

TOKENS = 4
CASES: list[dict[str, Any]] = [
    {"alpha": 2.0, "beta": 1.0, "tau": 1.05, "pilot": 4},
    {"alpha": 1.0, "beta": 0.2, "tau": 1.05, "pilot": 2, "start": 1, "stop": 3},
    {"alpha": 3.0, "beta": None, "tau": 1.0, "pilot": 3},
]


@pytest.mark.parametrize("kind", ["single", "other"])
@pytest.mark.parametrize("settings", CASES, ids=str)
def test_equals_the_slow_twin(settings: dict[str, Any], kind: str) -> None:
    plain = {k: v for k, v in settings.items() if k not in ("start", "stop")}
    layers = range(settings.get("start", 0), settings.get("stop", 4))
    out = check_deep_twin(
        ilvad(**settings),
        lambda model, x, media: twin.ilvad(model, x, media, layers=layers, **plain),
        kind=kind,
        n=TOKENS,
    )
    assert all(intervened(out))
    unchanged = run(deep(), deep_inputs(kind), greedy(), n=1)
    assert not torch.allclose((out.logits or ())[0], (unchanged.logits or ())[0], atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_alone_and_in_a_batch(name: str) -> None:
    check_alone_and_in_a_batch(name, ilvad(alpha=2.0, beta=0.5, tau=1.0, pilot=4))


def test_the_pilot_ends_with_its_sequence() -> None:
    """A row whose first token ends the sequence has nothing to find salient positions from: it is left alone."""
    adapter, inputs = deep(), deep_inputs()
    plain = emitted(run(adapter, inputs, greedy(), n=2), inputs)[0].tolist()
    out = run(adapter, inputs, ilvad(tau=1.0), n=1, eos_token_id=plain[0])
    assert intervened(out) == [False]
    short = run(adapter, inputs, ilvad(tau=1.0, pilot=9), n=1, eos_token_id=plain[1])
    same = run(adapter, inputs, ilvad(tau=1.0, pilot=2), n=1)
    torch.testing.assert_close((short.logits or ())[0], (same.logits or ())[0], **CLOSE)


def test_salience() -> None:
    places = torch.tensor([[False, True, True, True, True]])
    quiet, loud = torch.full((5,), 0.1), torch.tensor([0.0, 0.1, 0.1, 0.1, 0.9])
    attention = torch.stack([quiet, loud, quiet, loud])[:, None]
    found = salient(attention, places, 2.0)
    assert found[0, 4] == 1
    assert found[0, :4].tolist() == [0, 0, 0, 0]
    assert not salient(attention, places, 9.0).any()
    assert not salient(torch.zeros(0, 1, 5), places, 2.0).any()


def test_scales() -> None:
    assert text_factors(torch.tensor([1.0, 3.0, 2.0]), 0.3).tolist() == pytest.approx([0.3, 1.3, 0.8])
    assert text_factors(torch.tensor([2.0, 2.0]), 0.3).tolist() == [1, 1]
    assert text_factors(torch.tensor([2.0]), 0.3).tolist() == [1]
    outlier = torch.cat([torch.zeros(30), torch.tensor([9.0])])
    assert float(clipped(outlier).max()) < 9


def test_what_it_cannot_do() -> None:
    check_refusals(ilvad(), ilvad(start=0, stop=5))


@pytest.mark.parametrize(
    "wrong",
    [{"alpha": -1}, {"beta": -1}, {"tau": -1}, {"pilot": 1}, {"pilot": 2.5}, {"start": -1}, {"start": 3, "stop": 3}],
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="ilvad"):
        Ilvad(**wrong)
