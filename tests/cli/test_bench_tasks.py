"""Every task from the command line: files of its official format, real media, a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limelight.benchmarks.results import open_results
from limelight.benchmarks.task import task
from tests.benchmarks.official import WRITERS, make_media
from tests.benchmarks.stored import read_results
from tests.cli.conftest import Run

# the tiny model of films hears nothing
SPLITS = {"cmm": ("--split", "language-dominance", "--split", "visual-language")}


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_a_task_on_a_model(name: str, tmp_path: Path, listener: Path, watcher: Path, run: Run) -> None:
    """Images on the shipped miniature, sounds and films on tiny random models (Qwen2-Audio, Qwen2.5-VL)."""
    pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
    pytest.importorskip("av", reason="PyAV is not installed (pip install 'limelight[video]')")
    best = WRITERS[name](tmp_path / "data")
    make_media(tmp_path / "data")
    model = {"audio": listener, "video": watcher}.get(task(name).modality, "demo-vision")
    done = run(
        "bench", name, "--model", model, "--data", tmp_path / "data", "--limit", 2, "--max-new-tokens", 3,
        "--relevance", "--out", tmp_path / "run", "--quiet", *SPLITS.get(name, ()),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = open_results(tmp_path / "run")
    assert found.complete
    assert {r.id for r in found.records} <= set(best)
    for r in found.records:
        if r.meta.get("text_only"):
            continue
        assert sum(r.meta["shares"].values()) == pytest.approx(1.0)
        if task(name).modality == "video":
            assert r.meta["shares"]["video"] > 0
        else:
            assert f"{task(name).modality}_relevance" in r.meta
    stored = read_results(tmp_path / "run")
    assert stored["identity"]["data"]
    if "relevance" in " ".join(task(name).wants):
        assert stored["metrics"]["answers without relevance"]["value"] == 0


def test_four_strategies_side_by_side(tmp_path: Path, run: Run) -> None:
    done = run(
        "bench", "demo_vision", "--model", "demo-vision", "--split", "E-wrong/clear", "--limit", 3, "--out", tmp_path,
        "--strategies", "greedy,sampled,lime,vcd", "--set", "lime.lr=1e-2", "--set", "lime.steps=2",
        "--max-new-tokens", 2, "--quiet",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for name in ("greedy", "sampled", "lime", "vcd"):
        assert name in done.output
        assert open_results(tmp_path / name).complete
    assert open_results(tmp_path / "lime").settings["strategy_settings"]["steps"] == 2
    assert "lr" not in open_results(tmp_path / "vcd").settings["strategy_settings"]
    report = run("report", tmp_path, "--against", "greedy", "--differ", 5)
    assert report.exit_code == 0, report.output
    assert "lime minus greedy" in report.output


@pytest.mark.parametrize("strategies", ["greedy", "sampled"])
def test_batches_answer_as_one_by_one(strategies: str, tmp_path: Path, run: Run) -> None:
    said = []
    for size in (1, 4):
        done = run(
            "bench", "demo_vision", "--model", "demo-vision", "--split", "caption-none", "--split", "E-wrong/poor",
            "--limit", 4, "--strategies", strategies, "--batch", size, "--max-new-tokens", 8,
            "--out", tmp_path / str(size), "--quiet",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        said.append({r.id: r.answer for r in open_results(tmp_path / str(size)).records})
    assert said[0] == said[1]
    assert len(set(said[0].values())) > 2


def test_errors_are_reported(tmp_path: Path, run: Run) -> None:
    """Unknown names list what there is; missing files are named with their origin; nothing is left behind."""
    base = ("--model", "demo-vision", "--out", tmp_path / "run")
    cases = [
        (("bench", "pop", *base), "unknown task 'pop'", "pope"),
        (("bench", "pope", *base), "coco/coco_pope_random.json", "github.com/AoiDragon/POPE"),
        (("bench", "pope", *base, "--data", tmp_path / "none"), "does not exist", "--data DIR"),
        (("bench", "pope", *base, "--data", tmp_path), "coco_pope_adversarial.json", "looked for"),
        (("bench", "demo_vision", *base, "--split", "E"), "no split 'E'", "E-wrong/clear"),
        (("bench", "demo_vision", *base, "--strategies", "greedy,lame"), "lame", "lime"),
        (("bench", "demo_vision", *base, "--strategies", ","), "is empty", "limelight strategies"),
        (("bench", "demo_vision", *base, "--parser", "vcd"), "no answer parser 'vcd'", "strict"),
        (("bench", "demo_vision", *base, "--faithfulness", "lrp"), "'lrp'", "attnlrp"),
        (("bench", "demo_vision", *base, "--engine", "slurm"), "'slurm'", "ray"),
        (("bench", "demo_vision", *base, "--set", "lr=1"), "lr", "greedy"),
        (("report", tmp_path), "no runs", "limelight bench"),
    ]
    for command, *says in cases:
        done = run(*command)
        assert done.exit_code == 2, (command, done.output)
        flat = " ".join(done.output.split())
        for text in says:
            assert text in flat.replace("\n", ""), (command, text, done.output)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_records_everything(tmp_path: Path, run: Run) -> None:
    best = WRITERS["pope"](tmp_path / "data")
    make_media(tmp_path / "data")
    done = run(
        "bench", "pope", "--model", "demo-vision", "--data", tmp_path / "data", "--split", "gqa/random", "--limit", 2,
        "--out", tmp_path / "run", "--quiet",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    stored = json.loads((tmp_path / "run/results.json").read_text())
    assert stored["task_version"] == "1"
    assert stored["sessions"][0]["git"]
    assert stored["sessions"][0]["versions"]["transformers"]
    (facts,) = stored["identity"]["data"].values()
    assert (len(facts["sha256"]), facts["rows"]) == (64, 6)
    assert stored["identity"]["settings"]["model"] == "demo-vision"
    assert len(best) == 54
