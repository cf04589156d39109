"""``limelight transcribe`` and ``limelight.transcribe`` on a wav that is longer than the model hears."""

from __future__ import annotations

import html
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import limelight
from limelight.cli.transcripts import render
from limelight.decoding import transcribe as module
from limelight.decoding.transcribe import default_prompt, prompt_for
from limelight.errors import MediaError, SettingError
from limelight.models.adapter import Adapter
from tests.cli.conftest import Run
from tests.cli.test_main import flat
from tests.cli.tiny_audio import RATE, WINDOW, speech
from tests.tiny import audio_processor
from tests.zoo import ZOO

soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
SECONDS = 5.0


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.wav"
    soundfile.write(path, speech((0.1, 1.4), (1.9, 3.1), (3.6, 4.8), seconds=SECONDS), RATE)
    return path


@pytest.fixture(scope="module")
def adapter(listener: Path) -> Adapter:
    return limelight.load(listener)


def test_json_has_times_shares_and_audio_intervals(run: Run, listener: Path, talk: Path) -> None:
    result = run("transcribe", talk, "--model", listener, "--max-new-tokens", 4, "--format", "json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    rows = document["segments"]
    assert document["seconds"] == pytest.approx(SECONDS)
    assert document["prompt"] == "Transcribe the speech."
    assert document["strategy"] == "greedy"
    assert rows[0]["start"] == 0
    assert rows[-1]["stop"] == pytest.approx(SECONDS)
    assert all(a["stop"] == b["start"] for a, b in itertools.pairwise(rows))
    assert all(0 < r["stop"] - r["start"] <= WINDOW for r in rows)
    assert all(r["ends_in_silence"] for r in rows)
    assert document["text"] == " ".join(r["text"] for r in rows if r["text"])
    for r in rows:
        assert sum(r["shares"].values()) == pytest.approx(1, abs=1e-4)
        for word in r["words"]:
            assert sum(word["shares"].values()) == pytest.approx(1, abs=1e-4)
            if word["interval"] is not None:
                assert r["start"] - 1e-6 <= word["interval"][0] < word["interval"][1] <= r["stop"] + 0.05
    assert not any(r["complete"] for r in rows)  # four tokens end nothing here
    assert "token limit reached" in flat(result.stderr)


def test_python_and_command_agree(run: Run, listener: Path, adapter: Adapter, talk: Path) -> None:
    seen: list[str] = []
    told = limelight.transcribe(
        adapter, audio=talk, max_new_tokens=4, strategy="meter", on_segment=lambda s: seen.append(s.text)
    )
    assert seen == [s.text for s in told.segments]
    assert str(told) == told.text
    assert told.seconds == pytest.approx(SECONDS)
    assert told.settings["strategy"] == "meter"
    result = run("transcribe", talk, "-m", listener, "--max-new-tokens", 4, "-s", "meter", "-f", "json")
    document = json.loads(result.stdout)
    assert [r["text"] for r in document["segments"]] == seen
    assert "flagged" in document["segments"][0]["words"][0]
    samples, rate = soundfile.read(talk, dtype="float32")
    again = limelight.transcribe(adapter, audio=(samples, rate), max_new_tokens=4, relevance=False)
    assert [s.text for s in again.segments] == seen  # the meter does not change the decoding
    assert again.segments[0].generation.shares() == {}


@pytest.mark.parametrize("strategy", ["aad", "lime-cached", "relevance-contrastive"])
def test_strategies(run: Run, listener: Path, talk: Path, strategy: str) -> None:
    result = run(
        "transcribe",
        talk,
        "-m",
        listener,
        "--max-new-tokens",
        2,
        "--strategy",
        strategy,
        "-f",
        "json",
        "--no-relevance",
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["strategy"] == strategy


def test_subtitles_go_to_files_and_finished_ones_stay(run: Run, listener: Path, talk: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    other = tmp_path / "other.wav"
    soundfile.write(other, speech((0.1, 0.9), seconds=1.0, rate=8000), 8000)
    both = ("transcribe", talk, other, "-m", listener, "--max-new-tokens", 3, "--no-relevance")
    result = run(*both, "--format", "srt", "--output", out)
    assert result.exit_code == 0, result.output
    srt = (out / "talk.srt").read_text()
    times = re.findall(r"(\d\d:\d\d:\d\d,\d{3}) --> (\d\d:\d\d:\d\d,\d{3})", srt)
    assert times[0][0] == "00:00:00,000"
    assert times[-1][1] == "00:00:05,000"
    assert (out / "other.srt").exists()
    assert not list(out.glob("*partial*"))
    before = (out / "talk.srt").stat().st_mtime_ns
    again = run(*both, "--format", "srt", "--output", out)
    assert "already exists, skipped" in flat(again.stderr)
    page = out / "talk.html"
    late = run("transcribe", talk, "-m", listener, "--format", "srt", "--output", out, "--html", page)
    assert late.exit_code == 2 and "would not be written" in flat(late.stderr) and not page.exists()
    assert (out / "talk.srt").stat().st_mtime_ns == before


def test_an_interrupted_run_resumes(
    run: Run, listener: Path, talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ("transcribe", talk, "-m", listener, "--max-new-tokens", 3, "--no-relevance", "-o")
    assert run(*ask, tmp_path / "whole.json").exit_code == 0
    calls: list[int] = []
    real = module.segment

    def failing(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "segment", failing)
    target = tmp_path / "a.json"
    assert run(*ask, target).exit_code != 0
    assert not target.exists()
    kept = (tmp_path / "a.json.partial").read_text().splitlines()
    assert len(kept) == 3  # settings and two segments
    refused = run(*ask, target, "--strategy", "meter")
    assert "started with different settings" in flat(refused.stderr)
    calls.clear()
    calls += [0] * 9
    before = len(calls)
    result = run(*ask, target)
    assert result.exit_code == 0, result.output
    assert "2 segments already done" in flat(result.stderr)
    whole, resumed = (json.loads((tmp_path / n).read_text()) for n in ("whole.json", "a.json"))
    assert whole == resumed
    assert len(calls) - before == len(whole["segments"]) - 2
    assert not (tmp_path / "a.json.partial").exists()


def test_text_on_stdout_and_one_bad_file(run: Run, listener: Path, talk: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp3"
    bad.write_bytes(b"no sound at all" * 50)
    result = run("transcribe", bad, talk, "-m", listener, "--max-new-tokens", 3, "--no-relevance")
    assert result.exit_code == 2
    assert "== talk.wav" in result.stdout
    assert "bad.mp3" in flat(result.stderr)
    assert "1 of 2 files could not be transcribed" in flat(result.stderr)
    alone = run("transcribe", talk, "-m", listener, "--max-new-tokens", 3, "--no-relevance")
    assert alone.stdout.split("\n", 1)[0] in result.stdout


def test_prompts(listener: Path) -> None:
    adapter = limelight.load(listener)
    assert default_prompt(adapter) == "Transcribe the speech."
    assert prompt_for(adapter, None, "German") == "Transcribe the speech. The language is German."
    assert prompt_for(adapter, "Write this {language} down.", "German") == "Write this German down."
    for prompt, language in (("Write.", "German"), ("Write {language}.", None), (" ", None)):
        with pytest.raises(SettingError):
            prompt_for(adapter, prompt, language)
    adapter.processor.default_transcription_prompt = "Transcribe the input speech."
    assert default_prompt(adapter) == "Transcribe the input speech."
    adapter.model.config.transcription_prompt = "Write down the words."
    assert default_prompt(adapter) == "Write down the words."
    assert default_prompt(Adapter(ZOO["granite_speech"].build())).startswith("can you transcribe")


def test_what_is_refused(run: Run, listener: Path, talk: Path, tmp_path: Path, adapter: Adapter) -> None:
    ask = ("transcribe", talk, "-m", listener)
    for extra, told in (
        (("--format", "doc"), "unknown format"),
        (("--format", "srt", "-o", tmp_path / "a.json"), "do not match"),
        (("-o", tmp_path / "none" / "a.json"), "no folder"),
        (("-o", tmp_path / "a.docx"), "cannot write"),
        (("--strategy", "nothing"), "unknown strategy"),
        (("--prompt", "Write.", "--language", "German"), "do not go together"),
        (("--chunk-seconds", 0.05), "too short"),
        (("--chunk-seconds", 4), "cuts off its end"),
    ):
        result = run(*ask, *extra)
        assert result.exit_code == 2, extra
        assert told in flat(result.stderr), extra
    for missing in (("none.wav",), ("none.wav", "nor.mp3")):
        told = flat(run("transcribe", *missing, "-m", "no/model").stderr)
        assert "there is no file 'none.wav'" in told  # before the model is looked for
    assert "example:hat is image, expected audio" in flat(run("transcribe", "example:hat", "-m", listener).stderr)
    assert "one file" in flat(run("transcribe", talk, talk, "-m", listener, "-o", tmp_path / "a.srt").stderr)
    assert "several transcripts" in flat(run("transcribe", talk, talk, "-m", listener, "-o", tmp_path / "d").stderr)
    with pytest.raises(MediaError, match="no audio to transcribe"):
        limelight.transcribe(adapter)
    with pytest.raises(MediaError, match="NaN"):
        limelight.transcribe(adapter, audio=(np.array([np.nan, 0.0]), RATE))

    with pytest.raises(ValueError, match="max_new_tokens"):  # not taken for "left out"
        limelight.transcribe(adapter, audio=talk, max_new_tokens=0)


def test_formats() -> None:
    rows = [
        {"start": 0.0, "stop": 1.5, "text": "one <b> --> two\n\nthree", "words": []},
        {"start": 1.5, "stop": 2.0, "text": "", "words": []},
        {"start": 3600.25, "stop": 3601.0, "text": "w " * 40, "words": []},
    ]
    srt = render("srt", {}, rows)
    assert srt.startswith("1\n00:00:00,000 --> 00:00:01,500\none <b> → two three\n\n2\n01:00:00,250 -->")
    assert max(map(len, srt.splitlines())) <= 42
    vtt = render("vtt", {}, rows)
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.500\none &lt;b&gt;")
    assert render("tsv", {}, rows).splitlines()[:2] == ["start\tend\ttext", "0\t1500\tone <b> --> two three"]
    assert render("text", {}, rows[:2]) == "one <b> --> two\n\nthree\n"


def test_marks_in_every_format(run: Run, listener: Path, talk: Path, tmp_path: Path) -> None:
    ask = ("transcribe", talk, "-m", listener, "--max-new-tokens", 4, "--no-relevance")
    page = tmp_path / "talk.html"
    result = run(*ask, "-f", "json", "--html", page)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["meter"] and not told["drop_invented"] and told["threshold"] is None and told["dropped"] == []
    for r in told["segments"]:
        assert not r["invented"]
        assert isinstance(r["grounding"], float)
        assert all({"grounding", "flagged", "p_supported", "interval"} <= set(w) for w in r["words"])
    assert page.read_text().count('<span class="word"') + page.read_text().count("<mark") >= len(told["segments"])
    flagged = [w["text"] for r in told["segments"] for w in r["words"] if w["flagged"]]
    srt, vtt = (run(*ask, "-f", form).stdout for form in ("srt", "vtt"))
    assert re.findall("<u>(.*?)</u>", srt) == flagged == re.findall("<c.flagged>(.*?)</c>", html.unescape(vtt))
    plain = run(*ask, "-f", "srt", "--no-meter").stdout
    assert plain == re.sub("</?u>", "", srt)


def test_unsupported_segments_are_reported_and_dropped(run: Run, listener: Path, talk: Path, tmp_path: Path) -> None:
    ask = ("transcribe", talk, "-m", listener, "--max-new-tokens", 4, "--no-relevance")
    every = json.loads(run(*ask, "-f", "json").stdout)["segments"]
    scores = sorted(r["support"] for r in every)
    limit = (scores[0] + scores[1]) / 2
    told = run(*ask, "-f", "json", "--threshold", limit)
    assert "does not support the text at" in flat(told.stderr)
    assert [r["invented"] for r in json.loads(told.stdout)["segments"]].count(True) == 1
    target, page = tmp_path / "talk.json", tmp_path / "talk.html"
    done = run(*ask, "--drop-invented", "--threshold", limit, "-o", target, "--html", page)
    assert done.exit_code == 0, done.output
    assert "dropped" in flat(done.stderr)
    document = json.loads(target.read_text())
    assert [r["text"] for r in document["segments"]] == [r["text"] for r in every if r["support"] != scores[0]]
    assert [r["support"] for r in document["dropped"]] == scores[:1]
    assert document["text"] == " ".join(r["text"] for r in document["segments"] if r["text"])
    assert 'class="invented dropped"' in page.read_text()


EMPTY = {"text": "", "srt": "", "vtt": "WEBVTT\n", "tsv": "start\tend\ttext\n"}


def without_words(folder: Path, listener: Path) -> Path:
    """The listener, which says nothing but the end of its answer."""
    shutil.copytree(listener, folder)
    model = limelight.load(folder).model
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    model.generation_config.suppress_tokens = [i for i in range(model.config.get_text_config().vocab_size) if i != 2]
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("form", [*EMPTY, "json"])
def test_an_empty_transcript_is_explained(run: Run, listener: Path, talk: Path, tmp_path: Path, form: str) -> None:
    silent = without_words(tmp_path / "silent", listener)
    ask = ("--max-new-tokens", 4, "--no-relevance", "-f", form)
    every = run("transcribe", talk, "-m", listener, *ask)
    assert "nothing was transcribed" not in flat(every.stderr)
    found = {
        "the model wrote no words for this audio": run("transcribe", talk, "-m", silent, *ask),
        "--drop-invented removed all": run(
            "transcribe", talk, "-m", listener, *ask, "--drop-invented", "--threshold", 99
        ),
    }
    for why, result in found.items():
        assert result.exit_code == 0, result.output
        assert f"talk.wav: nothing was transcribed; {why}" in flat(result.stderr)
        if form == "json":
            document = json.loads(result.stdout)
            assert document["text"] == "" and not any(r["text"] for r in document["segments"])
        else:
            assert result.stdout == EMPTY[form] or form == "tsv"
            assert result.stdout.startswith(EMPTY[form]) and "-->" not in result.stdout


def test_options_that_would_have_no_effect_are_refused(run: Run, listener: Path, talk: Path, tmp_path: Path) -> None:
    ask = ("transcribe", talk, "-m", listener)
    for extra, told in (
        (("--drop-invented",), "no threshold is known"),
        (("--drop-invented", "--no-meter"), "need the meter"),
        (("--threshold", 2.0, "--no-meter"), "need the meter"),
        (("--html", tmp_path / "a.html", "--no-meter"), "omit --no-meter"),
        (("--html", tmp_path / "a.txt"), "cannot write"),
        ((talk, "--html", tmp_path / "a.html"), "one page"),
    ):
        result = run(*ask, *extra)
        assert result.exit_code == 2, extra
        assert told in flat(result.stderr), extra


def test_the_window_of_the_model_limits_the_pieces() -> None:
    adapter = Adapter(ZOO["qwen2_audio"].build(), audio_processor())  # 0.64 s
    found = module.cut(adapter, np.zeros(RATE * 2, np.float32), RATE)
    assert all(p.stop - p.start <= 0.64 * RATE for p in found)
