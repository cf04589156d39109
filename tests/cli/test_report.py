from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from limelight.benchmarks.results import find_runs
from limelight.benchmarks.runner import run
from limelight.benchmarks.task import Reply
from limelight.cli.report import baseline, report
from limelight.errors import DataError, SettingError
from tests.benchmarks.official import WRITERS

app = typer.Typer()
app.command()(report)


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True, env={"COLUMNS": "160"})


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    best = WRITERS["pope"](tmp_path / "data")
    WRITERS["mme"](tmp_path / "mme-data")
    options = {"data": tmp_path / "data", "splits": ["coco/random", "coco/popular"], "progress": False}
    run("pope", lambda s: "Yes", tmp_path / "runs/pope/greedy", **options)
    run("pope", lambda s: best[s.id].upper(), tmp_path / "runs/pope/lime", **options)
    run("mme", lambda s: "Yes", tmp_path / "runs/mme", data=tmp_path / "mme-data", progress=False)
    return tmp_path / "runs"


def test_tables_of_all_runs(runs: Path) -> None:
    done = call(runs)
    assert done.exit_code == 0, done.output
    assert "coco/mean/accuracy" in done.output
    assert "total/score" in done.output
    assert "greedy" in done.output


def test_formats_metrics_and_files(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "table.tex"
    done = call(runs / "pope", "--format", "latex", "--metric", "*/F1", "--no-intervals", "--output", out)
    assert done.exit_code == 0, done.output
    text = out.read_text()
    assert r"coco/random/F1 & 66.7 & 66.7 \\" in text  # "NO" is a yes to the official parser
    assert "accuracy" not in text
    markdown = call(runs / "pope", "--format", "markdown", "--parser", "strict", "--metric", "*/F1", "--no-intervals")
    assert "| coco/random/F1 | 66.7 | 100.0 |" in markdown.output
    assert "<table>" in call(runs, "--format", "html").output
    assert isinstance(call(runs, "--format", "pdf").exception, SettingError)
    assert isinstance(call(tmp_path / "nothing").exception, DataError)


def test_paired_and_differing(runs: Path) -> None:
    done = call(runs / "pope", "--against", "greedy", "--differ", 3, "--parser", "strict", "--resamples", 100)
    assert done.exit_code == 0, done.output
    assert "lime minus greedy" in done.output
    assert "6 fixed, 0 broken, 6 worded differently" in done.output
    assert "3 of 12 shown" in done.output


def test_signs(tmp_path: Path) -> None:
    """Relevance -1 inside the box (a quarter of the picture) and 1 beside it."""
    WRITERS["coco_grounding"](tmp_path / "data")
    for name, scores in (("greedy", [[-1.0, 1.0], [0.0, 0.0]]), ("lime", [[3.0, 1.0], [0.0, 0.0]])):
        run(
            "coco_grounding", lambda s, found=scores: Reply("yes", {"image_relevance": found}),
            tmp_path / "runs" / name, data=tmp_path / "data", progress=False,
        )  # fmt: skip
    said = {
        sign: call(
            tmp_path / "runs", "--sign", sign, "--no-intervals", "--format", "markdown", "--metric", "*/grounding"
        ).output
        for sign in ("abs", "positive", "signed")
    }
    assert "| spatial/grounding | 50.0 | 75.0 |" in said["abs"]
    assert "| spatial/grounding | 0.0 | 75.0 |" in said["positive"]
    assert "| spatial/grounding | - | 75.0 |" in said["signed"]
    paired = call(tmp_path / "runs", "--sign", "positive", "--against", "greedy", "--metric", "*/grounding")
    assert "+75.0" in paired.output
    assert isinstance(call(tmp_path / "runs", "--sign", "squared").exception, SettingError)


def test_the_baseline(runs: Path) -> None:
    found = find_runs([runs / "pope"])
    assert baseline(found, "").name == "greedy"
    assert baseline(found, "lime").name == "lime"
    assert baseline(found[1:], "").name == "lime"
    with pytest.raises(SettingError, match="no run called 'vcd'"):
        baseline(found, "vcd")


def test_the_frontier_of_a_sweep(tmp_path: Path) -> None:
    WRITERS["chair"](tmp_path / "data")
    for name, caption in (
        ("greedy", "A dog and a train."),
        ("vcd,alpha=1", "A dog."),
        ("vcd,alpha=2", "A dog, a cup."),
    ):
        settings = {"strategy": name[:3], "strategy_settings": {"alpha": name[-1]}}
        run(
            "chair",
            lambda s, c=caption: c,
            tmp_path / "runs" / name,
            data=tmp_path / "data",
            settings=settings,
            progress=False,
        )
    done = call(tmp_path / "runs", "--frontier", "--format", "markdown", "--resamples", 50)
    assert done.exit_code == 0, done.output
    rows = {r[0]: r for line in done.output.splitlines() if (r := [c.strip() for c in line.strip("|").split(" | ")])}
    assert rows["vcd,alpha=2"][-1].strip(" |") == "yes"
    assert rows["vcd,alpha=1"][1:5] == ["alpha=1", "0.0", "0.0", "25.0"]
    assert rows["greedy"][2:4] == ["100.0", "50.0"]
    wrong = call(tmp_path / "runs", "--captions", "caption-none")
    assert isinstance(wrong.exception, SettingError)
    assert "--frontier" in str(wrong.exception)


def test_a_model_card(runs: Path) -> None:
    done = call(runs / "pope", "--format", "model-card", "--resamples", 20)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("---\n")
    assert "model-index:" in done.output
    assert "## Evaluation" in done.output
    wrong = call(runs / "pope", "--format", "model-card", "--against", "greedy")
    assert isinstance(wrong.exception, SettingError)
