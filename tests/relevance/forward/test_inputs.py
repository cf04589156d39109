"""Masks and positions for rows of values and tangents, and for one position after another."""

from __future__ import annotations

import pytest
import torch

from limelight.errors import UnsupportedError
from limelight.models.inputs.ready_masks import Reach, grown
from limelight.relevance.forward.inputs import last_rows, repeated, tail

LOW = torch.finfo(torch.float32).min


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_rows_are_blocks_of_the_batch(batch: int) -> None:
    """Also where a number of axes and a batch happen to be equal, and where one row serves all."""
    rows = 3 * batch
    mask = torch.arange(batch * 5).reshape(batch, 5)
    assert torch.equal(repeated("attention_mask", mask, rows), torch.cat([mask] * 3))
    positions = torch.arange(3 * batch * 5).reshape(3, batch, 5)  # M-RoPE: [axes, B, T]
    assert torch.equal(repeated("position_ids", positions, rows), torch.cat([positions] * 3, dim=1))
    one = positions[:, :1]
    assert torch.equal(repeated("position_ids", one, rows), one.expand(3, rows, 5))
    assert torch.equal(repeated("position_ids", mask[:1], rows), mask[:1].expand(rows, 5))
    ready = torch.randn(batch, 1, 5, 5)
    out = repeated("attention_mask", {"full_attention": ready, "none": None}, rows)
    assert out["none"] is None
    assert torch.equal(out["full_attention"].expand(rows, 1, 5, 5), torch.cat([ready] * 3))
    assert repeated("output_attentions", False, rows) is False
    assert repeated("attention_mask", mask, batch) is mask


def test_the_tail_of_masks_and_positions() -> None:
    square, row = torch.arange(50).reshape(2, 1, 5, 5), torch.arange(10).reshape(2, 5)
    assert torch.equal(tail({"a": square}, 2)["a"], square[..., 3:, 3:])
    assert torch.equal(tail(row, 2), row[:, 3:])
    assert torch.equal(tail(row.expand(3, 2, 5), 1), row.expand(3, 2, 5)[..., 4:])
    assert tail(True, 2) is True


@pytest.mark.parametrize(
    "reach", [Reach(), *(Reach(window=n) for n in (3, 5, 9)), *(Reach(chunk=n) for n in (3, 4))], ids=str
)
def test_a_ready_made_row_goes_on_as_the_whole_mask_does(reach: Reach) -> None:
    whole = torch.zeros(2, 1, 4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), LOW)
    whole[1, :, :, 0] = LOW
    row = last_rows({"m": whole}, {"m": reach})["m"]
    for _ in range(6):
        whole = grown(whole, reach)
        assert row is not None
        row = row.longer()
        assert torch.equal(row.row, whole[..., -1:, :])


def test_masks_without_a_tensor_stay_none() -> None:
    assert last_rows({"full_attention": None}, {"full_attention": Reach()}) == {"full_attention": None}


def test_a_mask_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="chunked_attention") as caught:
        last_rows({"chunked_attention": torch.zeros(1, 1, 2, 2)}, {"full_attention": Reach()})
    assert "[batch, positions]" in caught.value.hint
