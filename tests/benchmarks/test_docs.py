"""The two pages cannot rot: their commands parse, their parser table is computed again, their Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from limelight.benchmarks.scorers.yes_no import PARSERS
from limelight.benchmarks.task import task, tasks
from limelight.cli.bench import bench
from limelight.cli.report import report
from limelight.decoding.registry import strategies

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ("benchmarks.md", "reproduction.md")
TEXTS = {name: (DOCS / name).read_text() for name in PAGES}
COMMANDS = sorted(
    {c.replace("\\\n", " ") for t in TEXTS.values() for c in re.findall(r"limelight (?:bench|report)[^`\n]+", t)}
)


def options(function: Any) -> set[str]:
    """Every option of a typer command."""
    app = typer.Typer()
    app.command()(function)
    return {o for p in typer.main.get_command(app).params for o in (*p.opts, *p.secondary_opts)}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str) -> None:
    _, kind, *words = shlex.split(command)
    known = options(bench if kind == "bench" else report)
    pairs = list(zip(words, [*words[1:], ""], strict=True))
    assert {w for w in words if w.startswith("--")} <= known
    if kind == "report" or words[0].startswith("-") or words[0] == "...":
        return
    chosen = task(words[0])
    for option, value in pairs:
        if option == "--split":
            assert value in chosen.splits
        if option == "--parser":
            assert value in chosen.parsers
        if option in ("--strategies", "--strategy"):
            assert set(value.split(",")) <= {*strategies(), "sampled"}


def test_the_commands_were_found() -> None:
    assert len(COMMANDS) > 25
    assert {c.split()[2] for c in COMMANDS} >= {"pope", "chair", "audio_hallucination", "air_bench", "dcase"}


def test_the_parser_table_is_right() -> None:
    rows = [line.strip("| \n").split(" | ") for line in TEXTS["benchmarks.md"].splitlines() if line.startswith("| ")]
    start = next(k for k, row in enumerate(rows) if row[:2] == ["answer", "official"])
    names, body = rows[start][1:], [r for r in rows[start + 2 :] if len(r) == len(rows[start])]
    assert len(body) > 10
    for answer, *cells in body:
        said = "" if answer == "(empty)" else answer.strip("`")
        for name, cell in zip(names, cells, strict=True):
            yes, no = (PARSERS[name](said, gold) or "-" for gold in ("yes", "no"))
            assert cell == (yes if yes == no else f"{yes} / {no}"), (answer, name)


def test_every_task_and_its_parsers_are_listed() -> None:
    for name, t in tasks().items():
        line = next(x for x in TEXTS["benchmarks.md"].splitlines() if x.startswith(f"| `{name}`"))
        assert ", ".join(f"`{p}`" for p in t.parsers) in line
        assert t.about in line
        assert f"**{name}**" in TEXTS["benchmarks.md"]


def test_the_python_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", TEXTS["benchmarks.md"], flags=re.S):
        exec(code, names)
    assert capsys.readouterr().out == "0.5\n"
    assert names["answer"](None).meta["audio_relevance"]["seconds"] == 0.04
