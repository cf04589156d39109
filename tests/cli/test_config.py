"""limelight.toml and environment variables: which comes first, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from limelight.cli import main
from limelight.cli.config import config_file, defaults
from limelight.errors import SettingError
from tests.cli.conftest import Run
from tests.cli.test_main import flat

COMMANDS = dict(typer.main.get_command(main.app).commands)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("LIMELIGHT_CONFIG", raising=False)
    return tmp_path


def test_file_then_environment_then_the_commands_own_table(here: Path) -> None:
    (here / "limelight.toml").write_text(
        '[default]\ndtype = "bfloat16"\n[generate]\nstrategy = "vcd"\nmax-new-tokens = 5\ndtype = "float32"\n[app]\nmeter = false\n'
    )
    found = defaults(COMMANDS, {})
    assert found["generate"] == {"dtype": "float32", "strategy": "vcd", "max_new_tokens": 5}
    assert found["attribute"] == {"dtype": "bfloat16"}
    assert found["app"] == {"dtype": "bfloat16", "meter": False}
    over = defaults(
        COMMANDS,
        {"LIMELIGHT_DTYPE": "float16", "LIMELIGHT_GENERATE_STRATEGY": "pai", "LIMELIGHT_GENERATE_COMPARE": "dola"},
    )
    assert over["generate"] == {"dtype": "float16", "strategy": "pai", "max_new_tokens": 5, "compare": ["dola"]}
    assert "report" not in found


def test_the_nearest_file_is_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config_file({}) is None
    user = here / "config" / "limelight" / "limelight.toml"
    user.parent.mkdir(parents=True)
    user.write_text("")
    assert config_file({"XDG_CONFIG_HOME": str(here / "config")}) == user
    (here / "limelight.toml").write_text("")
    inner = here / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert config_file({}) == here / "limelight.toml"
    assert config_file({"LIMELIGHT_CONFIG": ""}) is None
    with pytest.raises(SettingError, match="there is no file"):
        config_file({"LIMELIGHT_CONFIG": str(here / "none.toml")})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[generates]\n", "'generates' is not a command"),
        ('strategy = "vcd"\n', "'strategy' is not a command"),
        ("[generate]\nstrategie = 1\n", "no option 'strategie'"),
        ("[default]\nstrategie = 1\n", "no option 'strategie'"),
        ("[generate\n", "cannot read"),
    ],
)
def test_mistakes_in_the_file_are_reported(here: Path, run: Run, text: str, message: str) -> None:
    (here / "limelight.toml").write_text(text)
    with pytest.raises(SettingError, match=message):
        defaults(COMMANDS, {})
    result = run("strategies")
    assert result.exit_code == 2
    assert message in flat(result.stderr) and "limelight.toml" in result.stderr.replace("\n", "")


def test_the_command_uses_the_file_and_the_command_line_comes_first(here: Path, run: Run) -> None:
    (here / "limelight.toml").write_text(
        '[generate]\nstrategy = "relevance-contrastive,preset=questions"\nrelevance = false\n'
    )
    asked = (
        "generate",
        "demo-vision",
        "--image",
        "example:hat",
        "-p",
        "There is no hat. Is there a hat in the picture?",
        "--json",
    )
    assert json.loads(run(*asked).stdout)["text"] == "yes"
    assert json.loads(run(*asked, "--strategy", "greedy").stdout)["text"] == "no"
