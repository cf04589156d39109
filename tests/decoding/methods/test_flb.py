from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList

import limelight
from limelight.decoding.methods.flb import FirstLogitBoosting, Flb, boosted, flb
from limelight.errors import SettingError
from tests.decoding.peers import CLOSE, FAMILIES, check_against_twin, double, emitted, inputs_of, plain_tokens, run
from tests.slow_twins import flb as twin
from tests.slow_twins.full import last_logits

TOKENS = 5
SETTINGS: dict[str, Any] = {"gamma": 0.9, "decay": 0.4, "beta": 0.2}


@pytest.mark.parametrize("name", [*FAMILIES, "mllama"])
def test_equals_the_slow_twin(name: str) -> None:
    adapter, inputs = double(name), inputs_of(name)
    out = run(adapter, inputs, flb(**SETTINGS), n=TOKENS)
    tokens = emitted(out, inputs)
    own = [last_logits(adapter.model, inputs, tokens[:, :t]) for t in range(TOKENS)]
    check_against_twin(out, twin.flb(own, **SETTINGS), rows=1)
    assert out.steps is not None
    assert out.steps[0][-1].plain == int(own[-1].argmax())


def processed(name: str, kind: str, processor: FirstLogitBoosting, **kwargs: Any) -> torch.Tensor:
    adapter, inputs = double(name), inputs_of(name, kind)
    settings = {"max_new_tokens": TOKENS, "do_sample": False, "disable_compile": True, **kwargs}
    out = adapter.model.generate(**inputs, logits_processor=LogitsProcessorList([processor]), **settings)
    return out[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_processor_needs_no_loop_of_ours(name: str) -> None:
    """plain model.generate: the strategy's tokens, in batches; one object serves one call after the other."""
    processor = FirstLogitBoosting(**SETTINGS)
    for kind in ("batch", "single", "single", "batch"):
        inputs = inputs_of(name, kind)
        wanted = emitted(run(double(name), inputs, flb(**SETTINGS), n=TOKENS), inputs)
        assert torch.equal(processed(name, kind, processor), wanted)


def test_the_processor_changes_tokens_and_is_neutral_at_zero() -> None:
    strong = FirstLogitBoosting(gamma=20.0, decay=3.0, beta=0.0)
    plain = plain_tokens(double("llava"), inputs_of("llava"), TOKENS)
    assert not torch.equal(processed("llava", "single", strong), plain)
    assert torch.equal(processed("llava", "single", FirstLogitBoosting(gamma=0)), plain)


def test_sampling_and_beams_of_generate() -> None:
    torch.manual_seed(3)
    drawn = processed("llava", "batch", FirstLogitBoosting(), do_sample=True, top_k=7, temperature=0.8)
    torch.manual_seed(3)
    inputs = inputs_of("llava", "batch")
    ours = run(double("llava"), inputs, flb(), n=TOKENS, do_sample=True, top_k=7, temperature=0.8)
    assert torch.equal(drawn, emitted(ours, inputs))
    assert processed("llava", "batch", FirstLogitBoosting(), num_beams=3).shape == (2, TOKENS)


def test_what_a_processor_bars_at_the_first_step_may_come_later() -> None:
    first = torch.tensor([[3.0, 1.0, float("-inf"), 2.0]])
    later = torch.tensor([[0.0, 1.0, 5.0, -1.0]])
    out = boosted(later, first, 100, 1.0, 1.0, 0.0)
    torch.testing.assert_close(out, later + torch.tensor([[3.0, 1.0, 1.0, 2.0]]))
    assert torch.equal(boosted(later, first, 0, 1.0, 1.0, 0.0), later)
    nan_free = boosted(
        torch.full((1, 4), float("-inf")).index_fill(1, torch.tensor([1]), 0.0), first, 3, 0.3, 0.05, 0.1
    )
    assert not torch.isnan(nan_free).any()


def test_a_new_prompt_that_is_one_longer_is_a_new_prompt() -> None:
    processor = FirstLogitBoosting(gamma=2.0, decay=9.0, beta=0.0)
    first, other = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 3.0]])
    assert torch.equal(processor(torch.tensor([[7, 8]]), first), first)
    assert torch.equal(processor(torch.tensor([[7, 9, 3]]), other), other)
    assert not torch.equal(processor(torch.tensor([[7, 9, 3, 4]]), other), other)


def test_the_public_name() -> None:
    assert limelight.FirstLogitBoosting is FirstLogitBoosting
    torch.testing.assert_close(
        boosted(torch.ones(1, 3), torch.ones(1, 3), 1, 0.3, 0.05, 0.1),
        torch.full((1, 3), 1.0 + 0.3 * 0.0487705755),
        **CLOSE,
    )


@pytest.mark.parametrize("wrong", [{"gamma": -1}, {"decay": -0.1}, {"beta": 2}, {"gamma": True}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    for kind in (Flb, FirstLogitBoosting):
        with pytest.raises(SettingError, match="flb"):
            kind(**wrong)
