"""Blocks within blocks: the innermost rules hold as if they were alone, and those around them are back afterwards."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from limelight.decoding.loop import custom_generate
from limelight.decoding.methods.greedy import greedy
from limelight.decoding.methods.lime import lime
from limelight.decoding.methods.lime_cached import lime_cached
from limelight.decoding.methods.meter import meter
from limelight.decoding.methods.relevance_contrastive import relevance_contrastive
from limelight.errors import HookError, UnsupportedError
from limelight.models.adapter import Adapter, wrap
from limelight.models.runtime.attention import AttentionHook, attention_hooks
from limelight.relevance.attachment import _HELD, attached
from limelight.relevance.attribute import attribute, attribute_generated, input_relevance
from limelight.relevance.composites import (
    ATTN_LRP,
    CP_LRP,
    CP_LRP_LINEAR,
    GRADIENT_INPUT,
    RELEASED_AUDIO,
    RES_LRP,
    Composite,
)
from limelight.relevance.forward.stream import DualStream, modality_channel
from tests.tiny import built, fresh, llava, llava_inputs, snapshot
from tests.zoo import ZOO

ALL = [ATTN_LRP, CP_LRP, GRADIENT_INPUT, RELEASED_AUDIO]  # those that go everywhere
NAMES = ("llava_gqa", "paligemma2", "qwen3_5", "qwen3_vl_moe", "gemma3n", "lfm2_vl", "qwen2_audio")
pairs = pytest.mark.parametrize(("outer", "inner"), [(a, b) for a in ALL for b in ALL], ids=lambda c: c.name)


def own(adapter: Adapter, inputs: Any, target: int = 9) -> Tensor:
    """Relevance by hand, under whatever is attached now."""
    call = adapter.capture(inputs)
    with torch.enable_grad(), adapter.frozen():
        embeds = call.embeds.clone().requires_grad_(True)
        logits = adapter.logits(adapter.hidden(call, embeds)[:, -1])[0]
        return input_relevance(logits[target], embeds)[0].detach()


def by_hand(adapter: Adapter, inputs: Any, composite: Composite, *hooks: AttentionHook) -> Tensor:
    with attached(adapter, composite, *hooks):
        return own(adapter, inputs)


@pairs
@pytest.mark.parametrize("name", NAMES)
def test_every_pair_holds_inside_and_is_back_afterwards(name: str, outer: Composite, inner: Composite) -> None:
    adapter = built(name)
    inputs = ZOO[name].inputs(adapter.model)
    alone = {c.name: by_hand(adapter, inputs, c) for c in (outer, inner)}
    called = attribute(adapter, inputs, 9, composite=inner)
    before, scalars = snapshot(adapter.model), adapter.head_scalars
    with attached(adapter, outer):
        assert torch.equal(by_hand(adapter, inputs, inner), alone[inner.name])
        again = attribute(adapter, inputs, 9, composite=inner)
        assert torch.equal(again.scores, called.scores)
        assert again.logit == called.logit
        assert torch.equal(own(adapter, inputs), alone[outer.name])
    assert snapshot(adapter.model) == before
    assert adapter.head_scalars is scalars
    assert not _HELD


@pytest.mark.parametrize("inner", [RES_LRP, CP_LRP_LINEAR], ids=lambda c: c.name)
@pytest.mark.parametrize("outer", [ATTN_LRP, RES_LRP, CP_LRP_LINEAR], ids=lambda c: c.name)
def test_newer_rules_take_turns_too(outer: Composite, inner: Composite) -> None:
    test_every_pair_holds_inside_and_is_back_afterwards("llava_gqa", outer, inner)


def test_the_composites_of_the_pairs_tell_each_other_apart() -> None:
    adapter = built("llava_gqa")
    inputs = ZOO["llava_gqa"].inputs(adapter.model)
    found = [by_hand(adapter, inputs, c) for c in ALL]
    assert all(float((a - b).abs().max()) > 1e-2 for i, a in enumerate(found) for b in found[:i])


def test_three_deep_and_two_wrappers_of_one_model() -> None:
    model = llava()
    one, other, inputs = Adapter(model), wrap(model), llava_inputs(model)
    alone = {c.name: by_hand(one, inputs, c) for c in ALL}
    called = attribute(model, inputs, 9, composite=CP_LRP).scores
    before = snapshot(model)
    with attached(one, ATTN_LRP):
        with attached(other, CP_LRP):
            with attached(one, ATTN_LRP):
                assert torch.equal(own(other, inputs), alone["attnlrp"])
                assert torch.equal(attribute(model, inputs, 9, composite=CP_LRP).scores, called)
                assert torch.equal(own(one, inputs), alone["attnlrp"])
            assert torch.equal(own(one, inputs), alone["cp-lrp"])
        assert torch.equal(own(one, inputs), alone["attnlrp"])
    assert snapshot(model) == before


@pytest.mark.parametrize("composite", ALL, ids=lambda c: c.name)
def test_rules_of_one_model_do_not_reach_another(composite: Composite) -> None:
    first, second = Adapter(llava()), Adapter(llava(seed=1))
    inputs = llava_inputs(second.model)
    alone = {c.name: attribute(second, inputs, 9, composite=c).scores for c in ALL}
    hand, plain = by_hand(first, inputs, composite), by_hand(second, inputs, GRADIENT_INPUT)
    with attached(first, composite):
        for other in ALL:
            assert torch.equal(attribute(second, inputs, 9, composite=other).scores, alone[other.name])
        assert torch.equal(own(second, inputs), plain)
        with attached(second, CP_LRP):
            assert torch.equal(own(first, inputs), hand)


class Louder(AttentionHook):
    """Values times 1.5; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def qkv(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.calls += 1
        return q, k, v * 1.5


class Sharper(Louder):
    """Scores times 1.5, which the fused kernel has no place for."""

    def qkv(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.calls += 1
        return q, k, v

    def scores(self, layer: int, scores: Tensor) -> Tensor:
        return scores * 1.5


@pairs
@pytest.mark.parametrize("kind", [Louder, Sharper])
def test_hooks_of_the_caller_stay_and_run_once(kind: type[Louder], outer: Composite, inner: Composite) -> None:
    adapter = Adapter(llava())
    inputs = llava_inputs(adapter.model)
    want, outside = (by_hand(adapter, inputs, c, kind()) for c in (inner, outer))
    assert float((want - by_hand(adapter, inputs, inner)).abs().max()) > 1e-2
    before, hook = snapshot(adapter.model), kind()
    with attached(adapter, outer, hook):
        assert torch.equal(by_hand(adapter, inputs, inner), want)
        assert torch.equal(by_hand(adapter, inputs, inner, hook), want)
        assert hook.calls == 2 * 2  # two layers, two runs
        torch.testing.assert_close(attribute(adapter, inputs, 9, composite=inner).scores, want, atol=1e-12, rtol=0)
        assert torch.equal(own(adapter, inputs), outside)
    assert snapshot(adapter.model) == before


def test_the_rule_keeps_its_place_among_the_hooks() -> None:
    """A hook in front of the rule and one behind it are still there when a block within exchanges the rule."""
    adapter = Adapter(llava())
    inputs = llava_inputs(adapter.model)
    order: list[str] = []

    class Says(AttentionHook):
        def __init__(self, name: str) -> None:
            self.name = name

        def qkv(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            order.append(f"{self.name} {type(v.grad_fn).__name__}")
            return q, k, v

    for outer in ALL:
        with (
            attention_hooks(Says("front")),
            attached(adapter, outer, Says("behind")),
            attached(adapter, ATTN_LRP, Says("last")),
        ):
            order.clear()
            own(adapter, inputs)
        assert [o.split()[0] for o in order[:3]] == ["front", "behind", "last"]
        assert "Scaled" not in order[0]
        assert "Scaled" in order[1]
        assert "Scaled" in order[2]


def test_an_exception_within_puts_the_outer_rules_back() -> None:
    adapter = Adapter(llava())
    inputs = llava_inputs(adapter.model)
    outside = by_hand(adapter, inputs, ATTN_LRP)
    before = snapshot(adapter.model)

    class Failing(AttentionHook):
        def qkv(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            raise ZeroDivisionError

    with attached(adapter, ATTN_LRP):
        with pytest.raises(ZeroDivisionError), attached(adapter, CP_LRP, Failing()):
            own(adapter, inputs)
        assert torch.equal(own(adapter, inputs), outside)
        with pytest.raises(KeyboardInterrupt), attached(adapter, CP_LRP):
            raise KeyboardInterrupt
        assert torch.equal(own(adapter, inputs), outside)
    assert snapshot(adapter.model) == before
    with pytest.raises(ZeroDivisionError), attached(adapter, ATTN_LRP), attached(adapter, CP_LRP, Failing()):
        own(adapter, inputs)
    assert snapshot(adapter.model) == before
    assert not _HELD


STRATEGIES = {
    "greedy": greedy,
    "lime": lambda: lime(steps=3),
    "lime-cached": lambda: lime_cached(),
    "meter": meter,
    "relevance-contrastive": relevance_contrastive,
}


def answered(adapter: Adapter, inputs: Any, name: str, on_step: Any = None) -> tuple[list[int], list[Any]]:
    shares: list[Any] = []

    def note(row: int, step: Any) -> None:
        shares.append(dict(step.shares))
        if on_step is not None:
            on_step(row, step)

    fn = custom_generate(STRATEGIES[name](), details=True, parent_model=adapter, on_step=note)  # type: ignore[operator]
    with torch.no_grad():
        ids = adapter.model.generate(**inputs, custom_generate=fn, max_new_tokens=3, do_sample=False)
    return ids[0].tolist(), shares


@pytest.mark.parametrize("composite", ALL, ids=lambda c: c.name)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies_inside_a_block(strategy: str, composite: Composite) -> None:
    adapter = built("llava_gqa")
    inputs = ZOO["llava_gqa"].inputs(adapter.model)
    want, hand = answered(adapter, inputs, strategy), by_hand(adapter, inputs, composite)
    before = snapshot(adapter.model)
    with attached(adapter, composite):
        assert answered(adapter, inputs, strategy) == want
        assert torch.equal(own(adapter, inputs), hand)
    assert snapshot(adapter.model) == before


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_attaching_between_the_steps_of_an_answer(strategy: str) -> None:
    adapter = built("llava_gqa")
    inputs = ZOO["llava_gqa"].inputs(adapter.model)
    want, alone = answered(adapter, inputs, strategy), by_hand(adapter, inputs, ATTN_LRP)
    called = attribute(adapter, inputs, 9, composite=CP_LRP).scores
    seen: list[bool] = []

    def look(row: int, step: Any) -> None:
        with attached(adapter, ATTN_LRP):
            seen.append(torch.equal(own(adapter, inputs), alone))
            seen.append(torch.equal(attribute(adapter, inputs, 9, composite=CP_LRP).scores, called))

    before = snapshot(adapter.model)
    assert answered(adapter, inputs, strategy, look) == want
    assert seen == [True] * 6
    assert snapshot(adapter.model) == before


def test_twins_built_inside_a_block_are_those_of_the_bare_model() -> None:
    adapter = fresh("llava_gqa")  # nothing of it is known yet
    inputs = ZOO["llava_gqa"].inputs(adapter.model)
    call = adapter.capture(inputs)
    channel = modality_channel(adapter.modality_ids(inputs) > 0, call.mask)
    with attached(adapter, ATTN_LRP):
        stream = DualStream(adapter, call, [channel])
        inside = stream.heads(stream.prefill())[1]
    again = DualStream(adapter, call, [channel])
    want = again.heads(again.prefill())[1]
    assert torch.equal(inside, want)
    stream.append(torch.tensor([9]))
    again.append(torch.tensor([9]))
    assert torch.equal(stream.heads(stream.current())[1], again.heads(again.current())[1])


def test_a_block_within_a_running_forward_is_refused() -> None:
    adapter = fresh("llava_gqa")
    inputs = ZOO["llava_gqa"].inputs(adapter.model)
    want = by_hand(adapter, inputs, ATTN_LRP)
    before = snapshot(adapter.model)
    handle = adapter.decoder.layers[1].register_forward_hook(lambda *_: attribute(adapter, inputs))
    try:
        with attached(adapter, ATTN_LRP), pytest.raises(HookError) as caught:
            own(adapter, inputs)
    finally:
        handle.remove()
    assert "during a forward" in str(caught.value)
    assert caught.value.hint
    assert snapshot(adapter.model) == before
    with attached(adapter, ATTN_LRP):
        assert torch.equal(own(adapter, inputs), want)


def test_twins_refuse_hooks_that_they_would_not_run() -> None:
    adapter = built("llava_gqa")
    inputs = ZOO["llava_gqa"].inputs(adapter.model)
    before = snapshot(adapter.model)
    for block in (attention_hooks(Louder()), attached(adapter, ATTN_LRP, Louder())):
        with pytest.raises(UnsupportedError) as caught, block:
            answered(adapter, inputs, "meter")
        assert "Louder" in str(caught.value)
        assert caught.value.hint
    assert snapshot(adapter.model) == before


def test_another_thread_waits_for_the_block_and_gets_its_own_value() -> None:
    adapter = Adapter(llava())
    inputs = llava_inputs(adapter.model)
    want, got = attribute(adapter, inputs, 9, composite=CP_LRP).scores, []
    thread = threading.Thread(target=lambda: got.append(attribute(adapter, inputs, 9, composite=CP_LRP).scores))
    with attached(adapter, ATTN_LRP):
        thread.start()
        with attached(adapter, GRADIENT_INPUT):
            own(adapter, inputs)
    thread.join(120)
    assert not thread.is_alive()
    assert torch.equal(got[0], want)


def test_several_tokens_inside_a_block() -> None:
    adapter = built("llava_gqa")
    inputs = ZOO["llava_gqa"].inputs(adapter.model)
    want = [r.scores for r in attribute_generated(adapter, inputs, [9, 17, 40])]
    with attached(adapter, CP_LRP):
        got = [r.scores for r in attribute_generated(adapter, inputs, [9, 17, 40])]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
