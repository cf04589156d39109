from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from limelight.decoding.methods.m3id import BETA, GATE, M3id, m3id, unsure
from limelight.errors import PromptError, SettingError
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
    run,
)
from tests.slow_twins import m3id as twin
from tests.slow_twins import stack
from tests.zoo import ZOO

FAMILIES = ["llava", "internvl", "gemma3", "qwen2_5_vl", "qwen2_5_vl_video", "qwen2_audio", "mllama"]


def level(x: Tensor) -> Tensor:
    """Up to a constant a row: what a distribution is."""
    return torch.log_softmax(x, dim=-1)


VARIANTS: dict[str, tuple[dict[str, Any], float, float]] = {  # settings, gate and cut of the twin
    "paper": ({}, 0.3, 0.0),
    "released": ({"variant": "released"}, 1.0, 0.1),
    "both": ({"gate": 0.3, "beta": 0.05}, 0.3, 0.05),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_slow_twin(name: str, variant: str) -> None:
    settings, gate, beta = VARIANTS[variant]
    adapter = double(name)
    inputs = inputs_of(name, "batch")
    out = run(adapter, inputs, m3id(decay=0.3, **settings))
    tokens = emitted(out, inputs)
    assert out.logits is not None
    for t in range(TOKENS):
        rows = [twin_row(name, row, tokens[row : row + 1, :t], gate, beta) for row in (0, 1)]
        torch.testing.assert_close(level(out.logits[t]), level(torch.cat(rows)), **CLOSE)


def twin_row(name: str, row: int, tokens: Tensor, gate: float, beta: float) -> Tensor:
    """A row of the batch, alone."""
    adapter = double(name)
    alone = ZOO[name].inputs(adapter.model, row=row)
    return twin.m3id(adapter.model, alone, media_places(adapter, alone), tokens, 0.3, gate=gate, beta=beta)


def test_the_defaults_are_the_papers() -> None:
    assert m3id() == m3id(decay=0.02, variant="paper")
    assert (GATE["paper"], BETA["paper"], GATE["released"], BETA["released"]) == (0.3, 0.0, 1.0, 0.1)


def test_the_gate_opens_below_it_row_by_row_and_cuts_nothing() -> None:
    logits = torch.tensor([[0.29, 0.28, 0.23, 0.2], [0.31, 0.25, 0.23, 0.21], [0.3, 0.3, 0.2, 0.2]]).log()
    assert unsure(logits, 0.3).tolist() == [True, False, False]
    adapter, inputs = deep(), deep_inputs("batch")
    top = torch.softmax((run(adapter, inputs, m3id(decay=0), n=1).logits or ())[0], -1).amax(-1)
    between = float(top.mean())  # one row lies below it, the other above
    assert float((top[0] - top[1]).abs()) > 1e-6
    out = run(adapter, inputs, m3id(decay=0.5, gate=between), n=1)
    assert out.steps is not None
    assert [row[0].intervened for row in out.steps] == [float(p) < between for p in top]
    assert bool(torch.isfinite((out.logits or ())[0]).all())


def test_zeroed_embeddings_equal_the_slow_twin() -> None:
    adapter, inputs = deep(), deep_inputs()
    out = run(adapter, inputs, m3id(decay=0.3, gate=1, beta=0.05, without="zero"))
    tokens = emitted(out, inputs)
    places = media_places(adapter, inputs)
    wanted = []
    for t in range(TOKENS):
        embeds = stack.prompt(adapter.model, inputs, tokens[:, :t])
        embeds[: places.shape[1]][places[0]] = 0
        blind = stack.run(adapter.model, embeds).logits[-1:]
        said = tokens[:, :t]
        wanted.append(level(twin.m3id(adapter.model, inputs, places, said, 0.3, gate=1, beta=0.05, blind=blind)))
    out.logits = tuple(level(x) for x in out.logits or ())
    check_against_twin(out, wanted, rows=1)


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_audio", "mllama"])
def test_the_zeroed_run_does_not_depend_on_the_media(name: str) -> None:
    """The zeroed run does not depend on the media, by whatever door they enter."""
    adapter, inputs = double(name), inputs_of(name)
    louder = {k: v * 3 + 1 if v.is_floating_point() else v for k, v in inputs.items()}
    blind = []
    for media in (inputs, louder):
        out = run(adapter, media, m3id(decay=0.5, gate=1, without="zero"), n=1)
        plain = run(adapter, media, m3id(decay=0), n=1)
        assert out.logits is not None
        assert plain.logits is not None
        real = plain.logits[0]
        g = torch.tensor(-0.5, dtype=torch.float64).exp()
        blind.append(level(real) - (level(out.logits[0]) - level(real)) * g / (1 - g))
    difference = blind[0] - blind[1]
    assert float((difference - difference.mean()).abs().max()) < 1e-6


def test_the_prompt_must_hold_words() -> None:
    adapter, inputs = double("llava"), inputs_of("llava")
    bare = {k: v[:, 3:19] if k in ("input_ids", "attention_mask") else v for k, v in inputs.items()}
    with pytest.raises(PromptError, match="without its media"):
        run(adapter, bare, m3id())


@pytest.mark.parametrize("wrong", [{"decay": -0.1}, {"beta": 2}, {"variant": "blur"}, {"gate": 2}, {"without": "blur"}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="m3id"):
        M3id(**wrong)


def test_the_earlier_name_of_a_setting_is_explained() -> None:
    with pytest.raises(SettingError, match="without='drop'"):
        M3id(variant="drop")
