"""docs/server.md: its Python block and its curl command run against a real server."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from limelight.cli.main import app
from tests.running import finished
from tests.server.conftest import Running, example

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "server.md").read_text()
HOME = "http://127.0.0.1:8000"


def test_the_client_example_runs(
    server: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    section = PAGE.partition("## The official Python client")[2].partition("\n## ")[0]  # test_spoken.py has the other
    (block,) = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    exec(compile(block.replace(HOME, server.url), "docs/server.md", "exec"), {})
    assert "image" in capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_curl_example_runs(server: Running, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(example())
    section = PAGE.partition("## curl")[2].partition("##")[0]
    lines = [line[4:] for line in section.splitlines() if line.startswith("    ") and "limelight serve" not in line]
    command = "\n".join(lines).replace(HOME, server.url)
    done = finished(["bash", "-c", command], cwd=tmp_path, seconds=120)
    told = json.loads(done.stdout)
    assert told["choices"][0]["message"]["content"].startswith("A picture of")
    assert told["limelight"]["tokens"]


def test_options_of_the_page_exist() -> None:
    from typer.main import get_command

    options = {o for p in get_command(app).commands["serve"].params for o in p.opts}  # type: ignore[attr-defined]
    named = set(re.findall(r"`(--[a-z-]+)", PAGE)) - {"--help"}
    assert named
    assert named <= options


def test_the_table_of_load_is_the_measured_one() -> None:
    from bench.server_table import BEGIN, END, RESULTS, problems, table

    runs = json.loads(RESULTS.read_text())["runs"]
    assert PAGE.partition(BEGIN)[2].partition(END)[0].strip() == table(runs)
    assert [problems(found) for found in runs.values()] == [[], []]
    broken = {**next(iter(runs.values())), "counts": {"WRONG OR LOST ANSWERS": 1}}
    assert problems(broken) == ["1 WRONG OR LOST ANSWERS"]
