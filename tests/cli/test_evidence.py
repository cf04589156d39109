"""Scores of every token from the command line, and what they are made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from limelight.benchmarks.results import open_results
from limelight.cli.answering import loaded
from limelight.cli.bench import bench
from limelight.cli.evidence import bare, composites_of, covering, probed
from limelight.demo import film_questions, films
from limelight.demo.questions import captions
from limelight.errors import SettingError

app = typer.Typer()
app.command()(bench)


def test_names() -> None:
    assert composites_of("") == ()
    assert composites_of("ResLRP, attnlrp,attnlrp") == ("reslrp", "attnlrp")
    with pytest.raises(SettingError, match="unknown composite"):
        composites_of("lrp")


def test_tokens_that_cover_words() -> None:
    assert covering("A picture of a cup.", [1, 9, 12, 14, 16, 18, 19], ["cup", "hat"]) == [4, 5]
    assert covering("A Cupboard", [1, 10], ["cup"]) == []


def test_from_the_command_line(tmp_path: Path) -> None:
    command = [
        "demo_vision", "--model", "demo-vision", "--split", "caption-E-wrong", "--limit", "4", "--out", str(tmp_path),
        "--evidence", "attnlrp,reslrp", "--quiet",
    ]  # fmt: skip
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    run = open_results(tmp_path)
    assert run.settings["evidence"] == ["attnlrp", "reslrp"]
    for record in run.records:
        evidence = record.meta["evidence"]
        assert evidence["text"].strip() == record.answer
        assert len({len(v) for v in evidence["scores"].values()} | {len(evidence["ends"])}) == 1
        assert {"z", "Phi", "reslrp z", "PMI", "logit lens", "attnlrp region"} <= set(evidence["scores"])
        assert None not in evidence["scores"]["z"]
        assert None in evidence["scores"]["reslrp region"]  # backward passes for the names of objects alone
        assert "cup" in record.meta["probe"]
    assert any("captions/z/AUROC" in name for name in run.score().metrics)


def test_the_prompt_without_media_and_the_probe() -> None:
    adapter = loaded("demo-vision", "auto", None, False)
    (caption,) = captions("test", "none", 1)
    prompt = bare(adapter, caption.messages)
    assert prompt is not None
    assert all(s.modality == "text" for s in prompt.spans)
    there = probed(adapter, "demo-vision", caption.messages, caption.scene.names[0])
    assert there["yes"] == there[caption.scene.names[0]] == -there["no"]
    assert probed(adapter, "another", caption.messages) == {}


def test_the_probe_of_films_takes_the_frame_that_shows_an_object_best() -> None:
    adapter = loaded("demo-video", "auto", None, False)
    for q in film_questions.questions("test", "what-none/clear", 4):
        found = probed(adapter, "demo-video", q.messages, q.objects[0])
        assert (found["yes"] > 0) == (q.truth == "yes")
        assert {name for name in films.NAMES if found[name] > 0} >= set(q.film.names)
