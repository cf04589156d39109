"""Kosmos: a mask says where the picture is, positions are a bias, and padding is counted as the decoder counts it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from limelight.errors import PromptError
from limelight.models.adapter import Adapter
from limelight.models.inputs.position_mask import PLACES, is_positions, placed, places
from limelight.relevance.attribute import attribute
from limelight.relevance.composites import ATTN_LRP
from tests.relevance.forward.helpers import after, backward_sums, close, stream
from tests.tiny import built, snapshot
from tests.zoo import ZOO
from tests.zoo.base import PAD

both = pytest.mark.parametrize("name", ["kosmos2", "kosmos2_5"])


def padded(adapter: Adapter, name: str, count: int = 2) -> dict[str, Tensor]:
    """Row 0 behind so much padding."""
    inputs = ZOO[name].inputs(adapter.model)
    front = {"input_ids": PAD, "attention_mask": 0, PLACES: 0}
    return {k: nn.functional.pad(v, (count, 0), value=front[k]) if k in front else v for k, v in inputs.items()}


@both
def test_places_and_the_leaf(name: str) -> None:
    adapter = built(name)
    inputs = ZOO[name].inputs(adapter.model)
    marked = inputs[PLACES] != 0
    assert torch.equal(adapter.modality_ids(inputs), marked.long())
    assert [s.modality for s in adapter.spans(inputs)] == ["text", "image", "text"]
    call = adapter.capture(inputs)
    words = adapter.embed(inputs["input_ids"])
    assert torch.equal(call.embeds[~marked], words[~marked])
    assert not torch.equal(call.embeds[marked], words[marked])
    longer = call.appended(adapter.embed(torch.tensor([[9]])))
    assert longer.kwargs[PLACES][0].tolist() == [*inputs[PLACES][0].tolist(), 0]
    last = int(call.kwargs["position_ids"][0, -1])
    assert longer.kwargs["position_ids"][0, -2:].tolist() == [last, last + 1]
    assert last == PAD + inputs["input_ids"].shape[1]
    relevance = attribute(adapter, inputs)
    assert float(relevance.scores[marked[0]].abs().max()) > 1e-3


@both
def test_padding_changes_nothing(name: str) -> None:
    adapter = built(name)
    alone = attribute(adapter, ZOO[name].inputs(adapter.model))
    before = snapshot(adapter.model)
    behind = attribute(adapter, padded(adapter, name), alone.target)
    assert float(behind.scores[:2].abs().max()) == 0.0
    torch.testing.assert_close(behind.scores[2:], alone.scores, atol=1e-5, rtol=1e-4)
    assert snapshot(adapter.model) == before


@both
def test_generated_words_in_forward_mode(name: str) -> None:
    """Behind padding, too: token by token equals the backward route over the whole sequence."""
    adapter = built(name)
    for inputs in (ZOO[name].inputs(adapter.model), padded(adapter, name)):
        with torch.no_grad():
            call = adapter.capture(inputs).cloned()
        media_mask = adapter.modality_ids(inputs) > 0
        logits, phi = after(stream(adapter, call, media_mask), [[9], [55]])
        whole = call
        for token in (9, 55):
            whole = whole.appended(adapter.embed(torch.tensor([[token]])).detach())
        want_logits, want = backward_sums(adapter, whole, nn.functional.pad(media_mask, (0, 2)), [5, 80], ATTN_LRP)
        close(logits[0], want_logits, 1e-4)
        close(phi[:, 0, [5, 80]], want, 1e-4)


@both
def test_a_prompt_without_an_image_is_refused_with_a_hint(name: str) -> None:
    adapter = built(name)
    inputs = ZOO[name].inputs(adapter.model)
    with pytest.raises(PromptError, match=PLACES):
        adapter.modality_ids({**inputs, PLACES: torch.zeros_like(inputs[PLACES])})


def test_what_is_no_mask_and_no_table() -> None:
    adapter = built("llava")
    assert places(ZOO["llava"].inputs(adapter.model)) is None
    assert placed(adapter.decoder, ZOO["llava"].inputs(adapter.model)) is None
    assert not any(is_positions(m) for m in adapter.decoder.modules())
    ids, where = torch.ones(1, 4, dtype=torch.long), torch.tensor([[0, 1]])
    assert places({"input_ids": ids, PLACES: where}).tolist() == [[0, 1, 0, 0]]  # type: ignore[union-attr]
    tables = [m for m in built("kosmos2").decoder.modules() if is_positions(m)]
    assert tables == [built("kosmos2").decoder.embed_positions]
