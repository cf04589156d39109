"""Relevance of an encoder-decoder's own media: a slow twin, conservation in every family, padding, and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limelight.errors import HookError, SettingError, UnknownKindError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.relevance.attribute import attribute, attribute_generated, following_rules
from limelight.relevance.composites import ATTN_LRP, CP_LRP, GRADIENT_INPUT, RES_LRP, Composite
from limelight.relevance.encoder import encoder_modules
from tests.models.test_encoder_decoder import WORKING, built, fresh, given
from tests.slow_twins import whisper
from tests.tiny import snapshot
from tests.zoo.encoder_decoder import PAIRED

families = pytest.mark.parametrize("name", WORKING)


def without_constants(adapter: Adapter) -> Adapter:
    """No biases, learned tokens, position tables and running means in the encoder: nothing else keeps relevance."""
    with torch.no_grad():
        for _, module in encoder_modules(adapter):
            for name, parameter in module.named_parameters(recurse=False):
                table = isinstance(module, nn.Embedding) or (parameter.ndim in (3, 4) and len(parameter) == 1)
                if name == "bias" or (table and not isinstance(module, nn.modules.conv._ConvNd)):
                    parameter.zero_()
            if isinstance(module, nn.BatchNorm1d) and module.running_mean is not None:
                module.running_mean.zero_()
    return adapter


@families
def test_the_inputs_have_what_the_states_had(name: str) -> None:
    """CP-LRP conserves through the encoder; AttnLRP loses what its softmaxes take."""
    adapter = without_constants(fresh(name, torch.float64))
    inputs, kind = given(name, adapter), PAIRED[name].modality
    assert adapter.encoder is not None
    for target in (None, 17):
        got = attribute(adapter, inputs, target, composite=CP_LRP, through_encoder=True)
        ((media, scores),) = got.media_inputs.items()
        assert (media, scores.shape) == (adapter.encoder.media, inputs[media].shape)
        assert abs(got.total(kind)) > 1e-3
        assert float(scores.sum()) == pytest.approx(got.total(kind), abs=1e-6)
    lossy = attribute(adapter, inputs, 17, composite=ATTN_LRP, through_encoder=True)
    assert abs(float(lossy.media_inputs[media].sum()) - lossy.total(kind)) > 1e-5


@families
def test_without_rules_it_is_plain_autograd(name: str) -> None:
    adapter = built(name, torch.float64)
    inputs = given(name, adapter)
    assert adapter.encoder is not None
    media = adapter.encoder.media
    got = attribute(adapter, inputs, 17, composite=GRADIENT_INPUT, through_encoder=True).media_inputs[media]
    leaf = inputs[media].clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(adapter.model(**{**inputs, media: leaf}).logits[0, -1, 17], leaf)
    torch.testing.assert_close(got, (leaf * grad).detach(), atol=1e-6, rtol=1e-3)  # their eager softmax is float32


@families
def test_the_states_keep_their_scores_and_the_model_is_left_alone(name: str) -> None:
    adapter = fresh(name)
    inputs = given(name, adapter)
    attribute(adapter, inputs, 17)
    before = snapshot(adapter.model)
    got = attribute(adapter, inputs, 17, through_encoder=True)
    assert snapshot(adapter.model) == before
    assert torch.equal(got.scores, attribute(adapter, inputs, 17).scores)


def test_every_token_of_an_answer_is_carried_through() -> None:
    adapter = built("whisper", torch.float64)
    inputs = given("whisper", adapter)
    found = attribute_generated(adapter, inputs, [17, 23], through_encoder=True)
    ids = torch.cat([inputs["decoder_input_ids"], torch.tensor([[17]])], dim=1)
    longer = {k: v for k, v in inputs.items() if k != "decoder_attention_mask"} | {"decoder_input_ids": ids}
    for got, (given_inputs, token) in zip(found, ((inputs, 17), (longer, 23)), strict=True):
        want = attribute(adapter, given_inputs, token, through_encoder=True)
        frames, times = got.media_inputs["input_features"], got.media_times
        torch.testing.assert_close(frames, want.media_inputs["input_features"], atol=1e-10, rtol=1e-6)
        assert times == want.media_times != {}


@pytest.mark.parametrize("composite", [ATTN_LRP, CP_LRP], ids=lambda c: c.name)
def test_agrees_with_the_slow_twin(composite: Composite) -> None:
    adapter = built("whisper", torch.float64)
    inputs = given("whisper", adapter)
    got = attribute(adapter, inputs, 17, composite=composite, through_encoder=True).media_inputs["input_features"]
    call = adapter.capture(inputs)
    with following_rules(adapter, composite, call) as leaves:
        logits = adapter.logits(adapter.hidden(leaves.call, leaves.embeds)[:, -1])
        (gradient,) = torch.autograd.grad(logits[0, 17], leaves.embeds)
    frames = inputs["input_features"][0]
    states = whisper.states(adapter.model, frames, (1, 1, 1)).detach()
    torch.testing.assert_close(states, call.embeds[0, : call.front], atol=1e-10, rtol=0)
    want = whisper.relevance(adapter.model, frames, gradient[0, : call.front], composite.attention)
    torch.testing.assert_close(got[0], want, atol=1e-9, rtol=0)


def test_residual_additions_go_by_reslrp() -> None:
    adapter = without_constants(fresh("whisper", torch.float64))
    conserving = Composite("res-cp", {**RES_LRP.rules}, (0, 0, 1))
    inputs = given("whisper", adapter)
    got = attribute(adapter, inputs, 17, composite=conserving, through_encoder=True)
    assert float(got.media_inputs["input_features"].sum()) == pytest.approx(got.total("audio"), abs=1e-6)
    plain = attribute(adapter, inputs, 17, composite=CP_LRP, through_encoder=True)
    assert not torch.allclose(plain.media_inputs["input_features"], got.media_inputs["input_features"], rtol=1e-2)


def test_an_unknown_module_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(16, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(x @ self.weight)

    adapter = fresh("whisper")
    adapter.model.model.encoder.layers[1].final_layer_norm = Odd()
    before = snapshot(adapter.model)
    with pytest.raises(UnknownKindError, match=r"encoder\.layers\.1\.final_layer_norm"):
        attribute(adapter, given("whisper", adapter), 17, through_encoder=True)
    assert snapshot(adapter.model) == before


def test_what_is_computed_outside_of_modules_is_named() -> None:
    adapter = fresh("whisper")
    own = adapter.model.model.encoder.conv1.forward
    adapter.model.model.encoder.conv1.forward = lambda x: torch.sigmoid(own(x))
    with pytest.raises(UnsupportedError, match=r"conv1 .*sigmoid"):
        attribute(adapter, given("whisper", adapter), 17, through_encoder=True)


def test_encoded_media_have_no_input_to_explain() -> None:
    adapter = built("whisper")
    inputs = given("whisper", adapter)
    with torch.no_grad():
        outputs = adapter.model.get_encoder()(inputs.pop("input_features"))
    with pytest.raises(SettingError, match="expected media"):
        attribute(adapter, {**inputs, "encoder_outputs": outputs}, 17, through_encoder=True)


@pytest.mark.parametrize("name", ["speech_to_text", "trocr"])
def test_a_decoder_without_rules_is_told_first(name: str) -> None:
    adapter = fresh(name)
    with pytest.raises((UnsupportedError, HookError), match=r"takes token ids alone|never called them"):
        attribute(adapter, given(name, adapter), 17, through_encoder=True)


def test_padding_counts_as_zero() -> None:
    """Whisper's states and frames behind the end of the sound."""
    adapter = built("whisper", torch.float64)
    inputs = given("whisper", adapter)
    mask = (torch.arange(20) < 13).long()[None]
    got = attribute(adapter, {**inputs, "attention_mask": mask}, 17, composite=CP_LRP, through_encoder=True)
    frames = got.media_inputs["input_features"]
    assert not got.scores[7:10].any() and bool(got.scores[:7].all())
    assert not frames[..., 13:].any() and bool((frames[..., :13] != 0).any(1).all())
