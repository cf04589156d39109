from __future__ import annotations

from typing import Any

import pytest
import torch

from limelight.decoding.methods.dola import Dola, divergence, dola
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
    out = run(adapter, inputs, dola(layers=(0, 1), beta=0.02))
    tokens = emitted(out, inputs)
    wanted = []
    for t in range(TOKENS):
        final, early = twin.exits(adapter.model, inputs, tokens[:, :t], (0, 1), normed=True)
        wanted.append(twin.dola(final, early, 0.02))
    check_against_twin(out, wanted, rows=1)


@pytest.mark.parametrize("settings", [{}, {"layers": "high"}, {"normed": False}, {"layers": (1, 2, 3)}])
def test_layers_by_name_and_number(settings: dict[str, Any]) -> None:
    adapter, inputs = deep(), deep_inputs("batch")
    out = run(adapter, inputs, dola(**settings))
    tokens = emitted(out, inputs)
    layers = {"high": (2,)}.get(settings.get("layers", "low"), settings.get("layers", (0,)))
    wanted = []
    for t in range(TOKENS):
        final, early = twin.exits(adapter.model, inputs, tokens[:, :t], layers, normed=settings.get("normed", True))
        wanted.append(twin.dola(final, early, 0.1))
    check_against_twin(out, wanted, rows=2)


def test_buckets_of_a_7b_model() -> None:
    assert dola().candidates(32, tied=False) == (0, 2, 4, 6, 8, 10, 12, 14)
    assert dola().candidates(32, tied=True) == (2, 4, 6, 8, 10, 12, 14)
    assert dola(layers="high").candidates(32, tied=False) == (16, 18, 20, 22, 24, 26, 28, 30)
    assert dola().candidates(2, tied=True) == (1,)
    assert dola(layers=(3, 5)).candidates(32, tied=True) == (3, 5)


def test_divergence_is_jensen_shannons() -> None:
    a, b = torch.randn(2, 9, dtype=torch.float64), torch.randn(3, 2, 9, dtype=torch.float64)
    got = divergence(a.log_softmax(-1), b.log_softmax(-1))
    for layer in range(3):
        for row in range(2):
            want = twin.js(a[row].softmax(0), b[layer, row].softmax(0))
            assert float(got[layer, row]) == pytest.approx(want, rel=1e-9)
    sharp = torch.tensor([[0.0, float("-inf")]])
    assert float(divergence(sharp, sharp.flip(-1)[None])) == pytest.approx(0.6931472, rel=1e-5)
    assert float(divergence(sharp, sharp[None])) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("layers", [(2,), (-1,), ()])
def test_layers_the_model_lacks(layers: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match="dola"):
        run(double("llava"), inputs_of("llava"), dola(layers=layers))


@pytest.mark.parametrize("wrong", [{"beta": 2}, {"layers": "middle"}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="dola"):
        Dola(**wrong)
