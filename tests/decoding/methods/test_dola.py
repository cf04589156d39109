from __future__ import annotations

from typing import Any

import pytest
import torch

from limelight.decoding.methods.dola import Dola, divergence, dola, reverse_divergence
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
        final, early = twin.exits(adapter.model, inputs, tokens[:, :t], (0, 1), normed=False)
        wanted.append(twin.dola(final, early, 0.02))
    check_against_twin(out, wanted, rows=1)


@pytest.mark.parametrize(
    "settings",
    [{}, {"layers": "high"}, {"normed": True}, {"layers": (1, 2, 3)}, {"layers": (1, 2, 3), "divergence": "js"}],
)
def test_layers_by_name_and_number(settings: dict[str, Any]) -> None:
    adapter, inputs = deep(), deep_inputs("batch")
    out = run(adapter, inputs, dola(**settings))
    tokens = emitted(out, inputs)
    layers = {"high": (2,)}.get(settings.get("layers", "low"), settings.get("layers", (0,)))
    distance = twin.js if settings.get("divergence") == "js" else twin.released
    wanted = []
    for t in range(TOKENS):
        final, early = twin.exits(adapter.model, inputs, tokens[:, :t], layers, normed=settings.get("normed", False))
        wanted.append(twin.dola(final, early, 0.1, distance))
    check_against_twin(out, wanted, rows=2)


def test_buckets_of_a_7b_model() -> None:
    assert dola().candidates(32, tied=False) == (0, 2, 4, 6, 8, 10, 12, 14)
    assert dola().candidates(32, tied=True) == (2, 4, 6, 8, 10, 12, 14)
    assert dola(layers="high").candidates(32, tied=False) == (16, 18, 20, 22, 24, 26, 28, 30)
    assert dola(layers=(3, 5)).candidates(32, tied=True) == (3, 5)


def test_buckets_of_deeper_models_are_twenty_layers_wide() -> None:
    """As the authors' scripts for 60 and 80 layers, and transformers for more than 40."""
    assert dola().candidates(40, tied=False) == tuple(range(0, 20, 2))
    assert dola(layers="high").candidates(40, tied=False) == tuple(range(20, 40, 2))
    assert dola().candidates(60, tied=False) == tuple(range(0, 20, 2))
    assert dola(layers="high").candidates(80, tied=False) == tuple(range(60, 80, 2))


@pytest.mark.parametrize("layers", ["low", "high"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("depth", range(1, 50))
def test_there_is_a_layer_whatever_the_depth(depth: int, tied: bool, layers: str) -> None:
    found = dola(layers=layers).candidates(depth, tied=tied)
    assert found
    assert all(0 <= i < depth for i in found)
    assert 0 not in found or not tied or depth == 1 or layers == "high"


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


def test_the_released_divergence_runs_the_other_way() -> None:
    a, b = torch.randn(2, 9, dtype=torch.float64), torch.randn(3, 2, 9, dtype=torch.float64)
    got = reverse_divergence(a.log_softmax(-1), b.log_softmax(-1))
    mean = 0.5 * (a.softmax(-1) + b.softmax(-1))
    terms = [
        torch.nn.functional.kl_div(x.log_softmax(-1).expand_as(mean), mean, reduction="none") for x in (a[None], b)
    ]
    torch.testing.assert_close(got, 0.5 * (terms[0] + terms[1]).sum(-1))
    assert float(got[0, 0]) == pytest.approx(twin.released(a[0].softmax(0), b[0, 0].softmax(0)), rel=1e-9)
    barred = torch.tensor([[0.0, float("-inf")]])
    assert float(reverse_divergence(barred, barred[None])) == pytest.approx(0.0, abs=1e-6)
    assert float(reverse_divergence(barred, barred.flip(-1)[None])) == float("inf")


@pytest.mark.parametrize("layers", [(2,), (-1,), ()])
def test_layers_the_model_lacks(layers: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match="dola"):
        run(double("llava"), inputs_of("llava"), dola(layers=layers))


@pytest.mark.parametrize("wrong", [{"beta": 2}, {"layers": "middle"}, {"divergence": "kl"}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="dola"):
        Dola(**wrong)
