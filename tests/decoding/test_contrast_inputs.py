from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from limelight.decoding.contrast_inputs import disturbed, inserted, media_mask, without
from limelight.decoding.strategy import GenerationContext
from limelight.errors import SettingError, UnsupportedError

IDS = torch.tensor([[1, 30, 5, 5, 40, 41], [0, 1, 5, 5, 40, 41]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
MODALITY = (IDS == 5).long()


def prompt(**kwargs: Any) -> GenerationContext:
    positions = (MASK.cumsum(-1) - 1).clamp_min(0)
    given = {
        "attention_mask": MASK,
        "position_ids": positions,
        "mm_token_type_ids": MODALITY,
        "use_cache": True,
        **kwargs,
    }
    adapter: Any = SimpleNamespace(model=SimpleNamespace(dtype=torch.float32), encoder=None)
    config = SimpleNamespace(_pad_token_tensor=torch.tensor(0))
    return GenerationContext(adapter, IDS, given, MODALITY, MASK.bool(), None, config)  # type: ignore[arg-type]


def test_without_the_media() -> None:
    run = prompt(mm_encoder_outputs={"image": 1}, pixel_values=torch.zeros(2, 3, 4, 4))
    stream = without(run, media_mask(run))
    assert stream.ids.tolist() == [[1, 30, 40, 41], [0, 1, 40, 41]]
    assert stream.kwargs["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert stream.kwargs["position_ids"].tolist() == [[0, 1, 2, 3], [0, 0, 1, 2]]
    assert stream.kwargs["mm_token_type_ids"].tolist() == [[0] * 4] * 2
    assert not {"mm_encoder_outputs", "pixel_values"} & set(stream.kwargs)


def test_without_on_several_axes() -> None:
    run = prompt()
    run.kwargs["position_ids"] = run.kwargs["position_ids"].expand(4, 2, 6)
    stream = without(run, media_mask(run))
    assert stream.kwargs["position_ids"].shape == (4, 2, 4)
    assert stream.kwargs["position_ids"][3].tolist() == [[0, 1, 2, 3], [0, 0, 1, 2]]


def test_inserted_words() -> None:
    mask4 = torch.arange(12).reshape(2, 6, 1, 1)
    sound = torch.arange(12).reshape(2, 6)
    run = prompt(cross_attention_mask=mask4, feature_attention_mask=sound)
    stream = inserted(run, [60, 61], [2, 1])
    assert stream.ids.tolist() == [[1, 30, 60, 61, 5, 5, 40, 41], [0, 60, 61, 1, 5, 5, 40, 41]]
    assert stream.kwargs["attention_mask"].tolist() == [[1] * 8, [0] + [1] * 7]
    assert stream.kwargs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 2, 3, 4, 5, 6]]
    assert stream.kwargs["mm_token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 0, 0]] * 2
    assert stream.kwargs["cross_attention_mask"][:, :, 0, 0].tolist() == [
        [0, 1, 1, 1, 2, 3, 4, 5],
        [6, 6, 6, 7, 8, 9, 10, 11],
    ]
    assert stream.kwargs["feature_attention_mask"] is sound


def test_ready_made_embeddings_go_with_their_words() -> None:
    """A model that hands on to the language model inside gives it embeddings, and ids beside them."""
    table = torch.randn(70, 3)
    run = prompt(inputs_embeds=table[IDS])
    run.adapter.embed = lambda ids: table[ids]  # type: ignore[method-assign]
    stream = inserted(run, [60, 61], [2, 1])
    assert torch.equal(stream.kwargs["inputs_embeds"], table[stream.ids])
    assert "inputs_embeds" not in without(run, media_mask(run)).kwargs


def test_undeclared_inputs_are_named() -> None:
    for change in (lambda run: without(run, media_mask(run)), lambda run: inserted(run, [60], [2, 2])):
        with pytest.raises(UnsupportedError, match="odd_ids") as caught:
            change(prompt(odd_ids=IDS))
        assert caught.value.hint


def test_a_ready_made_mask_cannot_be_widened() -> None:
    run = prompt(attention_mask=torch.zeros(2, 1, 6, 6))
    with pytest.raises(UnsupportedError, match="prepared"):
        inserted(run, [60], [2, 2])


def gone(name: str, features: Tensor, inputs: Any) -> Tensor:
    return features * 0


def test_disturbed_media_come_from_the_tensors_or_the_arguments() -> None:
    features = torch.ones(2, 4, 8)
    inside = disturbed(prompt(input_features=features), gone, method="m")
    assert float(inside.kwargs["input_features"].abs().sum()) == 0
    run = prompt(mm_encoder_outputs={"image": 1})
    with pytest.raises(SettingError, match="m distorts the image input itself"):
        disturbed(run, gone, method="m")
    run.tensors = {
        "input_ids": IDS,
        "pixel_values": torch.ones(2, 3, 4, 4).double(),
        "image_sizes": torch.ones(2, 2).long(),
    }
    outside = disturbed(run, gone, method="m")
    assert outside.kwargs["pixel_values"].dtype == torch.float32
    assert float(outside.kwargs["pixel_values"].abs().sum()) == 0
    assert outside.kwargs["image_sizes"].tolist() == [[1, 1], [1, 1]]
    assert "mm_encoder_outputs" not in outside.kwargs


def test_no_media_to_disturb() -> None:
    with pytest.raises(SettingError, match="found no tensor of pixels or audio"):
        disturbed(prompt(), gone, method="m")
    with pytest.raises(SettingError, match="found no tensor"):
        disturbed(prompt(input_features=torch.ones(2, 4, 8)), gone, only=lambda name: "pixel" in name, method="m")
