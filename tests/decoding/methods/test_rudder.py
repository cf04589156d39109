from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from limelight.decoding.methods.greedy import greedy
from limelight.decoding.methods.rudder import Rudder, gated, pooled, rudder
from limelight.errors import SettingError
from tests.decoding.peers import (
    FAMILIES,
    TOKENS,
    check_alone_and_in_a_batch,
    check_deep_twin,
    check_refusals,
    double,
    inputs_of,
    intervened,
    run,
)
from tests.slow_twins import rudder as twin

CASES: list[dict[str, Any]] = [
    {},
    {"variant": "released", "floor": 0.6},
    {"positions": "media", "pool": "mean", "layer": 1},
    {"gate": "constant", "first_token": "plain", "layer": 0},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_equals_the_slow_twin(settings: dict[str, Any]) -> None:
    strategy = rudder(alpha=2.0, k=4.0, c=0.5, **settings)

    def slow(model: Any, embeds: Tensor, media: list[bool]) -> list[Tensor]:
        among = [i for i, m in enumerate(media) if m or strategy.positions == "prompt"]
        return twin.rudder(
            model, embeds, len(media), among, layer=3 if strategy.layer is None else strategy.layer, alpha=2.0, k=4.0,
            c=0.5, floor=strategy.floor, weighted=strategy.pool == "norm", released=strategy.variant == "released",
            constant=strategy.gate == "constant", first=strategy.first_token == "steered",
        )  # fmt: skip

    assert intervened(check_deep_twin(strategy, slow)) == [strategy.first_token == "steered", True, True]


@pytest.mark.parametrize("settings", CASES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_alone_and_in_a_batch(name: str, settings: dict[str, Any]) -> None:
    check_alone_and_in_a_batch(name, rudder(alpha=3.0, **{**settings, "layer": 1}), n=2)


def test_the_layer_in_proportion() -> None:
    assert [rudder().at(depth) for depth in (32, 40, 28, 4, 2, 1)] == [30, 38, 26, 3, 1, 0]
    assert rudder(layer=7).at(32) == 7


def test_formulas() -> None:
    state = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    gate = gated(state, torch.tensor([[1.0, 0.0]]).expand(3, 2), 5.0, 1.0, 0.05)[:, 0]
    plus, minus = math.log1p(math.exp(6)), math.log1p(math.exp(-4))
    assert gate.tolist() == pytest.approx([plus / (plus + minus), 0.05, 0.5], rel=1e-5)
    update = torch.tensor([[[3.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    places = torch.tensor([[True, True, False]])
    assert pooled(update, places, weighted=False)[0].tolist() == pytest.approx([3 / 10**0.5, 1 / 10**0.5])
    assert pooled(update, places, weighted=True)[0].tolist() == pytest.approx([9 / 82**0.5, 1 / 82**0.5])


def test_a_plain_first_token_is_the_models() -> None:
    adapter, inputs = double("qwen2_audio"), inputs_of("qwen2_audio", "batch")
    out = run(adapter, inputs, rudder(alpha=5.0, first_token="plain"), n=TOKENS)
    plain = run(adapter, inputs, greedy(), n=1)
    torch.testing.assert_close((out.logits or ())[0], (plain.logits or ())[0])


def test_what_it_cannot_do() -> None:
    check_refusals(rudder(), rudder(layer=9), layer=9)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"alpha": -1}, {"k": -1}, {"floor": 2}, {"layer": -1}, {"layer": 1.5}, {"pool": "max"}),
        *({"positions": "text"}, {"gate": "none"}, {"variant": "other"}, {"first_token": "boosted"}),
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="rudder"):
        Rudder(**wrong)
