"""Prompts with the same beginning share its prefill: the same logits and relevance, and only where that is so."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

import limelight
from limelight.errors import SettingError
from limelight.models.adapter import Adapter
from limelight.relevance.composites import ATTN_LRP, COMPOSITES, PA_LRP, Composite
from limelight.relevance.forward.prefix import SHORTEST, PrefixCache
from tests.relevance.forward.helpers import after, close, stream
from tests.tiny import fresh, llava, llava_inputs
from tests.wide import prompt, wide
from tests.zoo import FOUNDATION

TOKENS = [[9], [55], [33]]


def ending(adapter: Adapter, inputs: dict[str, torch.Tensor], token: int, more: int = 0) -> dict[str, torch.Tensor]:
    """The same prompt with another last token, and more behind it."""
    ids = torch.cat([inputs["input_ids"], torch.full((1, more), token)], dim=1)
    ids[0, -1] = token
    known = {
        k: v
        for k, v in inputs.items()
        if k not in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
    }
    return adapter.complete({**known, "input_ids": ids, "attention_mask": torch.ones_like(ids)})


@pytest.mark.parametrize("composite", [c for c in COMPOSITES.values() if c.forward], ids=lambda c: c.name)
def test_what_is_shared_changes_nothing(composite: Composite) -> None:
    adapter = wide("llava")
    first, _, _ = prompt("llava", adapter)
    known = PrefixCache()
    for token, more in ((12, 0), (40, 3), (41, 5)):
        inputs = ending(adapter, first, token, more)
        call = adapter.capture(inputs).cloned()
        media = adapter.modality_ids(inputs) > 0
        adapter.prefix_cache = None
        want = after(stream(adapter, call, media, composite), TOKENS)
        adapter.prefix_cache = known
        got = after(stream(adapter, call, media, composite), TOKENS)
        close(got[0], want[0])
        close(got[1], want[1])
    adapter.prefix_cache = None
    assert (known.hits, known.misses) == (2, 1)
    assert known.reused >= 2 * SHORTEST


@pytest.mark.parametrize("name", FOUNDATION)
def test_every_family_is_right_whether_it_shares_or_not(name: str) -> None:
    adapter = wide(name)
    first, _, _ = prompt(name, adapter)
    known = PrefixCache()
    for token in (12, 40):
        inputs = ending(adapter, dict(first), token, 2)
        call = adapter.capture(inputs).cloned()
        media = adapter.modality_ids(inputs) > 0
        want = after(stream(adapter, call, media), TOKENS)
        adapter.prefix_cache = known
        try:
            got = after(stream(adapter, call, media), TOKENS)
        finally:
            adapter.prefix_cache = None
        close(got[0], want[0])
        close(got[1], want[1])


def test_another_picture_or_other_channels_or_weights_share_nothing() -> None:
    model = llava()
    adapter = Adapter(model)
    inputs = llava_inputs(model)
    known = adapter.prefix_cache = PrefixCache(entries=2)

    def run(given: dict[str, torch.Tensor], composite: Composite = ATTN_LRP) -> None:
        media = adapter.modality_ids(given) > 0
        stream(adapter, adapter.capture(given).cloned(), media, composite).prefill()

    run(inputs)
    run({**inputs, "pixel_values": -inputs["pixel_values"]})
    run(inputs, PA_LRP)
    assert (known.hits, known.misses) == (0, 3)
    run(inputs, PA_LRP)
    assert known.hits == 1
    with torch.no_grad():
        adapter.decoder.layers[0].self_attn.q_proj.weight.mul_(1.5)
    run(inputs, PA_LRP)
    assert known.hits == 1
    assert known.bytes() > 0
    known.clear()
    assert known.bytes() == 0


def test_the_most_recently_used_are_kept_and_a_continued_one_is_replaced() -> None:
    model = llava()
    adapter = Adapter(model)
    inputs = llava_inputs(model)
    known = adapter.prefix_cache = PrefixCache(entries=2)

    def run(factor: float, more: int = 0) -> int:
        given = ending(adapter, {**inputs, "pixel_values": factor * inputs["pixel_values"]}, 12, more)
        before = known.hits
        media = adapter.modality_ids(given) > 0
        stream(adapter, adapter.capture(given).cloned(), media).prefill()
        return known.hits - before

    assert [run(1), run(2), run(1, 2), run(3), run(1), run(2)] == [0, 0, 1, 0, 1, 0]
    assert len(known._prompts) == 2


def test_a_model_that_is_dropped_is_not_held() -> None:
    adapter = fresh("llava")
    known = adapter.prefix_cache = PrefixCache()
    inputs, call, media = prompt("llava", adapter)
    stream(adapter, call, media).prefill()
    decoder = known._prompts[0].decoder
    del adapter, inputs, call, media
    gc.collect()
    assert decoder() is None


def test_batches_and_padding_run_as_without_it() -> None:
    adapter = wide("llava")
    _, call, media = prompt("llava", adapter, None)
    known = adapter.prefix_cache = PrefixCache()
    try:
        for _ in range(2):
            stream(adapter, call, media).prefill()
    finally:
        adapter.prefix_cache = None
    assert known.bytes() == 0
    with pytest.raises(SettingError, match="at least one entry"):
        PrefixCache(0)


@pytest.mark.parametrize("strategy", ["meter", "relevance-contrastive", "lime-cached"])
def test_several_questions_about_one_picture(strategy: str) -> None:
    adapter = limelight.load("demo-vision")
    scene = str(Path(limelight.__file__).parent / "demo" / "vision" / "examples" / "E-wrong-000.png")
    questions = ["Is there a dog in the picture?", "Is there a cup in the picture?", "Describe the picture."]
    want = [
        limelight.generate(adapter, messages=q, media=scene, strategy=strategy, max_new_tokens=8) for q in questions
    ]
    known = adapter.prefix_cache = limelight.PrefixCache()
    got = [limelight.generate(adapter, messages=q, media=scene, strategy=strategy, max_new_tokens=8) for q in questions]
    for a, b in zip(got, want, strict=True):
        assert a.token_ids == b.token_ids
        for x, y in zip(a.steps, b.steps, strict=True):
            assert x.grounding == pytest.approx(y.grounding, abs=1e-3)
    assert known.hits == 2
    adapter.prefix_cache = None
