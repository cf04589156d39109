"""The video table: its tensors are the processor's, its jobs run on the shipped model, its committed rows are whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import quality, quality_video, quality_video_data
from limelight.demo.film_questions import questions


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(quality, "CACHE", tmp_path / "jobs")
    return quality_video_data


def test_tensors_are_those_of_the_processor(data: object) -> None:
    asked = quality_video_data.cell("dev", "order-E-wrong/clear", 2)
    ours = quality_video_data.inputs(asked[:1])
    theirs = quality_video_data.adapter().prepare(questions("dev", "order-E-wrong/clear", 1)[0].messages).tensors
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, check_dtype=False, msg=name)
    assert set(ours) == set(theirs)
    assert quality_video_data.inputs(asked)["attention_mask"][:, -1].all()  # padded on the left


def test_jobs_of_every_kind(data: object) -> None:
    def job(kind: str, where: str, n: int, name: str = "greedy") -> dict[str, object]:
        return quality.job(kind, name, "dev", where, n, {}, None, quality_video.WORLD)

    answered = job("questions", "what-none/clear", 4)
    assert answered["truth"] == [True, False, True, False]
    assert answered["unparsed"] == 0
    described = job("captions", "none", 2)
    assert len(described["said"]) == 2  # type: ignore[arg-type]
    runs = {"cells": {"what-none/clear": [answered]}, "captions": {"none": [described]}, "seconds": 1.0, "share": 0.5}
    row = quality_video.row_of(runs, runs)
    assert row["vs_greedy"] == (0.0, 0.0, 0.0)
    assert 0 <= row["captions"]["none"]["in_order"] <= 1


def test_relevance_inside_the_true_frames(data: object) -> None:
    class Found:
        def on_grid(self, index: int, modality: str) -> torch.Tensor:
            assert (index, modality) == (0, "video")
            grid = torch.zeros(8, 3, 3)
            grid[2, 0, 0], grid[2, 2, 2], grid[5, 1, 1] = -2.0, 1.0, 1.0
            return grid

    items = questions("dev", "what-none/clear", 1)

    def asked(frames: tuple[int, ...]) -> quality_video_data.Asked:
        return quality_video_data.Asked("", "", items[0].film, True, frames)

    assert quality_video_data.inside(asked((2, 3)), Found()) == (0.75, 0.25)
    assert quality_video_data.inside(asked(()), Found()) is None


def test_the_committed_table_is_complete() -> None:
    results = json.loads(quality_video.RESULTS.read_text())
    assert results["model"] == quality.fingerprint("demo-video")
    text = quality_video.render(results)
    for decoder in quality_video_data.DECODERS:
        assert f"| {decoder.name} |" in text
    assert set(results["probe"]) == set(results["located"]) == set(quality_video_data.CELLS)
