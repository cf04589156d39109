"""A model becomes an Adapter: by wrapping, by loading a folder, and what each refusal says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import limelight
from limelight.errors import (
    HookError,
    LimelightError,
    ModelError,
    NotFiniteError,
    NotMultimodalError,
    PromptError,
)
from limelight.models import loading as module
from limelight.models.adapter import Adapter, wrap
from limelight.models.loading import check_finite, load, packaged
from limelight.types import Span
from tests.tiny import built, fresh, llava, llava_inputs, vision_processor
from tests.zoo import FOUNDATION, ZOO


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint: weights, config, processor."""
    path = tmp_path_factory.mktemp("checkpoint")
    ZOO["llava"].build().save_pretrained(path)
    vision_processor().save_pretrained(path)
    return path


@pytest.mark.parametrize("name", FOUNDATION)
def test_every_family_is_wrapped_and_identified(name: str) -> None:
    adapter = built(name)
    assert wrap(adapter) is adapter
    text = repr(adapter)
    assert type(adapter.model).__name__ in text
    assert f"layers={len(adapter.decoder.layers)}" in text
    assert all(f"{m} = " in text for m in ZOO[name].modalities)


def test_wrapping_changes_nothing() -> None:
    from tests.tiny import snapshot

    for name in ("llava", "paligemma2", "cohere2_vision"):
        model = ZOO[name].build()
        with torch.no_grad():
            model(**ZOO[name].inputs(model))
        before = snapshot(model)
        wrap(model)
        assert snapshot(model) == before


def test_a_folder_is_loaded(folder: Path) -> None:
    adapter = load(folder)
    assert not adapter.model.training
    assert adapter.processor.image_token_id == 5
    own = ZOO["llava"].build()
    assert all(torch.equal(a, b) for a, b in zip(adapter.model.parameters(), own.parameters(), strict=True))
    assert load(str(folder), dtype=torch.bfloat16).model.dtype == torch.bfloat16
    assert load(folder, device="cpu").model.device.type == "cpu"
    assert limelight.load is load


def test_a_shipped_model_is_loaded_by_its_name() -> None:
    try:
        where = packaged("demo-vision")
    except ModelError:
        pytest.skip("the miniature is not in the package")
    adapter = load("demo-vision")
    assert adapter.family.name == "llava"
    assert (where / "model.safetensors").stat().st_size < 12_000_000


def test_what_cannot_be_loaded(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.PACKAGED, "demo-nothing", "demo/nothing")
    (tmp_path / "empty").mkdir()
    bare = tmp_path / "bare"
    ZOO["llava"].build().save_pretrained(bare)
    text = tmp_path / "text"
    from transformers import BertConfig

    BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8).save_pretrained(text)
    for name in ("demo-nothing", tmp_path / "empty", tmp_path / "missing", bare, text):
        with pytest.raises(ModelError) as caught:
            load(name)
        assert caught.value.hint, name
    with pytest.raises(ModelError) as caught:
        packaged("nobody")
    assert "demo-vision" in caught.value.hint or "none" in caught.value.hint


def test_a_checkpoint_with_nan_is_named(tmp_path: Path, folder: Path) -> None:
    model = ZOO["llava"].build()
    with torch.no_grad():
        model.get_decoder().layers[1].mlp.up_proj.weight[2, 3] = float("nan")
    model.save_pretrained(tmp_path)
    vision_processor().save_pretrained(tmp_path)
    with pytest.raises(NotFiniteError) as caught:
        load(tmp_path)
    assert "layers.1.mlp.up_proj" in str(caught.value)
    check_finite(ZOO["llava"].build())


@pytest.mark.parametrize("odd", [nn.Linear(2, 2), nn.Module(), object(), None, "llava"], ids=lambda x: type(x).__name__)
def test_what_is_no_model_raises(odd: Any) -> None:
    with pytest.raises(LimelightError) as caught:
        wrap(odd)
    assert caught.value.hint


def test_a_model_without_a_head_raises() -> None:
    model = ZOO["llava"].build()
    for headless in (model.model,):
        with pytest.raises((HookError, NotMultimodalError)) as caught:
            wrap(headless)
        assert caught.value.hint


def test_inputs_are_checked_and_completed() -> None:
    adapter = built("qwen2_5_vl")
    inputs = ZOO["qwen2_5_vl"].inputs(adapter.model)
    bare = {k: v for k, v in inputs.items() if k != "mm_token_type_ids"}
    done = adapter.complete(bare)
    assert torch.equal(done["mm_token_type_ids"].long(), inputs["mm_token_type_ids"].long())
    assert "mm_token_type_ids" not in bare
    for bad in (torch.zeros(1, 0).long(), torch.zeros(3).long()):
        with pytest.raises(PromptError) as caught:
            adapter.complete({"input_ids": bad})
        assert caught.value.hint


def test_a_row_without_a_media_is_text() -> None:
    adapter = built("llava")
    ids = torch.tensor([[1, 5, 5, 41], [1, 31, 32, 41]])
    assert adapter.modality_ids({"input_ids": ids}).tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]
    assert adapter.spans({"input_ids": ids}, 0)
    assert adapter.spans({"input_ids": ids}, 1) == (Span(0, 4, "text"),)
    with pytest.raises(PromptError) as caught:  # media that went nowhere
        adapter.modality_ids({"input_ids": ids[1:], "pixel_values": torch.zeros(1, 3, 4, 4)})
    assert "pixel_values" in str(caught.value)
    assert "image = 5" in str(caught.value)


def test_words() -> None:
    adapter = built("llava")
    inputs = ZOO["llava"].inputs(adapter.model)
    assert adapter.words(inputs)[:4] == ("<1>", "<31>", "<32>", "<image>")
    spelled = wrap(ZOO["llava"].build(), vision_processor())
    assert spelled.words(inputs)[:4] == ("<s>", "is", "in", "<image>")
    assert spelled.tokens([30, 34]) == ("what", "picture")


def test_seconds_come_from_the_features_and_their_mask() -> None:
    adapter = built("qwen2_audio")
    inputs = ZOO["qwen2_audio"].inputs(adapter.model)
    assert adapter._seconds(inputs) == [0.64]
    inputs["feature_attention_mask"][0, 32:] = 0
    assert adapter._seconds(inputs) == [0.32]
    assert adapter._seconds({"input_features": torch.zeros(1, 9, 64)}) == []  # no mel bins that the model knows
    assert adapter._seconds({}) == []
    assert built("granite_speech")._seconds(ZOO["granite_speech"].inputs(built("granite_speech").model)) == []


@torch.no_grad()
def test_embeddings_of_appended_tokens_are_those_the_decoder_gets() -> None:
    """Families that scale their embeddings do it in the decoder or in the embedding itself, never twice."""
    for name in ("llava", "gemma3", "paligemma2"):
        adapter = built(name)
        inputs = ZOO[name].inputs(adapter.model)
        ids = inputs["input_ids"]
        text = (adapter.modality_ids(inputs) == 0)[0]
        torch.testing.assert_close(adapter.capture(inputs).embeds[0][text], adapter.embed(ids)[0][text])


def test_nan_in_the_embeddings_is_reported() -> None:
    model = llava()
    with torch.no_grad():
        model.get_input_embeddings().weight[31] = float("inf")
    with pytest.raises(NotFiniteError) as caught:
        Adapter(model).capture(llava_inputs(model))
    assert caught.value.hint


def test_a_decoder_that_returns_no_hidden_states_raises() -> None:
    adapter = fresh("llava")
    call = adapter.capture(ZOO["llava"].inputs(adapter.model))
    adapter.decoder.forward = lambda **_: ("hidden",)
    with pytest.raises(HookError) as caught:
        adapter.hidden(call)
    assert caught.value.hint


def test_frozen_parameters_ask_for_gradients_again_afterwards() -> None:
    adapter = fresh("llava")
    first = next(adapter.model.parameters())
    first.requires_grad_(False)
    before = [p.requires_grad for p in adapter.model.parameters()]
    with pytest.raises(RuntimeError, match="inside"), adapter.frozen():
        assert not any(p.requires_grad for p in adapter.model.parameters())
        raise RuntimeError("inside")
    assert [p.requires_grad for p in adapter.model.parameters()] == before
