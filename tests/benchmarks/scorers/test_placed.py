"""Relevance against regions of the original, where the processor cropped, padded, tiled or cut."""

from __future__ import annotations

import math

import numpy as np
import pytest

from limelight.benchmarks.scorers.grounding import grounding, pointing
from limelight.benchmarks.scorers.placed import boxes_over, image_parts, place, place_events, polygons_over, seen_block
from limelight.benchmarks.task import Scoring
from limelight.benchmarks.tasks import coco_grounding, dcase
from limelight.errors import DataError
from limelight.types import Record

CROP = (0.25, 0.0, 0.75, 1.0)  # the middle of a picture twice as wide as high


def one(row: int, column: int, shape: tuple[int, int] = (4, 4)) -> np.ndarray:
    grid = np.zeros(shape)
    grid[row, column] = 1.0
    return grid


def test_cells_of_a_centre_crop_are_placed_correctly() -> None:
    """The regression of the issue: stretched over the whole picture, the cell would lie at 0 to 0.25 across."""
    parts = [(one(1, 0), CROP)]
    right = place(parts, boxes_over([(0.25, 0.25, 0.375, 0.5)]))
    assert grounding(right.relevance, right.coverage) == pytest.approx(1.0)
    assert pointing(right.relevance, right.coverage) == 1.0
    assert right.seen == pytest.approx(1.0)
    for elsewhere in ((0.26, 0.55, 0.74, 1.0), (0.4, 0.0, 0.75, 1.0)):
        wrong = place(parts, boxes_over([elsewhere]))
        assert grounding(wrong.relevance, wrong.coverage) == 0.0
    stretched = place([(one(1, 0), (0.0, 0.0, 1.0, 1.0))], boxes_over([(0.25, 0.25, 0.375, 0.5)]))
    assert grounding(stretched.relevance, stretched.coverage) == 0.0


def test_uniform_relevance_scores_the_region_s_share_of_what_was_seen() -> None:
    """A wide picture with plain margins: the object fills a fifteenth of the crop, half as much of the whole."""
    box = (0.45, 0.3, 0.55, 0.6333333)
    seen = place([(np.ones((24, 24)), CROP)], boxes_over([box]))
    assert grounding(seen.relevance, seen.coverage) == pytest.approx(0.0667, abs=1e-3)
    whole = place([(np.ones((24, 24)), (0.0, 0.0, 1.0, 1.0))], boxes_over([box]))
    assert grounding(whole.relevance, whole.coverage) == pytest.approx(0.0333, abs=1e-3)


def test_cropped_objects_are_counted() -> None:
    half = place([(np.ones((4, 4)), CROP)], boxes_over([(0.15, 0.2, 0.35, 0.8)]))
    assert half.seen == pytest.approx(0.5)
    never = place([(np.ones((4, 4)), CROP)], boxes_over([(0.0, 0.0, 0.25, 1.0)]))
    assert never.seen == 0.0
    assert polygons_over([[0.0, 0.0, 0.2, 0.0, 0.2, 0.9]])((4, 4), CROP).sum() == 0.0


def test_cells_of_padding_are_left_out_and_cells_at_its_edge_count_by_what_they_show() -> None:
    padded = (0.0, -0.5, 1.0, 1.5)  # rows 0 and 3 of four are padding
    found = place([(np.ones((4, 4)), padded)], boxes_over([(0.0, 0.0, 0.5, 1.0)]))
    assert found.relevance.shape == (8,)
    assert sorted(found.coverage) == pytest.approx([0.0] * 4 + [1.0] * 4)
    assert found.padding == pytest.approx(0.5)
    edge = place([(np.ones((2, 1)), (0.0, 0.0, 1.0, 1.6))], boxes_over([(0.0, 0.8, 1.0, 1.0)]))
    assert edge.coverage == pytest.approx([0.0, 1.0])  # the lower cell shows .8 to 1 and padding


def test_tiles_and_the_overview_count_together() -> None:
    parts = [
        (one(0, 1, (2, 2)), (0.0, 0.0, 0.5, 1.0)),
        (one(0, 0, (2, 2)), (0.5, 0.0, 1.0, 1.0)),
        (one(1, 1, (2, 2)), (0, 0, 1, 1)),
    ]
    found = place(parts, boxes_over([(0.25, 0.0, 0.75, 0.5)]))
    assert grounding(found.relevance, found.coverage) == pytest.approx(2 / 3)
    assert found.seen == pytest.approx(1.0)
    gap = place([parts[0], (one(0, 0, (2, 2)), (0.6, 0.0, 1.0, 1.0))], boxes_over([(0.4, 0.0, 0.7, 1.0)]))
    assert gap.seen == pytest.approx(2 / 3, abs=0.01)


def test_polygons_follow_the_crop() -> None:
    square = [0.25, 0.25, 0.375, 0.25, 0.375, 0.5, 0.25, 0.5]
    found = place([(one(1, 0), CROP)], polygons_over([square]))
    assert grounding(found.relevance, found.coverage) == pytest.approx(1.0, abs=0.02)


def test_replies_of_one_grid_of_several_and_of_no_known_place() -> None:
    def of(**meta: object) -> Record:
        return Record("r", "yes", meta=meta)

    assert image_parts(of()) is None
    ((grid, box),) = image_parts(of(image_relevance=[[1, 2], [3, 4]])) or []
    assert (grid.tolist(), box) == ([[1, 2], [3, 4]], (0, 0, 1, 1))
    two = image_parts(of(image_relevance=[[[1]], [[2, 3]]], image_boxes=[[0, 0, 1, 1], [0, 0, 0.5, 1]])) or []
    assert [g.shape for g, _ in two] == [(1, 1), (1, 2)]
    assert image_parts(of(image_relevance=[[1]], image_boxes=None)) == []
    with pytest.raises(DataError, match="1 grids of image_relevance, 2 image_boxes"):
        image_parts(of(image_relevance=[[1]], image_boxes=[[0, 0, 1, 1]] * 2))


def test_events_and_the_padding_behind_the_sound() -> None:
    def of(**found: object) -> Record:
        return Record("r", "yes", meta={"audio_relevance": found})

    padded = of(scores=[1.0, 1.0, 2.0, 4.0], seconds=1.0, duration=2.5)
    found = place_events(padded, [(2.0, 2.5)])
    assert found is not None
    assert found.relevance.tolist() == [1.0, 1.0, 2.0]
    assert found.coverage == pytest.approx([0.0, 0.0, 1.0])
    assert (found.seen, found.padding) == pytest.approx((1.0, 0.5))
    cut = place_events(of(scores=[1.0, 1.0], seconds=1.0), [(1.5, 4.5)])
    assert cut is not None
    assert cut.seen == pytest.approx(0.5 / 3)
    unheard = place_events(of(scores=[1.0, 1.0], seconds=1.0), [(3.0, 4.0)])
    assert unheard is not None
    assert unheard.seen == 0
    assert place_events(Record("r", "yes"), [(0.0, 1.0)]) is None


def column(blocks: object, name: str) -> float:
    found = [b for b in blocks if name in b.columns]  # type: ignore[attr-defined]
    return float(found[0].columns[name].sum())


def test_coco_scores_only_what_was_seen() -> None:
    target = {"boxes": [[0.25, 0.25, 0.375, 0.5]], "polygons": []}
    gone = {"boxes": [[0.0, 0.0, 0.2, 1.0]], "polygons": []}
    reply = {"image_relevance": one(1, 0).tolist(), "image_boxes": [list(CROP)], "gold": "yes"}
    records = [
        Record("seen", "yes", target, reply),
        Record("gone", "yes", gone, reply),
        Record("nowhere", "yes", target, {**reply, "image_boxes": None}),
        Record("lost", "yes", target, {"gold": "yes"}),
    ]
    blocks = coco_grounding.score(records, Scoring(parser="official"))
    spatial = blocks[0]
    assert spatial.ids == ("seen",)
    assert spatial.columns["grounding"].tolist() == pytest.approx([1.0])
    assert {n: column(blocks, n) for n in ("lost", "nowhere", "never")} == {"lost": 1, "nowhere": 1, "never": 1}


def test_dcase_scores_only_the_models_input() -> None:
    meta = {"gold": "yes", "label": "Dog", "audio_relevance": {"scores": [0, 1, 9], "seconds": 1.0, "duration": 2.0}}
    records = [Record("a", "yes", [[1.0, 2.0]], meta), Record("b", "yes", [[3.0, 4.0]], meta)]
    blocks = dcase.score(records, Scoring(parser="strict"))
    assert blocks[0].ids == ("a",)
    assert blocks[0].columns["grounding"].tolist() == pytest.approx([1.0])
    assert column(blocks, "never") == 1
    assert math.isclose(column(blocks, "padding"), 1.8)


def test_the_block_of_what_was_seen_may_be_empty() -> None:
    assert seen_block([]).ids == ()
