"""The commands on the shipped audio miniature: what is heard, and when."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import limelight
from limelight.demo import sounds
from limelight.demo.sound_language import DESCRIBE
from limelight.demo.synthesis import RATE, make
from tests.cli.conftest import Run

soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
DOG, BELL = (0.4, 1.3), (2.2, 3.4)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds: a dog, then a bell, over a little noise; as MP3."""
    rng = np.random.default_rng(3)
    samples = 0.005 * rng.normal(size=sounds.SAMPLES).astype(np.float32)
    for name, (start, stop) in (("dog", DOG), ("bell", BELL)):
        one = make(name, rng, int((stop - start) * RATE))
        samples[int(start * RATE) :][: len(one)] += 0.1 * one / np.sqrt(np.mean(one**2))
    path = tmp_path_factory.mktemp("street") / "street.mp3"
    soundfile.write(path, samples, RATE)
    return path


def test_each_word_comes_from_its_event(run: Run, street: Path) -> None:
    result = run("attribute", "demo-audio", "--audio", street, "--prompt", DESCRIBE, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["text"] == "A dog, then a bell."
    words = {w["text"]: w for w in document["words"]}
    (span,) = [s for s in document["spans"] if s["modality"] == "audio"]
    for name, (start, stop) in (("dog", DOG), ("bell", BELL)):
        heard = words[name]["interval"]
        assert start - 0.2 <= heard[0] < heard[1] <= stop + 0.2, (name, heard)
        scores = np.array(words[name]["scores"][span["start"] : span["stop"]]).clip(min=0)
        middles = (np.arange(len(scores)) + 0.5) * span["seconds"]
        inside = scores[(middles >= start) & (middles <= stop)].sum() / scores.sum()
        assert inside > 1.5 * (stop - start) / 4, (name, inside)  # chance is the event's part of the four seconds


def test_speech_longer_than_the_window_is_transcribed(run: Run, tmp_path: Path) -> None:
    recordings = [sounds.recording("test", "speech", "clear", i) for i in (0, 2)]
    talk = tmp_path / "talk.flac"
    soundfile.write(talk, np.concatenate([sounds.render(r) for r in recordings]), RATE)
    result = run("transcribe", talk, "--model", "demo-audio", "--output", tmp_path / "talk.json")
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "talk.json").read_text())
    assert document["prompt"] == "Write down the spoken words."
    assert document["seconds"] == pytest.approx(8)
    said, spoken = document["text"].split(), [n for r in recordings for n in r.names]
    right = sum(word in said for word in spoken)
    assert right >= len(spoken) - 1, (said, spoken)
    assert all(s["complete"] for s in document["segments"])
    assert all(s["shares"]["audio"] > 0.1 for s in document["segments"] if s["text"])


def test_python_gives_the_same_result_for_silence() -> None:
    adapter = limelight.load("demo-audio")
    told = limelight.transcribe(adapter, audio=(np.zeros(4 * RATE, np.float32), RATE), relevance=False)
    assert [(s.start, s.stop) for s in told.segments] == [(0.0, 4.0)]
    assert told.text == ""
