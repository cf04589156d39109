"""Reading settings, and telling options that would do nothing."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from limelight.cli import options
from limelight.demo.example import example
from limelight.errors import SettingError
from tests.cli.conftest import Run
from tests.cli.test_main import flat


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-2", 0.01), (".5", 0.5), ("7", 7), ("-3", -3), ("true", True), ("False", False), ("none", None), ("null", None),
        ("[0, 1]", (0, 1)), ("(2,)", (2,)), ("paper", "paper"), ("'7'", "7"), ("cp-lrp", "cp-lrp"), ("", ""),
        ("__import__('os')", "__import__('os')"),
    ],
)  # fmt: skip
def test_values(text: str, value: Any) -> None:
    assert options.literal(text) == value
    assert type(options.literal(text)) is type(value)


def test_assignments() -> None:
    assert options.assignments(["lr=1e-2", "kl-weight = 0.1", "a=b=c"]) == {"lr": 0.01, "kl_weight": 0.1, "a": "b=c"}
    with pytest.raises(SettingError, match="cannot read"):
        options.assignments(["lr"])
    with pytest.raises(SettingError, match="twice"):
        options.assignments(["lr=1", "lr=2"])


def test_strategy_of() -> None:
    chosen = options.strategy_of("lime", ["lr=1e-2", "layers=[0,1]"])
    assert chosen.settings()["lr"] == 0.01
    assert chosen.settings()["layers"] == (0, 1)
    with pytest.raises(SettingError) as caught:
        options.strategy_of("lime", ["step=3"])
    assert "did you mean steps?" in caught.value.hint
    with pytest.raises(SettingError) as caught:
        options.strategy_of("gredy", [])
    assert "did you mean greedy?" in caught.value.hint
    with pytest.raises(SettingError):
        options.strategy_of("lime", ["lr=fast"])


def test_sampling() -> None:
    assert options.sampling(False, None, None, None) == {}
    assert options.sampling(True, None, None, 3)["seed"] == 3
    assert options.sampling(True, 0.5, 0.9, None)["temperature"] == 0.5
    for wrong in ((False, 0.5, None, None), (False, None, None, 0), (True, 0.0, None, None), (True, None, 1.5, None)):
        with pytest.raises(SettingError):
            options.sampling(*wrong)


def test_outputs_are_checked_before_any_work(tmp_path: Path) -> None:
    options.check_outputs(tmp_path / "o.png", tmp_path / "o.html", "cup")
    for wrong in ((tmp_path / "o.xyz", None, None), (None, tmp_path / "o.png", None), (None, None, "cup")):
        with pytest.raises(SettingError):
            options.check_outputs(*wrong)


def test_media_of(photo: Path) -> None:
    assert options.media_of([photo], None, []) == {"image": [str(photo)]}
    sound = str(example("dog"))
    assert options.media_of(None, [Path("example:dog")], None) == {"audio": [sound]}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"image": ["none.png"]}, "there is no file 'none.png'"),
        ({"audio": ["none.wav"]}, "there is no file 'none.wav'"),
        ({"video": ["none.mp4"]}, "there is no file 'none.mp4'"),
        ({"image": ["."]}, "is a folder"),
        ({"image": ["https://example.org/a.png"]}, "is a URL"),
        ({"image": ["example:dog"]}, "example:dog is audio, expected image"),
        ({"audio": ["example:hat"]}, "example:hat is image, expected audio"),
        ({"video": ["example:hat"]}, "example:hat is image, expected video"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "attribute"])
def test_files_are_checked_before_the_model_is_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, given: dict[str, list[str]], told: str
) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("limelight.cli.terminal.load", loaded)
    files = [part for kind, paths in given.items() for path in paths for part in (f"--{kind}", path)]
    result = run(command, "demo-vision", "-p", "A hat?", *files)
    assert result.exit_code == 2
    assert told in flat(result.stderr)
    assert "hint:" in result.stderr


def test_a_missing_extra_is_reported_before_the_model_is_loaded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limelight.media.audio.find_spec", lambda name: None)
    monkeypatch.setattr("limelight.cli.terminal.load", lambda *_, **__: 1 / 0)
    for ask in (
        ("generate", "demo-audio", "-p", "A dog?", "--audio", "example:dog"),
        ("attribute", "demo-audio", "-p", "A dog?", "--audio", "example:dog"),
        ("transcribe", "example:dog", "-m", "demo-audio"),
    ):
        assert "pip install 'limelight[audio]'" in flat(run(*ask).stderr)


def test_after_goes_with_every_strategy() -> None:
    made = options.strategy_of("lime-cached", ["lr=1e-2", "after=</think>"])
    assert made.settings()["after"] == "</think>"
    assert options.strategy_of("greedy", ["after=151668"]).settings() == {"after": 151668}
    with pytest.raises(SettingError, match="no setting 'aftr'") as caught:
        options.strategy_of("lime", ["aftr=x"])
    assert "did you mean after?" in caught.value.hint


def test_a_group_of_options_becomes_one_option_per_field() -> None:
    seen: list[Any] = []

    @options.grouped
    def command(model: str, loading: options.Loading = options.Loading(), limit: int = 1) -> None:
        """Say what was given."""
        seen.append((model, loading, limit))

    app = typer.Typer()
    app.command()(command)
    runner = CliRunner()
    assert runner.invoke(app, ["m", "--device-map", "auto", "--trust-remote-code"]).exit_code == 0
    assert seen[-1] == ("m", options.Loading(device_map="auto", trust_remote_code=True), 1)
    assert seen[-1][1].given == {"dtype": "auto", "device_map": "auto", "trust_remote_code": True}
    assert runner.invoke(app, ["m", "--limit", "2"]).exit_code == 0
    assert seen[-1] == ("m", options.Loading(), 2)
    shown = runner.invoke(app, ["--help"]).output
    assert "Say what was given." in shown
    assert "--revision" in shown
    assert runner.invoke(app, ["m", "--loading", "x"]).exit_code == 2


def test_every_command_that_loads_a_model_takes_the_same_options() -> None:
    known = {f.name for f in fields(options.Loading)}
    for name in (
        "app",
        "attribute",
        "audit",
        "bench",
        "calibrate",
        "generate",
        "models",
        "serve",
        "transcribe",
        "tune",
    ):
        taken = inspect.signature(getattr(importlib.import_module(f"limelight.cli.{name}"), name)).parameters
        assert known <= set(taken), name
