"""The audio miniature's benchmark, with fake answers: no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from limelight.benchmarks.loading import load
from limelight.benchmarks.runner import run
from limelight.benchmarks.task import Reply, opened, task
from limelight.demo import sound_questions
from limelight.demo.sound_language import caption
from limelight.types import Sample

CELLS = ("none/clear", "E-right/clear", "E-wrong/clear", "C-right/clear", "C-wrong/clear")


def test_the_splits_are_those_of_the_miniature() -> None:
    splits = task("demo_audio").splits
    assert [s for s in splits if "-" not in s.split("/")[0] or s[:2] in ("E-", "C-")] == list(sound_questions.CELLS)
    spoken = [s.partition("-")[2] for s in splits if s.startswith(("speech-", "quiet-"))]
    assert spoken == list(sound_questions.SPEECH_SETS)
    described = [s.partition("-")[2] for s in splits if s.startswith("caption-")]
    assert described == [*sound_questions.SETS, "none/poor", "E-wrong/poor"]


def test_samples_are_made_lazily_and_the_same_recordings_share_a_cluster() -> None:
    loaded = load(task("demo_audio"), splits=CELLS, limit=3)
    assert len(loaded.samples) == 15
    assert callable(loaded.samples[0].media["audio"][0])
    samples, rate = opened(loaded.samples[0]).media["audio"][0]
    assert samples.shape == (64_000,)
    assert rate == 16_000
    by_cell = [[s.meta["cluster"] for s in loaded.samples[k : k + 3]] for k in range(0, 15, 3)]
    assert all(c == by_cell[0] for c in by_cell)
    json.dumps([dict(s.meta) for s in loaded.samples])


def test_scores(tmp_path: Path) -> None:
    def answer(sample: Sample) -> Reply:
        split = sample.meta["split"]
        if split.startswith("caption"):
            return Reply(caption((*sample.target, "zebra", "wolf" if "wolf" not in sample.target else "cow")))
        if split.startswith("speech"):
            return Reply(sample.target + " please")
        if split.startswith("quiet"):
            return Reply("Play music." if split == "quiet-noise" else "")
        on, off = sample.meta["span"] or (0, 4)
        middles = (np.arange(50) + 0.5) * 0.08
        inside = ((middles > on) & (middles < off)).astype(float).tolist()
        said = sample.target if "wrong" not in split else "no"
        return Reply(said, {"audio_relevance": {"scores": inside, "seconds": 0.08}, "shares": {"audio": 0.3}})

    chosen = [*CELLS, "caption-none", "speech-usual/clear", "quiet-noise", "quiet-silence"]
    results = run("demo_audio", answer, tmp_path, splits=chosen, limit=10, progress=False)
    value = {k: m.value for k, m in results.metrics.items()}
    assert value["none/clear/accuracy"] == 1.0
    assert value["E-wrong/clear/accuracy"] == 0.5
    assert value["E-wrong/clear/recall"] == 1.0  # "no" is the positive class
    assert value["E-wrong/clear/precision"] == 0.5
    assert value["hints/clear/accuracy"] == 0.75
    assert value["temporal/grounding"] > 0.85 > value["temporal/chance"]
    assert 0.2 <= value["caption-none/CHAIR_i"] <= 0.5
    assert value["caption-none/recall"] == 1.0
    assert 0.2 <= value["speech-usual/clear/WER"] <= 0.5
    assert value["quiet-noise/invented words per clip"] == 2.0
    assert value["quiet-silence/invented words per clip"] == 0.0
    assert value["audio reliance"] == pytest.approx(0.3)
