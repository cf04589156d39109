"""Results as a pandas frame, and as a model card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import limelight
from limelight.benchmarks.card import model_card
from limelight.benchmarks.runner import run
from limelight.errors import DataError, SettingError
from tests.benchmarks.official import WRITERS

pandas = pytest.importorskip("pandas", reason="pandas is not installed (pip install 'limelight[pandas]')")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    best = WRITERS["mme"](tmp_path / "data")
    for name, settings in (("greedy", {}), ("vcd", {"alpha": 2.0})):
        about = {"model": "mine/model", "strategy": name, "strategy_settings": settings}
        run(
            "mme",
            lambda s: best[s.id],
            tmp_path / "runs" / name,
            data=tmp_path / "data",
            settings=about,
            progress=False,
        )
    return tmp_path / "runs"


def test_a_row_for_every_run_and_metric(runs: Path) -> None:
    frame = limelight.results(runs)
    assert set(frame["run"]) == {"greedy", "vcd"}
    one = frame[(frame["run"] == "vcd") & (frame["metric"] == "total/score")]
    assert one["value"].tolist() == [800.0]
    assert one[["task", "model", "strategy", "rows", "complete"]].values.tolist() == [
        ["mme", "mine/model", "vcd", 16, True]
    ]
    assert one["setting.alpha"].tolist() == [2.0]
    assert frame[frame["run"] == "greedy"]["setting.alpha"].isna().all()
    pivot = frame.pivot(index="metric", columns="run", values="value")
    assert pivot.loc["existence/accuracy"].tolist() == [1.0, 1.0]
    assert limelight.results([runs / "vcd"])["run"].unique().tolist() == ["vcd"]


def test_an_interrupted_run_is_scored_as_far_as_it_goes(runs: Path) -> None:
    (runs / "vcd" / "results.json").unlink()
    rows = (runs / "vcd" / "rows.jsonl").read_text().splitlines(keepends=True)
    (runs / "vcd" / "rows.jsonl").write_text("".join(rows[:4]))
    frame = limelight.results(runs / "vcd")
    assert frame["rows"].unique().tolist() == [4]
    assert frame["complete"].unique().tolist() == [False]


def test_folders_without_runs(tmp_path: Path, runs: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        limelight.results(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no runs"):
        limelight.results(tmp_path / "empty")
    (runs / "vcd" / "results.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        limelight.results(runs)


def test_a_model_card_that_the_hub_reads(runs: Path) -> None:
    from huggingface_hub import ModelCard

    from limelight.benchmarks.results import find_runs

    text = model_card([[r.score(resamples=20) for r in find_runs([runs])]])
    card = ModelCard(text)
    assert card.data.model_name == "mine/model"
    found = {(e.dataset_name, e.metric_name): e.metric_value for e in card.data.eval_results}
    assert found["mme", "existence/accuracy (vcd)"] == 100.0
    assert found["mme", "total/score (greedy)"] == 800.0
    assert "| total/score |" in card.text
    assert "mme with vcd (alpha=2.0): 16 of 16 rows" in card.text


def test_a_model_card_is_of_one_model(runs: Path, tmp_path: Path) -> None:
    from limelight.benchmarks.results import find_runs

    path = runs / "vcd" / "run.json"
    content = json.loads(path.read_text())
    content["identity"]["settings"]["model"] = "another"
    path.write_text(json.dumps(content))
    with pytest.raises(SettingError, match="several models"):
        model_card([[r.score(resamples=0) for r in find_runs([runs])]])
