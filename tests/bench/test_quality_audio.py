"""The audio table: its tensors are the processor's, its jobs run on the shipped model, its committed rows are whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.quality_audio_decoders import DECODERS

from bench import quality, quality_audio, quality_audio_data, quality_audio_table


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(quality_audio_data, "CACHE", tmp_path / "spectra")
    monkeypatch.setattr(quality, "CACHE", tmp_path / "jobs")
    return quality_audio_data


def test_tensors_are_those_of_the_processor(data: object) -> None:
    from limelight.demo.sound_questions import questions

    asked = quality_audio_data.cell("dev", "E-wrong/clear", 2)
    ours = quality_audio_data.inputs(asked[:1])
    theirs = quality_audio_data.adapter().prepare(questions("dev", "E-wrong/clear", 1)[0].messages).tensors
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, check_dtype=False, msg=name)
    assert set(ours) == set(theirs)
    together = quality_audio_data.inputs(asked)
    assert together["attention_mask"][:, -1].all()  # padded on the left
    again = quality_audio_data.cell("dev", "C-right/clear", 1)  # taken from the larger set that is there
    assert np.array_equal(again[0].mel, asked[0].mel)


def test_jobs_of_every_kind(data: object) -> None:
    def job(kind: str, where: str, n: int, name: str = "greedy") -> dict[str, object]:
        return quality.job(kind, name, "dev", where, n, {}, None, quality_audio.WORLD)

    answered = job("questions", "none/clear", 4)
    assert answered["truth"] == [True, False, True, False]
    assert answered["unparsed"] == 0
    assert len(job("captions", "none", 2)["said"]) == 2  # type: ignore[arg-type]
    spoken = job("speech", "usual/clear", 2)
    assert all(isinstance(text, str) for text in spoken["texts"])  # type: ignore[attr-defined]
    row = quality_audio.speech_row({"usual/clear": [spoken]}, {"usual/clear": [spoken]})
    assert 0 <= row["usual/clear"]["rate"] < 1
    assert row["usual/clear"]["errors_vs_greedy"] == (0.0, 0.0, 0.0)


def test_relevance_inside_the_event(data: object) -> None:
    class Found:
        def on_seconds(self) -> tuple[torch.Tensor, float]:
            return torch.tensor([0.0, -3.0, 1.0, 0.0]), 1.0

    def asked(span: tuple[float, float] | None) -> quality_audio_data.Asked:
        return quality_audio_data.Asked("", "", np.zeros(1), True, span)

    assert quality_audio_data.inside(asked((1.0, 2.0)), Found()) == (0.75, 0.25)
    assert quality_audio_data.inside(asked(None), Found()) is None


def test_the_committed_table_is_complete() -> None:
    results = json.loads(quality_audio.RESULTS.read_text())
    assert results["model"] == quality.fingerprint("demo-audio")
    text = quality_audio_table.render(results)
    for decoder in DECODERS:
        assert f"| {decoder.name}" in text or f"control: {decoder.name}" in text or f"{decoder.name}" in text
    assert set(results["probe"]) == set(quality_audio_data.CELLS)
    assert results["rows"]["greedy"]["questions"] == results["questions"]
