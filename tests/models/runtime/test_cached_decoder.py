"""One cached forward stream: what generate() does between two tokens."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from limelight.errors import UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.runtime.cached_decoder import Stream
from tests.tiny import built, llava, llava_inputs
from tests.zoo import ZOO


@torch.no_grad()
def test_a_stream_is_ordinary_cached_decoding() -> None:
    adapter = Adapter(llava(torch.float32))
    inputs = llava_inputs(adapter.model)
    ids = inputs.pop("input_ids")
    stream = Stream(adapter, ids, inputs)
    logits = stream.next(None)
    torch.testing.assert_close(logits, adapter.model(input_ids=ids, **inputs).logits[:, -1], atol=1e-5, rtol=1e-5)
    token = logits.argmax(-1)
    following = stream.next(token)
    longer = torch.cat([ids, token[:, None]], dim=1)
    want = adapter.model(input_ids=longer, **{**inputs, "attention_mask": torch.ones_like(longer)}).logits[:, -1]
    torch.testing.assert_close(following, want, atol=1e-5, rtol=1e-5)
    assert stream.ids.tolist() == longer.tolist()
    assert logits.dtype == torch.float32


@torch.no_grad()
def test_a_fresh_stream_leaves_the_prepared_cache_alone() -> None:
    adapter = Adapter(llava(torch.float32))
    inputs = llava_inputs(adapter.model)
    ids = inputs.pop("input_ids")
    cache = DynamicCache(config=adapter.model.config.get_text_config())
    kwargs = {**inputs, "past_key_values": cache}
    own = Stream.fresh(adapter, ids, kwargs)
    first = own.next(None)
    assert cache.get_seq_length() == 0
    main = Stream(adapter, ids, kwargs)
    assert torch.equal(main.next(None), first)
    assert cache.get_seq_length() == ids.shape[1]


@torch.no_grad()
def test_a_filled_cache_is_not_read_on_top_of() -> None:
    adapter = built("llava")
    inputs = dict(ZOO["llava"].inputs(adapter.model))
    ids = inputs.pop("input_ids")
    stream = Stream.fresh(adapter, ids, {**inputs, "past_key_values": DynamicCache()})
    stream.next(None)
    with pytest.raises(UnsupportedError) as caught:
        Stream(adapter, ids, {"past_key_values": stream.cache}).next(None)
    assert "main_stream" in str(caught.value.hint)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "gemma3", "mllama"])
def test_several_tokens_in_one_call_equal_single_steps(name: str) -> None:
    adapter = built(name)
    inputs = dict(ZOO[name].inputs(adapter.model))
    ids = inputs.pop("input_ids")
    one, many = (Stream.fresh(adapter, ids, {**inputs, "past_key_values": DynamicCache()}) for _ in range(2))
    for stream in (one, many):
        stream.next(None)
    new = torch.tensor([[40, 41, 42]])
    for i in range(3):
        want = one.next(new[:, i])
    torch.testing.assert_close(many.extend(new), want, atol=1e-5, rtol=1e-5)
    after = torch.tensor([7])
    torch.testing.assert_close(many.next(after), one.next(after), atol=1e-5, rtol=1e-5)
    assert many.cache.get_seq_length() == one.cache.get_seq_length() == ids.shape[1] + 4
