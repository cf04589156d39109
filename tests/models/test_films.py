"""Video through the real processors of five families, with no torchvision: layout, times, decoding, relevance."""

from __future__ import annotations

import logging
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import limelight
from limelight.errors import MediaError, ModelError, UnsupportedError
from limelight.media.video import read_video
from limelight.media.video_tensors import load_processor, plain_class, resized
from limelight.models.adapter import Adapter
from limelight.models.prompts import video_metadata
from limelight.relevance.attribute import attribute
from limelight.types import Clip
from tests.models.films import FILMS, film, qwen3_vl
from tests.tiny import snapshot, vision_processor
from tests.zoo import ZOO

ASK = "what is here ?"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("films") / "a.mp4")


@pytest.mark.parametrize("name", FILMS)
def test_frames_reach_the_model_and_are_explained(name: str, clip: Path) -> None:
    make, modality, grids = FILMS[name]
    adapter = Adapter(ZOO[name].build(), make())
    prompt = adapter.prepare(ASK, {"video": str(clip)})
    assert [s.grid for s in prompt.spans if s.modality == modality] == grids
    (given,) = prompt.media["video"]
    assert isinstance(given, Clip)
    assert given.seconds == pytest.approx(np.arange(8) / 4)
    own = adapter.model.generate(**prompt.tensors, max_new_tokens=3, do_sample=False)
    before = snapshot(adapter.model)  # transformers hangs its own capturing hooks on at the first call
    try:
        relevance = attribute(adapter, prompt.tensors)
    except UnsupportedError as error:  # said, not silently left out
        assert "beside the input embeddings" in str(error)
        return
    assert sum(relevance.shares().values()) == pytest.approx(1.0)
    assert relevance.share(modality) > 0  # type: ignore[arg-type]
    said = limelight.generate(adapter, messages=prompt, max_new_tokens=3)
    assert said.token_ids == tuple(own[0, -3:].tolist())
    assert said.steps[0].relevance is not None
    torch.testing.assert_close(said.steps[0].relevance.scores, relevance.scores, atol=1e-4, rtol=1e-4)
    assert snapshot(adapter.model) == before


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "smolvlm", "llava_onevision"])
def test_relevance_lies_on_the_frame_that_matters(name: str, clip: Path) -> None:
    """A planted reader: the embedding of one frame's patches is scaled up, so the answer must come from it."""
    make, modality, _ = FILMS[name]
    adapter = Adapter(ZOO[name].build(), make())
    prompt = adapter.prepare(ASK, {"video": str(clip)})
    spans = [s for s in prompt.spans if s.modality == modality and s.grid is not None]
    steps = [(s.start + t * len(s) // n, s.start + (t + 1) * len(s) // n)
             for s in spans for n in [s.grid[0] if len(s.grid or ()) == 3 else 1] for t in range(n)]  # type: ignore[index]  # fmt: skip
    planted = 2

    def scaled(module: Any, arguments: Any, kwargs: Any) -> Any:
        embeds = kwargs["inputs_embeds"] * 1.0
        a, b = steps[planted]
        others = torch.ones(embeds.shape[1], 1)
        for start, stop in steps:
            others[start:stop] = 0.02
        others[a:b] = 3.0
        return arguments, {**kwargs, "inputs_embeds": embeds * others}

    handle = adapter.decoder.register_forward_pre_hook(scaled, with_kwargs=True)
    try:
        relevance = attribute(adapter, prompt.tensors)
    finally:
        handle.remove()
    sizes = [float(relevance.scores[a:b].abs().sum()) for a, b in steps]
    assert int(np.argmax(sizes)) == planted
    assert sizes[planted] > 2 * sorted(sizes)[-2]


def test_time_tokens_are_those_of_the_frames(clip: Path) -> None:
    words = Adapter(ZOO["qwen3_vl"].build(), qwen3_vl()).prepare(ASK, {"video": str(clip)}).tokens
    assert [w for w in words if w.startswith("<") and w[1:2].isdigit()] == ["<0.1", "<0.6", "<1.1", "<1.6"]
    late = replace(read_video(clip), seconds=tuple(1.5 + i / 4 for i in range(8)), duration=4.0)
    words = Adapter(ZOO["qwen3_vl"].build(), qwen3_vl()).prepare(ASK, {"video": late}).tokens
    assert [w for w in words if w.startswith("<") and w[1:2].isdigit()] == [
        "<1.6"
    ]  # the others are not in the vocabulary
    make = FILMS["smolvlm"][0]
    words = Adapter(ZOO["smolvlm"].build(), make()).prepare(ASK, {"video": str(clip)}).tokens
    assert [w for w in words if w.startswith("00:")] == ["00:00:"] * 4 + ["00:01:"] * 4
    make = FILMS["qwen2_5_vl"][0]
    adapter = Adapter(ZOO["qwen2_5_vl"].build(), make())
    assert adapter.prepare(ASK, {"video": str(clip)}).tensors["second_per_grid_ts"].tolist() == [0.5]
    four = adapter.prepare(ASK, {"video": read_video(clip, 4)}).tensors["second_per_grid_ts"]
    assert four.tolist() == [1.0]  # half the frames, twice as far apart


def test_metadata_of_clips() -> None:
    frames = tuple(Image.new("RGB", (8, 6)) for _ in range(3))
    known = video_metadata(Clip(frames, (0.0, 1.0, 2.0), 25.0, 2.5))
    assert (known.fps, known.total_num_frames, known.duration, known.frames_indices) == (25.0, 62, 2.5, [0, 25, 50])
    alone = video_metadata(read_video(list(frames)))
    assert (alone.fps, alone.total_num_frames, alone.frames_indices) == (1.0, 3, [0, 1, 2])
    single = video_metadata(Clip(frames[:1], (0.0,)))
    assert single.frames_indices == [0]
    with pytest.raises(limelight.LimelightError, match="non-decreasing"):
        Clip(frames, (0.0, 2.0, 1.0))


def test_an_image_model_refuses_video(clip: Path) -> None:
    adapter = Adapter(ZOO["llava"].build(), vision_processor())
    with pytest.raises(MediaError, match="takes image"):
        adapter.prepare(ASK, {"video": str(clip)})


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl", "llava_onevision"])
def test_saved_processors_load_without_torchvision(name: str, tmp_path: Path, clip: Path) -> None:
    made = FILMS[name][0]()
    made.save_pretrained(tmp_path)
    loaded = load_processor(tmp_path, name)
    assert type(loaded).__name__ == type(made).__name__
    adapter, again = (Adapter(ZOO[name].build(), p) for p in (made, loaded))
    one, two = (a.prepare(ASK, {"video": str(clip)}).tensors for a in (adapter, again))
    assert set(one) == set(two)
    for key, value in one.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(two[key])), key


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is here")
def test_loading_repeats_no_notice_to_authors_of_processors(tmp_path: Path) -> None:
    from transformers.utils import logging as theirs

    FILMS["llava_onevision"][0]().save_pretrained(tmp_path)
    said: list[str] = []
    kept = logging.Handler()
    kept.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    own = logging.getLogger("transformers.processing_utils")
    before = list(own.filters)
    own.addHandler(kept)
    try:
        theirs.warning_once.cache_clear()  # type: ignore[attr-defined]
        load_processor(tmp_path, "llava_onevision")
    finally:
        own.removeHandler(kept)
    assert not [line for line in said if "video_processor_class" in line]
    assert own.filters == before


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is here")
def test_a_missing_torchvision_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="needs torchvision") as caught:
        plain_class("video_llama_3")
    assert "pip install torchvision" in caught.value.hint
    with pytest.raises(UnsupportedError):
        load_processor(_broken(tmp_path), "kimi_k25")


def _broken(folder: Path) -> Path:
    qwen3_vl().save_pretrained(folder)
    return folder


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import transformers

    def refuse(*_: Any, **__: Any) -> Any:
        raise ImportError("Package `num2words` is required")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", refuse)
    with pytest.raises(ModelError, match="num2words"):
        load_processor(tmp_path, "smolvlm")


@pytest.mark.parametrize("filter_", ["BICUBIC", "BILINEAR", "LANCZOS", "NEAREST"])
def test_resizing_is_torchvisions(filter_: str) -> None:
    functional = pytest.importorskip(
        "torchvision.transforms.v2.functional", reason="torchvision is not installed; the library does not need it"
    )
    for shape, size in (((2, 4, 3, 40, 60), (28, 56)), ((1, 3, 3, 30, 20), (64, 64))):
        frames = torch.randint(0, 256, shape, dtype=torch.uint8)
        want = functional.resize(frames, list(size), getattr(functional.InterpolationMode, filter_), antialias=True)
        assert torch.equal(resized(frames, size, getattr(Image.Resampling, filter_)), want)


@pytest.mark.parametrize("filter_", ["BICUBIC", "BILINEAR", "LANCZOS"])
def test_resizing_is_pils_within_two_levels(filter_: str) -> None:
    """Where torchvision is not installed: PIL's own resize, which torch's on bytes follows."""
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (40, 60, 3)).astype(np.uint8)
    for size in ((28, 56), (80, 90)):
        got = resized(torch.from_numpy(picture).permute(2, 0, 1)[None], size, getattr(Image.Resampling, filter_))
        want = np.asarray(Image.fromarray(picture).resize(size[::-1], getattr(Image.Resampling, filter_)), np.int64)
        assert np.abs(got[0].permute(1, 2, 0).numpy().astype(np.int64) - want).max() <= 2  # both round twice
