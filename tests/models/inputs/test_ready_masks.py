"""Ready-made masks go on as the model's own masks of the longer prompt would, or are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import (
    chunked_causal_mask_function,
    eager_mask,
    sliding_window_causal_mask_function,
)

from limelight.errors import PromptError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.inputs.ready_masks import Reach, additive, grown, longer, padding_of, reach_of, reaches
from limelight.relevance.attribute import attribute_generated
from tests.tiny import built
from tests.zoo import ZOO

LOW = torch.finfo(torch.float32).min
PADDING = torch.tensor([[1] * 12, [0] * 2 + [1] * 10, [0] * 5 + [1] * 7]).bool()
REACHES = [Reach(), *(Reach(window=n) for n in (1, 3, 30)), *(Reach(chunk=n) for n in (1, 3, 4, 5, 30))]


def own(reach: Reach, length: int) -> Tensor:
    """transformers' mask of so many positions, three rows with paddings of 0, 2 and 5."""
    seen = torch.nn.functional.pad(PADDING, (0, length), value=True)[:, :length]
    kind: dict[str, Any] = {}
    if reach.window:
        kind = {"mask_function": sliding_window_causal_mask_function(reach.window)}
    if reach.chunk:
        kind = {"mask_function": chunked_causal_mask_function(reach.chunk, (~PADDING).sum(-1))}
    return eager_mask(3, length, length, attention_mask=seen, **kind)


@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_they_go_on_as_transformers_makes_them(reach: Reach) -> None:
    start = own(reach, 12)
    assert padding_of(start).tolist() == [0, 2, 5]
    at_once = grown(start, reach, 9)
    assert torch.equal(at_once, own(reach, 21))
    row, mask = start[..., -1:, :], start
    for n in range(13, 22):
        mask = grown(mask, reach)
        row = longer(row, reach, padding_of(start))
        assert torch.equal(mask, own(reach, n))
        assert torch.equal(row, mask[..., -1:, :])


def test_positions_hidden_from_the_last_one_stay_masked() -> None:
    mask = own(Reach(), 12)
    mask[..., 6] = LOW  # hidden from all, as by a caller
    after = grown(mask, Reach(), 3)
    assert bool((after[..., 6] == LOW).all())
    assert torch.equal(after[..., :12, :12], mask)


@pytest.mark.parametrize(
    ("config", "want"),
    [
        ({}, {"": Reach()}),
        ({"sliding_window": 8}, {"": Reach(window=8), "sliding_attention": Reach(window=8)}),
        ({"sliding_window": 8, "use_sliding_window": False}, {"": Reach()}),
        ({"sliding_window": 8, "layer_types": ["full_attention"] * 2}, {"": Reach(), "sliding_attention": Reach(window=8)}),
        ({"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}, {"sliding_attention": Reach(window=8)}),
        ({"attention_chunk_size": 8, "layer_types": ["chunked_attention"]}, {"": Reach(chunk=8), "chunked_attention": Reach(chunk=8)}),
        ({"attention_chunk_size": 8, "layer_types": ["full_attention", "chunked_attention"]}, {"chunked_attention": Reach(chunk=8)}),
        ({"layer_types": ["linear_attention", "full_attention"]}, {"": Reach()}),
    ],
)  # fmt: skip
def test_windows_of_the_config(config: dict[str, Any], want: dict[str, Reach]) -> None:
    assert reaches(SimpleNamespace(**config)) == {"full_attention": Reach()} | want


def test_unknown_masks_are_refused() -> None:
    mixed = reaches(SimpleNamespace(attention_chunk_size=8, layer_types=["full_attention", "chunked_attention"]))
    assert reach_of("", 8, mixed) == Reach()  # short enough that all kinds see the same
    for name, length in (("", 9), ("strange_attention", 3), ("sliding_attention", 3)):
        with pytest.raises(UnsupportedError) as caught:
            reach_of(name, length, mixed)
        assert "[batch, positions]" in caught.value.hint
    with pytest.raises(UnsupportedError, match="T, T"):
        grown(torch.zeros(1, 1, 1, 4), Reach())


def test_boolean_masks_are_read_and_integers_refused() -> None:
    mask = own(Reach(), 12)
    assert torch.equal(additive({"m": mask == 0, "none": None}, torch.float32)["m"], mask)
    assert additive(mask, torch.float64) is mask
    flat = torch.ones(2, 3).long()
    assert additive(flat, torch.float32) is flat
    with pytest.raises(PromptError, match="int64"):
        additive((mask == 0).long(), torch.float32)


def masks(adapter: Adapter, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What llama4 makes of its [B, T] mask."""
    config, (rows, length) = adapter.decoder.config, inputs["input_ids"].shape
    front = (inputs["attention_mask"] == 0).sum(-1)
    chunk = {"mask_function": chunked_causal_mask_function(config.attention_chunk_size, front)}
    seen = inputs["attention_mask"].bool()
    made = (
        (k, eager_mask(rows, length, length, attention_mask=seen, **f))
        for k, f in (("full_attention", {}), ("chunked_attention", chunk))
    )
    return dict(made)


@pytest.mark.parametrize("boolean", [False, True])
def test_a_chunked_model_with_ready_made_masks_is_the_model_with_its_own(boolean: bool) -> None:
    adapter = built("llama4")
    inputs = ZOO["llama4"].inputs(adapter.model)
    length = int(inputs["input_ids"].shape[1])
    assert adapter.decoder.config.attention_chunk_size < length + 6
    ready: Any = masks(adapter, inputs)
    ready = {k: m == 0 for k, m in ready.items()} if boolean else ready
    said = [9, 17, 40, 50, 60, 70]
    want = attribute_generated(adapter, inputs, said)
    got = attribute_generated(adapter, inputs | {"attention_mask": ready}, said)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.scores, b.scores, atol=1e-5, rtol=0)
        assert a.logit == pytest.approx(b.logit, abs=1e-5)
    call, mine = adapter.capture(inputs), adapter.capture(inputs | {"attention_mask": ready})
    for token in said:
        call, mine = (c.appended(adapter.embed(torch.tensor([[token]]))) for c in (call, mine))
        with torch.no_grad():
            torch.testing.assert_close(adapter.hidden(mine), adapter.hidden(call), atol=1e-5, rtol=0)
