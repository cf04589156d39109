"""Large pictures and long sounds: what they show, where, and that splits are disjoint."""

from __future__ import annotations

import numpy as np
import pytest

from limelight.demo.canvases import CELLS, KINDS, canvas, canvas_questions
from limelight.demo.long_sounds import CELLS as SOUND_CELLS
from limelight.demo.long_sounds import LENGTH, sound_questions
from limelight.demo.scenes import INDEPENDENT, SIZE
from limelight.demo.synthesis import RATE


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_asks_about_what_is_there_and_what_is_not(cell: str) -> None:
    asked = canvas_questions("dev", cell, 8)
    kind, side = cell.split("/")
    assert [q.label for q in asked] == [True, False] * 4
    for q in asked:
        assert (q.canvas.side == int(side) and q.object in q.text) or kind == "relation"
        if kind == "relation":
            left, right = q.canvas.names
            assert (q.object, q.other) == ((left, right) if q.label else (right, left))
        else:
            assert (q.object in q.canvas.names) == q.label
            assert len(q.canvas.names) == (1 if kind in ("plain", "texture") else int(kind[0]) ** 2)
        assert (q.canvas.box_of(q.object) is not None) == (q.label or kind == "relation")


@pytest.mark.parametrize("kind", KINDS)
def test_objects_lie_inside_their_cells_in_their_usual_size(kind: str) -> None:
    cell = next(c for c in CELLS if c.startswith(kind))
    for q in canvas_questions("test", cell, 6):
        size = q.canvas.side * SIZE
        picture = np.asarray(q.canvas.image())
        assert picture.shape == (size, size, 3)
        for item in q.canvas.items:
            left, top, right, bottom = item.box
            assert 0 <= left < right <= size and 0 <= top < bottom <= size
            assert 20 <= max(right - left, bottom - top) <= 90
        boxes = [i.box for i in q.canvas.items]
        for a, one in enumerate(boxes):
            assert not any(
                min(one[2], two[2]) > max(one[0], two[0]) and min(one[3], two[3]) > max(one[1], two[1])
                for two in boxes[a + 1 :]
            )


def test_a_canvas_is_drawn_from_its_seed_and_splits_differ() -> None:
    one, two = (canvas_questions(s, "2x2/2", 3) for s in ("dev", "test"))
    assert np.array_equal(
        np.asarray(one[0].canvas.image()), np.asarray(canvas_questions("dev", "2x2/2", 3)[0].canvas.image())
    )
    assert [q.canvas.items for q in one] != [q.canvas.items for q in two]
    assert [q.canvas.items for q in one] != [q.canvas.items for q in canvas_questions("dev", "2x2/2", 3, seed=1)]


def test_the_object_is_drawn_in_its_box() -> None:
    (q,) = canvas_questions("dev", "plain/4", 1)
    picture = np.asarray(q.canvas.image()).astype(float)
    left, top, right, bottom = q.canvas.items[0].box
    ground = np.median(picture.reshape(-1, 3), axis=0)
    away = np.abs(picture - ground).max(-1) > 40
    assert away[top:bottom, left:right].mean() > 0.3
    away[top:bottom, left:right] = False
    assert away.mean() < 0.001


def test_what_is_not_a_cell_is_refused() -> None:
    for call in (canvas_questions, sound_questions):
        with pytest.raises(ValueError, match="cell"):
            call("dev", "5x5/9", 1)
    with pytest.raises(ValueError, match="seed"):
        canvas_questions("dev", "plain/2", 1, seed=-1)
    with pytest.raises(ValueError, match="shows 4"):
        canvas("dev", "2x2", 2, 0, INDEPENDENT[:3])


@pytest.mark.parametrize("cell", SOUND_CELLS)
def test_a_short_event_in_a_long_recording(cell: str) -> None:
    asked = sound_questions("dev", cell, 4)
    for q in asked:
        samples, seconds = q.recording.samples(), int(cell.split("/")[1])
        assert samples.dtype == np.float32 and len(samples) == seconds * RATE and np.abs(samples).max() <= 1
        start, stop = (round(t * RATE) for t in q.recording.span)
        assert stop - start == pytest.approx(LENGTH * RATE, abs=1)
        power = float(np.mean(samples[start:stop] ** 2))
        rest = float(np.mean(np.concatenate([samples[:start], samples[stop:]]) ** 2))
        assert power > 4 * rest and (q.recording.name == q.object) == q.label
    assert np.array_equal(asked[0].recording.samples(), asked[0].recording.samples())
