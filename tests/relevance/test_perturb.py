"""Masked media: against the model's own forward on embeddings of our own, with everything kept and nothing."""

from __future__ import annotations

import pytest
import torch

from limelight.errors import SettingError
from limelight.models.adapter import Adapter
from limelight.relevance.perturb import decision, perceptual
from tests.tiny import built, llava, llava_inputs, snapshot


def test_against_the_model_s_own_forward() -> None:
    model = llava()
    adapter, inputs = Adapter(model), llava_inputs(model)
    call = adapter.capture(inputs)
    positions = perceptual(adapter.spans(inputs))
    assert positions == list(range(3, 19))
    before = snapshot(model)
    kept = [i % 3 == 0 for i in range(16)]
    for baseline in ("mean", "zero"):
        asked = decision(adapter, call, positions, 7, baseline=baseline)(kept)
        features = model.get_image_features(inputs["pixel_values"]).pooler_output[0]
        other = features.mean(0) if baseline == "mean" else torch.zeros_like(features[0])
        embeds = model.get_input_embeddings()(inputs["input_ids"]).clone()
        for i, p in enumerate(positions):
            embeds[0, p] = features[i] if kept[i] else other
        with torch.no_grad():
            logits = model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits[0, -1]
        assert asked == pytest.approx(float(logits.softmax(-1)[7]), rel=1e-5)
    assert snapshot(model) == before


def test_all_and_nothing() -> None:
    model = llava()
    adapter = Adapter(model)
    one, other = llava_inputs(model, seed=1), llava_inputs(model, seed=2)
    positions = perceptual(adapter.spans(one))
    asked = [decision(adapter, adapter.capture(x), positions, 7, baseline="zero") for x in (one, other)]
    with torch.no_grad():
        plain = [float(model(**x).logits[0, -1].softmax(-1)[7]) for x in (one, other)]
    assert [a([True] * 16) for a in asked] == pytest.approx(plain, rel=1e-5)
    assert plain[0] != pytest.approx(plain[1], rel=1e-3)
    assert asked[0]([False] * 16) == asked[1]([False] * 16)  # without a picture there is none to tell apart


def test_side_features_are_masked_too() -> None:
    """A deepstack model: with everything masked, nothing of the picture is left in any layer."""
    from tests.zoo import ZOO

    adapter = built("qwen3_vl")
    inputs = ZOO["qwen3_vl"].inputs(adapter.model)
    call = adapter.capture(inputs)
    positions = perceptual(adapter.spans(inputs))
    louder = adapter.capture({**inputs, "pixel_values": inputs["pixel_values"] * 1.5 + 0.1})
    nothing = [False] * len(positions)
    first, second = (decision(adapter, c, positions, 7, baseline="zero") for c in (call, louder))
    assert first([True] * len(positions)) != second([True] * len(positions))
    assert first(nothing) == second(nothing)


def test_settings() -> None:
    model = llava()
    adapter, inputs = Adapter(model), llava_inputs(model)
    call = adapter.capture(inputs)
    with pytest.raises(SettingError, match="baseline"):
        decision(adapter, call, [3], 7, baseline="noise")  # type: ignore[arg-type]
    for wrong in ([], [99]):
        with pytest.raises(SettingError, match="cannot mask"):
            decision(adapter, call, wrong, 7)
    with pytest.raises(SettingError, match="one per position"):
        decision(adapter, call, [3, 4], 7)([True])
