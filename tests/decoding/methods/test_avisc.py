from __future__ import annotations

from typing import Any

import pytest
import torch

from limelight.decoding.methods.avisc import Avisc, avisc, over_attended
from limelight.errors import SettingError, UnsupportedError
from tests.decoding.peers import (
    CLOSE,
    TOKENS,
    check_against_twin,
    deep,
    deep_inputs,
    double,
    emitted,
    inputs_of,
    media_places,
    plain_tokens,
    run,
)
from tests.slow_twins import avisc as twin


@pytest.mark.parametrize("settings", [(0.7, 0.05, 0.5, 1.0), (1.0, 0.1, 0.9, 0.0)])
def test_equals_the_slow_twin(settings: tuple[float, float, float, float]) -> None:
    adapter, inputs = deep(), deep_inputs()
    alpha, beta, gamma, lam = settings
    out = run(adapter, inputs, avisc(alpha=alpha, beta=beta, gamma=gamma, lam=lam))
    tokens = emitted(out, inputs)
    places = media_places(adapter, inputs)
    wanted = [twin.avisc(adapter.model, inputs, places, tokens[:, :t], alpha, beta, gamma, lam) for t in range(TOKENS)]
    check_against_twin(out, wanted, rows=1)


@pytest.mark.parametrize(
    "name", ["llava", "internvl", "qwen2_5_vl", "qwen2_5_vl_video", "gemma3", "qwen2_audio", "qwen3_vl"]
)
def test_keeping_every_position_is_the_model_itself(name: str) -> None:
    """With lam far below zero all positions are blind, none is masked, and the contrast vanishes."""
    adapter, inputs = double(name), inputs_of(name, "batch")
    same = run(adapter, inputs, avisc(lam=-1e9, beta=0))
    assert torch.equal(emitted(same, inputs), plain_tokens(adapter, inputs))
    other = run(adapter, inputs, avisc(beta=0))
    assert same.logits is not None
    assert other.logits is not None
    assert float((same.logits[0] - other.logits[0]).abs().max()) > 1e-3


def test_over_attended_positions() -> None:
    places = torch.tensor([False, True, True, True, True, False])
    weights = torch.tensor([[0.5, 0.01, 0.02, 0.30, 0.01, 0.0], [0.9, 0.02, 0.01, 0.01, 0.01, 0.0]])
    assert over_attended(weights, places, 0.5, 1.0).nonzero()[:, 0].tolist() == [3]
    assert over_attended(weights, places, 0.5, -9.0).nonzero()[:, 0].tolist() == [1, 2, 3, 4]
    alone = torch.tensor([False, True, False])
    assert over_attended(weights[:, :3], alone, 0.5, 1.0).tolist() == [False, True, False]


def test_a_row_alone_and_in_a_batch() -> None:
    adapter = deep()
    batch = run(adapter, deep_inputs("batch"), avisc())
    for row, kind in enumerate(("single", "other")):
        alone = run(adapter, deep_inputs(kind), avisc())
        assert alone.logits is not None
        assert batch.logits is not None
        torch.testing.assert_close(batch.logits[0][row], alone.logits[0][0], **CLOSE)


def test_cross_attention_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="cross-attention"):
        run(double("mllama"), inputs_of("mllama"), avisc())


@pytest.mark.parametrize("wrong", [{"alpha": -1}, {"beta": 2}, {"gamma": 1.5}, {"lam": "one"}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="avisc"):
        Avisc(**wrong)
