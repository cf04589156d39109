from __future__ import annotations

from typing import Any

import pytest
import torch

import limelight
from limelight.decoding.methods.agla import Agla, agla, most
from limelight.errors import SettingError
from tests.decoding.peers import (
    FAMILIES,
    TOKENS,
    check_against_twin,
    check_alone_and_in_a_batch,
    check_refusals,
    deep,
    deep_inputs,
    emitted,
    run,
    written_out,
)
from tests.slow_twins import agla as twin
from tests.slow_twins.full import last_logits


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.5, "beta": 0.0, "kept": 0.3}, {"kept": 0.01}], ids=str)
def test_equals_the_slow_twin(settings: dict[str, Any]) -> None:
    adapter, inputs = deep(), deep_inputs()
    strategy = agla(**settings)
    out = run(adapter, inputs, strategy)
    tokens = emitted(out, inputs)
    first = int(last_logits(adapter.model, inputs, tokens[:, :0]).argmax())
    relevance = limelight.attribute(adapter, inputs, first).scores.tolist()
    embeds, media = written_out(adapter, inputs, tokens)
    prompt = len(media)
    wanted = [
        twin.agla(adapter.model, embeds[: prompt + t], media, relevance, strategy.alpha, strategy.beta, strategy.kept)
        for t in range(TOKENS)
    ]
    check_against_twin(out, wanted, rows=1)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_alone_and_in_a_batch(name: str) -> None:
    check_alone_and_in_a_batch(name, agla(kept=0.5), n=2)


def test_the_most_relevant() -> None:
    places = torch.tensor([False, True, True, True, True])
    scores = torch.tensor([9.0, 1.0, -2.0, 3.0, 2.0])
    assert most(scores, places, 0.5).tolist() == [False, False, False, True, True]
    assert most(scores, places, 0.01).tolist() == [False, False, False, True, False]
    assert most(scores, places, 1.0).tolist() == places.tolist()


def test_what_it_cannot_do() -> None:
    check_refusals(agla())


@pytest.mark.parametrize("wrong", [{"alpha": -1}, {"beta": 2}, {"kept": 0}, {"kept": 1.5}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="agla"):
        Agla(**wrong)
