"""What config and processor tell: decoder, sizes, head scalars, placeholders, and where each position comes from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from limelight.errors import HookError, NotMultimodalError, PromptError
from limelight.models.detect import (
    HeadScalars,
    attention_modules,
    decoder_traits,
    find_decoder,
    head_scalars,
    is_attention,
    modality_ids,
    placeholder_ids,
)
from tests.tiny import built, fresh
from tests.zoo import FOUNDATION, ZOO

every = pytest.mark.parametrize("name", FOUNDATION)


@every
def test_the_decoder_is_the_text_stack(name: str) -> None:
    model = built(name).model
    decoder = find_decoder(model)
    assert decoder is model.get_submodule(ZOO[name].decoder)
    modules = attention_modules(decoder)
    assert list(modules) == list(range(len(decoder.layers)))
    assert all(is_attention(m) for m in modules.values())


@every
def test_sizes_are_those_of_the_weights(name: str) -> None:
    adapter = built(name)
    traits, attention = adapter.traits, adapter.attention_layers[0]
    assert attention.q_proj.out_features == traits.heads * traits.head_dim
    assert attention.k_proj.out_features == traits.kv_heads * traits.head_dim
    assert attention.o_proj.out_features == traits.hidden
    assert adapter.head.weight.shape == (traits.vocab, traits.hidden)


def test_sizes_do_not_believe_the_config() -> None:
    """glm4v's config keeps a head_dim that its attention does not use."""
    model = fresh("llava").model
    model.get_decoder().config.head_dim = 99
    assert decoder_traits(model, find_decoder(model)).head_dim == 8


def test_layers_may_differ_in_heads_and_their_size() -> None:
    """Gemma 4: local layers of 4 heads of 8 with 2 key/value heads, a global one of 4 of 16 with one."""
    model = fresh("gemma4_moe").model
    traits = decoder_traits(model, find_decoder(model))
    assert traits.each == {0: (4, 2, 8), 1: (4, 1, 16)}
    assert (traits.heads, traits.kv_heads, traits.head_dim) == (4, 2, 8)
    assert [traits.group(layer) for layer in (0, 1)] == [2, 4]


@pytest.mark.parametrize("part", ["tower", "linear", "empty"])
def test_no_decoder_raises(part: str) -> None:
    model = built("llava").model
    odd = {"tower": model.model.vision_tower, "linear": nn.Linear(2, 2), "empty": nn.Module()}[part]
    with pytest.raises(HookError) as caught:
        find_decoder(odd)
    assert caught.value.hint


def test_head_scalars_come_from_the_model_not_its_config() -> None:
    """PaliGemma 2 caps; Cohere 2 vision carries a logit_scale that its wrapper never applies."""
    assert built("paligemma2").head_scalars == HeadScalars(1.0, 6.0)
    cohere = built("cohere2_vision")
    assert cohere.decoder.config.logit_scale is not None
    assert cohere.head_scalars == HeadScalars()
    assert built("llava").head_scalars == HeadScalars()


def test_head_scalars_that_explain_nothing_raise() -> None:
    adapter = fresh("paligemma2")
    adapter.decoder.config.final_logit_softcapping = 5.0  # the model itself reads another config's
    adapter.model.config.get_text_config().final_logit_softcapping = 5.0
    head = adapter.model.get_output_embeddings()

    class Off(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            head(torch.ones(1, 1, head.in_features))
            return SimpleNamespace(logits=torch.randn(1, 1, 128))

    with pytest.raises(HookError) as caught:
        head_scalars(Off(), adapter.decoder, head)
    assert caught.value.hint


def test_scalars_scale_and_cap() -> None:
    logits = torch.tensor([0.0, 1.0, 100.0])
    assert HeadScalars()(logits) is logits
    assert HeadScalars(0.5)(logits).tolist() == [0.0, 0.5, 50.0]
    torch.testing.assert_close(HeadScalars(2.0, 3.0)(logits), torch.tanh(logits * 2 / 3) * 3)


@every
def test_placeholders_come_from_the_config(name: str) -> None:
    row = ZOO[name]
    ids = row.inputs(built(name).model)["input_ids"][0]
    found = placeholder_ids(built(name).model)
    for start, _, modality in row.spans:
        assert found[int(ids[start])] == modality


def test_placeholders_come_from_the_processor_where_the_config_is_silent() -> None:
    model = SimpleNamespace(config=SimpleNamespace(thinker_config=None))
    assert placeholder_ids(model, SimpleNamespace(image_token_id=9, audio_token_id=11)) == {9: "image", 11: "audio"}  # type: ignore[arg-type]
    assert placeholder_ids(model, SimpleNamespace(image_token_id=None)) == {}  # type: ignore[arg-type]
    ids = torch.tensor([[1, 2]])
    assert modality_ids(model, {"input_ids": ids}).tolist() == [[0, 0]]  # type: ignore[arg-type]
    with pytest.raises(NotMultimodalError, match="pixel_values") as caught:
        modality_ids(model, {"input_ids": ids, "pixel_values": torch.zeros(1, 3)})  # type: ignore[arg-type]
    assert caught.value.hint


def test_a_processor_does_not_overrule_the_config() -> None:
    """Gemma3's processor calls its start-of-image token image_token_id."""
    gemma = built("gemma3").model
    assert placeholder_ids(gemma, SimpleNamespace(image_token_id=3, audio_token_id=99)) == {5: "image", 99: "audio"}


def test_order_of_evidence() -> None:
    model = built("llava").model
    ids = torch.tensor([[1, 5, 5, 41]])
    assert modality_ids(model, {"input_ids": ids}).tolist() == [[0, 1, 1, 0]]
    types = torch.tensor([[0, 2, 2, 0]])
    assert modality_ids(model, {"input_ids": ids, "mm_token_type_ids": types}).tolist() == [[0, 2, 2, 0]]
    own = torch.tensor([[3, 0, 0, 0]])
    both = {"input_ids": ids, "mm_token_type_ids": types, "modality_ids": own}
    assert modality_ids(model, both).tolist() == [[3, 0, 0, 0]]
    silent = {"input_ids": ids, "mm_token_type_ids": torch.zeros_like(ids)}
    assert modality_ids(model, silent).tolist() == [[0, 1, 1, 0]]
    with pytest.raises(PromptError) as caught:
        modality_ids(model, {"inputs_embeds": torch.zeros(1, 4, 32)})
    assert caught.value.hint


def test_all_four_modalities_keep_transformers_numbers() -> None:
    types = torch.tensor([[0, 1, 2, 3]])
    got = modality_ids(built("llava").model, {"input_ids": torch.ones_like(types), "mm_token_type_ids": types})
    assert got.tolist() == [[0, 1, 2, 3]]
    assert got.dtype == torch.int64
