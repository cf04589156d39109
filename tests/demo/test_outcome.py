"""The curated examples, the settings, and where in the image relevance lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.report.examples import prompt, relevance

import limelight
from limelight.demo import outcome
from limelight.errors import DataError
from limelight.types import Clip, Region, Relevance, Span


def test_settings_come_from_the_file(tmp_path: Path) -> None:
    fallback, note = outcome.chosen_settings(tmp_path / "settings.json")
    assert fallback == {"lime": {"lr": 0.01}}
    assert "not chosen on the dev split" in note
    (tmp_path / "settings.json").write_text('{"lime": {"lr": 0.003, "objective": "margin"}}')
    found, note = outcome.chosen_settings(tmp_path / "settings.json")
    assert found["lime"]["objective"] == "margin"
    assert "dev" in note


def test_the_shown_ones_come_first() -> None:
    rows = [outcome.Example(str(i), Path("x"), "?", "yes", shown=i in (2, 4)) for i in range(6)]
    assert [r.id for r in outcome.first(rows, 3)] == ["2", "4", "0"]
    assert len(outcome.first(rows, 9)) == 6


def test_inside_box() -> None:
    whole = Region(0, (10, 10), (0, 0, 10, 10))
    assert outcome.coverage((2, 2), (0, 0, 5, 10), whole) == pytest.approx(np.array([[1, 0], [1, 0]]))
    assert outcome.coverage((2, 2), (2, 0, 10, 4), whole) == pytest.approx(np.array([[0.48, 0.8], [0, 0]]))
    padded = Region(0, (10, 10), (0, -5, 10, 15))  # half of each cell is padding
    assert outcome.coverage((2, 2), (0, 0, 5, 2.5), padded) == pytest.approx(np.array([[0.5, 0], [0, 0]]))
    found = relevance(prompt(("image", 49, (7, 7), None)), 1, "x", peak=(0.25, 0.25))
    near, far = (outcome.inside_box(found, box) for box in ((0, 0, 56, 56), (56, 56, 112, 112)))
    assert near is not None
    assert far is not None
    assert near > 0.7 > 0.2 > far
    assert outcome.inside_box(relevance(prompt(("image", 5, None, None)), 1, "x"), (0, 0, 1, 1)) is None


def test_inside_event() -> None:
    found = relevance(prompt(("audio", 40, None, 0.1)), 1, "x")
    scores = np.abs(np.asarray(found.on_seconds()[0], dtype=np.float64))
    expected = (scores[:10].sum() + scores[10] / 2) / scores.sum()
    assert outcome.inside_event(found, 0.0, 1.05) == pytest.approx(expected)
    assert outcome.inside_event(found, 0.0, 4.0) == pytest.approx(1.0)
    assert outcome.inside_event(relevance(prompt(("audio", 5, None, None)), 1, "x"), 0.0, 1.0) is None


def test_no_examples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no examples"):
        outcome.curated(tmp_path)
    (tmp_path / "examples.json").write_text('{"rule": "", "examples": []}')
    with pytest.raises(DataError, match="lists no examples"):
        outcome.curated(tmp_path)


def test_the_shipped_examples_are_held_out_and_complete() -> None:
    rows, rule = outcome.curated()
    assert rule
    assert len(rows) >= 5
    for row in rows:
        assert row.id.startswith("demo/")
        assert row.file.is_file()
        assert row.text.endswith(row.question)
        assert row.label in ("yes", "no")
        assert (row.object in row.objects) == (row.label == "yes")


def test_the_shipped_recordings_say_where_their_sounds_are() -> None:
    rows, rule = outcome.curated(outcome.AUDIO / "examples")
    assert rule
    assert len(rows) >= 4
    for row in rows:
        assert row.kind == "audio"
        assert row.file.is_file()
        assert all(0 <= on < off <= 4 for on, off in row.objects.values())
    found, note = outcome.chosen_settings(outcome.AUDIO / "settings.json")
    assert "dev" in note
    assert {"lime", "aad"} <= set(found)
    for row in rows:
        if row.area is not None:
            on, off = row.objects[row.object]
            assert row.area == pytest.approx((off - on) / 4)


def test_inside_frames() -> None:
    region = Region(0, (8, 8), (0.0, 0.0, 8.0, 8.0), frames=((0,), (1,), (2,), (3,)))
    spans = (Span(0, 4, "video", (4, 1, 1), region=region), Span(4, 5, "text"))
    found = Relevance(torch.tensor([1.0, -2.0, 0.0, 1.0, 9.0]), tuple("abcde"), spans, 1)
    clip = Clip(tuple(Image.new("RGB", (8, 8)) for _ in range(4)), (0.0, 0.5, 1.0, 1.5))
    assert outcome.inside_frames(found, clip, 0.5, 1.5) == pytest.approx(0.5)
    assert outcome.inside_frames(found, clip, 0.0, 2.0) == pytest.approx(1.0)
    unknown = Relevance(torch.ones(5), tuple("abcde"), (Span(0, 5, "video"),), 1)
    assert outcome.inside_frames(unknown, clip, 0.0, 1.0) is None


def test_the_shipped_films_say_when_their_objects_are_there() -> None:
    rows, rule = outcome.curated(outcome.VIDEO / "examples")
    assert (
        rule and len(rows) == 8 and {row.kind for row in rows} == {"video"} and {row.noun for row in rows} == {"film"}
    )
    for row in rows:
        assert row.file.is_file() and all(0 <= on < off <= 4 for on, off in row.objects.values())
        if row.area is not None:
            on, off = row.objects[row.object]
            assert row.area == pytest.approx((off - on) / 4)


@pytest.mark.parametrize("number", [0, 1])  # yes, and no
def test_the_decision_is_the_correct_answers_logit_less_the_others(tmp_path: Path, number: int) -> None:
    adapter = limelight.load("demo-vision")
    example = outcome.curated()[0][number]
    prompt = adapter.prepare(example.text, {"image": [str(example.file)]})
    found = outcome.decision_of(adapter, example, prompt, tmp_path)
    with torch.no_grad():
        logits = adapter.model(**prompt.tensors).logits[0, -1]
    right, wrong = (
        adapter.tokenizer(f" {a}", add_special_tokens=False)["input_ids"][0] for a in (example.label, example.wrong)
    )
    assert found.relevance.logit == pytest.approx(float(logits[right] - logits[wrong]), abs=1e-3)
    assert found.relevance.explains == f"{example.label} rather than {example.wrong}"
    assert found.overlay.is_file()


@pytest.mark.parametrize("home", [outcome.VISION, outcome.AUDIO, outcome.VIDEO])
def test_three_shipped_examples_are_shown_and_a_caption(home: Path) -> None:
    rows, rule = outcome.curated(home / "examples")
    assert sum(r.shown for r in rows) == 3
    assert "Marked as shown" in rule
    caption = outcome.caption_of(home / "examples")
    assert caption is not None and caption.file.is_file() and caption.objects and caption.rule
    assert outcome.caption_of(home) is None
