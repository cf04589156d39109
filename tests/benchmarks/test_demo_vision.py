"""The miniature's benchmark, with fake answers: no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from limelight.benchmarks.loading import load
from limelight.benchmarks.runner import run
from limelight.benchmarks.task import Reply, opened, task
from limelight.demo.questions import CELLS as THEIR_CELLS
from limelight.types import Sample

CELLS = ("none/clear", "E-right/clear", "E-wrong/clear", "C-right/clear", "C-wrong/clear")


def test_the_cells_are_those_of_the_miniature() -> None:
    assert [s for s in task("demo_vision").splits if not s.startswith("caption-")] == list(THEIR_CELLS)


def test_samples_are_drawn_lazily_and_the_same_scenes_share_a_cluster() -> None:
    loaded = load(task("demo_vision"), splits=CELLS, limit=3)
    assert len(loaded.samples) == 15
    picture = opened(loaded.samples[0]).media["image"][0]
    assert picture.size == (112, 112)
    by_cell = [[s.meta["cluster"] for s in loaded.samples[k : k + 3]] for k in range(0, 15, 3)]
    assert all(c == by_cell[0] for c in by_cell)
    json.dumps([dict(s.meta) for s in loaded.samples])


def test_scores(tmp_path: Path) -> None:
    def answer(sample: Sample) -> Reply:
        if sample.meta["split"].startswith("caption"):
            return Reply(f"A picture of a {sample.target[0]} and a zebra-cup." if sample.target else "")
        left, top, right, bottom = sample.meta["box"] or (0, 0, 1, 1)
        inside = [
            [float(left <= (c + 0.5) / 14 < right and top <= (r + 0.5) / 14 < bottom) for c in range(14)]
            for r in range(14)
        ]
        return Reply(sample.target if "wrong" not in sample.meta["split"] else "yes", {"image_relevance": inside})

    results = run("demo_vision", answer, tmp_path, splits=[*CELLS, "caption-none"], limit=10, progress=False)
    value = {k: m.value for k, m in results.metrics.items()}
    assert value["none/clear/accuracy"] == 1.0
    assert value["E-wrong/clear/accuracy"] == 0.5
    assert value["hints/clear/accuracy"] == 0.75
    assert value["spatial/grounding"] > 0.8 > value["spatial/chance"]
    assert 0 < value["caption-none/CHAIR_i"] <= 0.5
    assert value["caption-none/recall"] > 0.5
