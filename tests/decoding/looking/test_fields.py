"""Fields: the mass of windows against a slow twin that counts every pixel."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from limelight.decoding.looking.fields import Field, Part, edges_of, fields, rate_of
from limelight.errors import UnsupportedError
from limelight.types import Clip, Interval, Prompt, Region, Span


def counted(part: Part, box: tuple[float, float, float, float]) -> float:
    """The mass of a box, cell by cell."""
    left, top, right, bottom = part.box
    rows, columns = part.scores.shape
    wide, high, total = (right - left) / columns, (bottom - top) / rows, 0.0
    for r in range(rows):
        for c in range(columns):
            x = max(0.0, min(box[2], left + (c + 1) * wide) - max(box[0], left + c * wide))
            y = max(0.0, min(box[3], top + (r + 1) * high) - max(box[1], top + r * high))
            total += float(part.scores[r, c]) * x * y / (wide * high)
    return total


@pytest.mark.parametrize("seed", range(4))
def test_the_mass_of_a_window_is_the_twins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    part = Part(rng.standard_normal((int(rng.integers(1, 6)), int(rng.integers(1, 6)))), (10.0, 20.0, 70.0, 90.0))
    boxes = np.sort(rng.uniform(0, 100, (40, 2, 2)), axis=1).reshape(40, 4)  # they may lie beside the part
    found = part.mass(boxes)
    assert found == pytest.approx([counted(part, tuple(b)) for b in boxes.tolist()], abs=1e-9)  # type: ignore[arg-type]
    assert part.mass(np.array([[0.0, 0, 100, 100]]))[0] == pytest.approx(part.scores.sum())


def test_grids_are_located_by_their_regions() -> None:
    size = (400, 200)
    scores = np.arange(14.0)
    spans = (
        Span(0, 2, "text"),
        Span(2, 6, "image", (2, 2), region=Region(0, size, (100.0, 0.0, 300.0, 200.0))),
        Span(6, 12, "image", (2, 3), margin=1, region=Region(0, size, (0.0, 0.0, 200.0, 200.0))),
        Span(12, 14, "text"),
    )
    (found,) = fields(scores, spans, Prompt({}, (), spans, {"image": [Image.new("RGB", size)]}))
    assert found.total == pytest.approx(2 + 3 + 4 + 5 + 6 + 7 + 9 + 10)  # the margin is nobody's
    assert found.mass([(0, 0, 100, 100)])[0] == pytest.approx(6.0)  # the first cell of the second grid
    assert found.shown == (0.0, 0.0, 300.0, 200.0) and not found.whole


def test_a_sounds_positions_lie_at_their_seconds() -> None:
    span = Span(0, 5, "audio", seconds=0.5, interval=Interval(0, 0.0, 2.2))
    prompt = Prompt({}, (), (span,), {"audio": [(np.zeros(22 * 1600, np.float32), 16000)]})
    (found,) = fields(np.array([1.0, 2, 3, 4, 5]), (span,), prompt)
    assert found.size == (2.2, 1.0) and found.shown == (0.0, 0.0, 2.2, 1.0)
    assert found.mass([(0.5, 0, 1.0, 1)])[0] == pytest.approx(2.0)
    assert found.mass([(2.0, 0, 2.2, 1)])[0] == pytest.approx(5 * 0.4)  # the last position is mostly padding
    later = found.later(4.0, 20.0)
    assert later.mass([(4.5, 0, 5.0, 1)])[0] == pytest.approx(found.mass([(0.5, 0, 1.0, 1)])[0])
    assert later.size == (20.0, 1.0)


def test_a_films_frames_share_their_step() -> None:
    region = Region(0, (80, 60), (0.0, 0.0, 80.0, 60.0), frames=((0, 1), (2, 3)))
    span = Span(0, 8, "video", (2, 2, 2), region=region)
    clip = Clip(tuple(Image.new("RGB", (80, 60)) for _ in range(4)), (0.0, 1.0, 2.0, 3.0))
    (found,) = fields(np.arange(8.0), (span,), Prompt({}, (), (span,), {"video": [clip]}))
    assert found.frames == (3.0, 3.0, 11.0, 11.0) and found.total == 28.0
    assert found.edges == (0.0, 0.5, 1.5, 2.5, 4.0) and found.span == (0.0, 4.0) and found.rate == 0.0
    whole = [(0.0, 0.0, 80.0, 60.0)] * 3
    assert found.mass(whole, np.array([[0.0, 0.5], [1.0, 2.5], [-1.0, 9.0]])).tolist() == pytest.approx(
        [3.0, 12.5, 28.0]
    )
    assert found.length(np.array([[0.0, 0.5], [1.0, 2.0]])).tolist() == pytest.approx([1.0, 1.0])


def test_the_mass_of_a_films_window_is_that_of_its_frames() -> None:
    rng = np.random.default_rng(0)
    box, edges = (10.0, 20.0, 70.0, 90.0), (0.0, 1.0, 1.5, 4.0)
    film = Part(rng.standard_normal((3, 4, 5)), box, edges)
    boxes = np.sort(rng.uniform(0, 100, (30, 2, 2)), axis=1).reshape(30, 4)
    times = np.sort(rng.uniform(-0.5, 4.5, (30, 2)), axis=1)
    expected = np.zeros(30)
    for scores, start, stop in zip(film.scores, edges, edges[1:], strict=False):
        inside = np.clip(np.minimum(times[:, 1], stop) - np.maximum(times[:, 0], start), 0, None) / (stop - start)
        expected += inside * Part(scores, box).mass(boxes)
    assert film.mass(boxes, times) == pytest.approx(expected, abs=1e-9)
    assert film.mass(boxes) == pytest.approx(Part(film.scores.sum(0), box).mass(boxes), abs=1e-9)


def test_a_film_whose_file_is_at_hand_has_further_frames() -> None:
    frames = tuple(Image.new("RGB", (8, 8)) for _ in range(2))
    clip = Clip(frames, (0.0, 3.0), 10.0, 4.0, b"a film")
    for gone in ("film.mp4", {"path": "film.mp4"}, None):
        assert rate_of(Clip(frames, (0.0, 3.0), 10.0, 4.0, gone)) == 0.0
    assert rate_of(Clip(frames, (0.0, 3.0), 10.0, 4.0, {"bytes": b"a film", "path": "film.mp4"})) == 10.0
    assert rate_of(clip) == 10.0 and edges_of(clip) == (0.0, 1.5, 4.0)
    assert rate_of(Clip(frames, (0.0, 3.0), 10.0, 4.0)) == 0.0
    of_a_part = Clip(frames, (10.0, 10.5), 4.0, 60.0, "film.mp4")  # the file goes on for 49 seconds
    assert edges_of(of_a_part) == (10.0, 10.25, 10.75)
    part = Part(np.ones((2, 1, 1)), (0.0, 0.0, 8.0, 8.0), edges_of(clip))
    field = Field("video", 0, (8.0, 8.0), (part,), part.box, part.edges, 10.0)
    assert field.finer((0.0, 4.0)) == 20.0 and field.finer((1.0, 1.2)) == pytest.approx(1.0)


def test_unknown_places_are_an_error() -> None:
    span = Span(0, 4, "image")
    with pytest.raises(UnsupportedError, match="resampler"):
        fields(np.zeros(4), (span,), Prompt({}, (), (span,), {"image": [Image.new("RGB", (8, 8))]}))


def test_a_field_knows_whether_all_of_the_picture_is_seen() -> None:
    part = Part(np.ones((2, 2)), (0.0, 0.0, 40.0, 20.0))
    assert Field("image", 0, (40.0, 20.0), (part,), part.box).whole
    assert not Field("image", 0, (50.0, 20.0), (part,), part.box).whole
