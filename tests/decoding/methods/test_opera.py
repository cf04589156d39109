from __future__ import annotations

from typing import Any

import pytest
import torch

from limelight.decoding.methods.opera import Opera, opera
from limelight.errors import SettingError, UnsupportedError
from tests.decoding.peers import deep, deep_inputs, double, emitted, inputs_of, media_places, plain_tokens, run
from tests.slow_twins import opera as twin

SETTINGS: list[dict[str, Any]] = [
    {"beams": 3, "candidates": 4, "sigma": 50.0, "threshold": 15, "weight": 5.0, "warmup": 10},
    {"beams": 2, "candidates": 3, "sigma": 50.0, "threshold": 1, "weight": 0.5, "warmup": 0},
    {"beams": 2, "candidates": 2, "sigma": 20.0, "threshold": 0, "weight": 0.5, "warmup": 1},
    {"beams": 1, "candidates": 3, "sigma": 1000.0, "threshold": 2, "weight": 2.0, "warmup": 0},
]


@pytest.mark.parametrize("kind", ["single", "other"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_equals_the_slow_twin(settings: dict[str, Any], kind: str) -> None:
    adapter, inputs = deep(2), deep_inputs(kind)
    out = run(adapter, inputs, opera(**settings), n=8)
    slow = twin.Opera(adapter.model, inputs, media_places(adapter, inputs), 8, **settings)
    assert tuple(emitted(out, inputs)[0].tolist()) == slow.search()


def test_the_twin_does_go_back() -> None:
    """So that the comparison covers the roll-back."""
    adapter, inputs = deep(2), deep_inputs()
    for settings in SETTINGS[1:]:
        slow = twin.Opera(adapter.model, inputs, media_places(adapter, inputs), 8, **settings)
        slow.search()
        assert len(slow.returns) >= 2


def test_an_end_token_ends_a_beam() -> None:
    adapter, inputs = deep(2), deep_inputs()
    settings = SETTINGS[0]
    free = emitted(run(adapter, inputs, opera(**settings), n=8), inputs)[0].tolist()
    eos = free[2]
    out = run(adapter, inputs, opera(**settings), n=8, eos_token_id=eos)
    slow = twin.Opera(adapter.model, inputs, media_places(adapter, inputs), 8, eos=eos, **settings)
    found = emitted(out, inputs)[0].tolist()
    assert tuple(found) == slow.search()
    assert eos not in found[:-1]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl", "qwen2_audio", "gemma3", "qwen2_5_vl_video"])
def test_a_row_alone_and_in_a_batch(name: str) -> None:
    adapter = double(name)
    strategy = opera(beams=2, candidates=2, threshold=1, warmup=1)
    batch = emitted(run(adapter, inputs_of(name, "batch"), strategy, n=5), inputs_of(name, "batch"))
    for row, kind in enumerate(("single", "other")):
        inputs = inputs_of(name, kind)
        assert torch.equal(batch[row], emitted(run(adapter, inputs, strategy, n=5), inputs)[0])


def test_one_beam_without_penalty_is_greedy() -> None:
    adapter, inputs = double("llava"), inputs_of("llava", "batch")
    out = run(adapter, inputs, opera(beams=1, weight=0, threshold=99), n=5)
    assert torch.equal(emitted(out, inputs), plain_tokens(adapter, inputs, 5))
    assert out.steps is not None
    assert not any(s.intervened for row in out.steps for s in row)


def test_details_of_its_tokens() -> None:
    adapter, inputs = deep(2), deep_inputs()
    out = run(adapter, inputs, opera(**SETTINGS[1]), n=6)
    slow = twin.Opera(adapter.model, inputs, media_places(adapter, inputs), 6, **SETTINGS[1])
    said = tuple(emitted(out, inputs)[0].tolist())
    assert out.steps is not None
    for t, step in enumerate(out.steps[0]):
        assert step.plain == int(slow.forward(said[:t])[0].argmax())
        assert step.intervened == (step.plain != step.token)
        assert step.logprob == 0.0


def test_processors_act_inside_the_search() -> None:
    adapter, inputs = deep(2), deep_inputs()
    free = emitted(run(adapter, inputs, opera(**SETTINGS[0]), n=5), inputs)[0].tolist()
    barred = emitted(run(adapter, inputs, opera(**SETTINGS[0]), n=5, bad_words_ids=[[free[0]]]), inputs)[0].tolist()
    assert free[0] not in barred


def test_what_it_cannot_do() -> None:
    with pytest.raises(UnsupportedError, match="sample"):
        run(double("llava"), inputs_of("llava"), opera(), do_sample=True)
    with pytest.raises(UnsupportedError, match="cross-attention"):
        run(double("mllama"), inputs_of("mllama"), opera())
    with pytest.raises(UnsupportedError, match="num_beams"):
        run(double("llava"), inputs_of("llava"), opera(), num_beams=2)


@pytest.mark.parametrize(
    "wrong", [{"beams": 0}, {"candidates": 0}, {"threshold": -1}, {"warmup": 1.5}, {"sigma": 0}, {"weight": -1}]
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="opera"):
        Opera(**wrong)
