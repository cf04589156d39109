"""Calibrations of the vision miniature: from labels, from its own answers, from a file and the command line."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import limelight
from limelight.calibrating import run
from limelight.calibrating.labels import INVENTED, OTHER, SUPPORTED
from limelight.calibration import cache_file, read_calibration
from limelight.cli.main import app
from limelight.demo.questions import captions
from limelight.demo.scenes import OBJECTS
from limelight.errors import DataError, SettingError
from limelight.models.adapter import Adapter
from limelight.types import Clip

SETTINGS = run.Settings(max_new_tokens=14, batch_size=6)


@cache
def adapter() -> Adapter:
    return limelight.load("demo-vision", calibration=None)


def rows(n: int, hint: str = "E-wrong", **more: Any) -> list[dict[str, Any]]:
    return [
        {"image": c.scene.image(), "prompt": c.text, "supported": sorted(c.objects),
         "invented": sorted(set(OBJECTS) - c.objects), **more}
        for c in captions("dev", hint, n)
    ]  # fmt: skip


def test_words_are_measured_as_the_meter_does() -> None:
    asked = rows(4)
    found = run.observe(adapter(), run.labelled_rows(asked), SETTINGS)
    z, label = [], []
    for row in asked:
        said = limelight.generate(
            adapter(), messages=row["prompt"], media={"image": row["image"]}, meter=True, max_new_tokens=14
        )
        for step in said.steps:
            word = step.text.strip()
            if word.isalpha():
                z.append(step.grounding)
                label.append(SUPPORTED if word in row["supported"] else INVENTED if word in OBJECTS else OTHER)
    assert found.z.tolist() == pytest.approx(z, abs=1e-3)
    assert len(found.label) == len(label)
    first = [a in (b, OTHER) for a, b in zip(found.label.tolist(), label, strict=True)]  # first mentions only
    assert all(first) and set(found.label.tolist()) == {SUPPORTED, INVENTED, OTHER}


def test_answers_that_are_given_are_not_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(run, "answer", refuse)
    asked = [{**r, "answer": "A picture of a cup."} for r in rows(2)]
    found = run.observe(adapter(), run.labelled_rows(asked), SETTINGS)
    assert len(found.z) == 2 * 5
    by_messages = [{
        "messages": [{"role": "user", "content": [{"type": "image", "image": asked[0]["image"]}, {"type": "text", "text": asked[0]["prompt"]}]},
                     {"role": "assistant", "content": "A picture of a cup."}], "correct": False,
    }]  # fmt: skip
    other = run.observe(adapter(), run.labelled_rows(by_messages), SETTINGS)
    assert other.z.tolist() == pytest.approx(found.z[:5].tolist(), abs=1e-3)
    assert other.label.tolist() == [INVENTED, OTHER, OTHER, OTHER, OTHER]


def test_without_labels_words_said_only_without_the_media_are_invented() -> None:
    asked = [{k: r[k] for k in ("image", "prompt")} for r in rows(4, "none")]
    found = run.observe(adapter(), run.labelled_rows(asked), SETTINGS)
    assert found.count(SUPPORTED) >= 4 and found.count(INVENTED) >= 3
    assert found.z[found.label == SUPPORTED].mean() > found.z[found.label == INVENTED].mean() + 2
    assert found.count(OTHER) >= 4 * 2 * 4  # "A picture of a" twice


def test_blank_media_have_the_same_size() -> None:
    assert run._blank(Image.new("RGB", (5, 4), "red")).size == (5, 4)
    samples, rate = run._blank((np.ones(9, np.float32), 16000))
    assert samples.tolist() == [0.0] * 9 and rate == 16000
    clip = run._blank(Clip((np.zeros((2, 3, 3), np.uint8),) * 2, (0.0, 1.0)))
    assert len(clip) == 2 and clip.frames[0].shape == (2, 3, 3) and (clip.frames[0] == 128).all()


def test_from_a_file_by_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMELIGHT_CACHE", str(tmp_path / "cache"))
    lines = []
    for i, row in enumerate(rows(24)):
        row.pop("image").save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", **row}))
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines))
    done = CliRunner().invoke(
        app, ["calibrate", "demo-vision", str(file), "--held-out", str(file), "--max-new-tokens", "14", "--json"]
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    kept = read_calibration(cache_file("demo-vision"))
    assert told["threshold"] == kept.threshold and told["file"] == str(cache_file("demo-vision"))
    assert kept.labels == "a labelled file" and kept.model == "demo-vision" and kept.measures["auroc"] > 0.9
    assert kept.measures["held_out_caught"] == kept.measures["caught"] >= 0.7
    assert limelight.load("demo-vision").calibration == kept
    said = limelight.generate(
        limelight.load("demo-vision"),
        messages="Describe the picture.",
        media={"image": str(tmp_path / "0.png")},
        meter=True,
        max_new_tokens=8,
    )
    assert not said.flag["default"] and said.flag["threshold"] == kept.threshold
    assert all(s.p_supported == pytest.approx(kept.probability(s.grounding or 0.0)) for s in said.steps)


def test_rows_that_cannot_be_used() -> None:
    asked = rows(2)
    bare = {k: asked[0][k] for k in ("image", "prompt")}
    for given, told in (
        ([], "there are no rows"),
        ([asked[0], bare], "1 of 2 rows have no labels, such as row 2"),
        ([asked[0], {**bare, "correct": "yes"}], "row 2: expected true or false"),
        ([{"image": "nowhere.png", "prompt": "?", "correct": True}], "row 1: its image nowhere.png does not exist"),
        (["words"], "row 1: is a str"),
    ):
        with pytest.raises(DataError, match=told):
            limelight.calibrate(adapter(), given)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="held-out rows have no labels"):
        limelight.calibrate(adapter(), asked, held_out=[bare])
    with pytest.raises(SettingError, match="batch_size"):
        limelight.calibrate(adapter(), asked, batch_size=0)
    with pytest.raises(DataError, match="at least 10"):
        limelight.calibrate(adapter(), asked, max_new_tokens=14)
