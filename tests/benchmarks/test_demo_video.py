"""The video miniature's benchmark, with fake answers: no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limelight.benchmarks.loading import load
from limelight.benchmarks.runner import run
from limelight.benchmarks.scorers.placed import place_moments
from limelight.benchmarks.task import Reply, opened, task
from limelight.demo import film_questions
from limelight.demo.film_language import caption
from limelight.errors import DataError
from limelight.types import Record, Sample

CELLS = tuple(f"what-{hint}/clear" for hint in ("none", "E-right", "E-wrong", "C-right", "C-wrong"))


def test_the_splits_are_those_of_the_miniature() -> None:
    splits = task("demo_video").splits
    assert [s for s in splits if not s.startswith("caption-")] == list(film_questions.CELLS)
    described = [s.partition("-")[2] for s in splits if s.startswith("caption-")]
    assert described == [*film_questions.SETS, "none/poor", "E-wrong/poor"]


def test_samples_are_made_lazily_and_the_same_films_share_a_cluster() -> None:
    loaded = load(task("demo_video"), splits=CELLS, limit=3)
    assert len(loaded.samples) == 15
    assert callable(loaded.samples[0].media["video"][0])
    assert len(opened(loaded.samples[0]).media["video"][0]) == 8
    by_cell = [[s.meta["cluster"] for s in loaded.samples[k : k + 3]] for k in range(0, 15, 3)]
    assert all(c == by_cell[0] for c in by_cell)
    json.dumps([dict(s.meta) for s in loaded.samples])


def test_scores(tmp_path: Path) -> None:
    def answer(sample: Sample) -> Reply:
        split = sample.meta["split"]
        if split.startswith("caption"):
            events = tuple((n, what) for n, what in sample.meta["events"])
            return Reply(caption(events[::-1] if split == "caption-E-wrong" else events))
        times = [t / 2 for t in range(8)]
        starts = {start for start, _ in sample.meta["moments"]} or set(times)
        seen = {"scores": [float(t in starts) for t in times], "seconds": times}
        said = sample.target if "wrong" not in split else "no"
        return Reply(said, {"video_relevance": seen, "shares": {"video": 0.4}})

    chosen = [*CELLS, "when-none/clear", "order-none/clear", "caption-none", "caption-E-wrong"]
    results = run("demo_video", answer, tmp_path, splits=chosen, limit=10, progress=False)
    value = {k: m.value for k, m in results.metrics.items()}
    assert value["what-none/clear/accuracy"] == 1.0
    assert value["what-E-wrong/clear/accuracy"] == 0.5
    assert value["what-hints/clear/accuracy"] == 0.75
    for topic in ("what", "when", "order"):
        assert value[f"temporal/{topic}/grounding"] == pytest.approx(1.0)
        assert value[f"temporal/{topic}/chance"] < 0.6
    assert value["caption-none/CHAIR_i"] == 0.0
    assert value["caption-none/recall"] == 1.0
    assert value["caption-none/events/all in order"] == 1.0
    assert value["caption-E-wrong/events/all in order"] == 0.0
    assert value["caption-E-wrong/events/event recall"] == 1.0
    assert value["video reliance"] == pytest.approx(0.4)


def record(scores: list[Any], seconds: list[float]) -> Record:
    return Record("a", "yes", "yes", meta={"video_relevance": {"scores": scores, "seconds": seconds}})


def test_moments_are_placed_on_frames_by_their_time() -> None:
    found = place_moments(record([1, 2, 3, 4], [0, 0.5, 1, 2]), [(0.25, 1.5), (0.75, 1.0), (2.5, 4)])
    assert found is not None
    np.testing.assert_allclose(found.coverage, [0.5, 1, 0.5, 0.5])  # the last frame lasts from 2 s to 3 s
    assert found.seen == pytest.approx((1.25 + 0.5) / (1.25 + 1.5))
    cells = place_moments(record([[1, -2], [3, 4]], [0, 1]), [(1, 1.5)])
    assert cells is not None
    assert cells.relevance.tolist() == [1, -2, 3, 4]
    assert cells.coverage.tolist() == [0, 0, 0.5, 0.5]
    assert place_moments(Record("a", "yes", "yes", meta={}), [(0, 1)]) is None
    with pytest.raises(DataError, match="video_relevance has 2 frames"):
        place_moments(record([1, 2], [0, 0]), [(0, 1)])
    with pytest.raises(DataError, match="moments"):
        place_moments(record([1, 2], [0, 1]), [(1, 1)])
