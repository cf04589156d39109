"""The commands of docs/recipes.md run on the miniature (its Python runs in test_snippets)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from limelight.cli.main import app

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) for line in block.splitlines()
]
ANSWER = '{"id": "1", "image": "%s", "prompt": "Describe the picture.", "answer": "A picture of a cup and a frog."}\n'


def test_there_are_ten() -> None:
    assert len(re.findall(r"^## \d+\.", PAGE, re.MULTILINE)) == 10
    assert {c.split()[0] for c in COMMANDS} == {"limelight", "lmms-eval"}


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import limelight

    monkeypatch.chdir(tmp_path)
    (tmp_path / "answers.jsonl").write_text(ANSWER % limelight.example("hat"))
    ran = []
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        if program != "limelight" or arguments[0] == "serve":  # tests/server, and lmms-eval in tests/benchmarks
            continue
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{command}\n{result.output}"
        ran.append(arguments[0])
    assert ran == ["bench", "report", "audit"]
    assert (tmp_path / "audited" / "index.html").is_file()
