"""``limelight audit`` on the shipped miniature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import limelight
from limelight.cli.audit import audit
from limelight.errors import SettingError

EXAMPLES = Path(limelight.__file__).parent / "demo" / "vision" / "examples"

app = typer.Typer()
app.command()(audit)


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=True)


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    row = {"image": str(EXAMPLES / "E-wrong-000.png"), "prompt": "Describe the picture.", "answer": "A dog and a cup."}
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "answer": "<plan>x</plan> yes"}) + "\n")
    return path


def test_an_audit(answers: Path, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    command = [
        str(answers), "--model", "demo-vision", "--out", str(out), "--batch", "2", "--quiet", "--format", "csv,parquet",
        "--thoughts", "<plan>...</plan>",
    ]  # fmt: skip
    done = call(*command)
    assert done.exit_code == 0, done.output
    assert "flagged words" in done.output and str(out / "index.html") in done.output
    assert {p.name for p in out.glob("*.parquet")} == {
        f"{n}.parquet" for n in ("answers", "sentences", "words", "tokens")
    }
    assert (out / "answers.csv").read_text().splitlines()[2].startswith("2,0,Describe the picture.,yes,")
    before = (out / "rows.jsonl").read_text()
    assert call(*command).exit_code == 0
    assert (out / "rows.jsonl").read_text() == before
    answers.write_text(answers.read_text() + json.dumps({"prompt": "q", "answer": "an <image>"}) + "\n")
    refused = call(*command)  # what the model refuses is an error row, and a status
    assert refused.exit_code == 1 and "1 rows that could not be audited" in (out / "index.html").read_text()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "--model and --out are needed"),
        (["--model", "m"], "--model and --out are needed"),
        (["--model", "m", "--out", "o", "--engine", "spark"], "unknown engine 'spark'"),
        (["--model", "m", "--out", "o", "--turns", "some"], "unknown turns"),
        (["--model", "m", "--out", "o", "--composite", "x"], "no forward mode"),
        (["--model", "m", "--out", "o", "--shard", "x"], "is not i/n"),
        (["--model", "m", "--out", "o", "--format", "xls"], "unknown table format 'xls'"),
        (["--model", "m", "--out", "o", "--thoughts", "x"], "is not OPEN...CLOSE"),
        (["--model", "m", "--out", "o", "--engine", "ray", "--workers", "0"], "workers and batch_size"),
    ],
)
def test_settings_are_refused_before_any_work(
    answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    failed = call(str(answers), *more)
    assert isinstance(failed.exception, SettingError) and says in str(failed.exception)
    assert not (tmp_path / "o").exists()


def test_report_and_results_read_an_audit(answers: Path, tmp_path: Path) -> None:
    from limelight.cli.report import report

    reporter = typer.Typer()
    reporter.command()(report)
    assert (
        call(
            str(answers), "--model", "demo-vision", "--out", str(tmp_path / "out"), "--quiet", "--pages", "0"
        ).exit_code
        == 0
    )
    done = CliRunner().invoke(reporter, [str(tmp_path / "out"), "--format", "markdown"])
    assert done.exit_code == 0, done.output
    assert "flagged words" in done.output
    assert "**audit**" in done.output
    pytest.importorskip("pandas", reason="pandas is not installed (pip install 'limelight[pandas]')")
    frame = limelight.results(tmp_path)
    assert "flagged words" in set(frame["metric"])
    assert set(frame["task"]) == {"audit"}
