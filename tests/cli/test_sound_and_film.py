"""The commands on a wav and an mp4 that are made here: through files, processors, models and drawings, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Run
from tests.cli.test_main import flat
from tests.cli.tiny_audio import RATE, speech
from tests.models.films import film
from tests.report.test_page import data_of

soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
ASK = ("--prompt", "what is here ?")


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.5 s of stereo at 44.1 kHz."""
    path = tmp_path_factory.mktemp("sounds") / "a.wav"
    samples = speech((0.4, 0.9), seconds=1.5, rate=44100)
    soundfile.write(path, np.stack([samples, samples], 1), 44100)
    return path


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of black with a white square in the fifth and sixth of eight frames."""
    return film(tmp_path_factory.mktemp("films") / "a.mp4", [0] * 8, lit=(4, 5))


def test_attribute_a_wav(run: Run, listener: Path, wav: Path, tmp_path: Path) -> None:
    files = ("--overlay", tmp_path / "o.png", "--html", tmp_path / "o.html")
    result = run("attribute", listener, "--audio", wav, *ASK, "--max-new-tokens", 3, "--json", *files)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    (span,) = [s for s in document["spans"] if s["modality"] == "audio"]
    assert (span["stop"] - span["start"]) * span["seconds"] == pytest.approx(1.5, abs=0.05)
    for word in document["words"]:
        assert sum(word["shares"].values()) == pytest.approx(1, abs=1e-4)
        assert len(word["scores"]) == len(document["tokens"]) + word["tokens"][1] - 1
        if word["interval"] is not None:
            assert 0 <= word["interval"][0] < word["interval"][1] <= 1.55
    with Image.open(tmp_path / "o.png") as drawn:
        assert drawn.size[0] > 800
    (sound,) = data_of((tmp_path / "o.html").read_text())["cases"][0]["media"]["sounds"]
    assert sound["seconds"] == 1.5
    assert sound["spectrogram"].startswith("data:image/png")
    table = run("attribute", listener, "--audio", wav, *ASK, "--max-new-tokens", 2)
    assert "% audio" in flat(table.stdout)


def test_generate_on_a_wav(run: Run, listener: Path, wav: Path, tmp_path: Path) -> None:
    result = run(
        "generate", listener, "--audio", wav, *ASK, "--max-new-tokens", 3, "--json", "--overlay", tmp_path / "o.svg"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["shares"]["audio"] > 0
    assert (tmp_path / "o.svg").stat().st_size > 5000


def test_relevance_is_on_the_visible_object_of_an_mp4(run: Run, watcher: Path, mp4: Path, tmp_path: Path) -> None:
    files = ("--overlay", tmp_path / "sheet.png", "--html", tmp_path / "o.html")
    result = run("attribute", watcher, "--video", mp4, *ASK, "--max-new-tokens", 2, "--json", *files)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    (span,) = [s for s in document["spans"] if s["modality"] == "video"]
    assert span["grid"] == [4, 3, 4]
    for word in document["words"]:
        grid = np.array(word["scores"][span["start"] : span["stop"]]).reshape(4, 3, 4)
        assert sum(word["shares"].values()) == pytest.approx(1, abs=1e-4)
        assert word["shares"]["video"] > 0
        share = np.abs(grid).sum((1, 2)) / np.abs(grid).sum()
        assert share[2] > 0.99  # frames 5 and 6
        assert np.abs(grid[2, 2]).sum() < 0.01 * np.abs(grid[2]).sum()  # nothing below the square
    (view,) = data_of((tmp_path / "o.html").read_text())["cases"][0]["views"]
    assert [label for _, label in view["frames"]][2] == "frames 5–6 · 1.0–1.2 s"
    with Image.open(tmp_path / "sheet.png") as drawn:
        assert drawn.size[0] > 1000
    table = run("attribute", watcher, "--video", mp4, *ASK, "--max-new-tokens", 1)
    assert "frames 5–6 · 1.0–1.2" in flat(table.stdout)


def test_generate_on_an_mp4(run: Run, watcher: Path, mp4: Path, tmp_path: Path) -> None:
    ask = ("generate", watcher, "--video", mp4, *ASK, "--max-new-tokens", 2, "--json")
    few = json.loads(run(*ask, "--frames", 2, "--overlay", tmp_path / "few.png").stdout)
    more = json.loads(run(*ask).stdout)
    assert 0 <= few["shares"]["video"] < more["shares"]["video"]  # first and last frame are black
    metered = run(*ask, "--strategy", "meter")
    assert metered.exit_code == 0, metered.output
    assert sum(json.loads(metered.stdout)["shares"].values()) == pytest.approx(1, abs=1e-4)


def test_what_is_refused(run: Run, watcher: Path, listener: Path, wav: Path, mp4: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no film" * 100)
    long = tmp_path / "long.wav"
    soundfile.write(long, speech(seconds=3.0), RATE)
    for arguments, told in (
        (("generate", watcher, "--video", tmp_path / "broken.mp4", *ASK), "cannot be read as a video"),
        (("generate", watcher, "--video", wav, *ASK), "expected a video"),
        (("generate", watcher, "--audio", wav, *ASK), "takes image, video"),
        (("generate", watcher, "--video", mp4, "--frames", 9999, *ASK), "frames must be"),
        (("attribute", listener, "--audio", wav, "--frames", 4, *ASK), "--frames would have no effect"),
        (("attribute", listener, "--audio", long, *ASK), "cuts off its end; its limit is 2 s"),
        (("attribute", listener, "--audio", mp4, *ASK), "has no audio stream"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, arguments
        assert told in flat(result.stderr), arguments


def test_truncated_audio_is_reported(run: Run, listener: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.wav", tmp_path / "cut.wav"
    soundfile.write(whole, speech(seconds=3.0), RATE)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    result = run("generate", listener, "--audio", cut, *ASK, "--max-new-tokens", 2)
    assert result.exit_code == 0, result.output
    assert "warning: cut.wav is truncated" in flat(result.stderr)
    assert "warning" not in flat(run("generate", listener, "--audio", whole, *ASK, "--max-new-tokens", 2).stderr)
