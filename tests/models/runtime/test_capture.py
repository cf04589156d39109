"""Prefill capture: the towers once, and everything the decoder needs to go on alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from limelight.errors import HookError, PromptError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.inputs.ready_masks import Reach
from limelight.models.runtime.capture import DecoderCall, capture
from tests.tiny import built, fresh, llava, llava_inputs
from tests.zoo import ZOO

REACHES = {"": Reach(), "full_attention": Reach(), "sliding_attention": Reach(window=3)}


def call(**kwargs: Any) -> DecoderCall:
    batch = kwargs.pop("batch", 3)
    return DecoderCall(torch.randn(batch, 5, 4), torch.ones(batch, 5).bool(), kwargs, REACHES)


def test_embeddings_are_the_merged_ones() -> None:
    adapter = Adapter(llava())
    inputs = llava_inputs(adapter.model)
    got = adapter.capture(inputs)
    ids = inputs["input_ids"][0]
    model = adapter.model.model
    with torch.no_grad():
        words = adapter.embed(ids)
        features = model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
        picture = model.multi_modal_projector(features)[0]
    assert torch.equal(got.embeds[0][ids != 5], words[ids != 5])
    torch.testing.assert_close(got.embeds[0][ids == 5], picture)
    assert not got.embeds.requires_grad
    assert got.length == 22
    assert got.mask.all()


def test_the_tower_runs_once_and_the_decoder_not_at_all() -> None:
    adapter = fresh("llava")
    ran: list[str] = []
    adapter.model.model.vision_tower.register_forward_hook(lambda *_: ran.append("tower"))
    adapter.decoder.layers[0].register_forward_hook(lambda *_: ran.append("layer"))
    adapter.capture(ZOO["llava"].inputs(adapter.model))
    assert ran == ["tower"]
    assert not adapter.decoder._forward_pre_hooks


def test_hooks_go_also_after_an_error() -> None:
    adapter = fresh("llava")
    with pytest.raises((ValueError, RuntimeError)):
        capture(
            adapter.model,
            adapter.decoder,
            {"input_ids": torch.tensor([[1, 5]]), "pixel_values": torch.zeros(1, 3, 16, 16)},
            {},
        )
    assert not adapter.decoder._forward_pre_hooks


def test_a_model_that_does_not_call_its_decoder_raises() -> None:
    adapter = fresh("llava")
    adapter.model.forward = lambda **_: None
    with pytest.raises(HookError) as caught:
        adapter.capture(ZOO["llava"].inputs(adapter.model))
    assert caught.value.hint


def test_rows_are_cut_along_the_batch_whatever_its_size() -> None:
    """M-RoPE positions are [3, B, T]: with three rows the first axis must not be taken for the batch."""
    for batch in (2, 3, 4):
        positions = torch.arange(3)[:, None, None] * 100 + torch.arange(batch)[None, :, None] * 10 + torch.arange(5)
        whole = call(
            batch=batch, position_ids=positions, attention_mask={"full_attention": torch.randn(batch, 1, 5, 5)},
            token_type_ids=torch.arange(batch * 5).reshape(batch, 5), cross_attention_mask=torch.randn(1, 1, 5, 3), flag=True,
        )  # fmt: skip
        for row in range(batch):
            one = whole.row(row)
            assert torch.equal(one.kwargs["position_ids"], positions[:, row : row + 1])
            assert torch.equal(
                one.kwargs["attention_mask"]["full_attention"],
                whole.kwargs["attention_mask"]["full_attention"][row : row + 1],
            )
            assert torch.equal(one.kwargs["token_type_ids"], whole.kwargs["token_type_ids"][row : row + 1])
            assert torch.equal(one.kwargs["cross_attention_mask"], whole.kwargs["cross_attention_mask"])
            assert one.kwargs["flag"] is True
            assert torch.equal(one.embeds, whole.embeds[row : row + 1])
            assert one.mask.shape == (1, 5)


def test_a_row_of_one_is_itself() -> None:
    single = call(batch=1, position_ids=torch.zeros(3, 1, 5))
    assert torch.equal(single.row(0).kwargs["position_ids"], single.kwargs["position_ids"])


def test_one_more_token() -> None:
    low = torch.finfo(torch.float32).min
    mask = torch.full((3, 1, 5, 5), low).triu(1)
    mask[2, :, :, 0] = low  # a padded row
    before = call(
        attention_mask=mask, position_ids=torch.arange(5).expand(3, 5), visual_pos_masks=torch.ones(3, 5).bool()
    )
    after = before.appended(torch.zeros(3, 1, 4))
    assert after.length == 6
    assert after.mask.shape == (3, 6)
    assert after.kwargs["position_ids"][0].tolist() == [0, 1, 2, 3, 4, 5]
    assert after.kwargs["visual_pos_masks"][0].tolist() == [True] * 5 + [False]
    grown = after.kwargs["attention_mask"]
    assert grown.shape == (3, 1, 6, 6)
    assert bool((grown[:, 0, :5, 5] == low).all())
    assert grown[0, 0, 5].tolist() == [0.0] * 6
    assert grown[2, 0, 5].tolist() == [low, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert before.length == 5
    assert before.kwargs["attention_mask"].shape == (3, 1, 5, 5)


def test_two_dimensional_masks_and_windows_grow() -> None:
    low = torch.finfo(torch.float32).min
    mask = torch.full((1, 1, 5, 5), low).triu(1)
    masks = {"full_attention": mask, "sliding_attention": mask.clone(), "none": None}
    grown = call(batch=1, attention_mask=masks).appended(torch.zeros(1, 1, 4)).kwargs["attention_mask"]
    assert grown["full_attention"][0, 0, 5].tolist() == [0.0] * 6
    assert grown["sliding_attention"][0, 0, 5].tolist() == [low] * 3 + [0.0] * 3  # a window of three
    assert grown["none"] is None
    flat = call(attention_mask=torch.ones(3, 5).long()).appended(torch.zeros(3, 1, 4))
    assert flat.kwargs["attention_mask"].shape == (3, 6)


def test_what_cannot_be_extended_raises() -> None:
    for kwargs in ({"odd": torch.randn(3, 5, 7)}, {"input_ids": torch.zeros(3, 5).long()}):
        with pytest.raises(UnsupportedError) as caught:
            call(**kwargs).appended(torch.zeros(3, 1, 4))
        assert caught.value.hint


def test_undeclared_arguments_are_named() -> None:
    """At capture, whatever they hold and however it is wrapped; flags and strings are none."""
    adapter = fresh("llava")
    language = adapter.model.model.language_model
    original = language.__call__
    extra: dict[str, Any] = {}

    class Generous(type(language)):  # type: ignore[misc]
        def __call__(self, **kwargs: Any) -> Any:
            return original(**kwargs, **extra)

    language.__class__ = Generous
    inputs = ZOO["llava"].inputs(adapter.model)
    extra = {"flag": True, "spelled": "x", "nothing": None}
    assert adapter.capture(inputs).kwargs["flag"] is True
    tensors = torch.randn(1, 3)
    for value in (tensors, [tensors], {"a": tensors}, {"a": (tensors,)}, tensors.long(), tensors > 0):
        extra = {"unheard_of": value}
        with pytest.raises(UnsupportedError, match="unheard_of") as caught:
            adapter.capture(inputs)
        assert caught.value.hint
    extra = {"token_type_ids": torch.zeros(1, 1, 5)}
    with pytest.raises(UnsupportedError, match=r"'token_type_ids' to have the axes \[row position\], got \(1, 1, 5\)"):
        adapter.capture(inputs)


def test_padded_rows_count_their_own_positions() -> None:
    """Offsets live behind the rotation: a row shifted by its padding would be optimised in other coordinates."""
    adapter = built("llava")
    batch = ZOO["llava"].batch
    assert batch is not None
    positions = adapter.capture(batch(adapter.model)).kwargs["position_ids"]
    mask = batch(adapter.model)["attention_mask"]
    for row in range(2):
        assert positions[row][mask[row].bool()].tolist() == list(range(int(mask[row].sum())))
    assert "position_ids" not in adapter.capture(ZOO["llava"].inputs(adapter.model)).kwargs


@torch.no_grad()
def test_mrope_positions_go_on_behind_the_picture() -> None:
    adapter = built("qwen2_5_vl")
    got = adapter.capture(ZOO["qwen2_5_vl"].inputs(adapter.model))
    positions = got.kwargs["position_ids"]
    assert positions.shape[0] in (3, 4)
    after = got.appended(adapter.embed(torch.tensor([[50]]))).kwargs["position_ids"]
    assert torch.equal(after[..., -1], positions[..., -1] + 1)
    assert len({int(i) for i in after[-3:, 0, -1]}) == 1


@torch.no_grad()
def test_a_prompt_ending_in_an_image_continues_after_its_largest_position() -> None:
    adapter = built("qwen2_5_vl")
    inputs = ZOO["qwen2_5_vl"].inputs(adapter.model)
    end = 12
    short = {k: v[:, :end] if v.shape[-1] == 18 else v for k, v in inputs.items()}
    call = adapter.capture(short).appended(adapter.embed(torch.tensor([[50]])))
    got = adapter.logits(adapter.hidden(call)[:, -1])
    ids = torch.cat([short["input_ids"], torch.tensor([[50]])], dim=1)
    types = torch.cat([short["mm_token_type_ids"], torch.zeros(1, 1, dtype=torch.long)], dim=1)
    longer = {**short, "input_ids": ids, "mm_token_type_ids": types, "attention_mask": torch.ones_like(ids)}
    torch.testing.assert_close(got, adapter.model(**longer).logits[:, -1], atol=1e-5, rtol=1e-5)


def test_copies_are_of_everything() -> None:
    def tensors(value: Any) -> list[Tensor]:
        if isinstance(value, dict):
            return [t for v in value.values() for t in tensors(v)]
        return [value] if isinstance(value, Tensor) else []

    with torch.inference_mode():
        source = call(attention_mask={"full": torch.randn(3, 1, 5, 5)}, position_ids=torch.zeros(3, 5))
    copy = source.cloned()
    assert all(t.is_inference() for t in [source.embeds, source.mask, *tensors(dict(source.kwargs))])
    made = [copy.embeds, copy.mask, *tensors(dict(copy.kwargs))]
    assert len(made) == 4
    assert not any(t.is_inference() for t in made)


def test_an_empty_prompt_raises() -> None:
    adapter = built("llava")
    with pytest.raises(PromptError) as caught:
        adapter.capture({"input_ids": torch.zeros(1, 0, dtype=torch.long)})
    assert caught.value.hint
