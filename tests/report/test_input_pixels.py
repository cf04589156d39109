"""Relevance over the pixels of pictures, as numbers and in the figure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from limelight.report.document import summary
from limelight.report.input_pixels import pixel_grids
from limelight.report.media import Media
from limelight.report.overlay import overlay
from limelight.report.views import views
from limelight.types import Prompt, Relevance
from tests.report import examples

ONE = examples.prompt(("image", 12, (3, 4), None))
TWO = examples.prompt(("image", 12, (3, 4), None), ("image", 48, (6, 8), None))


def carried(of: Prompt, pixels: torch.Tensor, name: str = "pixel_values") -> Relevance:
    return replace(examples.relevance(of, 5, "cup"), media_inputs={name: pixels})


def grids(relevance: Relevance, pictures: int = 1, **more: int) -> list[np.ndarray] | None:
    return pixel_grids(relevance, views(relevance.spans, Media([examples.picture()] * pictures)), **more)


def test_cells_are_divided_evenly_and_keep_the_sum() -> None:
    pixels = torch.randn(1, 3, 18, 24, generator=torch.Generator().manual_seed(0))
    for finest, shape in ((64, (18, 24)), (12, (9, 12)), (3, (3, 4))):  # at least the grid's cells
        (found,) = grids(carried(ONE, pixels), finest=finest) or ()
        assert found.shape == shape
        assert found.sum() == pytest.approx(float(pixels.sum()), abs=1e-4)
    (cells,) = grids(carried(ONE, pixels), finest=1) or ()
    want = pixels[0].sum(0).reshape(3, 6, 4, 6).sum((1, 3))
    np.testing.assert_allclose(cells, want, atol=1e-5)


def test_what_the_convolution_does_not_read_is_left_out() -> None:
    pixels = torch.ones(1, 1, 20, 27)
    pixels[..., 18:, :], pixels[..., 24:] = 0.0, 0.0
    (cells,) = grids(carried(ONE, pixels), finest=1) or ()
    assert cells.tolist() == [[36.0] * 4] * 3


def test_tiles_belong_to_the_views_in_order() -> None:
    pixels = torch.stack([torch.full((3, 12, 16), 1.0), torch.full((3, 12, 16), -2.0)])
    for given in (pixels, pixels[None]):
        first, second = grids(carried(TWO, given), 2) or ()
        assert first.min() > 0 > second.max()
        assert (first.sum(), second.sum()) == (3 * 192, -6 * 192)


def test_unknown_layouts_are_none() -> None:
    pixels = torch.ones(1, 3, 12, 16)
    bare = replace(carried(ONE, pixels), media_inputs={})
    unplaced = examples.prompt(("image", 12, (3, 4), None), placed=False)
    flat, many, small, padded = (torch.ones(*n) for n in ((48, 27), (2, 3, 12, 16), (1, 3, 2, 12), (1, 3, 16, 16)))
    for other in (flat, many, small, padded):  # the last: a square tile, whose padding the grid of 3 x 4 leaves out
        assert grids(carried(ONE, other)) is None
    assert grids(carried(ONE, pixels)) is not None
    assert grids(bare) is None and grids(carried(unplaced, pixels)) is None
    assert grids(replace(bare, media_inputs={"pixel_values": pixels, "more": pixels})) is None


def test_the_figure_draws_pixels_where_it_can_and_says_which() -> None:
    pixels = torch.zeros(1, 3, 24, 32)
    pixels[0, :, 20:, 26:] = 1.0
    through, positions = carried(ONE, pixels), examples.relevance(ONE, 5, "cup")
    flat = carried(ONE, torch.ones(48, 27))

    def drawn(relevance: Relevance) -> tuple[np.ndarray, str]:
        axes = overlay(relevance, examples.picture()).axes[0]
        return np.asarray(axes.images[0].get_array(), dtype=np.float32), axes.get_xlabel()

    heat, note = drawn(through)
    assert note == "relevance of pixels"
    red = heat[..., 0] - heat[..., 2]
    side = len(red)
    assert red[-side // 10 :, -side // 10 :].mean() > red[: side // 2, : side // 2].mean() + 50
    plain, nothing = drawn(positions)
    unknown, said = drawn(flat)
    assert nothing == "" and np.array_equal(plain, unknown)
    assert said == "relevance of positions: the layout of the pixels is unknown"


def test_documents_tell_shape_and_sum_and_sounds_over_time() -> None:
    pixels = torch.full((1, 3, 4, 4), 0.25)
    assert "inputs" not in summary(examples.relevance(ONE, 5, "cup"))
    assert summary(carried(ONE, pixels))["inputs"] == {"pixel_values": {"shape": [1, 3, 4, 4], "relevance": 12.0}}
    sound = replace(
        carried(ONE, torch.tensor([[1.0, 2.0, 4.0, 8.0]]), "input_values"), media_times={"input_values": (1, 0.05)}
    )
    told = summary(sound)["inputs"]["input_values"]
    assert (told["seconds"], told["over_time"], told["relevance"]) == (0.1, [[3.0, 12.0]], 15.0)
