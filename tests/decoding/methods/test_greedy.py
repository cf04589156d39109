"""The model as it is, with relevance beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import limelight
from limelight.decoding.loop import custom_generate
from limelight.decoding.strategy import Session, Strategy
from limelight.models.adapter import Adapter
from limelight.relevance.attribute import attribute
from tests.tiny import built, llava, llava_inputs
from tests.zoo import FOUNDATION, ZOO


def generate(adapter: Adapter, inputs: Any, details: bool, **kwargs: Any) -> Any:
    fn = custom_generate(limelight.greedy(), details=details)
    settings = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, **kwargs}
    return adapter.model.generate(**inputs, custom_generate=fn, **settings)


@pytest.mark.parametrize("name", FOUNDATION)
def test_details_change_nothing_and_are_those_of_attribute(name: str) -> None:
    adapter = built(name)
    inputs = ZOO[name].inputs(adapter.model)
    bare, rich = generate(adapter, inputs, False), generate(adapter, inputs, True)
    assert torch.equal(bare.sequences, rich.sequences)
    assert all(s.relevance is None and not s.shares for s in bare.steps[0])
    assert all(s.plain == s.token and not s.intervened for s in rich.steps[0])
    first = rich.steps[0][0].relevance
    want = attribute(adapter, inputs, first.target)
    scale = float(want.scores.abs().max())
    torch.testing.assert_close(first.scores, want.scores, atol=1e-4 * scale, rtol=0)
    length = inputs["input_ids"].shape[1]
    for number, step in enumerate(rich.steps[0]):
        assert step.relevance.scores.shape == (length + number,)
        assert len(step.relevance.tokens) == length + number
        assert step.relevance.position == length + number - 1
        assert sum(step.shares.values()) == pytest.approx(1.0)


def test_the_relevance_is_that_of_the_sampled_token_not_of_the_best() -> None:
    adapter = Adapter(llava())
    inputs = llava_inputs(adapter.model)
    torch.manual_seed(3)
    out = generate(adapter, inputs, True, do_sample=True, temperature=3.0)
    assert any(s.token != s.plain for s in out.steps[0])
    assert all(s.relevance.target == s.token for s in out.steps[0])
    length = inputs["input_ids"].shape[1]
    longer = out.sequences[:, : length + 2]
    want = attribute(
        adapter, {**inputs, "input_ids": longer, "attention_mask": torch.ones_like(longer)}, out.steps[0][2].token
    )
    torch.testing.assert_close(out.steps[0][2].relevance.scores, want.scores, atol=1e-10, rtol=0)


def test_rows_that_have_ended_are_not_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = built("llava")
    batch = ZOO["llava"].batch
    assert batch is not None
    plain = generate(adapter, batch(adapter.model), False).sequences
    length = plain.shape[1] - 3
    eos = int(plain[0, length])
    out = generate(adapter, batch(adapter.model), True, eos_token_id=eos, pad_token_id=0)
    assert [len(s) for s in out.steps] == [1, 3]


def test_the_towers_run_once_for_all_explanations() -> None:
    adapter = built("llava")
    calls: list[int] = []
    handle = adapter.model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    try:
        generate(adapter, ZOO["llava"].inputs(adapter.model), True, max_new_tokens=5)
    finally:
        handle.remove()
    assert len(calls) <= 2


def test_it_is_a_strategy() -> None:
    strategy = limelight.greedy()
    assert isinstance(strategy, Strategy)
    assert (strategy.name, strategy.settings()) == ("greedy", {})
    assert strategy == limelight.strategy("greedy")
    assert hasattr(Session, "next")
