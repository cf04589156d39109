"""Every strategy's answer can be explained afterwards, by the unchanged model."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import limelight
from limelight.decoding.explain import explained, watched
from limelight.decoding.registry import strategies
from limelight.decoding.strategy import Strategy
from limelight.models.adapter import Adapter
from tests.tiny import snapshot, vision_processor
from tests.zoo import ZOO

ASK = "what is in the picture ?"


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return limelight.wrap(ZOO["llava"].build(), vision_processor())


def answer(adapter: Adapter, strategy: Strategy | str | None, relevance: bool = False) -> limelight.Generation:
    picture = Image.new("RGB", (40, 30), (200, 120, 40))
    return limelight.generate(
        adapter, messages=ASK, media={"image": picture}, strategy=strategy, relevance=relevance, max_new_tokens=4
    )


def test_one_pass_afterwards_is_what_greedy_explains_token_by_token(adapter: Adapter) -> None:
    before = snapshot(adapter.model)
    late, early = explained(adapter, answer(adapter, None)), answer(adapter, None, relevance=True)
    assert late.token_ids == early.token_ids
    for one, two in zip(late.steps, early.steps, strict=True):
        assert one.relevance is not None
        assert two.relevance is not None
        n = len(two.relevance.tokens)
        torch.testing.assert_close(one.relevance.scores[:n], two.relevance.scores, atol=1e-5, rtol=1e-4)
        assert not one.relevance.scores[n:].any()
        assert one.shares == pytest.approx(two.shares, abs=1e-4)
    after = snapshot(adapter.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before if isinstance(before[k], torch.Tensor))


def test_existing_values_are_kept(adapter: Adapter) -> None:
    said = answer(adapter, None, relevance=True)
    assert explained(adapter, said) is said


@pytest.mark.parametrize("name", ["greedy", "meter", "relevance-contrastive", "vcd", "lime"])
def test_a_watched_strategy_keeps_its_answer_and_name(adapter: Adapter, name: str) -> None:
    chosen = strategies()[name]()
    plain, seen = answer(adapter, chosen), explained(adapter, answer(adapter, watched(chosen)))
    assert (seen.strategy, seen.token_ids) == (name, plain.token_ids)
    for step in seen.steps:
        assert step.relevance is not None
        assert step.candidates
        assert step.plain is not None
