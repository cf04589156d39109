"""docs/server.md on transcriptions, word for word: the shell's lines and the Python block against a server."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import limelight
from limelight.server.state import ServerConfig
from tests.running import finished
from tests.server.conftest import served

pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
pytest.importorskip("openai", reason="the openai client is not installed")

ROOT = Path(__file__).resolve().parents[2]
SECTION = (ROOT / "docs" / "server.md").read_text().partition("## Transcriptions")[2].partition("\n## ")[0]
HOME = "http://127.0.0.1:8000"
SAID = "five six zero"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(limelight.load("demo-audio"), ServerConfig("demo-audio")) as running:
        yield running.url


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's first command has written the spoken phrase."""
    home = tmp_path_factory.mktemp("phrase")
    (line,) = (x for x in shell() if x.startswith("python "))
    run(line.replace("python ", f'"{sys.executable}" ', 1), home)
    return home


def shell() -> list[str]:
    outside = re.sub(r"^```python\n.*?^```", "", SECTION, flags=re.DOTALL | re.MULTILINE)
    return [line[4:] for line in outside.splitlines() if line.startswith("    ")]


def run(line: str, folder: Path) -> str:
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    done = finished(["sh", "-c", line], cwd=folder, env={**os.environ, "PYTHONPATH": path}, seconds=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_names_the_commands() -> None:
    assert [line.split()[0] for line in shell()] == ["python", "limelight", "curl", "curl"]
    assert "limelight serve demo-audio" in SECTION
    assert SAID in SECTION


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl(url: str, folder: Path) -> None:
    whole, subtitles = (run(x.replace(HOME, url), folder) for x in shell() if x.startswith("curl "))
    told = json.loads(whole)
    assert told["text"] == SAID
    assert told["usage"]["output_tokens"] > 3
    assert subtitles == f"1\n00:00:00,000 --> 00:00:04,000\n{SAID}\n"


def test_the_openai_client(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (block,) = re.findall(r"^```python\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
    exec(compile(block.replace(HOME, url), "docs/server.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == SAID
    words = [line.split(" {")[0].strip() for line in lines[1:] if "{" in line]
    assert words == SAID.split()
    assert all("'audio': " in line for line in lines[1 : 1 + len(words)])
    assert lines[-1] == SAID  # streamed
