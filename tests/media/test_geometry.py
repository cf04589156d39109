"""Charts are read back from what a processor might do to them: crops, padding, resizing, tiles, patches in any order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from limelight.media import geometry
from limelight.types import Box

MEAN, STD = 0.45, 0.27


def processed(chart: np.ndarray, box: Box, shape: tuple[int, int], pad: int = 128) -> np.ndarray:
    """``[3, rows, columns]``: the box (whole pixels of the original; it may reach outside) resized and normalised."""
    left, top, right, bottom = (round(v) for v in box)
    height, width = chart.shape[:2]
    canvas = np.full((bottom - top, right - left, 3), pad, np.uint8)
    x, y = max(left, 0), max(top, 0)
    part = chart[y : min(bottom, height), x : min(right, width)]
    canvas[y - top : y - top + part.shape[0], x - left : x - left + part.shape[1]] = part
    resized = Image.fromarray(canvas).resize(shape[::-1], Image.Resampling.BICUBIC)
    return ((np.asarray(resized, np.float64) / 255 - MEAN) / STD).transpose(2, 0, 1)


def read_tile(size: tuple[int, int], box: Box, shape: tuple[int, int]) -> geometry.Tile:
    made = {n: processed(geometry.chart(n, size), box, shape) for n in geometry.RAMPS}
    readings = geometry.read(made)
    return geometry.tile(readings["across"], readings["down"], [size], None, None, [0])


@given(
    st.tuples(st.integers(24, 400), st.integers(24, 400)),
    st.tuples(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4), st.floats(0.6, 1.4), st.floats(0.6, 1.4)),
    st.tuples(st.integers(12, 60), st.integers(12, 60)),
)
@settings(max_examples=60, deadline=None)
def test_the_box_of_a_tile_is_read_back(size: tuple[int, int], part: Box, shape: tuple[int, int]) -> None:
    width, height = size
    box = tuple(float(round(f * n)) for f, n in zip(part, (width, height) * 2, strict=True))
    found = read_tile(size, box, shape)  # type: ignore[arg-type]
    assert found.box is not None
    told = [f * n for f, n in zip(found.box, (width, height) * 2, strict=True)]
    pixel = max((box[2] - box[0]) / shape[1], (box[3] - box[1]) / shape[0], 1.0)
    assert told == pytest.approx(box, abs=1.0 * pixel + 0.012 * max(size))


def test_edges_of_the_original_are_exact() -> None:
    assert read_tile((640, 480), (0, 0, 640, 480), (336, 336)).box == (0, 0, 1, 1)
    left, top, right, bottom = read_tile((640, 480), (80, 0, 560, 480), (224, 224)).box or (0, 0, 0, 0)
    assert (top, bottom) == (0, 1)
    assert (left, right) == pytest.approx((0.125, 0.875), abs=0.003)


def test_padding_alone_is_a_tile_of_nothing() -> None:
    blank = np.full((1, 8, 8), np.nan)
    found = geometry.tile(blank, blank, [(10, 10)], None, None, [0])
    assert (found.medium, found.box) == (None, None)


def test_a_mirrored_or_bent_reading_is_not_known() -> None:
    ramp = np.broadcast_to(np.linspace(0.05, 0.95, 16), (1, 16, 16))
    down = ramp.transpose(0, 2, 1)
    assert geometry.tile(ramp[..., ::-1], down, [(100, 100)], None, None, [0]).box is None
    assert geometry.tile(ramp**3, down, [(100, 100)], None, None, [0]).box is None
    assert geometry.tile(ramp, down, [(100, 100)], None, None, [0]).box is not None


@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("order", [1, 2])
def test_patches_in_rows_or_in_blocks(merge: int, order: int) -> None:
    rows, columns = 4, 6
    middles = np.stack(np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows), -1)
    laid = middles.reshape(rows // order, order, columns // order, order, 2).transpose(0, 2, 1, 3, 4).reshape(-1, 2)
    across, down = (np.repeat(laid[:, i : i + 1], 3, 1) for i in (0, 1))
    found = geometry.sheet(across, down, (1, rows, columns), merge, (90, 60), None, 0, 0)
    if order in (1, merge):
        assert found.box == pytest.approx((0, 0, 1, 1))
    else:
        assert found.box is None  # an order that the model's merging does not have
    shuffled = np.random.default_rng(0).permutation(len(across))
    assert geometry.sheet(across[shuffled], down[shuffled], (1, rows, columns), merge, (90, 60), None, 0, 0).box is None


def test_frames_of_steps() -> None:
    levels = np.array([[geometry.level(n, 5)] * 4 for n in (0, 1, 2, 3, 4, 4)]).reshape(3, -1)
    flat = np.full((3, 4), 0.5)
    found = geometry.sheet(flat, flat, (3, 1, 1), 1, (9, 9), levels, 5, 2)
    assert found.steps == ((0, 1), (2, 3), (4,))
    assert geometry.sheet(flat, flat, (3, 1, 1), 1, (9, 9), None, 300, 2).steps == ((), (), ())


@given(st.integers(10, 3000), st.integers(10, 3000), st.integers(1, 4), st.integers(1, 4), st.integers(2, 27))
@settings(max_examples=100, deadline=None)
def test_unpadding_is_transformers_own(width: int, height: int, down: int, across: int, side: int) -> None:
    import torch
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    rows, columns = down * side, across * side
    kept = unpad_image(torch.empty(1, rows, columns, device="meta"), (height, width)).shape[1:]
    if 0 in kept:
        return
    box, cells = geometry.unpadded((0, 0, 1, 1), (rows, columns), (width, height))
    assert cells == tuple(kept)
    assert (box[0] + box[2], box[1] + box[3]) == pytest.approx((1, 1))
    assert ((box[2] - box[0]) * columns, (box[3] - box[1]) * rows) == pytest.approx((cells[1], cells[0]))


def test_windows_of_sounds() -> None:
    assert geometry.windows([25, 50], [0.04, 0.04], [1.0, 2.0]) == [(0, 0.0), (1, 0.0)]
    assert geometry.windows([75, 75, 75], [0.4] * 3, [40.0, 12.0]) == [(0, 0.0), (0, 30.0), (1, 0.0)]
    assert geometry.windows([75, 75], [0.4] * 2, [70.0]) is None
    assert geometry.windows([75, 75, 75], [0.4] * 3, [20.0]) is None
