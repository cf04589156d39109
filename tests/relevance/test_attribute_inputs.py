"""attribute(): dtypes, autograd modes, padding, and inputs that it rejects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import limelight
from limelight.errors import (
    HookError,
    NotFiniteError,
    PromptError,
    SettingError,
    UnsupportedError,
)
from limelight.models.adapter import Adapter
from limelight.relevance.attribute import attribute, attribute_generated
from tests.tiny import built, fresh, llava, llava_inputs
from tests.zoo import ZOO


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return Adapter(llava())


@pytest.fixture
def inputs(adapter: Adapter) -> dict[str, Tensor]:
    return llava_inputs(adapter.model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    wide = attribute(Adapter(llava()), llava_inputs(llava()), 5)
    model = llava(dtype=dtype)
    half = attribute(Adapter(model), llava_inputs(model), 5)
    assert half.scores.dtype == torch.float32
    assert bool(torch.isfinite(half.scores).all())
    cosine = torch.nn.functional.cosine_similarity(half.scores.double(), wide.scores, dim=0)
    assert float(cosine) > 0.98


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_whatever_the_callers_mode(adapter: Adapter, inputs: dict[str, Tensor], mode: Any) -> None:
    want = attribute(adapter, inputs)
    with mode():
        got = attribute(adapter, {k: v.clone() for k, v in inputs.items()})
        assert torch.equal(got.scores, want.scores)
        several = attribute_generated(adapter, inputs, [4, 5])
    assert not got.scores.is_inference()
    assert len(several) == 2


@pytest.mark.parametrize("name", ["gemma3", "paligemma2", "qwen2_5_vl"])
def test_masks_and_positions_made_under_inference_mode_enter_the_graph(name: str) -> None:
    adapter = built(name)
    want = attribute(adapter, ZOO[name].inputs(adapter.model))
    with torch.inference_mode():
        got = attribute(adapter, ZOO[name].inputs(adapter.model))
    assert torch.equal(got.scores, want.scores)


def test_a_model_may_be_given_as_it_is(adapter: Adapter, inputs: dict[str, Tensor]) -> None:
    assert torch.equal(limelight.attribute(adapter.model, inputs).scores, attribute(adapter, inputs).scores)


def test_a_mask_from_the_user_comes_first(adapter: Adapter, inputs: dict[str, Tensor]) -> None:
    ids = torch.zeros_like(inputs["input_ids"])
    ids[0, 1:3] = 3
    r = attribute(adapter, {**inputs, "modality_ids": ids})
    assert [(s.start, s.stop, s.modality) for s in r.spans] == [(0, 1, "text"), (1, 3, "audio"), (3, 22, "text")]


def test_inputs_as_embeddings_need_a_mask(adapter: Adapter, inputs: dict[str, Tensor]) -> None:
    embeds = adapter.capture(inputs).embeds
    ids = adapter.modality_ids(inputs)
    r = attribute(adapter, {"inputs_embeds": embeds, "modality_ids": ids})
    assert torch.equal(r.scores, attribute(adapter, inputs).scores)
    with pytest.raises(PromptError) as caught:
        attribute(adapter, {"inputs_embeds": embeds})
    assert caught.value.hint


def test_nothing_at_all_raises(adapter: Adapter) -> None:
    text = torch.tensor([[1, 31, 32, 41]])
    for bad in (text[:, :0], text[0]):
        with pytest.raises(PromptError) as caught:
            attribute(adapter, {"input_ids": bad})
        assert caught.value.hint


def test_what_has_no_decoder_raises(adapter: Adapter) -> None:
    for odd in (torch.nn.Linear(2, 2), adapter.model.model.vision_tower):
        with pytest.raises(HookError) as missing:
            limelight.wrap(odd)
        assert missing.value.hint


@pytest.mark.parametrize("where", ["tower", "decoder", "head"])
def test_nan_weights_raise(where: str) -> None:
    model = llava()
    part = {
        "tower": model.model.multi_modal_projector.linear_1.weight,
        "decoder": model.get_decoder().layers[1].mlp.up_proj.weight,
        "head": model.lm_head.weight,
    }[where]
    with torch.no_grad():
        part[0, 0] = float("nan")
    with pytest.raises(NotFiniteError) as caught:
        attribute(Adapter(model), llava_inputs(model))
    assert caught.value.hint


def right_padded(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same batch with its padding on the other side."""
    mask = batch["attention_mask"]

    def turned(x: Tensor) -> Tensor:
        if x.shape != mask.shape:
            return x
        return torch.stack([torch.roll(row, -int((m == 0).sum())) for row, m in zip(x, mask, strict=True)])

    return {k: turned(v) for k, v in batch.items()}


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "qwen2_audio"])
def test_padding_on_the_right_explains_the_last_real_position(name: str) -> None:
    adapter, tiny = built(name), ZOO[name]
    assert tiny.batch is not None
    inputs = right_padded(tiny.batch(adapter.model))
    assert not bool(inputs["attention_mask"][1, -1])
    alone = attribute(adapter, tiny.inputs(adapter.model, row=1))
    got = attribute(adapter, inputs, row=1)
    assert (got.target, got.position) == (alone.target, alone.position)
    torch.testing.assert_close(got.scores[: len(alone.scores)], alone.scores, atol=2e-5, rtol=1e-4)
    assert not got.scores[len(alone.scores) :].any()
    with pytest.raises(SettingError, match="is padding"):
        attribute(adapter, inputs, row=1, position=inputs["input_ids"].shape[1] - 1)
    with pytest.raises(PromptError, match="padded on the right"):
        attribute_generated(adapter, inputs, [5], row=1)


@pytest.mark.parametrize(
    "bad",
    [{"target": True}, {"target": 1.5}, {"target": "hat"}, {"position": -1.5}, {"position": True}, {"sinks": 0}, {"sinks": "0"},
     {"sinks": (0.5,)}, {"row": 0.0}, {"row": "1"}],
    ids=str,
)  # fmt: skip
def test_non_integers_are_refused(adapter: Adapter, inputs: dict[str, Tensor], bad: dict[str, Any]) -> None:
    with pytest.raises(SettingError) as caught:
        attribute(adapter, inputs, **bad)
    assert caught.value.hint


def test_numbers_of_other_kinds(adapter: Adapter, inputs: dict[str, Tensor]) -> None:
    want = attribute(adapter, inputs, 7, position=3, sinks=(0,))
    got = attribute(adapter, inputs, torch.tensor(7), position=torch.tensor(3), sinks=torch.tensor([0]))  # type: ignore[arg-type]
    assert (got.target, got.position, got.sinks) == (7, 3, (0,))
    assert torch.equal(got.scores, want.scores)


@pytest.mark.parametrize("bad", [[[1, 2], [3, 4]], [1.5], [True], [10**6], [-1], []], ids=str)
def test_answers_that_are_not_the_ids_of_one_row_raise(
    adapter: Adapter, inputs: dict[str, Tensor], bad: list[Any]
) -> None:
    with pytest.raises(SettingError):
        attribute_generated(adapter, inputs, bad)


@pytest.mark.parametrize("name", ["llava", "blip2"])
def test_a_model_in_training_mode_raises(name: str) -> None:
    adapter = fresh(name)
    adapter.model.train()
    inputs = ZOO[name].inputs(adapter.model)
    with pytest.raises(UnsupportedError, match="training mode"):
        attribute(adapter, inputs)
    with pytest.raises(UnsupportedError, match="training mode"):
        attribute_generated(adapter, inputs, [5])


@pytest.mark.parametrize("name", ["mllama", "llava", "qwen3_vl"])
def test_inputs_made_under_inference_mode(name: str) -> None:
    adapter = built(name)
    inputs = ZOO[name].inputs(adapter.model)
    with torch.inference_mode():
        made = {k: v.clone() for k, v in inputs.items()}
    assert torch.equal(attribute(adapter, made).scores, attribute(adapter, inputs).scores)


@pytest.mark.parametrize(
    "bad", [[[0, 1]], [[0, 1, 0, 0]], [0, 1, 0], [[0, 9, 0]], [[0, -1, 0]], [[0, 0.5, 0]]], ids=str
)
def test_modality_ids_that_do_not_fit_raise(adapter: Adapter, bad: Any) -> None:
    ids = torch.tensor([[40, 41, 42]])
    embeds = adapter.embed(ids).detach()
    for given in ({"input_ids": ids}, {"inputs_embeds": embeds}):
        with pytest.raises(PromptError, match="modality_ids"):
            attribute(adapter, {**given, "modality_ids": torch.tensor(bad)})
        fitting = attribute(adapter, {**given, "modality_ids": torch.tensor([[0, 1, 0]])})
        assert set(fitting.shares()) == {"text", "image"}
