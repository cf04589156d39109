"""Relevance of pixels: a slow twin of the encoder, conservation, plain autograd, and refusals that name the module."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from limelight.errors import HookError, SettingError, UnknownKindError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import register
from limelight.relevance.attribute import attribute, attribute_generated, following_rules
from limelight.relevance.composites import ATTN_LRP, CP_LRP, GRADIENT_INPUT, RES_LRP, Composite
from limelight.relevance.encoder import encoder_matches
from tests.relevance.test_encoder_states import without_constants as bare
from tests.slow_twins import clip
from tests.tiny import fresh, llava, llava_inputs, snapshot
from tests.wide import prompt

MEDIA = slice(3, 19)


def world() -> tuple[Any, Adapter, dict[str, Any]]:
    """LLaVA in float64, softmax too."""
    model = llava()
    register()
    model.set_attn_implementation("limelight")
    return model, Adapter(model), llava_inputs(model)


def without_constants(model: Any) -> None:
    """No biases, learned tokens and positions in front of the decoder: nothing else keeps a part of the relevance."""
    inner = model.model
    with torch.no_grad():
        for name, parameter in [
            *inner.vision_tower.named_parameters(),
            *inner.multi_modal_projector.named_parameters(),
        ]:
            if name.endswith("bias") or "class_embedding" in name or "position_embedding" in name:
                parameter.zero_()


@pytest.mark.parametrize("composite", [ATTN_LRP, CP_LRP], ids=lambda c: c.name)
def test_agrees_with_the_slow_twin(composite: Composite) -> None:
    model, adapter, inputs = world()
    got = attribute(adapter, inputs, 17, composite=composite, through_encoder=True).media_inputs["pixel_values"]
    call = adapter.capture(inputs)
    with following_rules(adapter, composite, call) as leaves:
        logits = adapter.logits(adapter.hidden(leaves.call, leaves.embeds)[:, -1])
        (gradient,) = torch.autograd.grad(logits[0, 17], leaves.embeds)
    pixels = inputs["pixel_values"][0]
    torch.testing.assert_close(
        clip.tokens(model, pixels, (1, 1, 1)).detach(), call.embeds[0, MEDIA], atol=1e-10, rtol=0
    )
    want = clip.relevance(model, pixels, gradient[0, MEDIA], composite.attention)
    torch.testing.assert_close(got[0], want, atol=1e-9, rtol=0)


@pytest.mark.parametrize("target", [None, 17, 100])
def test_pixels_have_what_their_positions_had(target: int | None) -> None:
    """CP-LRP conserves through the encoder, to what the stabiliser of 1e-10 takes."""
    model, adapter, inputs = world()
    without_constants(model)
    got = attribute(adapter, inputs, target, composite=CP_LRP, through_encoder=True)
    assert float(got.media_inputs["pixel_values"].sum()) == pytest.approx(got.total("image"), abs=1e-7)
    assert got.media_inputs["pixel_values"].shape == inputs["pixel_values"].shape
    lossy = attribute(adapter, inputs, target, composite=ATTN_LRP, through_encoder=True)
    assert abs(float(lossy.media_inputs["pixel_values"].sum()) - lossy.total("image")) > 1e-4  # the encoder's softmax


def test_residual_additions_of_the_encoder_go_by_reslrp() -> None:
    model, adapter, inputs = world()
    without_constants(model)
    both = {c.name: attribute(adapter, inputs, 17, composite=c, through_encoder=True) for c in (RES_LRP, ATTN_LRP)}
    reslrp, attnlrp = (found.media_inputs["pixel_values"] for found in both.values())
    assert not torch.allclose(reslrp, attnlrp, rtol=1e-2)
    # the decoder's gradient held fixed, the encoder alone conserves at each addition: CP-LRP's attention with it
    conserving = Composite("res-cp", {**RES_LRP.rules}, (0, 0, 1))
    got = attribute(adapter, inputs, 17, composite=conserving, through_encoder=True)
    assert float(got.media_inputs["pixel_values"].sum()) == pytest.approx(got.total("image"), abs=1e-7)


def test_without_rules_it_is_plain_autograd() -> None:
    model, adapter, inputs = world()
    got = attribute(adapter, inputs, 17, composite=GRADIENT_INPUT, through_encoder=True)
    leaf = inputs["pixel_values"].clone().requires_grad_(True)
    logit = model(**{**inputs, "pixel_values": leaf}).logits[0, -1, 17]
    (grad,) = torch.autograd.grad(logit, leaf)
    torch.testing.assert_close(got.media_inputs["pixel_values"], (leaf * grad).detach(), atol=1e-9, rtol=0)


def test_the_scores_of_positions_are_the_same_and_the_model_is_left_alone() -> None:
    model, adapter, inputs = world()
    attribute(adapter, inputs, 17)
    before = snapshot(model)
    got = attribute(adapter, inputs, 17, through_encoder=True)
    assert snapshot(model) == before
    assert torch.equal(got.scores, attribute(adapter, inputs, 17).scores)
    assert attribute(adapter, inputs, 17).media_inputs == {}


@pytest.mark.parametrize("composite", [ATTN_LRP, GRADIENT_INPUT], ids=lambda c: c.name)
def test_every_token_of_an_answer_is_carried_through(composite: Composite) -> None:
    """As each token alone, with the answer before it as a part of the prompt."""
    _, adapter, inputs = world()
    said = [17, 23, 29]
    found = attribute_generated(adapter, inputs, said, composite=composite, through_encoder=True)
    for j, (token, got) in enumerate(zip(said, found, strict=True)):
        ids = torch.cat([inputs["input_ids"], torch.tensor([said[:j]], dtype=torch.long)], dim=1)
        longer = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        want = attribute(adapter, longer, token, composite=composite, through_encoder=True)
        torch.testing.assert_close(
            got.media_inputs["pixel_values"], want.media_inputs["pixel_values"], atol=1e-10, rtol=1e-7
        )
    assert not torch.allclose(found[0].media_inputs["pixel_values"], found[2].media_inputs["pixel_values"], rtol=1e-2)
    (last,) = attribute_generated(
        adapter, inputs, said, composite=composite, last_only=True, against=23, through_encoder=True
    )
    other = attribute(adapter, longer, 29, against=23, composite=composite, through_encoder=True)
    torch.testing.assert_close(
        last.media_inputs["pixel_values"], other.media_inputs["pixel_values"], atol=1e-10, rtol=1e-7
    )
    with pytest.raises(SettingError, match="one row"):
        two = {k: torch.cat([v, v]) for k, v in inputs.items()}
        attribute_generated(adapter, two, said, through_encoder=True)


def test_an_unknown_module_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(16, 16, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(x @ self.weight)

    model = llava()
    vision = getattr(model.model.vision_tower, "vision_model", model.model.vision_tower)
    vision.encoder.layers[1].mlp.activation_fn = nn.Sequential(vision.encoder.layers[1].mlp.activation_fn)
    vision.encoder.layers[0].layer_norm2 = Odd()
    before = snapshot(model)
    with pytest.raises(UnknownKindError, match=r"layers\.0\.layer_norm2"):
        attribute(Adapter(model), llava_inputs(model), 17, through_encoder=True)
    assert snapshot(model) == before


def called_outside(function: Any, where: str) -> Adapter:
    """LLaVA in float64 without constants, with a function called after the last linear of its projector or its patch embeddings."""
    model = llava()
    without_constants(model)
    vision = getattr(model.model.vision_tower, "vision_model", model.model.vision_tower)
    part = model.model.multi_modal_projector.linear_2 if where == "linear_2" else vision.embeddings
    own = part.forward
    part.forward = lambda *args, **kwargs: function(own(*args, **kwargs))
    return Adapter(model)


@pytest.mark.parametrize("where", ["linear_2", "embeddings"])
def test_functions_outside_of_modules_have_a_rule_or_are_named(where: str) -> None:
    adapter = called_outside(nn.functional.gelu, where)
    got = attribute(adapter, llava_inputs(adapter.model), 17, composite=CP_LRP, through_encoder=True)
    assert float(got.media_inputs["pixel_values"].sum()) == pytest.approx(got.total("image"), abs=1e-7)
    with pytest.raises(UnsupportedError, match=f"{where} .*sigmoid"):
        adapter = called_outside(torch.sigmoid, where)
        attribute(adapter, llava_inputs(adapter.model), 17, through_encoder=True)


def test_an_activation_called_as_a_function_goes_by_the_rule_of_its_module() -> None:
    model, other = llava(), llava()
    inputs = llava_inputs(model)
    projector = other.model.multi_modal_projector
    assert isinstance(projector.act, nn.Module)
    del projector.act
    projector.forward = lambda x: projector.linear_2(nn.functional.gelu(projector.linear_1(x)))
    want, got = (
        attribute(Adapter(m), inputs, 17, through_encoder=True).media_inputs["pixel_values"] for m in (model, other)
    )
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_no_media_and_several_rows() -> None:
    model, adapter, inputs = world()
    with pytest.raises(SettingError, match="expected media"):
        attribute(adapter, {"input_ids": torch.tensor([[1, 31, 32]])}, 17, through_encoder=True)
    two = {k: torch.cat([v, v]) for k, v in inputs.items()}
    with pytest.raises(SettingError, match="one row"):
        attribute(adapter, two, 17, through_encoder=True)


@pytest.mark.parametrize(
    "name", ["qwen2_5_vl", "qwen2_audio", "got_ocr2", "fuyu", "perception_lm", "qwen2_5_omni_thinker", "qwen3_asr"]
)
def test_families_conserve_through_their_encoders(name: str) -> None:
    """Gated MLPs, convolutions, norms over channels, one linear without a config, a timm encoder, a table of sinusoids."""
    adapter = bare(fresh(name, torch.float64))
    for _, table in adapter.parent_model.named_buffers():
        if table.ndim == 2:  # sinusoids that are added to the states
            table.zero_()
    inputs, _, _ = prompt(name, adapter)
    got = attribute(adapter, inputs, 3, composite=CP_LRP, through_encoder=True)
    total = sum(got.total(kind) for kind in ("image", "audio"))
    assert abs(total) > 1e-3
    assert sum(float(v.sum()) for v in got.media_inputs.values()) == pytest.approx(total, abs=1e-6)
    assert all(v.shape == inputs[k].shape and bool((v != 0).any()) for k, v in got.media_inputs.items())


@pytest.mark.parametrize("name", ["qwen2_5_vl", "got_ocr2"])
def test_sixteen_bits_are_near_the_same(name: str) -> None:
    wide, narrow = (fresh(name, dtype) for dtype in (torch.float32, torch.bfloat16))
    want, got = (
        attribute(a, prompt(name, a)[0], 3, composite=CP_LRP, through_encoder=True).media_inputs["pixel_values"]
        for a in (wide, narrow)
    )
    assert got.dtype is torch.float32
    assert float(torch.nn.functional.cosine_similarity(got.flatten(), want.flatten(), dim=0)) > 0.98


@pytest.mark.parametrize(
    ("name", "reason"), [("qwen3_vl", "beside its embeddings"), ("mllama", "beside its embeddings|gated_positional")]
)
def test_a_family_without_rules_is_refused_with_the_reason(name: str, reason: str) -> None:
    adapter = fresh(name)
    with pytest.raises((UnsupportedError, UnknownKindError), match=reason) as refused:
        attribute(adapter, prompt(name, adapter)[0], 3, through_encoder=True)
    assert "leave the encoder out" in refused.value.hint


def attention_of(model: Any, layer: int) -> Any:
    vision = getattr(model.model.vision_tower, "vision_model", model.model.vision_tower)
    return vision.encoder.layers[layer].self_attn


def test_attention_that_bypasses_the_rule_is_named_although_another_runs_twice() -> None:
    model = llava()
    attention_of(model, 0).forward = lambda hidden_states, **_: (attention_of(model, 0).v_proj(hidden_states), None)
    own = attention_of(model, 1).forward
    attention_of(model, 1).forward = lambda hidden_states, **more: own(own(hidden_states, **more)[0], **more)
    with pytest.raises(HookError, match=r"layers\.0\.self_attn") as raised:
        attribute(Adapter(model), llava_inputs(model), 17, through_encoder=True)
    assert "layers.1" not in raised.value.message


def test_attention_that_does_not_run_needs_no_rule() -> None:
    model, spare = llava(), llava()
    spare.model.vision_tower.add_module("unused", copy.deepcopy(attention_of(spare, 0)))
    got, want = (
        attribute(Adapter(m), llava_inputs(m), 17, through_encoder=True).media_inputs["pixel_values"]
        for m in (spare, model)
    )
    assert torch.equal(got, want)


def test_batch_norms_are_linear_by_their_running_statistics_only() -> None:
    assert encoder_matches({"norm": nn.BatchNorm1d(4).eval()}, {}) == []
    for module in (nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False).eval()):
        with pytest.raises(UnknownKindError, match="BatchNorm1d"):
            encoder_matches({"norm": module}, {})
