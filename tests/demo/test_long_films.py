"""Long films: what they show, where and when, and that splits are disjoint."""

from __future__ import annotations

import numpy as np
import pytest

from limelight.demo.films import SIZE
from limelight.demo.long_films import CELLS, FRAMES, RATE, long_film_questions


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_asks_about_what_is_there_and_what_is_not(cell: str) -> None:
    asked = long_film_questions("dev", cell, 8)
    kind, number = cell.split("/")
    assert [q.label for q in asked] == [True, False] * 4
    for q in asked:
        first, *others = q.film.appearances
        assert q.object in q.text and (q.object in q.film.names) == q.label and (q.object == first.name) == q.label
        assert len(first.frames) == int(number) if "brief" in kind else 20 <= len(first.frames) <= 30
        assert len(others) == 2 and all(20 <= len(a.frames) <= 30 for a in others)
        assert all(0 <= a.start < a.stop <= FRAMES for a in q.film.appearances)
        assert q.film.size == SIZE * (3 if "small" in kind else 1)
        part = q.film.part_of(q.object)
        assert (part is not None) == q.label
        if part is not None:
            left, top, right, bottom, begin, end = part
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
            assert (
                first.start - 1e-6 <= begin * FRAMES < end * FRAMES <= first.stop + 1e-6
                and end - begin <= 8.01 / FRAMES
            )


@pytest.mark.parametrize("cell", ["brief/3", "small/3"])
def test_the_object_is_drawn_where_and_when_it_is_said_to_be(cell: str) -> None:
    (q,) = long_film_questions("dev", cell, 1)
    part = q.film.part_of(q.object)
    assert part is not None
    shown = q.film.appearances[0]
    inside = round((part[4] + part[5]) / 2 * FRAMES)
    alone = type(q.film)(q.film.split, q.film.cell, q.film.index, q.film.size, q.film.appearances[1:])
    with_it, without = (f.pixels([inside]).astype(float)[0] for f in (q.film, alone))
    changed = np.abs(with_it - without).max(-1) > 0
    left, top, right, bottom = (round(x * q.film.size) for x in part[:4])
    assert changed[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2].sum() == changed.sum() > 0
    outside = [i for i in range(FRAMES) if i not in shown.frames]
    assert np.array_equal(q.film.pixels(outside[:3]), alone.pixels(outside[:3]))


def test_a_film_is_drawn_from_its_seed_and_splits_differ() -> None:
    one, two = (long_film_questions(s, "brief/6", 3) for s in ("dev", "test"))
    again = long_film_questions("dev", "brief/6", 3)
    assert np.array_equal(one[0].film.pixels([3, 40]), again[0].film.pixels([3, 40]))
    assert np.array_equal(one[0].film.pixels()[40], one[0].film.pixels([40])[0])  # a frame alone is the same
    assert [q.film.appearances for q in one] == [q.film.appearances for q in again]
    assert not {q.film.appearances for q in one} & {q.film.appearances for q in two}
    assert [q.film.appearances for q in one] != [
        q.film.appearances for q in long_film_questions("dev", "brief/6", 3, seed=1)
    ]


def test_the_clip_has_eight_frames_of_the_film_and_can_be_read_again() -> None:
    (q,) = long_film_questions("test", "brief/3", 1)
    clip = q.film.clip()
    assert len(clip) == 8 and clip.fps == RATE and clip.length == FRAMES / RATE and isinstance(clip.source, bytes)
    drawn = q.film.pixels([round(t * RATE) for t in clip.seconds])
    assert all(np.abs(np.asarray(f, float) - d).mean() < 8 for f, d in zip(clip.frames, drawn, strict=True))


def test_what_is_not_a_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="cell"):
        long_film_questions("dev", "brief/9", 1)
    with pytest.raises(ValueError, match="seed"):
        long_film_questions("dev", "brief/3", 1, seed=-1)
