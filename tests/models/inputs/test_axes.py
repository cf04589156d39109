"""Axes of arguments: what each operation does to masks, positions, types and marks, on small tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask, create_chunked_causal_mask, create_sliding_window_causal_mask

from limelight.errors import UnsupportedError
from limelight.models.inputs.axes import FULL, Axes, following
from limelight.models.inputs.decoder_inputs import DECODER, READY
from limelight.models.inputs.ready_masks import Reach
from tests.tiny import built

LOW = torch.finfo(torch.float32).min


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_rows_are_blocks_of_the_batch(batch: int) -> None:
    """Also where a number of axes and a batch happen to be equal, and where one row serves all."""
    rows = 3 * batch
    mask = torch.arange(batch * 5).reshape(batch, 5)
    positions = torch.arange(3 * batch * 5).reshape(3, batch, 5)  # M-RoPE: [axes, B, T]
    ready = torch.randn(batch, 1, 5, 5)
    given = {"attention_mask": mask, "position_ids": positions, "flag": False}
    got = DECODER.repeat(given, rows)
    assert torch.equal(got["attention_mask"], torch.cat([mask] * 3))
    assert torch.equal(got["position_ids"], torch.cat([positions] * 3, dim=1))
    assert got["flag"] is False
    one = DECODER.repeat({"position_ids": positions[:, :1], "attention_mask": mask[:1]}, rows)
    assert torch.equal(one["position_ids"], positions[:, :1].expand(3, rows, 5))
    assert torch.equal(one["attention_mask"], mask[:1].expand(rows, 5))
    flat = DECODER.repeat({"position_ids": mask[:1]}, rows)["position_ids"]
    assert torch.equal(flat, mask[:1].expand(rows, 5))
    out = DECODER.repeat({"attention_mask": {"full_attention": ready, "none": None}}, rows)["attention_mask"]
    assert out["none"] is None
    assert torch.equal(out["full_attention"].expand(rows, 1, 5, 5), torch.cat([ready] * 3))
    assert DECODER.repeat(given, batch)["attention_mask"] is mask


def test_the_tail_of_masks_and_positions() -> None:
    square, row = torch.arange(50).reshape(2, 1, 5, 5), torch.arange(10).reshape(2, 5)
    tail = DECODER.tail({"attention_mask": {"a": square}, "token_type_ids": row, "flag": True}, 2)
    assert torch.equal(tail["attention_mask"]["a"], square[..., 3:, 3:])
    assert torch.equal(tail["token_type_ids"], row[:, 3:])
    assert tail["flag"] is True
    assert torch.equal(
        DECODER.tail({"position_ids": row.expand(3, 2, 5)}, 1)["position_ids"], row.expand(3, 2, 5)[..., 4:]
    )
    assert torch.equal(DECODER.tail({"position_ids": row[0]}, 2)["position_ids"], row[0, 3:])  # [T]


def padded(rows: list[int], length: int) -> Tensor:
    return torch.stack([torch.arange(length) >= n for n in rows]).long()


@pytest.mark.parametrize(
    "reach", [FULL, Reach(window=3), Reach(window=5), Reach(window=9), Reach(chunk=3), Reach(chunk=4)]
)
def test_ready_made_masks_go_on_as_transformers_makes_them(reach: Reach) -> None:
    """Row by row, and as a whole; with padding, from which chunks are counted."""
    config = built("llava").decoder.config.__class__(
        hidden_size=8, num_attention_heads=1, num_hidden_layers=1, sliding_window=reach.window
    )
    config.attention_chunk_size = reach.chunk
    config._attn_implementation = "eager"
    make = create_chunked_causal_mask if reach.chunk else create_sliding_window_causal_mask
    make = make if reach != FULL else create_causal_mask

    def mask(length: int) -> Tensor:
        empty = DynamicCache()
        made = make(
            config=config, inputs_embeds=torch.zeros(2, length, 8), past_key_values=empty,
            attention_mask=padded([0, 2], length),
        )  # fmt: skip
        assert isinstance(made, Tensor)
        return made

    padding = torch.tensor([0, 2])
    whole = mask(4)
    row = READY.last(whole)
    for length in range(5, 14):
        whole = READY.append(whole, 1, reach)
        row = READY.following(row, reach, padding)
        assert torch.equal(row, whole[..., -1:, :])
        want = mask(length)
        real = padded([0, 2], length).bool()
        for r in range(2):
            assert torch.equal(whole[r][:, real[r]], want[r][:, real[r]])


def test_positions_go_on_behind_the_largest_of_several_axes() -> None:
    last = torch.tensor([[[7]], [[3]], [[5]]])
    assert following(last)[:, 0, 0].tolist() == [8, 8, 8]
    assert following(torch.tensor([[[11]], [[7]], [[3]], [[5]]]))[:, 0, 0].tolist() == [12, 8, 8, 8]
    assert following(torch.tensor([[4], [9]])).tolist() == [[5], [10]]


def test_words_put_in_and_taken_out() -> None:
    """In front of a picture on three axes; at the very end; rows at places of their own; and without the picture."""
    positions = torch.tensor([[0, 1, 2, 2, 2, 2, 4, 5], [0, 1, 2, 2, 3, 3, 4, 5], [0, 1, 2, 3, 2, 3, 4, 5]])[:, None]
    axes, every = Axes("axis row position", "next"), torch.ones(1, 10, dtype=torch.bool)
    put = axes.insert(positions, [2], 2)
    assert put[:, 0].tolist() == [
        [0, 1, 2, 3, 4, 4, 4, 4, 6, 7], [0, 1, 2, 3, 4, 4, 5, 5, 6, 7], [0, 1, 2, 3, 4, 5, 4, 5, 6, 7],
    ]  # fmt: skip
    keep = every.clone()
    keep[0, 2:4] = False
    assert torch.equal(axes.drop(put, keep, every), positions)
    assert axes.insert(positions, [8], 2)[1, 0, -3:].tolist() == [5, 6, 7]
    keep = torch.ones(1, 8, dtype=torch.bool)
    keep[0, 2:6] = False  # the picture goes
    assert axes.drop(positions, keep, every[:, :8])[:, 0].tolist() == [[0, 1, 2, 3]] * 3
    flat = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3]])
    put = Axes("row position", "next").insert(flat, [3, 1], 1)
    assert put.tolist() == [[0, 0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert Axes("row position", "one").insert(torch.tensor([[0, 1, 1]]), [1], 2).tolist() == [[0, 1, 1, 1, 1]]
    shared = Axes("row position", "zero").insert(torch.tensor([[4, 5]]), [0, 2], 1)
    assert shared.tolist() == [[0, 4, 5], [4, 5, 0]]  # rows that shared their values have their own now


def test_rows_of_unequal_length_are_padded_anew() -> None:
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]).bool()
    keep = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 1]]).bool()
    assert Axes("row position", "one").drop(mask.long(), keep, mask).tolist() == [[0, 1, 1], [1, 1, 1]]
    positions = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3]])
    assert Axes("row position", "next").drop(positions, keep, mask).tolist() == [[0, 0, 1], [0, 1, 2]]


def test_what_a_layout_cannot_do_is_refused() -> None:
    ready = torch.zeros(1, 1, 3, 3)
    everything = torch.ones(1, 3, dtype=torch.bool)
    for refused in (
        lambda: READY.insert(ready, [1], 1),
        lambda: READY.drop(ready, everything, everything),
        lambda: READY.pad(ready, 2),
        lambda: Axes("row position").append(torch.zeros(1, 3)),
        lambda: Axes("position", "next").insert(torch.arange(3), [1, 2], 1),
        lambda: DECODER.append({"attention_mask": {"odd_attention": ready}}, 1, {"full_attention": FULL}),
        lambda: DECODER.following({"attention_mask": {"linear_attention": ready[0, 0]}}, {"full_attention": FULL}),
        lambda: DECODER.row({"odd": ready}, 0),
    ):
        with pytest.raises(UnsupportedError) as caught:
            refused()
        assert caught.value.hint
