"""Films and several pictures, through real processors on tiny random models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import limelight
from limelight.decoding.looking.regions import Proposal
from limelight.decoding.looking.views import appended_prompt, shown, watched
from limelight.demo.long_films import RATE, long_film_questions
from limelight.errors import SettingError
from limelight.media.video import read_video
from limelight.models.adapter import Adapter
from limelight.types import Clip, Generation, TakenView
from tests.models.films import FILMS, film
from tests.zoo import ZOO

ASK = "what is here ?"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("films") / "a.mp4")


def answered(adapter: Adapter, media: object, **settings: object) -> Generation:
    strategy = limelight.look_again(2, when="always", where="attnlrp", decision="top", least_gain=0.0, **settings)
    return limelight.generate(adapter, messages=ASK, media=media, strategy=strategy, max_new_tokens=3, relevance=False)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "smolvlm", "llava_onevision"])
def test_frames_that_matter_are_watched_again(name: str, clip: Path) -> None:
    adapter = Adapter(ZOO[name].build(), FILMS[name][0]())
    found = answered(adapter, {"video": str(clip)}, join="crops")
    whole, again = found.steps[0].views
    assert (whole.kind, again.kind) == ("video", "video") and whole.interval is None
    start, stop = again.interval or (0.0, 0.0)
    assert 0 <= start < stop <= 2.0 and stop - start < 2.0 and found.prompt.media["video"][0].source == str(clip)
    dense = limelight.generate(  # the answer is that to the frames between these times
        adapter, messages=ASK, media={"video": part_of(found, again)}, max_new_tokens=3, relevance=False
    )
    assert dense.token_ids == found.token_ids


def part_of(found: Generation, view: TakenView) -> Clip:
    """The frames of a view, read again from the file, cut to its box."""
    assert view.box is not None
    clip = watched(found.prompt.media["video"][0], *(view.interval or (0.0, 0.0)))
    return replace(clip, frames=tuple(f.crop(tuple(round(x) for x in view.box)) for f in clip.frames), source=None)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision"])
def test_a_crop_is_a_further_picture_where_the_family_takes_several(name: str) -> None:
    adapter = Adapter(ZOO[name].build(), FILMS[name][0]())
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    found = answered(adapter, {"image": Image.fromarray(noise)})
    assert [v.weight for v in found.steps[0].views] == [0.0, 1.0]
    assert found.steps[0].views[1].box is not None and len(found.token_ids) == 3
    assert all(torch.isfinite(torch.tensor(s.logprob)) for s in found.steps)


def test_crops_of_several_pictures_stand_behind_their_own() -> None:
    adapter = Adapter(ZOO["qwen2_5_vl"].build(), FILMS["qwen2_5_vl"][0]())
    pictures = [Image.new("RGB", (64, 64), (i, 0, 0)) for i in (50, 100, 150)]
    prompt = adapter.prepare(ASK, {"image": pictures})
    proposals = [Proposal("image", source, (0.0, 0.0, 32.0, 32.0)) for source in (2, 0, 2)]
    joint = appended_prompt(adapter, prompt, proposals, [])
    shades = [p.getpixel((0, 0))[0] for p in joint.media["image"]]
    assert shades == [50, 50, 100, 150, 150, 150] and [p.width for p in joint.media["image"]] == [
        64,
        32,
        64,
        64,
        32,
        32,
    ]
    assert sum(s.modality == "image" for s in joint.spans) == 6


@pytest.mark.parametrize("images", [0, 1])
def test_a_film_is_no_further_picture(images: int, clip: Path) -> None:
    adapter = Adapter(ZOO["qwen2_5_vl"].build(), FILMS["qwen2_5_vl"][0]())
    media = {"video": str(clip), **({"image": Image.new("RGB", (64, 64))} if images else {})}
    with pytest.raises(SettingError, match="for pictures, the prompt also has video"):
        answered(adapter, media, join="second-picture")
    assert [v.kind for v in answered(adapter, media).steps[0].views]  # auto joins by evidence


def test_a_clip_of_a_part_is_not_left(clip: Path) -> None:
    """The file has two seconds; the model was given frames from .5 to 1 s."""
    adapter = Adapter(ZOO["qwen2_5_vl"].build(), FILMS["qwen2_5_vl"][0]())
    part = read_video(str(clip), 4, between=(0.5, 1.0))
    assert part.seconds == (0.5, 0.75, 1.0)
    for settings in ({}, {"search": "quarters"}):
        found = answered(adapter, {"video": part}, join="crops", **settings)
        assert all(0.5 <= v.interval[0] < v.interval[1] <= 1.125 for v in found.steps[0].views if v.interval)
    again = shown(part, Proposal("video", 0, (0.0, 0.0, 48.0, 32.0)), None)
    assert again.seconds == part.seconds


def test_a_film_whose_file_is_gone_is_looked_at_in_its_own_frames(tmp_path: Path) -> None:
    adapter = Adapter(ZOO["smolvlm"].build(), FILMS["smolvlm"][0]())
    path = film(tmp_path / "gone.mp4")
    prompt = adapter.prepare(ASK, {"video": str(path)})
    path.unlink()
    strategy = limelight.look_again(2, when="always", where="attnlrp", decision="top", least_gain=0.0, join="crops")
    found = limelight.generate(adapter, messages=prompt, strategy=strategy, max_new_tokens=1, relevance=False)
    (own,) = prompt.media["video"]
    again = watched(own, *(found.steps[0].views[1].interval or (0.0, 0.0)))
    assert len(found.steps[0].views) == 2 and set(again.seconds) <= set(own.seconds)


def test_a_brief_object_is_found_in_the_frames_between() -> None:
    """In 6 of 60 frames, in one of the eight that the model is given: the second look shows more of them."""
    adapter = limelight.load("demo-video")
    seen = []
    for question in long_film_questions("dev", "brief/6", 20)[::2]:
        clip, brief = question.film.clip(), question.film.appearances[0]
        given = [i for i, t in enumerate(clip.seconds) if round(t * RATE) in brief.frames]
        if len(given) != 1:
            continue
        found = limelight.generate(
            adapter, messages=question.text, media={"video": clip}, max_new_tokens=1, relevance=False,
            strategy=limelight.look_again(2, when="always"),
        )  # fmt: skip
        whole, again = found.steps[0].views
        start, stop = again.interval or (0.0, 0.0)
        assert stop - start >= 0.8 - 1e-9 and whole.interval is None
        seen.append(start <= clip.seconds[given[0]] <= stop)
    assert len(seen) >= 3 and sum(seen) >= len(seen) - 1


def test_a_film_in_full_detail_is_left_alone_and_one_with_further_frames_is_not() -> None:
    adapter = limelight.load("demo-video")
    (question,) = long_film_questions("dev", "brief/3", 1)
    clip = question.film.clip()
    for medium, views in ((replace(clip, source=None), 0), (clip, 2)):
        found = limelight.generate(
            adapter, messages=question.text, media={"video": medium}, max_new_tokens=1, relevance=False,
            strategy=limelight.look_again(2, when="always"),
        )  # fmt: skip
        assert len(found.steps[0].views) == views


def test_boxes_of_a_film_say_when() -> None:
    adapter = limelight.load("demo-video")
    (question,) = long_film_questions("dev", "brief/3", 1)
    part = question.film.part_of(question.object)
    assert part is not None
    found = limelight.generate(
        adapter, messages=question.text, media={"video": question.film.clip()}, max_new_tokens=1, relevance=False,
        strategy=limelight.look_again(2, when="always", where="given", boxes=(part,)),
    )  # fmt: skip
    start, stop = found.steps[0].views[1].interval or (0.0, 0.0)
    assert start <= question.film.appearances[0].start / RATE and stop >= (question.film.appearances[0].stop - 1) / RATE
    assert found.text == "yes"
    with pytest.raises(limelight.LimelightError, match="expected boxes"):
        limelight.look_again(2, where="given", boxes=((0, 0, 1, 1, 0.5, 0.4),))
