"""Choosing settings: the plan, the choice, the parts of the rows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limelight.benchmarks.loading import load
from limelight.benchmarks.parts import Part
from limelight.benchmarks.runner import run
from limelight.benchmarks.task import task, tasks
from limelight.benchmarks.tuning import Goal, Trial, choose, goal_of, key, nearby, plan
from limelight.errors import DataError, SettingError
from limelight.types import Sample
from tests.benchmarks.official import WRITERS


def trial(name: int, score: float, kept: float = math.nan) -> Trial:
    return Trial({"alpha": name}, score, kept)


def test_the_best_score_is_chosen_and_the_first_of_equals() -> None:
    assert choose([trial(1, 0.5), trial(2, 0.7), trial(3, 0.7)]).settings == {"alpha": 2}
    assert choose([trial(1, math.nan), trial(2, 0.1)]).settings == {"alpha": 2}
    assert choose([trial(1, math.nan)]).settings == {"alpha": 1}
    with pytest.raises(SettingError, match="no trials"):
        choose([])


def test_what_must_not_get_worse() -> None:
    rows = [trial(1, -0.3, 0.84), trial(2, -0.1, 0.832), trial(4, 0.0, 0.80)]
    assert choose(rows, 0.83).settings == {"alpha": 2}
    assert choose(rows, 0.95).settings == {"alpha": 1}  # none reaches it: the nearest
    assert choose([trial(1, -0.1, 0.8), trial(2, -0.1, 0.9)], 0.5).settings == {
        "alpha": 2
    }  # of equals the higher recall


@given(st.integers(1, 12), st.integers(0, 5))
def test_a_plan_has_the_default_first_and_never_exceeds_the_budget(budget: int, seed: int) -> None:
    values = {"alpha": [0.5, 1.0, 2.0], "beta": [0.02, 0.1]}
    found = plan(values, budget, {"alpha": 1.0, "beta": 0.1, "other": 3}, seed)
    assert found[0] == {"alpha": 1.0, "beta": 0.1}
    assert len(found) == min(budget, 6)
    assert len({key(s) for s in found}) == len(found)
    assert found == plan(values, budget, {"alpha": 1.0, "beta": 0.1}, seed)


def test_plans_of_strategies_without_settings_or_default() -> None:
    assert plan({}, 8, {}) == [{}]
    assert plan({"alpha": [1.0, 2.0]}, 3, {"alpha": None}) == [{}, {"alpha": 1.0}, {"alpha": 2.0}]
    assert plan({"alpha": [1.0, 2.0]}, 8, {"alpha": 5.0}) == [{"alpha": 5.0}, {"alpha": 1.0}, {"alpha": 2.0}]
    with pytest.raises(SettingError, match="budget"):
        plan({}, 0, {})


def test_values_near_a_default() -> None:
    assert nearby(0.3) == [0.075, 0.15, 0.3, 0.6]
    assert nearby(20.0) == [10.0, 20.0, 40.0, 80.0]
    assert nearby(True) == [True, False]
    assert nearby("low") == nearby(None) == nearby(0.0) == nearby(3) == []


def test_every_task_s_goal_names_metrics_that_it_has(tmp_path: Path) -> None:
    for name, t in tasks().items():
        assert t.goal, name
    for name in ("chair", "repope", "textvqa"):
        best = WRITERS[name](tmp_path / name)
        results = run(
            name, lambda s, best=best: best[s.id], tmp_path / f"{name}-run", data=tmp_path / name, progress=False
        )
        found = goal_of(task(name)).trial({}, results)
        assert found.score == (0.0 if name == "chair" else pytest.approx(1.0))  # of CHAIR less is better
        assert math.isnan(found.kept) is (name != "chair")


def test_goals(tmp_path: Path) -> None:
    best = WRITERS["chair"](tmp_path / "data")
    results = run("chair", lambda s: best[s.id], tmp_path / "run", data=tmp_path / "data", progress=False)
    assert goal_of(task("chair")) == Goal("CHAIR_s", "recall")
    assert goal_of(task("chair"), "recall") == Goal("recall")
    baseline = Goal("CHAIR_s", "recall", 0.02).trial({}, results)
    assert Goal("CHAIR_s", "recall", 0.02).floor(baseline) == pytest.approx(0.98)
    assert Goal("recall").floor(baseline) == -math.inf
    with pytest.raises(SettingError, match="no metric matches"):
        Goal("F1").trial({}, results)
    with pytest.raises(SettingError, match="not all better when higher"):
        Goal("*").trial({}, results)
    with pytest.raises(SettingError, match="tolerance"):
        goal_of(task("chair"), tolerance=-1)


def test_parts_are_disjoint_by_image_and_stable(tmp_path: Path) -> None:
    WRITERS["pope"](tmp_path)
    everything = load(task("pope"), tmp_path)
    dev, test = (Part(name, 0.7).of(everything) for name in ("dev", "test"))
    ids = [{s.id for s in part.samples} for part in (dev, test)]
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == {s.id for s in everything.samples}
    assert not {s.meta["cluster"] for s in dev.samples} & {s.meta["cluster"] for s in test.samples}
    fewer = Part("dev", 0.7).of(load(task("pope"), tmp_path, splits=["gqa/random", "coco/popular"]))
    assert {s.id for s in fewer.samples} == {i for i in ids[0] if i.startswith(("gqa/random", "coco/popular"))}
    assert (
        dict(zip((s.id for s in dev.samples), dev.places, strict=True)).items()
        <= dict(zip((s.id for s in everything.samples), everything.places, strict=True)).items()
    )


def test_shares_of_the_parts() -> None:
    rows = [Sample(str(i), "?", {}, None, {}) for i in range(2000)]
    assert sum(Part("dev", 0.3).has(s) for s in rows) == pytest.approx(600, abs=70)
    for name, share in (("train", 0.3), ("dev", 0.0), ("dev", 1.0)):
        with pytest.raises(SettingError):
            Part(name, share)


def test_a_run_of_a_part_is_not_resumed_as_another(tmp_path: Path) -> None:
    best = WRITERS["pope"](tmp_path / "data")
    options = {"data": tmp_path / "data", "progress": False}
    found = run("pope", lambda s: best[s.id], tmp_path / "run", part=Part("dev", 0.5), **options)
    assert 0 < found.run.total < 54
    assert found.run.manifest["identity"]["part"] == {"name": "dev", "dev_share": 0.5}
    with pytest.raises(SettingError, match="part"):
        run("pope", lambda s: best[s.id], tmp_path / "run", part=Part("test", 0.5), **options)
    with pytest.raises(DataError, match="the dev part has none"):
        run("pope", lambda s: "", tmp_path / "none", part=Part("dev", 1e-9), **options)
