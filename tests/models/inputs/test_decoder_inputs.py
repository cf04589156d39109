"""Every argument that the zoo's decoders and models are called with is declared, and the operations agree on all of them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from limelight.errors import UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.inputs.decoder_inputs import DECODER, MODEL
from limelight.models.runtime.capture import DecoderCall
from tests.models.test_conformance import RAISES
from tests.tiny import built
from tests.zoo import ZOO

families = pytest.mark.parametrize("name", [n for n in ZOO if RAISES.get(n, ("",))[0] != "NotMultimodalError"])


def calls(name: str) -> list[DecoderCall]:
    """A captured call of one row, and one of a padded batch."""
    adapter, row = built(name), ZOO[name]
    inputs = [row.inputs(adapter.model), *([] if row.batch is None else [row.batch(adapter.model)])]
    return [adapter.capture(x) for x in inputs]


def same(left: Any, right: Any) -> bool:
    """Equal to the bit; a mask or positions of one row stand for all."""
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, Tensor):
        return bool(left.shape == right.shape and torch.equal(left, right))
    return bool(left is right or left == right)


def ready_made(call: DecoderCall) -> bool:
    mask = call.kwargs.get("attention_mask")
    return isinstance(mask, Mapping) or (isinstance(mask, Tensor) and mask.ndim == 4)


def linear(call: DecoderCall) -> bool:
    masks = call.kwargs.get("attention_mask")
    return isinstance(masks, Mapping) and masks.get("linear_attention") is not None


def plain(call: DecoderCall) -> dict[str, Any]:
    """The arguments that words can be put into."""
    return {k: v for k, v in call.kwargs.items() if k != "attention_mask" or not ready_made(call)}


@families
@torch.no_grad()
def test_operations_agree_on_what_is_captured(name: str) -> None:
    """Rows and tokens commute; repeated rows are the row; the tail of a longer prompt is its new token; ..."""
    for call in calls(name):
        rows, length = call.mask.shape[0], call.length - call.front
        assert DECODER.undeclared(call.kwargs) == ()
        new = torch.randn(rows, 1, call.embeds.shape[-1])
        longer = call.appended(new)
        for r in range(rows):
            one = call.row(r)
            alone = one.appended(new[r : r + 1])
            assert same(longer.row(r).kwargs, alone.kwargs)
            assert torch.equal(longer.row(r).embeds, alone.embeds) and torch.equal(longer.row(r).mask, alone.mask)
            assert same(DECODER.row(DECODER.repeat(one.kwargs, 3), 2), one.kwargs)
            assert same(DECODER.row(DECODER.repeat(call.kwargs, 2 * rows), rows + r), one.kwargs)
            assert same(call.reordered(torch.tensor([r, 0])).row(0).kwargs, one.kwargs)
            assert same(call.reordered(torch.tensor([0, r])).row(1).kwargs, one.kwargs)
        last = DECODER.last(call.kwargs)
        if linear(call):  # ready-made, but no row of it to go on from
            with pytest.raises(UnsupportedError, match="linear_attention"):
                DECODER.following(last, call.reaches, call.padding)
        else:
            following = DECODER.following(last, call.reaches, call.padding)
            assert same(DECODER.last(longer.kwargs), following)
            assert same(DECODER.tail(following, 1), DECODER.tail(longer.kwargs, 1))
        assert same(DECODER.tail(call.kwargs, length), dict(call.kwargs))
        assert same(DECODER.append(call.kwargs, 2, call.reaches), longer.appended(new).kwargs)
        if ready_made(call):
            with pytest.raises(UnsupportedError, match="prepared"):
                DECODER.insert(call.kwargs, [1] * rows, 2)
        given = plain(call)
        at = call.padding.tolist()  # in front of the first real position
        put = DECODER.insert(given, at, 2)
        mask = call.mask[:, call.front :]
        wide = torch.stack([torch.cat([m[:k], m.new_ones(2), m[k:]]) for m, k in zip(mask, at, strict=True)])
        keep = wide.clone()
        for r, k in enumerate(at):
            keep[r, k : k + 2] = False
        back, want = DECODER.drop(put, keep, wide), DECODER.drop(given, mask, mask)
        assert same(back, want)
        if bool(mask.all()):
            assert same({k: v for k, v in want.items() if v is not None}, _rows(given, rows))
        behind = DECODER.insert(given, [length] * rows, 1)
        assert same(behind, _rows(DECODER.append(given, 1), rows))


def _rows(arguments: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """With rows of their own where all shared one."""
    index = torch.zeros(rows, dtype=torch.long)

    def own(axes: Any, value: Tensor, _: str) -> Tensor:
        shared = axes.rows is not None and axes.positions is not None and value.shape[axes.rows] == 1
        return value.index_select(axes.rows, index) if shared else value

    return DECODER.each(arguments, own)


@families
@torch.no_grad()
def test_arguments_of_a_call_of_generate_are_declared(name: str) -> None:
    """As a decoding method is handed them, and as a processor makes them."""
    adapter, row = built(name), ZOO[name]
    seen: list[dict[str, Any]] = []

    def method(model: Any, input_ids: Tensor, *_: Any, **kwargs: Any) -> Tensor:
        kwargs = {
            k: v for k, v in kwargs.items() if k not in ("logits_processor", "stopping_criteria", "generation_config")
        }
        seen.append({**kwargs, "input_ids": input_ids})
        return input_ids

    for inputs in (row.inputs(adapter.model), *([] if row.batch is None else [row.batch(adapter.model)])):
        adapter.model.generate(**inputs, custom_generate=method, max_new_tokens=2, do_sample=False)
        assert MODEL.undeclared(inputs) == MODEL.undeclared(seen[-1]) == ()
        for given in (inputs, seen[-1]):
            rows, length = given["input_ids"].shape
            picked = MODEL.reorder(given, torch.arange(rows))
            assert same(picked, given)
            assert set(lengths(given)) <= {length}
            words = {k: v for k, v in given.items() if k not in ("input_ids", "inputs_embeds")}
            assert set(lengths(MODEL.insert(words, [1] * rows, 3))) <= {length + 3}


def lengths(arguments: Mapping[str, Any]) -> list[int]:
    found: list[int] = []
    MODEL.each(arguments, lambda axes, v, _: found.extend(() if axes.positions is None else (v.shape[axes.positions],)))
    return found


def test_media_arguments_are_distinguished_from_positions() -> None:
    """Names decide, never a length that happens to fit."""
    rows, length = 2, 5
    chance = torch.ones(rows, length)
    for name in (
        "feature_attention_mask",
        "input_features",
        "audio_values",
        "pixel_values",
        "image_grid_thw",
        "fbank_mask",
    ):
        assert MODEL.append({name: chance.long()})[name].shape == chance.shape
    assert MODEL.append({"image_attention_mask": torch.ones(2, 5, 3)})["image_attention_mask"].shape == (2, 6, 3)
    assert MODEL.append({"image_attention_mask": torch.ones(2, 5, 4, 4)})["image_attention_mask"].shape == (2, 5, 4, 4)
    assert (
        MODEL.append({"image_embeds_position_mask": chance.long()})["image_embeds_position_mask"].tolist()
        == [[1] * 5 + [0]] * 2
    )
    with pytest.raises(UnsupportedError, match="inputs_embeds"):  # only embeddings can be appended to embeddings
        MODEL.append({"inputs_embeds": torch.ones(2, 5, 3)})
    for odd in ("images_seq_mask", "image_mask", "some_ids", "bbox"):
        with pytest.raises(UnsupportedError, match=odd) as caught:
            MODEL.append({odd: chance.long()})
        assert caught.value.hint


@families
@torch.no_grad()
def test_a_grown_call_is_the_model_on_the_longer_prompt(name: str) -> None:
    """Appended tokens, uncached, against the whole model on prompt and tokens."""
    if name in RAISES:
        pytest.skip("relevance does not cover it")
    adapter: Adapter = built(name)
    inputs = ZOO[name].inputs(adapter.model)
    call = adapter.capture(inputs)
    tokens = torch.tensor([[51, 52]])
    for at in range(2):
        call = call.appended(adapter.embed(tokens[:, at : at + 1]))
    got = adapter.logits(adapter.hidden(call)[:, -1])
    given = {k: v for k, v in adapter.complete(inputs).items() if k != "modality_ids"}
    longer = MODEL.append({k: v for k, v in given.items() if k != "input_ids"}, 2)
    longer["input_ids"] = torch.cat([given["input_ids"], tokens], dim=1)
    want = adapter.model(**longer).logits[:, -1]
    if name in PREFIX:  # the prompt sees itself both ways, and would see the tokens, too
        assert not torch.allclose(got, want.to(got), atol=2e-5, rtol=2e-5)
    else:
        torch.testing.assert_close(got, want.to(got), atol=2e-5, rtol=2e-5)


PREFIX = ("paligemma", "paligemma2")


@families
def test_all_that_models_take_is_declared(name: str) -> None:
    """Every tensor in the signature of a model's forward; what trains it aside."""
    adapter = built(name)
    others = {"self", "use_cache", "use_audio_in_video", "logits_to_keep"}
    others |= {"labels", "router_labels", "decoder_input_ids", "decoder_attention_mask"}
    for model in (adapter.model, adapter.parent_model):
        taken = [p for p in inspect.signature(type(model).forward).parameters.values() if p.kind != p.VAR_KEYWORD]
        tensors = {p.name for p in taken if "Tensor" in str(p.annotation) or p.annotation is p.empty} - others
        assert "input_ids" in tensors
        assert not [k for k in sorted(tensors) if k not in MODEL]


def test_media_labels_of_a_processor_may_be_passed() -> None:
    """InternVL's image processor counts tiles, and the model hands the count on to a decoder that takes none."""
    adapter = built("internvl")
    inputs = ZOO["internvl"].inputs(adapter.model)
    call = adapter.capture(inputs | {"num_patches": torch.tensor([1])})
    new = torch.randn(1, 1, call.embeds.shape[-1])
    assert call.appended(new).kwargs["num_patches"].tolist() == [1]
    assert torch.equal(adapter.hidden(call), adapter.hidden(adapter.capture(inputs)))
    for odd, error in (("pixel_values_of_old", "pixel_values_of_old"), ("some_ids", "some_ids")):
        with pytest.raises(UnsupportedError, match=error) as caught:
            adapter.capture(inputs | {odd: torch.zeros(1, 3)})
        assert caught.value.hint
    call = replace(call, kwargs={"num_patches": torch.tensor([1])})
    assert DECODER.undeclared(call.kwargs) == ()
    assert DECODER.undeclared(call.kwargs, ["num_patches"]) == ("num_patches",)  # a decoder that reads it


def test_one_row_becomes_many() -> None:
    """Beams are rows of one prompt; values that rows share become those of each."""
    index = torch.tensor([0, 0, 0])
    mask, positions, ready = torch.ones(1, 4), torch.arange(12).reshape(3, 1, 4), torch.zeros(1, 1, 4, 4)
    got = MODEL.reorder(
        {"attention_mask": mask.long(), "position_ids": positions, "pixel_values": torch.ones(2, 3)}, index
    )
    assert got["attention_mask"].tolist() == [[1] * 4] * 3
    assert torch.equal(got["position_ids"], positions.expand(3, 3, 4))
    assert got["pixel_values"].shape == (2, 3)
    assert DECODER.reorder({"attention_mask": ready}, index)["attention_mask"].shape == (3, 1, 4, 4)
    shared = DECODER.reorder({"position_ids": torch.arange(4)[None]}, torch.tensor([1, 0]))["position_ids"]
    assert shared.tolist() == [[0, 1, 2, 3]] * 2
