"""States beside the prompt (Llama 3.2 Vision): positions of their own in front of the words, in every direction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import limelight
from limelight.decoding.methods import lime_cached
from limelight.errors import UnsupportedError
from limelight.models.inputs.cross_attention import CrossAttentionStates, find_cross_attention, reading_layers
from limelight.models.runtime.capture import capture
from limelight.relevance.attribute import attribute, attribute_generated
from tests.decoding.cached import run
from tests.tiny import built
from tests.zoo import ZOO
from tests.zoo.parts import IMAGE

ROW = ZOO["mllama"]


def test_a_capture_holds_states_in_front_of_words() -> None:
    adapter = built("mllama")
    inputs = ROW.inputs(adapter.model)
    call = adapter.capture(inputs)
    words = inputs["input_ids"].shape[1]
    states = call.cross_attention
    assert isinstance(states, CrossAttentionStates) and states.name == "cross_attention_states"
    assert call.length == call.front + words and call.front == 4 * 5  # four tiles of a class state and 2 x 2 patches
    assert bool(call.mask.all())  # two tiles are empty, yet a word before the picture sees all there is
    assert torch.equal(call.embeds[:, call.front :], adapter.embed(inputs["input_ids"]))
    kinds = call.modality(adapter.modality_ids(inputs))[0].tolist()
    assert kinds == [1] * call.front + [0] * words  # the placeholder is a word: its embedding holds no picture
    assert reading_layers(adapter.decoder, states.name) == {1}
    longer = call.appended(adapter.embed(torch.tensor([[9]])))
    assert longer.front == call.front and longer.length == call.length + 1
    masks = [longer.kwargs[k].shape[2] for k in states.masks]
    assert masks == [words + 1] * len(masks) and masks


def test_relevance_names_the_states_and_their_grid() -> None:
    adapter = built("mllama")
    inputs = ROW.inputs(adapter.model)
    relevance = attribute(adapter, inputs)
    front = adapter.capture(inputs).front
    assert len(relevance.tokens) == len(relevance.scores) == front + inputs["input_ids"].shape[1]
    assert relevance.tokens[:front] == ("<image>",) * front
    grids = [s for s in relevance.spans if s.grid == (2, 2)]
    assert [s.start for s in grids] == [1, 6, 11, 16] and relevance.spans[-1].start == front
    filled, empty = (float(x.abs().sum()) for x in (relevance.scores[:10], relevance.scores[10:front]))
    assert filled > 10 * empty
    assert 0 < relevance.share("image") < 1
    at = attribute(adapter, inputs, position=-1)
    same = attribute(adapter, inputs, position=inputs["input_ids"].shape[1] - 1)
    assert torch.equal(at.scores, same.scores)
    both = attribute_generated(adapter, inputs, [9, 10])
    assert [len(r.scores) for r in both] == [front + inputs["input_ids"].shape[1] + 1] * 2


def test_rows_of_a_padded_batch_equal_their_own_runs() -> None:
    adapter = built("mllama")
    assert ROW.batch is not None
    batch = ROW.batch(adapter.model)
    call = adapter.capture(batch)
    fn: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
    strategies = (limelight.greedy(), limelight.lime(steps=3, lr=1e-3), limelight.lime_cached(lr=5e-3))
    together = [adapter.model.generate(**batch, custom_generate=limelight.custom_generate(s), **fn) for s in strategies]
    for row in (0, 1):
        alone = ROW.inputs(adapter.model, row=row)
        single = attribute(adapter, alone)
        inside = attribute(adapter, batch, single.target, row=row)
        words = alone["input_ids"].shape[1]
        close = {"atol": 1e-4 * float(single.scores.abs().max()), "rtol": 0.0}
        torch.testing.assert_close(inside.scores[: call.front], single.scores[: call.front], **close)
        torch.testing.assert_close(inside.scores[-words:], single.scores[-words:], **close)
        assert float(inside.scores[call.front : -words].abs().sum()) == 0.0
        for strategy, output in zip(strategies, together, strict=True):
            own = adapter.model.generate(**alone, custom_generate=limelight.custom_generate(strategy), **fn)
            assert output[row, -3:].tolist() == own[0, -3:].tolist()


def test_offsets_stand_at_the_states_where_they_are_read() -> None:
    """One low-rank update of cached LIME has the root mean square it is told, over words and states alike."""

    adapter = built("mllama", torch.float64)
    seen: list[Any] = []
    original = lime_cached.LowRankOffsets.update

    def update(self: Any, gradients: Any) -> None:
        original(self, gradients)
        seen.append((self, gradients))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lime_cached.LowRankOffsets, "update", update)
        run(adapter, ROW.inputs(adapter.model), 1, lr=5e-3, layers=(1,), heads="kv")
    offsets, gradients = seen[0]
    (step, _) = offsets.factors[1][0]
    g = gradients[1]
    assert g.scores.shape[-1] == 20
    moves = [step * (left.mT @ right) for left, right in ((g.scores, g.queries), (g.weights, g.out))]
    entries = 20 * (moves[0].shape[1] * moves[0].shape[-1] + moves[1].shape[1] * moves[1].shape[-1])
    size = sum(float(m.square().sum()) for m in moves)
    assert (size / entries) ** 0.5 == pytest.approx(5e-3, rel=1e-6)


def test_only_states_of_the_decoders_width() -> None:
    embeds = torch.randn(2, 5, 8)
    assert find_cross_attention(embeds, {"cross_attention_states": torch.randn(2, 6, 4)}) is None
    assert find_cross_attention(embeds, {"other_states": torch.randn(2, 6, 8)}) is None
    found = find_cross_attention(embeds, {"cross_attention_states": torch.randn(4, 6, 8)})  # two tiles a row
    assert found is not None and found.seen is not None and found.features.front == 12 and bool(found.seen.all())


def test_masks_of_states_additive_or_not() -> None:
    sees = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 0]]).bool()[None, None]  # [B, 1, T, N]
    additive = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
    embeds, states = torch.randn(1, 2, 8), torch.randn(1, 4, 8)
    for mask in (sees, sees.long(), additive):
        found = find_cross_attention(embeds, {"cross_attention_states": states, "cross_attention_mask": mask})
        assert found is not None and found.seen is not None and found.seen.tolist() == [[True, False, True, False]]


class Leaky(nn.Module):
    """A decoder that places its pixels in the embeddings and adds them behind its layers as well."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.layers, self.config = inner, inner.layers, inner.config

    def get_input_embeddings(self) -> Any:
        return self.inner.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = False,
    ) -> Any:
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        out = self.inner(inputs_embeds=inputs_embeds, use_cache=False)
        return (out.last_hidden_state if pixels is None else out.last_hidden_state + pixels.mean(),)


class Whole(nn.Module):
    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False, **media: Any
    ) -> Any:
        return self.decoder(input_ids=input_ids, **media)


def test_media_that_go_another_way_too_raise() -> None:
    decoder = Leaky(built("llava").decoder)
    inputs = {"input_ids": torch.tensor([[1, 9, IMAGE]]), "pixels": torch.ones(1, 3)}
    for _ in range(2):
        with pytest.raises(UnsupportedError, match="in other ways than through its input embeddings") as caught:
            capture(Whole(decoder), decoder, inputs, {})
        assert caught.value.hint


class Tidy(Leaky):
    """Its pixels are in the embeddings and nowhere else, its sound is not; at padding it says nothing that counts."""

    def forward(self, pixels: Tensor | None = None, sound: Tensor | None = None, **given: Any) -> Any:
        (hidden,) = super().forward(pixels=sound, **given)
        return (hidden.index_fill(1, torch.tensor([0]), float("nan")),)


def test_what_is_computed_at_padding_and_what_comes_later() -> None:
    """The first prompt is padded; the second brings a medium that has not been asked about."""
    decoder = Tidy(built("llava").decoder)
    ids = torch.tensor([[0, 1, 9, IMAGE]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    assert capture(Whole(decoder), decoder, {**inputs, "pixels": torch.ones(1, 3)}, {}).length == 4
    with pytest.raises(UnsupportedError, match="in other ways than through its input embeddings"):
        capture(Whole(decoder), decoder, {**inputs, "sound": torch.ones(1, 3)}, {})
