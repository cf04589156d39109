"""Trackers: what is sent, through clients with the interface of the real ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from limelight.benchmarks.results import Results
from limelight.benchmarks.runner import run
from limelight.benchmarks.trackers import check_tracker, configuration, log_results, values
from limelight.errors import MissingExtraError, SettingError
from tests.benchmarks.official import WRITERS


@pytest.fixture
def results(tmp_path: Path) -> Results:
    best = WRITERS["mme"](tmp_path / "data")
    settings = {"model": "mine", "strategy": "vcd", "strategy_settings": {"alpha": 1.0, "layers": [1, 2]}}
    return run("mme", lambda s: best[s.id], tmp_path / "run", data=tmp_path / "data", settings=settings, progress=False)


def test_what_is_sent(results: Results) -> None:
    sent = values(results)
    assert sent["total/score"] == 800.0
    assert sent["existence/accuracy"] == sent["existence/accuracy/low"] == 1.0
    assert sent["rows"] == 16
    assert all(v == v for v in sent.values())
    about = configuration(results)
    assert about["settings.strategy_settings.alpha"] == 1.0
    assert about["settings.strategy_settings.layers"] == "[1, 2]"
    assert about["task"] == "mme"
    assert about["versions.limelight"]


class Client(ModuleType):
    """A client that keeps its calls."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *a, **k: self.calls.append((name, a[0] if a else k))


def test_trackio(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("trackio")
    monkeypatch.setitem(sys.modules, "trackio", client)
    log_results(results, "trackio", project="mine", name="vcd")
    assert [c[0] for c in client.calls] == ["init", "log", "finish"]
    assert client.calls[0][1] | {"config": None} == {"project": "mine", "name": "vcd", "config": None}
    assert client.calls[1][1]["total/score"] == 800.0


def test_wandb_resumes_the_same_entry(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    logged: list[Any] = []

    def init(**options: Any) -> Any:
        started.append(options)
        return SimpleNamespace(log=logged.append, finish=lambda: logged.append("finished"))

    client = ModuleType("wandb")
    client.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", client)
    for _ in range(2):
        log_results(results, "wandb")
    assert started[0]["id"] == started[1]["id"]
    assert (started[0]["resume"], started[0]["name"], started[0]["project"]) == ("allow", "run", "limelight")
    assert logged[0]["total/score"] == 800.0
    assert logged[1] == "finished"


def test_mlflow_names_are_allowed(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("mlflow")

    @contextmanager
    def start_run(run_name: str) -> Iterator[None]:
        client.calls.append(("start_run", run_name))
        yield

    client.start_run = start_run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", client)
    log_results(results, "mlflow")
    calls = dict(client.calls)
    assert list(calls) == ["set_experiment", "start_run", "log_params", "log_metrics"]
    assert calls["log_metrics"]["existence/accuracy plus"] == 1.0  # MLflow allows no plus
    assert all(len(v) <= 500 for v in calls["log_params"].values())
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-. :/")
    assert all(set(k) <= allowed for part in ("log_params", "log_metrics") for k in calls[part])


def test_the_client_is_closed_after_an_error(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("trackio")
    client.log = lambda found: 1 / 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", client)
    with pytest.raises(ZeroDivisionError):
        log_results(results, "trackio")
    assert client.calls[-1][0] == "finish"


def test_unknown_and_missing_trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match="'tensorboard'"):
        check_tracker("tensorboard")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises((MissingExtraError, ModuleNotFoundError), match="wandb"):
        check_tracker("wandb")
