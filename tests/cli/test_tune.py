"""``limelight tune`` on the shipped miniature: equal budgets, resumed, chosen on dev, reported on test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from limelight.benchmarks.results import open_results
from limelight.cli.answering import ModelAnswer
from limelight.cli.spaces import SPACES, defaults_of, space_of
from limelight.cli.sweep import settings
from limelight.cli.tune import tune
from limelight.decoding.registry import strategies, strategy
from limelight.errors import SettingError

app = typer.Typer()
app.command()(tune)
COMMAND = [
    "demo_vision", "--model", "demo-vision", "--split", "E-wrong/clear", "--limit", "12", "--dev-share", "0.4",
    "--strategies", "relevance-contrastive,icd", "--budget", "2", "--max-new-tokens", "2", "--batch-size", "12", "--quiet",
]  # fmt: skip


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True, env={"COLUMNS": "200"})


def test_tuning_is_chosen_on_dev_reported_on_test_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = call(*COMMAND, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "tuning.json").read_text())
    assert {n: len(t) for n, t in told["trials"].items()} == {"greedy": 1, "relevance-contrastive": 2, "icd": 2}
    assert told["metric"] == "*/accuracy"
    for name in ("relevance-contrastive", "icd"):
        best = max(told["trials"][name], key=lambda t: t["score"])
        assert told["chosen"][name] == best["settings"]
        tested = open_results(tmp_path / "test" / name)
        assert best["settings"].items() <= tested.settings["strategy_settings"].items()
        dev = [open_results(p) for p in (tmp_path / "dev" / name).iterdir()]
        assert len(dev) == 2
        assert not set(dev[0].rows) & set(tested.rows)
        assert set(dev[0].rows) == set(dev[1].rows)
        assert len(dev[0].rows) + len(tested.rows) == 12
    assert "tuned decoders against greedy" in done.output
    # everything is there: the same command answers nothing again
    monkeypatch.setattr(ModelAnswer, "many", lambda self, samples: pytest.fail("answered again"))
    again = call(*COMMAND, "--out", tmp_path)
    assert again.exit_code == 0, again.output
    assert again.stdout.partition("settings")[2].split() == done.stdout.partition("settings")[2].split()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--strategies", "greedy"], "none besides greedy"),
        (["--strategies", "greedy,sampled"], "sampled has no settings"),
        (["--strategies", "icd", "--space", "gamma=1,2"], "no strategy has a setting 'gamma'"),
        (["--strategies", "icd", "--space", "alpha=-1"], "alpha"),
        (["--strategies", "icd", "--dev-split", "E-wrong/clear"], "is dev and test"),
        (["--strategies", "icd", "--dev-share", "1"], "between 0 and 1"),
        (["--strategies", "icd", "--metric", "nothing"], "no metric matches"),
    ],
)
def test_wrong_options(tmp_path: Path, options: list[str], says: str) -> None:
    found = call(*COMMAND, "--out", tmp_path, *options)
    assert isinstance(found.exception, SettingError)
    assert says in str(found.exception)


def test_every_space_is_of_settings_that_the_strategy_takes() -> None:
    for name, values in SPACES.items():
        assert set(values) <= set(settings(name)), name
        for k, listed in values.items():
            for value in listed:
                strategy(name, **{k: value})
    for name in strategies():
        space = space_of(name, {})
        assert all(len(v) > 1 for v in space.values())
        assert set(space) <= set(defaults_of(name))
    assert space_of("vcd", {"alpha": [1]}) == {"alpha": [1]}
