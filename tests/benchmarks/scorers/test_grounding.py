"""Grounding measures on grids where the answer can be counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limelight.benchmarks.scorers.grounding import (
    box_coverage,
    event_coverage,
    faithfulness,
    grounding,
    grounding_block,
    mask_coverage,
    object_iou,
    otsu,
    perturbation,
    point_game,
    pointing,
    polygon_coverage,
    reliance,
    weigh,
)
from limelight.benchmarks.scorers.measure import evaluate
from limelight.errors import DataError, SettingError
from limelight.types import Record

R = np.array([[-3.0, 1.0], [1.0, 1.0]])
LEFT = np.array([[1.0, 0.0], [1.0, 0.0]])


def test_signs() -> None:
    assert grounding(R, LEFT, "abs") == pytest.approx(4 / 6)
    assert grounding(R, LEFT, "positive") == pytest.approx(1 / 3)
    assert math.isnan(grounding(R, LEFT, "signed"))  # -3 + 1 + 1 + 1
    assert grounding(R - [[0, 0], [0, 1]], LEFT, "signed") == pytest.approx(2.0)
    assert grounding([1.0, 3.0], [1.0, 0.5]) == pytest.approx(2.5 / 4)
    with pytest.raises(SettingError, match="squared"):
        weigh(R, "squared")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="NaN"):
        weigh([math.nan])
    with pytest.raises(DataError, match="shapes of relevance"):
        grounding(R, [1.0])


def test_pointing_game() -> None:
    assert pointing(R, LEFT) == 1.0
    assert pointing(R, LEFT, "positive") == pytest.approx(1 / 3)
    assert pointing([0.0, 5.0], [1.0, 0.0]) == 0.0


def test_box_coverage_by_hand() -> None:
    assert box_coverage((2, 2), [(0.0, 0.0, 0.5, 1.0)]).tolist() == [[1, 0], [1, 0]]
    assert box_coverage((1, 4), [(0.125, 0.0, 0.625, 0.5)])[0].tolist() == pytest.approx([0.25, 0.5, 0.25, 0])
    overlapping = [(0.0, 0.0, 0.75, 1.0), (0.25, 0.0, 1.0, 1.0)]
    assert box_coverage((3, 3), overlapping) == pytest.approx(np.ones((3, 3)))
    assert box_coverage((2, 2), []).tolist() == [[0, 0], [0, 0]]
    with pytest.raises(DataError, match="divide pixel"):
        box_coverage((2, 2), [(0, 0, 50, 50)])


side = st.tuples(st.integers(0, 11), st.integers(1, 12)).map(lambda s: (s[0], min(12, s[0] + s[1])))
boxes = st.lists(st.tuples(side, side).map(lambda s: (s[0][0], s[1][0], s[0][1], s[1][1])), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(boxes, st.integers(1, 6), st.integers(1, 6))
def test_box_and_mask_coverage_agree(found: list[tuple[int, int, int, int]], rows: int, columns: int) -> None:
    """Boxes with edges on a 12 x 12 raster are masks; a fine raster gives the same shares."""
    mask = np.zeros((12, 12))
    for x0, y0, x1, y1 in found:
        mask[y0:y1, x0:x1] = 1
    fractions = [(a / 12, b / 12, c / 12, d / 12) for a, b, c, d in found]
    exact = box_coverage((rows, columns), fractions)
    assert mask_coverage((rows, columns), mask) == pytest.approx(exact, abs=1e-9)
    fine = np.kron(mask, np.ones((rows * 5, columns * 5)))
    cells = fine.reshape(rows, 60, columns, 60).mean(axis=(1, 3))
    assert cells == pytest.approx(exact, abs=1e-9)


def test_event_coverage() -> None:
    assert event_coverage(4, 1.0, [(0.5, 2.0)]).tolist() == pytest.approx([0.5, 1, 0, 0])
    assert event_coverage(4, 0.5, [(0.0, 0.6), (0.4, 1.0), (1.9, 9.0)]).tolist() == pytest.approx([1, 1, 0, 0.2])
    assert event_coverage(3, 0.04, []).tolist() == [0, 0, 0]
    with pytest.raises(DataError, match="onset < offset"):
        event_coverage(3, 1.0, [(2.0, 1.0)])


def test_insertion_and_deletion() -> None:
    relevance = np.array([0.0, 3.0, 1.0, 2.0])
    weights = np.array([0.0, 0.6, 0.1, 0.3])

    def score(kept: np.ndarray) -> float:
        return float(weights[kept].sum())

    inserted, deleted = (perturbation(relevance, score, m, steps=4) for m in ("insertion", "deletion"))
    assert inserted.fractions == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert inserted.values == pytest.approx((0.0, 0.6, 0.9, 1.0, 1.0))
    assert deleted.values == pytest.approx((1.0, 0.4, 0.1, 0.0, 0.0))
    assert inserted.area == pytest.approx(0.25 * (0.3 + 0.75 + 0.95 + 1.0))
    assert deleted.area < inserted.area
    reverse = perturbation(-relevance, score, "insertion", steps=4)
    assert reverse.area < inserted.area
    shaped = perturbation(relevance.reshape(2, 2), lambda kept: float(kept.shape == (2, 2)), "insertion", steps=99)
    assert set(shaped.values) == {1.0}
    assert len(shaped.values) == 5
    with pytest.raises(SettingError, match="steps"):
        perturbation(relevance, score, "insertion", steps=0)


def test_a_block_of_grounding() -> None:
    rows = [(Record(str(i), ""), R, LEFT) for i in range(2)]
    rows.append((Record("zero", ""), np.zeros((2, 2)), LEFT))
    found = {k: m.value for k, m in evaluate([grounding_block("s", rows, "abs")], resamples=0).items()}
    assert found["s/grounding"] == pytest.approx(4 / 6)
    assert found["s/chance"] == 0.5
    assert found["s/over chance"] == pytest.approx(4 / 3)
    assert found["s/pointing game"] == 1.0
    assert math.isnan(evaluate([grounding_block("s", [], "abs")])["s/grounding"].value)


def test_reliance_on_a_modality() -> None:
    empty = Record("1", "")
    shared = [
        Record("1", "", meta={"shares": {"image": 0.2, "text": 0.8}}),
        Record("2", "", meta={"shares": {"text": 1.0}}),
    ]
    (block,) = reliance("", [*shared, empty], "image")
    assert evaluate([block])["image reliance"].value == 0.2
    assert block.ids == ("1",)
    assert reliance("", [empty], "image") == []


def test_polygons() -> None:
    square = [0.0, 0.0, 0.5, 0.0, 0.5, 1.0, 0.0, 1.0]
    assert polygon_coverage((2, 2), [square]) == pytest.approx(LEFT)
    assert polygon_coverage((2, 2), [square, square]) == pytest.approx(LEFT)  # a union, not a sum
    triangle = [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    exact = np.array([[1.0, 0.5], [0.5, 0.0]])
    errors = [np.abs(polygon_coverage((2, 2), [triangle], raster=n) - exact).max() for n in (16, 128)]
    assert errors[0] < 0.05
    assert errors[1] < errors[0] / 4
    for wrong in ([0.0, 0.0, 1.0, 1.0], [0.0] * 7):
        with pytest.raises(DataError, match="three corners"):
            polygon_coverage((2, 2), [wrong])


def test_faithfulness_of_curves() -> None:
    """Areas by hand: insertion 0, 1, 1 at 0, 1/2, 1 has 0.75; its mirror has 0.25."""
    good = {"insertion": [0.0, 1.0, 1.0], "deletion": [1.0, 0.0, 0.0]}
    flat = {"insertion": [0.5, 0.5], "deletion": [0.5, 0.5]}
    records = [
        Record("a", "yes", "yes", {"curves": {"attnlrp": good, "random": flat}}),
        Record("b", "no", "yes", {"curves": {"attnlrp": flat}}),
        Record("c", "no", "yes", {}),
    ]
    attnlrp, random = faithfulness(records)
    value = {k: m.value for k, m in evaluate([attnlrp, random], resamples=0).items()}
    assert value["faithfulness/attnlrp/insertion"] == pytest.approx((0.75 + 0.5) / 2)
    assert value["faithfulness/attnlrp/deletion"] == pytest.approx((0.25 + 0.5) / 2)
    assert value["faithfulness/attnlrp/insertion minus deletion"] == pytest.approx(0.25)
    assert value["faithfulness/random/insertion minus deletion"] == 0.0
    assert (len(attnlrp.ids), len(random.ids)) == (2, 1)
    assert faithfulness(records[2:]) == faithfulness([]) == []


def test_the_pointing_game_uses_the_interpolated_map() -> None:
    """A lone peak beats two neighbours cell by cell; so it does between them, where the map is linear."""
    relevance = np.array([[0.0, 0.0, 3.0, 0.0, 0.0]])
    inside = np.array([[0.0, 0.0, 1.0, 0.0, 0.0]])
    assert point_game(relevance, inside) == 1.0
    assert point_game(relevance, inside[:, ::-1] - inside + np.array([[1.0, 1, 0, 1, 1]])) == 0.0
    assert point_game(np.ones((2, 2)), np.array([[1.0, 0.0], [0.0, 0.0]])) == 0.25  # all points tie
    assert point_game(np.array([1.0, 5.0, 2.0]), np.array([0.0, 0.4, 0.0])) == 0.0  # most of the cell lies outside


def test_otsu_splits_two_heaps() -> None:
    values = np.concatenate([np.linspace(0, 1, 20), np.linspace(9, 10, 5)])
    assert 1.0 < otsu(values) < 9.0
    best = max(_between(values, t) for t in np.unique(values)[:-1])
    assert _between(values, otsu(values)) == pytest.approx(best)


def _between(values: np.ndarray, threshold: float) -> float:
    low, high = values[values <= threshold], values[values > threshold]
    return len(low) * len(high) * (low.mean() - high.mean()) ** 2


def test_object_iou_by_hand() -> None:
    relevance = np.array([[5.0, 5.0, 0.0], [0.1, -9.0, 0.0]])
    assert object_iou(relevance, np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])) == 1.0
    assert object_iou(relevance, np.array([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0]])) == pytest.approx(1.0 / 2.5)
    assert object_iou(relevance, np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])) == 0.0
