"""Several requests in one batch answer what each answers alone."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

import limelight
from limelight.decoding.collate import batch_of, collate, shift_spans
from limelight.errors import SettingError, UnsupportedError
from limelight.types import Prompt, Span
from tests.tiny import built
from tests.zoo import ZOO


@pytest.fixture(scope="module")
def adapter() -> limelight.Adapter:
    return limelight.load("demo-vision")


def requests(adapter: limelight.Adapter) -> list[Prompt]:
    words = (
        "Is there a cup in the picture?",
        "There is a dog. Is there a dog in the picture?",
        "Describe the picture.",
    )
    colours = ("white", "red", "green")
    return [adapter.prepare(w, {"image": Image.new("RGB", (112, 112), c)}) for w, c in zip(words, colours, strict=True)]


@pytest.mark.parametrize("name", ["greedy", "lime", "lime-cached", "relevance-contrastive", "vcd", "m3id"])
def test_answers_are_those_of_each_request_alone(adapter: limelight.Adapter, name: str) -> None:
    prompts = requests(adapter)
    together = limelight.generate_many(adapter, requests=prompts, strategy=name, seeds=3, max_new_tokens=4)
    for i, prompt in enumerate(prompts):
        alone = limelight.generate(
            adapter, messages=prompt, strategy=name, seed=3 + i, relevance=False, max_new_tokens=4
        )
        if name != "vcd":  # its noise is drawn for the batch as a whole
            assert together[i].text == alone.text
        assert len(together[i].steps) > 0


def test_relevance_of_a_padded_row_is_that_of_the_row_alone(adapter: limelight.Adapter) -> None:
    prompts = requests(adapter)
    row = limelight.generate_many(adapter, requests=prompts, relevance=True, max_new_tokens=1)[0].steps[0].relevance
    alone = limelight.generate(adapter, messages=prompts[0], max_new_tokens=1).steps[0].relevance
    assert row is not None
    assert alone is not None
    pad = len(row.scores) - len(alone.scores)
    assert pad > 0
    assert torch.allclose(row.scores[pad:], alone.scores, atol=1e-4)
    assert float(row.scores[:pad].abs().max()) == 0
    assert row.on_grid().shape == alone.on_grid().shape


def test_sampling_draws_by_each_requests_own_seed(adapter: limelight.Adapter) -> None:
    prompts = requests(adapter)
    settings = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 5}
    together = limelight.generate_many(adapter, requests=prompts, seeds=[7, 1, 5], **settings)
    alone = limelight.generate(adapter, messages=prompts[2], seed=5, relevance=False, **settings)
    assert together[2].token_ids == alone.token_ids


def test_what_cannot_share_a_batch_is_refused(adapter: limelight.Adapter) -> None:
    one, two, _ = requests(adapter)
    taller = replace(two, tensors={**two.tensors, "pixel_values": torch.zeros(1, 3, 224, 112)})
    with pytest.raises(UnsupportedError, match="pixel_values"):
        collate([one, taller])
    with pytest.raises(UnsupportedError, match="different kinds"):
        collate([one, replace(two, tensors={**two.tensors, "extra": torch.zeros(1)})])
    with pytest.raises(SettingError, match="no requests"):
        limelight.generate_many(adapter, requests=[])


def test_an_undeclared_tensor_is_named(adapter: limelight.Adapter) -> None:
    odd = [replace(p, tensors={**p.tensors, "odd_ids": torch.zeros(1, 3)}) for p in requests(adapter)]
    with pytest.raises(UnsupportedError, match="odd_ids") as caught:
        collate(odd)
    assert caught.value.hint
    assert collate(odd[:1])[0]["odd_ids"] is odd[0].tensors["odd_ids"]  # alone there is nothing to line up


def test_shifted_spans_still_partition() -> None:
    spans = (Span(0, 2, "image", (1, 2)), Span(2, 5, "text"))
    moved = shift_spans(spans, 3)
    assert [(s.start, s.stop, s.modality) for s in moved] == [(0, 3, "text"), (3, 5, "image"), (5, 8, "text")]
    assert moved[1].grid == (1, 2)


@pytest.mark.parametrize("name", ZOO)
def test_prompts_of_every_family_become_its_own_batch(name: str) -> None:
    row, adapter = ZOO[name], built(name)
    prompts = []
    for number in range(2):
        tensors = row.inputs(adapter.model, row=number)
        count = tensors["input_ids"].shape[1]
        prompts.append(Prompt(tensors, ("",) * count, (Span(0, count, next(iter(row.modalities), "text")),)))
    if row.batch is None:
        with pytest.raises(UnsupportedError, match="does not support") as caught:
            batch_of(adapter, prompts)
        assert caught.value.hint
        return
    expected = row.batch(adapter.model)
    found, pads = batch_of(adapter, prompts)
    expected.pop("position_ids", None)  # counted by generate()
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value) if isinstance(value, torch.Tensor) else found[key] == value, key
    assert pads == [expected["input_ids"].shape[1] - len(p.tokens) for p in prompts]


def test_masked_entries_of_a_patch_index_stay_masked() -> None:
    index = torch.tensor([[0, 1, -1, -1]])
    tensors = {
        "input_ids": torch.ones(1, 2, dtype=torch.long),
        "image_token_pooling": index,
        "pixel_values": torch.zeros(2, 3, 4),
    }
    prompts = [Prompt(tensors, ("a", "b"), (Span(0, 2, "image"),))] * 2
    assert collate(prompts)[0]["image_token_pooling"].tolist() == [[0, 1, -1, -1], [6, 7, -1, -1]]
