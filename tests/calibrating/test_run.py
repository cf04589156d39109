"""Calibrations of the vision miniature: from labels, from its own answers, from a file and the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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


def test_without_labels_words_generated_only_without_media_count_as_invented() -> None:
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
    log = cache_file("demo-vision").with_name(f"{cache_file('demo-vision').stem}.rows.jsonl")
    assert len(log.read_text().splitlines()) == 24  # the held-out rows are the same
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


def test_an_interrupted_run_continues_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [{**r, "answer": "A picture of a cup."} for r in rows(5)]
    settings = run.Settings(batch_size=2, log=tmp_path / "log" / "rows.jsonl")
    expected = run.observe(adapter(), run.labelled_rows(asked), run.Settings(batch_size=2))
    measured: list[str] = []
    audit = run.audit

    def audited(adapter: Adapter, rows: Any, **settings: Any) -> Any:
        measured.extend(r.id for r in rows)
        if len(measured) == 4:
            raise KeyboardInterrupt
        return audit(adapter, rows, **settings)

    monkeypatch.setattr(run, "audit", audited)
    with pytest.raises(KeyboardInterrupt):
        run.observe(adapter(), run.labelled_rows(asked), settings)
    counts: list[tuple[int, int]] = []
    resumed = run.observe(adapter(), run.labelled_rows(asked), replace(settings, progress=lambda *n: counts.append(n)))
    assert measured == ["1", "2", "3", "4", "3", "4", "5"]
    assert counts == [(2, 5), (4, 5), (5, 5)]
    assert resumed.z.tolist() == pytest.approx(expected.z.tolist(), abs=1e-3)
    assert resumed.label.tolist() == expected.label.tolist()
    again = run.observe(adapter(), run.labelled_rows(asked), settings)
    assert again.z.tolist() == resumed.z.tolist() and again.rival.tolist() == resumed.rival.tolist()
    assert len(measured) == 7


def test_only_rows_that_have_not_changed_are_taken_from_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [{**r, "answer": "A picture of a cup."} for r in rows(4)]
    asked[3]["image"].save(tmp_path / "0.png")
    asked[3]["image"] = str(tmp_path / "0.png")
    settings = run.Settings(log=tmp_path / "rows.jsonl")
    measured: list[str] = []
    audit = run.audit
    monkeypatch.setattr(run, "audit", lambda a, r, **kw: measured.extend(x.id for x in r) or audit(a, r, **kw))

    def remeasured(rows: list[dict[str, Any]], settings: run.Settings = settings) -> list[str]:
        measured.clear()
        run.observe(adapter(), run.labelled_rows(rows), settings)
        return list(measured)

    assert remeasured(asked) == ["1", "2", "3", "4"]
    assert remeasured(asked) == []
    assert remeasured([asked[1], asked[0], asked[2], asked[3]]) == []  # another order
    asked[0] = {**asked[0], "answer": "A picture of a dog."}
    asked[1] = {**asked[1], "supported": [], "invented": ["cup"]}
    asked[2] = {**asked[2], "image": asked[1]["image"]}
    Image.new("RGB", (112, 112), "red").save(tmp_path / "0.png")
    assert remeasured(asked) == ["1", "2", "3", "4"]
    assert remeasured(asked, replace(settings, composite="cp-lrp")) == ["1", "2", "3", "4"]
    weight = next(adapter().parent_model.parameters())
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(1.001)
        assert remeasured(asked) == ["1", "2", "3", "4"]
    finally:
        weight.data.copy_(before)
    assert remeasured(asked) == []


def test_another_file_is_not_taken_for_a_log(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "7", "answer": "yes"}\n')
    with pytest.raises(DataError, match="not a log of calibration scores"):
        limelight.calibrate(adapter(), [{**r, "answer": "A cup."} for r in rows(1)], log=path)
    assert path.read_text() == '{"id": "7", "answer": "yes"}\n'
