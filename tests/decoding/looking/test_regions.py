"""Region proposal: the best window of all, greedy cover, clipping."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limelight.decoding.looking.fields import Field, Part
from limelight.decoding.looking.regions import Windows, at_least, fitted, inside, padded, propose, quarters, runs


def field_of(scores: np.ndarray, size: tuple[float, float] = (80.0, 80.0), kind: str = "image") -> Field:
    part = Part(scores.astype(float), (0.0, 0.0, *size))
    return Field(kind, 0, size, (part,), part.box)


def test_the_window_is_where_the_mass_is() -> None:
    scores = np.zeros((8, 8))
    scores[5, 2] = 1.0
    (found,) = propose([field_of(scores)], [20.0], Windows(sizes=(1.0,), context=0.0), 1)
    left, top, right, bottom = found.box
    assert left <= 20 and right >= 30 and top <= 50 and bottom >= 60  # the cell is inside
    assert right - left == pytest.approx(20) and found.score == pytest.approx((20 * 20 / 6400) ** -0.5)


def test_negative_relevance_repels() -> None:
    scores = np.zeros((4, 4))
    scores[0, 0], scores[3, 3] = 2.0, 1.5
    scores[0, 1] = scores[1, 0] = scores[1, 1] = -1.0
    (found,) = propose([field_of(scores)], [40.0], Windows(sizes=(1.0,), context=0.0, tightness=0.0), 1)
    assert found.box == (40.0, 40.0, 80.0, 80.0)


def test_further_windows_cover_what_is_left() -> None:
    scores = np.zeros((8, 8))
    scores[0, 0], scores[7, 7], scores[0, 7] = 3.0, 2.0, 1.0
    found = propose([field_of(scores)], [20.0], Windows(sizes=(1.0,), context=0.0), 3)
    middles = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in (p.box for p in found)]
    assert [(x > 40, y > 40) for x, y in middles] == [(False, False), (True, True), (True, False)]
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)


def test_fewer_windows_where_the_picture_has_no_room() -> None:
    assert len(propose([field_of(np.ones((2, 2)))], [80.0], Windows(sizes=(1.0,)), 5)) == 1


def test_the_better_picture_is_looked_at() -> None:
    one, two = np.zeros((2, 2)), np.zeros((2, 2))
    two[0, 1] = 1.0
    second = Field("image", 1, (80.0, 80.0), (Part(two, (0.0, 0.0, 80.0, 80.0)),), (0.0, 0.0, 80.0, 80.0))
    (found,) = propose([field_of(one), second], [40.0, 40.0], Windows(sizes=(1.0,)), 1)
    assert found.source == 1


def test_a_cropped_pictures_windows_have_the_shape_that_the_model_sees() -> None:
    part = Part(np.ones((2, 2)), (20.0, 0.0, 60.0, 80.0))  # half as wide as high
    seen = Field("image", 0, (80.0, 80.0), (part,), part.box)
    (found,) = propose([seen], [30.0], Windows(sizes=(1.0,), context=0.0), 1)
    assert (found.box[2] - found.box[0]) / (found.box[3] - found.box[1]) == pytest.approx(0.5)


def test_seconds_that_matter() -> None:
    scores = np.zeros((1, 50))
    scores[0, 30:34] = 1.0
    sound = field_of(scores, (4.0, 1.0), "audio")
    (found,) = propose([sound], [0.0], Windows(seconds=(0.5,), context=0.5), 1)
    start, _, stop, _ = found.box
    assert start <= 2.4 and stop >= 2.72 and stop - start == pytest.approx(1.0)  # .5 s and half of it on either side


@pytest.mark.parametrize("size", [(100.0, 800.0), (800.0, 100.0)])
def test_the_sharpest_window_of_a_long_picture(size: tuple[float, float]) -> None:
    scores = np.zeros((4, 4))
    scores[3, 3] = 1.0
    (found,) = propose([field_of(scores, size)], [224.0], Windows(sizes=(1.0,), pick="sharpest"), 1)
    left, top, right, bottom = found.box
    assert (
        min(right - left, bottom - top) == 100.0
        and (right, bottom) == size
        and max(right - left, bottom - top) == 200.0
    )


sizes = st.tuples(st.floats(5, 200), st.floats(5, 200))
numbers = st.floats(-300, 300)


@given(st.tuples(numbers, numbers, st.floats(0.5, 300), st.floats(0.5, 300)), sizes, st.floats(0.2, 5))
def test_boxes_stay_inside(corner: tuple[float, float, float, float], size: tuple[float, float], aspect: float) -> None:
    box = (corner[0], corner[1], corner[0] + corner[2], corner[1] + corner[3])
    field = field_of(np.ones((2, 2)), size)
    for found in (
        inside(box, size),
        fitted(box, size, aspect),
        padded(field, box, 0.3),
        at_least(inside(box, size), 50, size),
    ):
        assert -1e-6 <= found[0] < found[2] <= size[0] + 1e-6 and -1e-6 <= found[1] < found[3] <= size[1] + 1e-6


def test_small_boxes_grow_and_large_ones_do_not() -> None:
    assert at_least((40.0, 40.0, 50.0, 50.0), 20, (100.0, 100.0)) == pytest.approx((35, 35, 55, 55))
    assert at_least((0.0, 0.0, 30.0, 30.0), 20, (100.0, 100.0)) == (0.0, 0.0, 30.0, 30.0)


def test_quarters_overlap_in_the_middle() -> None:
    found = quarters((0.0, 0.0, 100.0, 60.0), 0.2)
    assert found[0] == (0.0, 0.0, 60.0, 36.0) and found[3] == (40.0, 24.0, 100.0, 60.0)
    assert [b[2] - b[0] for b in found] == [60.0] * 4


def film_of(scores: np.ndarray, side: float = 80.0) -> Field:
    """Frames a second apart, each the nearest one for a second; scores ``[frames, rows, columns]``."""
    edges = tuple(float(i) for i in range(len(scores) + 1))
    part = Part(scores.astype(float), (0.0, 0.0, side, side), edges)
    return Field("video", 0, (side, side), (part,), part.box, edges)


def test_the_frames_that_matter() -> None:
    scores = np.zeros((16, 2, 2))
    scores[9], scores[10] = 0.25, 0.375
    (found,) = propose([film_of(scores)], [200.0], Windows(sizes=(1.0,)), 1)
    assert found.interval == (9.0, 11.0) and found.box == (0.0, 0.0, 80.0, 80.0)
    assert found.score == pytest.approx(2.5 / (1 / 8) ** 0.5)
    (found,) = propose([film_of(scores)], [200.0], Windows(sizes=(1.0,), context=0.5), 1)
    assert found.interval == (8.0, 12.0)


def test_further_windows_of_a_film_lie_at_other_times() -> None:
    scores = np.zeros((8, 2, 2))
    scores[1], scores[6], scores[3] = 3.0, 2.0, 1.0
    found = propose([film_of(scores)], [80.0], Windows(sizes=(1.0,)), 3)
    assert [p.interval for p in found] == [(1.0, 2.0), (6.0, 7.0), (3.0, 4.0)]


def test_a_window_of_a_film_is_whole_or_cut_whichever_has_more() -> None:
    spread, small = np.zeros((8, 4, 4)), np.zeros((8, 4, 4))
    spread[2], small[5, 0, 3] = 1.0, 1.0
    (found,) = propose([film_of(spread)], [40.0], Windows(sizes=(1.0,)), 1)
    assert found.box == (0.0, 0.0, 80.0, 80.0) and found.interval == (2.0, 3.0)
    (found,) = propose([film_of(small)], [40.0], Windows(sizes=(1.0,)), 1)
    assert found.box[0] >= 20.0 and found.box[1] == 0.0 and found.interval == (5.0, 6.0)
    still = np.zeros((8, 4, 4))
    still[:, 3, 0] = 1.0  # at one place at any time
    (found,) = propose([film_of(still)], [20.0], Windows(sizes=(1.0,)), 1)
    assert found.box == (0.0, 60.0, 20.0, 80.0) and found.interval == (0.0, 8.0)


def test_the_end_frames_of_a_film_have_no_advantage() -> None:
    scores = np.ones((8, 1, 1))
    scores[4] = 1.01
    edges = (0.0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.0)  # the first and the last stand for half as long
    part = Part(scores, (0.0, 0.0, 80.0, 80.0), edges)
    seen = Field("video", 0, (80.0, 80.0), (part,), part.box, edges)
    (found,) = propose([seen], [80.0], Windows(tightness=1.0), 1)
    assert found.interval == (3.5, 4.5)


def test_runs_cover_a_film() -> None:
    assert runs((0.0, 1.0)) == [(0.0, 1.0)]
    for count in (2, 7, 8, 60, 700):
        found = runs(tuple(float(i) for i in range(count + 1)))
        assert all(0 <= a < b <= count for a, b in found) and len(found) < 90
        shortest = min(b - a for a, b in found)
        assert {t for a, b in found if b - a == shortest for t in range(int(a), int(b))} == set(range(count))
