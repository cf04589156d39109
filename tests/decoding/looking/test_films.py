"""Films and several pictures, through real processors on tiny random models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import limelight
from limelight.decoding.looking.views import watched
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
