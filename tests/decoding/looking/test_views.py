"""Views: what is cut out of pictures, sounds and films, and their streams."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from limelight.decoding.looking.fields import Field, Part
from limelight.decoding.looking.regions import Proposal
from limelight.decoding.looking.views import HEADROOM, LOUDNESS, heard, pictured, seconds_of, shown, watched
from limelight.demo.long_films import RATE, long_film_questions
from limelight.types import Clip


def ramp(size: tuple[int, int]) -> Image.Image:
    across = np.broadcast_to(np.arange(size[0], dtype=np.uint8), (size[1], size[0]))
    down = np.broadcast_to(np.arange(size[1], dtype=np.uint8)[:, None], (size[1], size[0]))
    return Image.fromarray(np.stack([across, down, across], -1))


def test_a_crop_is_the_originals_pixels() -> None:
    found = np.asarray(pictured(ramp((200, 100)), Proposal("image", 0, (50.0, 20.0, 90.0, 60.0)), None))
    assert (
        found.shape == (40, 40, 3) and found[0, 0].tolist() == [50, 20, 50] and found[-1, -1].tolist() == [89, 59, 89]
    )


def test_a_crop_has_the_shape_that_the_model_sees() -> None:
    part = Part(np.ones((2, 2)), (50.0, 0.0, 150.0, 100.0))  # a processor that cuts the middle out
    seen = Field("image", 0, (200.0, 100.0), (part,), part.box)
    found = pictured(ramp((200, 100)), Proposal("image", 0, (150.0, 0.0, 200.0, 20.0)), seen)
    assert found.size == (50, 50)
    assert pictured(ramp((200, 100)), Proposal("image", 0, (199.9, 99.9, 200.0, 100.0)), seen).size == (8, 8)


def test_faint_sounds_are_made_louder_and_loud_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    faint = (rng.standard_normal(16000) * 1e-3).astype(np.float32)
    found = heard(faint, 16000, 0.25, 0.75)
    level = 20 * np.log10(np.sqrt(np.mean(found.astype(np.float64) ** 2)))
    assert len(found) == 8000 and level == pytest.approx(LOUDNESS, abs=0.1) and found.dtype == np.float32
    loud = (rng.standard_normal(16000) * 0.3).clip(-1, 1).astype(np.float32)
    assert np.array_equal(heard(loud, 16000, 0.0, 1.0), loud)
    click = np.zeros(1600, np.float32)
    click[800] = 0.5
    assert np.abs(heard(click, 16000, 0.0, 0.1)).max() == pytest.approx(HEADROOM)
    assert not heard(np.zeros(1600, np.float32), 16000, 0.0, 0.1).any()
    assert len(heard(faint, 16000, 2.0, 2.0)) == 1


def test_frames_around_those_that_matter() -> None:
    frames = tuple(Image.new("RGB", (40, 40), (i, 0, 0)) for i in range(10))
    clip = Clip(frames, tuple(float(i) for i in range(10)), fps=1.0)
    found = watched(clip, 3.0, 5.0)
    assert [f.getpixel((0, 0))[0] for f in found.frames] == [3, 4, 5] and found.seconds == (3.0, 4.0, 5.0)
    assert found.length == clip.length and len(watched(clip, 3.4, 3.6)) == 1
    proposal = Proposal("video", 0, (10.0, 10.0, 30.0, 30.0), interval=(2.5, 4.5))
    assert seconds_of(clip, proposal) == (2.5, 4.5) and seconds_of(clip, Proposal("video", 0, (0, 0, 1, 1))) == (
        0.0,
        10.0,
    )
    view = shown(clip, proposal, None)
    assert view.frames[0].size == (20, 20) and len(view) == 2


def test_the_frames_between_are_read_again_from_the_film() -> None:
    (question,) = long_film_questions("dev", "brief/3", 1)
    clip, brief = question.film.clip(), question.film.appearances[0]
    again = watched(clip, (brief.start - 2) / RATE, (brief.stop + 2) / RATE)
    assert len(again) == len(clip) == 8
    numbers = [round(t * RATE) for t in again.seconds]
    assert set(brief.frames) <= set(numbers) and numbers == list(range(numbers[0], numbers[0] + 8))
    drawn = question.film.pixels(numbers)
    for frame, expected in zip(again.frames, drawn, strict=True):
        assert np.abs(np.asarray(frame, float) - expected).mean() < 8
