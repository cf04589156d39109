"""Insertion and deletion curves on the miniature, from the command line and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import limelight
from limelight.benchmarks.results import open_results
from limelight.benchmarks.task import opened
from limelight.cli.answering import ModelAnswer, loaded
from limelight.cli.bench import bench
from limelight.cli.faithfulness import curves, methods_of
from limelight.errors import SettingError
from tests.models.checkpoints import ct2

app = typer.Typer()
app.command()(bench)


def test_names() -> None:
    assert methods_of("") == ()
    assert methods_of("attnlrp, random,attnlrp") == ("attnlrp", "random")
    assert methods_of("reslrp,pa-lrp,gradient-norm") == ("reslrp", "pa-lrp", "gradient-norm")
    with pytest.raises(SettingError, match="cp-lrp"):
        methods_of("lrp")


def test_from_the_command_line(tmp_path: Path) -> None:
    command = [
        "demo_vision", "--model", "demo-vision", "--split", "none/clear", "--limit", "2", "--out", str(tmp_path),
        "--faithfulness", "attnlrp,random", "--quiet",
    ]  # fmt: skip
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "faithfulness/attnlrp/insertion" in done.output
    assert "tokens/s" not in done.output  # its time would be that of the curves
    run = open_results(tmp_path)
    assert run.settings["faithfulness"] == ["attnlrp", "random"]
    metrics = run.score().metrics
    for record in run.records:
        found = record.meta["curves"]["attnlrp"]
        assert len(found["relevance"]) == 49
        assert len(found["insertion"]) == len(found["deletion"]) == 11
        # nothing kept and all removed are one input, and so are all kept and nothing removed
        assert found["insertion"][0] == pytest.approx(found["deletion"][-1], rel=1e-5)
        assert found["insertion"][-1] == pytest.approx(found["deletion"][0], rel=1e-5)
        other = record.meta["curves"]["random"]
        assert other["insertion"][-1] == pytest.approx(found["insertion"][-1], rel=1e-5)
        assert other["relevance"] != found["relevance"]
    areas = [np.trapezoid(r.meta["curves"]["attnlrp"]["deletion"], np.linspace(0, 1, 11)) for r in run.records]
    assert metrics["faithfulness/attnlrp/deletion"].value == pytest.approx(np.mean(areas))


def test_the_complete_image_is_what_the_model_sees() -> None:
    from limelight.benchmarks.loading import load
    from limelight.benchmarks.task import task

    sample = opened(load(task("demo_vision"), splits=["none/clear"], limit=1).samples[0])
    answer = ModelAnswer("demo-vision", generation={"max_new_tokens": 1, "do_sample": False})
    assert "faithfulness" not in answer.identity()
    adapter = loaded("demo-vision", "auto", None, False)
    content = [{"type": "image", "image": sample.media["image"][0]}, {"type": "text", "text": sample.prompt}]
    messages = [{"role": "user", "content": content}]
    token = limelight.generate(adapter, messages=messages, strategy=limelight.strategy("greedy"), max_new_tokens=1)
    found = curves(adapter, messages, token.token_ids[0], ["cp-lrp"], steps=4)["cp-lrp"]
    assert len(found["insertion"]) == 5
    assert found["insertion"][-1] > 0.5  # the greedy answer's own probability


def test_the_states_of_an_encoder_are_what_is_masked(tmp_path: Path) -> None:
    """Those of the sound, without the padding to 30 s, in the order of its relevance."""
    adapter = ct2.listening(tmp_path)
    sound = ((0.1 * np.random.default_rng(0).standard_normal(4800)).astype(np.float32), 16_000)
    messages = [{"role": "user", "content": [{"type": "audio", "audio": sound}]}]
    prompt = adapter.prepare(messages)
    relevance = limelight.attribute(adapter, prompt)
    found = curves(adapter, messages, relevance.target, ("attnlrp", "random"), steps=3)
    assert found["attnlrp"]["relevance"] == pytest.approx(relevance.scores[:15].tolist(), abs=1e-5)
    with torch.no_grad():
        logits = adapter.model(**prompt.tensors).logits[0, -1]
    want = pytest.approx(float(logits.softmax(-1)[relevance.target]), abs=1e-4)
    for told in found.values():
        assert told["insertion"][-1] == told["deletion"][0] == want
        assert told["insertion"][0] == pytest.approx(told["deletion"][-1])
