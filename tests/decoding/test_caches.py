"""Caches that a caller asks generate() for: the same answers as with the usual one, or a clear error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import StaticCache

import limelight
from limelight.decoding.loop import custom_generate
from limelight.errors import UnsupportedError
from limelight.types import Prompt
from tests.models.runtime.test_locks import STRATEGIES
from tests.tiny import built, llava, llava_inputs
from tests.zoo import ZOO


def answer(model: Any, inputs: dict[str, Tensor], name: str, **more: Any) -> Tensor:
    strategy = limelight.strategy(name, **STRATEGIES[name])
    out = model.generate(
        **inputs, custom_generate=custom_generate(strategy, tensors=inputs), max_new_tokens=4, do_sample=False,
        return_dict_in_generate=True, output_logits=True, disable_compile=True, **more,
    )  # fmt: skip
    return torch.stack(out.logits)


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"kvsmooth"}))
def test_a_static_cache_gives_the_same_answer(name: str) -> None:
    """Keys of a static cache outnumber the positions; the cached methods keep a cache of their own."""
    model = llava(torch.float32)
    inputs = llava_inputs(model)
    want = answer(model, inputs, name)
    torch.testing.assert_close(answer(model, inputs, name, cache_implementation="static"), want, atol=1e-5, rtol=1e-5)
    ready = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=64)
    torch.testing.assert_close(answer(model, inputs, name, past_key_values=ready), want, atol=1e-5, rtol=1e-5)


def test_a_method_that_changes_cached_keys_refuses_a_static_cache() -> None:
    model = llava(torch.float32)
    inputs = llava_inputs(model)
    with pytest.raises(UnsupportedError, match="changes cached keys"):
        answer(model, inputs, "kvsmooth", cache_implementation="static")
    ready = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=64)
    with pytest.raises(UnsupportedError, match="changes cached keys"):
        answer(model, inputs, "kvsmooth", past_key_values=ready)


@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl"])
@pytest.mark.parametrize("strategy", ["greedy", "lime-cached", "m3id"])
def test_static_caches_of_other_families_in_a_batch(name: str, strategy: str) -> None:
    """Sliding windows, three position axes, left padding."""
    adapter = built(name)
    batch = ZOO[name].batch
    assert batch is not None
    inputs = batch(adapter.model)
    want = answer(adapter.model, inputs, strategy)
    got = answer(adapter.model, inputs, strategy, cache_implementation="static")
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_limelight_generate_takes_it_too() -> None:
    adapter = limelight.wrap(llava(torch.float32))
    inputs = llava_inputs(adapter.model)
    prompt = Prompt(inputs, adapter.words(inputs), adapter.spans(inputs))
    for strategy in ("greedy", "lime", "lime-cached"):
        ways = [
            limelight.generate(adapter, None, prompt, strategy=strategy, max_new_tokens=3, **more)
            for more in ({}, {"cache_implementation": "static"})
        ]
        assert ways[0].token_ids == ways[1].token_ids
        first, second = (w.steps[-1].relevance for w in ways)
        if first is not None and second is not None:
            torch.testing.assert_close(first.scores, second.scores)
