"""attribute(): agreement with the slow twin, exact properties in float64, targets, and layouts of the scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from limelight.errors import (
    SettingError,
)
from limelight.models.adapter import Adapter
from limelight.relevance.attachment import attached
from limelight.relevance.attribute import attribute, attribute_generated, input_relevance
from limelight.relevance.composites import ATTN_LRP, CP_LRP, GRADIENT_INPUT, RELEASED_AUDIO, Composite
from tests.slow_twins import attnlrp
from tests.slow_twins.balance import sheet
from tests.slow_twins.llama import forward, weights_of
from tests.tiny import built, llava, llava_inputs
from tests.zoo import ZOO

COMPOSITES = [ATTN_LRP, CP_LRP, GRADIENT_INPUT, RELEASED_AUDIO]
every_composite = pytest.mark.parametrize("composite", COMPOSITES, ids=lambda c: c.name)


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return Adapter(llava())


@pytest.fixture
def inputs(adapter: Adapter) -> dict[str, Tensor]:
    return llava_inputs(adapter.model)


TWINS: dict[str, dict[str, Any]] = {
    "attnlrp": {}, "cp-lrp": {"cp": True}, "cp-lrp-linear": {"cp": True, "gates": False}, "reslrp": {"gamma": 1.0},
    "pa-lrp": {"positions": True},
}  # fmt: skip


@pytest.mark.parametrize("composite", TWINS)
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_relevance_carried_down_layer_by_layer(composite: str, seed: int) -> None:
    model = llava(seed=seed)
    adapter = Adapter(model)
    embeds = adapter.capture(llava_inputs(model)).embeds[0]
    for target in (None, 17, 100):
        got = attribute(adapter, llava_inputs(model), target, composite=composite)
        want = attnlrp.attribute(weights_of(model), embeds, got.target, **TWINS[composite])
        torch.testing.assert_close(got.scores, want, atol=1e-10, rtol=0)


SHAPES: dict[str, dict[str, Any]] = {
    "one key head": {"num_key_value_heads": 1}, "every head its own": {"num_key_value_heads": 4},
    "wide heads": {"head_dim": 12}, "three layers": {"num_hidden_layers": 3}, "one layer": {"num_hidden_layers": 1},
    "tied": {"tie_word_embeddings": True}, "other base": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
}  # fmt: skip


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("composite", TWINS)
def test_agrees_whatever_the_shape(composite: str, changes: dict[str, Any]) -> None:
    model = llava(**changes)
    adapter = Adapter(model)
    embeds = adapter.capture(llava_inputs(model)).embeds[0]
    got = attribute(adapter, llava_inputs(model), 17, composite=composite)
    want = attnlrp.attribute(weights_of(model), embeds, 17, **TWINS[composite])
    torch.testing.assert_close(got.scores, want, atol=1e-9, rtol=0)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("composite", [ATTN_LRP, CP_LRP], ids=lambda c: c.name)
def test_the_sheet_balances_whatever_the_shape(composite: Composite, changes: dict[str, Any]) -> None:
    model = llava(**changes)
    balance = sheet(Adapter(model), llava_inputs(model), composite)
    assert sum(v for k, v in balance.items() if k != "logit") == pytest.approx(balance["logit"], abs=1e-12)


def test_gradient_input_is_plain_autograd(adapter: Adapter, inputs: dict[str, Tensor]) -> None:
    embeds = adapter.capture(inputs).embeds.clone().requires_grad_(True)
    logits = forward(weights_of(adapter.model), embeds[0])
    got = attribute(adapter, inputs, composite=GRADIENT_INPUT)
    (gradient,) = torch.autograd.grad(logits[got.target], embeds)
    torch.testing.assert_close(got.scores, (gradient * embeds.detach()).sum(-1)[0], atol=1e-12, rtol=0)


def test_cp_lrp_conserves_exactly_without_biases(adapter: Adapter, inputs: dict[str, Tensor]) -> None:
    """Sum of relevance = logit, up to the stabiliser of 1e-10, which is counted."""
    for target in (None, 3, 90):
        got = sheet(adapter, inputs, CP_LRP, target)
        assert got["bias"] == got["attention"] == 0.0
        assert got["relevance"] == pytest.approx(got["logit"], abs=1e-8)
        assert got["relevance"] + got["eps"] == pytest.approx(got["logit"], abs=1e-13)


def test_attnlrp_loses_to_the_softmax_and_to_nothing_else(adapter: Adapter, inputs: dict[str, Tensor]) -> None:
    got = sheet(adapter, inputs, ATTN_LRP)
    assert abs(got["attention"]) > 0.01
    assert got["relevance"] + got["attention"] + got["eps"] == pytest.approx(got["logit"], abs=1e-13)


def test_with_attention_left_alone_its_scores_count_twice(adapter: Adapter, inputs: dict[str, Tensor]) -> None:
    """What the released code runs on Qwen2-Audio: exact in its own way, and far from conserving."""
    got = sheet(adapter, inputs, RELEASED_AUDIO)
    assert abs(got["relevance"] - got["logit"]) > 0.1
    assert got["relevance"] + got["attention"] + got["eps"] == pytest.approx(got["logit"], abs=1e-13)


@pytest.mark.parametrize("composite", [ATTN_LRP, CP_LRP], ids=lambda c: c.name)
def test_biases_take_their_part(composite: Composite) -> None:
    model = llava(attention_bias=True, mlp_bias=True)
    got = sheet(Adapter(model), llava_inputs(model), composite)
    assert abs(got["bias"]) > 1e-3
    total = got["relevance"] + got["bias"] + got["attention"] + got["eps"]
    assert total == pytest.approx(got["logit"], abs=1e-12)


@every_composite
def test_linear_in_the_target(adapter: Adapter, inputs: dict[str, Tensor], composite: Composite) -> None:
    """R(a l(u) + b l(v)) = a R(u) + b R(v)."""
    call = adapter.capture(inputs)
    with attached(adapter, composite):
        embeds = call.embeds.clone().requires_grad_(True)
        logits = adapter.logits(adapter.hidden(call, embeds)[:, -1])[0]
        mixed = input_relevance(2.0 * logits[7] - 3.5 * logits[64], embeds)[0]
    one, other = (attribute(adapter, inputs, t, composite=composite).scores for t in (7, 64))
    torch.testing.assert_close(mixed, 2.0 * one - 3.5 * other, atol=1e-12, rtol=0)


@every_composite
def test_rules_do_not_touch_values(adapter: Adapter, inputs: dict[str, Tensor], composite: Composite) -> None:
    with torch.no_grad():
        want = adapter.logits(adapter.hidden(adapter.capture(inputs)))
    with attached(adapter, composite):
        embeds = adapter.capture(inputs).embeds.requires_grad_(True)
        got = adapter.logits(adapter.hidden(adapter.capture(inputs), embeds))
    assert torch.equal(got.detach(), want)


def test_composites_differ(adapter: Adapter, inputs: dict[str, Tensor]) -> None:
    found = [attribute(adapter, inputs, 5, composite=c).scores for c in COMPOSITES]
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            assert float((one - other).abs().max()) > 1e-3


def test_second_derivatives_are_those_of_the_written_rules(adapter: Adapter, inputs: dict[str, Tensor]) -> None:
    """Through ``x / f + const(x - x / f)`` on the hand-written model: constants stay, factors act again."""
    call = adapter.capture(inputs)
    with attached(adapter, ATTN_LRP):
        embeds = call.embeds.clone().requires_grad_(True)
        ours = _second(adapter.logits(adapter.hidden(call, embeds)[:, -1])[0, 5], embeds)
    embeds = call.embeds.clone().requires_grad_(True)
    theirs = _second(forward(weights_of(adapter.model), embeds[0], rules=True)[5], embeds)
    plain = _second(forward(weights_of(adapter.model), embeds[0])[5], embeds)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    assert float((ours - plain).abs().max()) > 1e-2


def _second(logit: Tensor, embeds: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(logit, embeds, create_graph=True)
    (second,) = torch.autograd.grad((gradient * embeds.detach()).sum(), embeds)
    return second


def test_every_generated_token(adapter: Adapter, inputs: dict[str, Tensor]) -> None:
    """Each equals attribute() on the prompt that the token followed."""
    ids = [9, 44, 80]
    several = attribute_generated(adapter, inputs, ids)
    assert [r.target for r in several] == ids
    length = inputs["input_ids"].shape[1]
    for j, relevance in enumerate(several):
        assert relevance.scores.shape == (length + 2,)
        assert len(relevance.tokens) == length + 2
        assert relevance.position == length - 1 + j
        assert not relevance.scores[length + j :].any()
        longer = torch.cat([inputs["input_ids"], torch.tensor([ids[:j]], dtype=torch.long)], dim=1)
        want = attribute(adapter, {**inputs, "input_ids": longer, "attention_mask": torch.ones_like(longer)}, ids[j])
        torch.testing.assert_close(relevance.scores[: length + j], want.scores, atol=1e-12, rtol=0)
        assert relevance.logit == pytest.approx(want.logit, abs=1e-12)
        assert relevance.spans[-1].stop == length + 2
    last = attribute_generated(adapter, inputs, torch.tensor(ids), last_only=True)
    assert len(last) == 1
    assert torch.equal(last[0].scores, several[2].scores)
    with pytest.raises(SettingError) as caught:
        attribute_generated(adapter, inputs, [])
    assert caught.value.hint


def test_any_position_and_any_token(adapter: Adapter, inputs: dict[str, Tensor]) -> None:
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        logits = adapter.logits(adapter.hidden(adapter.capture(inputs)))[0]
    best = attribute(adapter, inputs)
    assert best.target == int(logits[-1].argmax())
    assert best.position == length - 1
    for position in (-3, length - 3):
        r = attribute(adapter, inputs, 11, position=position)
        assert r.logit == pytest.approx(float(logits[-3, 11]), abs=1e-12)
        assert r.position == length - 3
        assert not r.scores[length - 2 :].any()  # causal: nothing from later positions


@pytest.mark.parametrize("bad", [{"target": -1}, {"target": 128}, {"position": 99}, {"position": -99}], ids=str)
def test_targets_out_of_range_raise(adapter: Adapter, inputs: dict[str, Tensor], bad: dict[str, int]) -> None:
    with pytest.raises(SettingError) as caught:
        attribute(adapter, inputs, **bad)
    assert caught.value.hint


def test_a_row_that_is_not_there_raises(adapter: Adapter, inputs: dict[str, Tensor]) -> None:
    for row in (1, -1):
        with pytest.raises(SettingError) as caught:
            attribute(adapter, inputs, row=row)
        assert caught.value.hint


def test_sinks_are_left_out_of_shares(adapter: Adapter, inputs: dict[str, Tensor]) -> None:
    whole = attribute(adapter, inputs)
    clean = attribute(adapter, inputs, sinks=(0,))
    assert torch.equal(whole.scores, clean.scores)
    assert clean.sinks == (0,)
    assert clean.share("text") < whole.share("text")
    with pytest.raises(SettingError) as caught:
        attribute(adapter, inputs, sinks=(500,))
    assert caught.value.hint


def test_what_a_relevance_carries(adapter: Adapter, inputs: dict[str, Tensor]) -> None:
    r = attribute(adapter, inputs, 12)
    assert r.scores.dtype == torch.float64
    assert not r.scores.requires_grad
    assert r.tokens[3] == "<image>"
    assert r.tokens[0] == "<1>"
    assert r.target_token == "<12>"
    assert r.on_grid().shape == (4, 4)
    assert sum(r.shares().values()) == pytest.approx(1.0)
    single = attribute(built("llava"), ZOO["llava"].inputs(built("llava").model))
    assert single.scores.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("llava", (4, 4)), ("llava_next", (2, 2)), ("llava_onevision", (2, 2)), ("qwen2_vl", (2, 4)), ("qwen2_5_vl", (2, 4)),
        ("internvl", (3, 3)), ("idefics3", (2, 2)), ("smolvlm", (2, 2)), ("paligemma", (4, 4)), ("paligemma2", (4, 4)),
        ("gemma3", (2, 2)), ("mistral3", (2, 3)),
    ],
)  # fmt: skip
def test_scores_on_the_grid_of_every_family(name: str, shape: tuple[int, int]) -> None:
    r = attribute(built(name), ZOO[name].inputs(built(name).model))
    grid = r.on_grid()
    assert grid.shape == shape
    span = r.spans_of("image")[0]
    assert float(grid[0, 0]) == float(r.scores[span.start])
    assert float(grid[1, 0]) == float(r.scores[span.start + shape[1] + span.margin])


@pytest.mark.parametrize(("name", "each"), [("qwen2_audio", 0.04), ("audioflamingo3", 0.04), ("voxtral", 0.08)])
def test_scores_on_seconds_of_every_audio_family(name: str, each: float) -> None:
    r = attribute(built(name), ZOO[name].inputs(built(name).model))
    scores, seconds = r.on_seconds()
    assert seconds == pytest.approx(each)
    assert scores.shape == (ZOO[name].modalities["audio"],)
    assert r.share("audio") > 0


@pytest.mark.parametrize(
    ("name", "shape"), [("qwen2_5_vl_video", (2, 2, 2)), ("video_llava", (10, 2, 2)), ("llava_next_video", (2, 2, 2))]
)
def test_scores_on_the_frames_of_a_video(name: str, shape: tuple[int, int, int]) -> None:
    r = attribute(built(name), ZOO[name].inputs(built(name).model))
    assert r.on_grid(0, "video").shape == shape
