"""Inputs of the layers' own (Gemma 4): leaves at words, constants at media, in every direction."""

from __future__ import annotations

import torch

from limelight.models.inputs.per_layer import PerLayerInputs, find_per_layer, per_layer_inputs
from limelight.relevance.attribute import attribute
from limelight.relevance.forward.stream import DualStream, modality_channel
from tests.tiny import built, fresh
from tests.wide import prompt
from tests.zoo import ZOO


def test_the_leaf_holds_words_and_the_rest_is_constant() -> None:
    adapter = built("gemma4")
    inputs, call, media_mask = prompt("gemma4", adapter)
    own = call.features
    assert isinstance(own, PerLayerInputs)
    layers, width = len(adapter.decoder.layers), adapter.traits.hidden
    assert own.shape == (layers, 8) and own.width == width
    assert call.embeds.shape[-1] == width + layers * 8
    features, constant = call.embeds[..., width:], call.kwargs[own.name].flatten(2)
    assert not bool(features[media_mask].any()) and not bool(constant[~media_mask].any())
    words = adapter.embed(inputs["input_ids"])
    assert torch.equal(words[~media_mask], call.embeds[~media_mask])
    lookup = per_layer_inputs(adapter.decoder)
    assert lookup is not None
    assert torch.equal(lookup(inputs["input_ids"])[~media_mask].flatten(1), features[~media_mask])
    assert per_layer_inputs(built("llava").decoder) is None


def test_what_a_placeholder_has_in_the_table_counts_for_no_media() -> None:
    """Its row changes the logits, as a bias does, and is no part of the relevance at the picture."""
    adapter = fresh("gemma4", torch.float64)
    inputs = ZOO["gemma4"].inputs(adapter.model)
    _, call, media_mask = prompt("gemma4", adapter)
    relevance = attribute(adapter, inputs, 9)
    own = call.features
    assert isinstance(own, PerLayerInputs)
    phi = {}
    for name, kwargs in (
        ("own", call.kwargs),
        ("gone", {**call.kwargs, own.name: torch.zeros_like(call.kwargs[own.name])}),
    ):
        given = type(call)(call.embeds, call.mask, kwargs, call.reaches, own)
        with torch.no_grad():
            stream = DualStream(adapter, given, [modality_channel(media_mask, call.mask)])
            logits, found = stream.heads(stream.prefill())
        phi[name] = (float(logits[0, 9]), float(found[0, 0, 9]))
    assert phi["own"][0] != phi["gone"][0]
    assert abs(phi["own"][1] - float(relevance.scores[media_mask[0]].sum())) < 1e-9


def test_features_of_every_position_only() -> None:
    embeds = torch.randn(2, 5, 8)
    assert find_per_layer(embeds, {"attention_mask": torch.zeros(2, 5, 5, 5)}) is None
    assert find_per_layer(embeds, {"per_layer_inputs": torch.zeros(2, 4, 3, 2)}) is None
    assert find_per_layer(embeds, {"undeclared": torch.zeros(2, 5, 3, 2)}) is None
    found = find_per_layer(embeds, {"per_layer_inputs": torch.ones(2, 5, 3, 2)})
    assert found is not None
    own = found.features
    assert isinstance(own, PerLayerInputs)
    assert (own.shape, found.leaf.shape[-1]) == ((3, 2), 14) and not bool(found.kwargs[own.name].any())
    given = own.arguments(found.leaf, {})
    assert torch.equal(given["inputs_embeds"], embeds) and torch.equal(given[own.name], torch.ones(2, 5, 3, 2))
