"""The world of films: seeded, splits apart, every event on a frame of its own, pixels that show what the labels say."""

from __future__ import annotations

import numpy as np
import pytest

from limelight.demo.films import FRAMES, HALF, NAMES, RATE, SIZE, film, render
from limelight.demo.scenes import SPLITS, VISIBILITIES


@pytest.mark.parametrize("visibility", VISIBILITIES)
def test_a_film_is_seeded_and_every_event_has_a_frame_of_its_own(visibility: str) -> None:
    seen_last = 0
    for index in range(60):
        one = film("dev", visibility, index)  # type: ignore[arg-type]
        assert one == film("dev", visibility, index)  # type: ignore[arg-type]
        assert 2 <= len(one.names) <= 3
        assert len(set(one.names)) == len(one.names)
        assert [a.start for a in one.appearances] == sorted(a.start for a in one.appearances)
        changes = [a.start for a in one.appearances] + [a.stop for a in one.appearances if a.leaves]
        assert len(set(changes)) == len(changes)
        assert all(a.stop - a.start >= 2 and a.stop <= FRAMES for a in one.appearances)
        seen_last += sum(not a.leaves for a in one.appearances)
    assert seen_last


def test_halves_and_objects_are_equally_frequent() -> None:
    shown = [a for index in range(1500) for a in film("train", "clear", index).appearances]
    late = np.mean([a.start >= HALF for a in shown])
    assert abs(late - 0.5) < 0.06
    counts = np.array([sum(a.name == name for a in shown) for name in NAMES]) / len(shown)
    assert np.all(np.abs(counts - 1 / 16) < 0.02)


def test_splits_differ_in_their_films_and_grounds() -> None:
    found = {split: film(split, "clear", 0) for split in SPLITS}
    assert len({f.appearances for f in found.values()}) == len(SPLITS)
    pixels = [f.pixels().astype(float).mean() for f in found.values()]
    assert len(set(pixels)) == len(SPLITS)


def test_pixels_change_where_an_object_is_and_only_there() -> None:
    one = film("dev", "clear", 3)
    frames, masks = render(one)
    assert frames.shape == (FRAMES, SIZE, SIZE, 3)
    assert np.array_equal(frames, one.pixels())
    for a in one.appearances:
        shown = masks[a.name].sum((1, 2)) > 0
        assert shown.tolist() == [t in a.frames for t in range(FRAMES)]
    covered = sum(masks.values()).max(0) > 0  # type: ignore[union-attr]
    still = frames[:, ~covered].astype(float)
    assert np.abs(still - still.mean(0)).mean() < 10  # grain alone
    moved = [np.hypot(*np.subtract(a.path[0], a.path[1])) for a in one.appearances]
    assert max(moved) > 1


def test_a_film_can_be_drawn_larger_and_as_a_clip() -> None:
    one = film("demo", "clear", 1)
    clip = one.clip(96)
    assert len(clip) == FRAMES
    assert clip.seconds == tuple(t / RATE for t in range(FRAMES))
    assert clip.frames[0].size == (96, 96)
    small = np.asarray(clip.frames[4].resize((SIZE, SIZE)), float)
    assert np.abs(small - one.pixels()[4].astype(float)).mean() < 12


def test_events_are_listed_in_order_of_time() -> None:
    one = next(f for f in (film("dev", "clear", i) for i in range(50)) if any(a.leaves for a in f.appearances))
    times = {(a.name, "appears"): a.start for a in one.appearances} | {
        (a.name, "leaves"): a.stop for a in one.appearances
    }
    order = [times[event] for event in one.events]
    assert order == sorted(order)
    assert sum(what == "leaves" for _, what in one.events) == sum(a.leaves for a in one.appearances)
    assert one.of(one.names[0]) == one.appearances[0]
