from __future__ import annotations

from typing import Any

import pytest
import torch

from limelight.decoding.instruments import in_proportion
from limelight.decoding.methods.deco import Deco, deco, nucleus
from limelight.errors import SettingError
from tests.decoding.peers import (
    TOKENS,
    check_against_twin,
    deep,
    deep_inputs,
    double,
    emitted,
    inputs_of,
    run,
)
from tests.slow_twins import layers as twin

FAMILIES = ["llava", "internvl", "qwen2_5_vl", "qwen2_5_vl_video", "gemma3", "qwen2_audio", "mllama"]


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_slow_twin(name: str) -> None:
    adapter, inputs = double(name), inputs_of(name)
    out = run(adapter, inputs, deco(alpha=0.8, top_k=9, top_p=0.8, layers=(0, 1)))
    tokens = emitted(out, inputs)
    wanted = []
    for t in range(TOKENS):
        final, early = twin.exits(adapter.model, inputs, tokens[:, :t], (0, 1), normed=True)
        wanted.append(twin.deco(final, early, 0.8, 9, 0.8))
    check_against_twin(out, wanted, rows=1)


def test_published_layers_in_proportion_and_rows_apart() -> None:
    adapter, inputs = deep(), deep_inputs("batch")
    out = run(adapter, inputs, deco())
    tokens = emitted(out, inputs)
    wanted = []
    for t in range(TOKENS):
        final, early = twin.exits(adapter.model, inputs, tokens[:, :t], (2, 3), normed=True)
        wanted.append(twin.deco(final, early, 0.6, 20, 0.9))
    check_against_twin(out, wanted, rows=2)


def test_proportions() -> None:
    assert in_proportion((20, 28), 32) == (20, 28)
    assert in_proportion((20, 28), 40) == (25, 35)
    assert in_proportion((20, 28), 28) == (18, 24)
    assert in_proportion((20, 28), 2) == (1, 1)


def test_nucleus_keeps_the_fewest_that_reach_p() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert nucleus(logits, 4, 0.5)[0].tolist() == [True, False, False, False]
    assert nucleus(logits, 4, 0.51)[0].tolist() == [True, True, False, False]
    assert nucleus(logits, 1, 0.9)[0].tolist() == [True, False, False, False]
    assert nucleus(logits, 9, 1.0)[0].tolist() == [True] * 4
    assert nucleus(logits, 4, 0.0)[0].tolist() == [True, False, False, False]


def test_layers_the_model_lacks() -> None:
    with pytest.raises(SettingError, match=r"layers \[2\]"):
        run(double("llava"), inputs_of("llava"), deco(layers=(1, 2)))


@pytest.mark.parametrize("wrong", [{"alpha": -1}, {"top_k": 0}, {"top_p": 1.2}, {"layers": (3, 2)}, {"layers": (3,)}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="deco"):
        Deco(**wrong)
