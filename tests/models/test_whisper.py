"""Whisper: its prompt, its seconds, its padding, and its own generate()."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import limelight
from bench import whisper_data
from limelight.auditing.segments import SHORTEST
from limelight.cli.main import app
from limelight.decoding.transcribe import FAMILY_THRESHOLDS, segment_threshold, special_tokens
from limelight.errors import DataError, MediaError, SettingError
from limelight.media.audio import read_audio
from limelight.models.whisper_prompt import language_token
from limelight.types import Prompt
from tests.models.checkpoints import ct2

SOT, EN, DE, TRANSCRIBE, PREV, SILENT = (ct2.WORDS + n for n in (1, 2, 3, 5, 7, 9))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> limelight.Adapter:
    """A tiny Whisper of 1500 positions with tokenizer and feature extractor, multilingual."""
    return ct2.listening(tmp_path_factory.mktemp("whisper"))


def noise(seconds: float, seed: int = 0) -> tuple[Any, int]:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(16_000 * seconds))).astype(np.float32), 16_000


def ids(prompt: Prompt) -> list[int]:
    found: list[int] = prompt.tensors["decoder_input_ids"][0].tolist()
    return found


def test_the_prompt_is_language_task_and_previous_text(adapter: limelight.Adapter) -> None:
    plain = adapter.prepare("", {"audio": noise(1.0)})
    heard = int(adapter.model.detect_language(plain.tensors["input_features"])[0])
    assert ids(plain) == [SOT, heard, TRANSCRIBE, SILENT] and heard in (EN, DE)
    assert len(plain.tokens) == 4 and [s.modality for s in plain.spans] == ["text"]
    words = adapter.prepare("He said", {"audio": noise(1.0)})
    before = adapter.tokenizer(" He said", add_special_tokens=False).input_ids
    assert ids(words) == [PREV, *before, SOT, heard, TRANSCRIBE, SILENT]
    long = adapter.prepare("word " * 40, {"audio": noise(1.0)})
    assert len(ids(long)) == 1 + (64 // 2 - 1) + 4 and ids(long)[-4:] == ids(plain)
    verbatim = adapter.prepare("<|startoftranscript|><|de|><|translate|>", {"audio": noise(1.0)})
    assert ids(verbatim) == [SOT, DE, TRANSCRIBE - 1]


def test_languages(adapter: limelight.Adapter) -> None:
    assert {language_token(adapter.model, n) for n in ("de", "German", "<|de|>", "DE")} == {"<|de|>"}
    with pytest.raises(SettingError, match="does not know the language 'Klingon'") as told:
        limelight.transcribe(adapter, audio=noise(1.0), language="Klingon")
    assert "de, en" in str(told.value.hint)
    said = limelight.transcribe(adapter, audio=noise(1.0), language="German", relevance=False, max_new_tokens=2)
    assert said.prompt == "<|startoftranscript|><|de|><|transcribe|><|notimestamps|>"
    assert ids(said.segments[0].generation.prompt) == [SOT, DE, TRANSCRIBE, SILENT]


@pytest.mark.parametrize("seconds", [1.0, 2.99, 29.995])
def test_positions_are_20_ms_and_padding_is_no_sound(adapter: limelight.Adapter, seconds: float) -> None:
    prompt = adapter.prepare("", {"audio": noise(seconds)})
    call = adapter.capture(prompt.tensors)
    assert (call.front, call.length) == (1500, 1504)
    heard = int(call.mask[0, :1500].sum())
    assert heard == -(-int(seconds * 100) // 2) and bool(call.mask[0, :heard].all()) and bool(call.mask[0, 1500:].all())
    found = limelight.attribute(adapter, prompt)
    span = found.spans[0]
    assert (span.start, span.stop, span.modality, span.seconds) == (0, 1500, "audio", 0.02)
    assert not found.scores[heard:1500].any() and bool(found.scores[:heard].any())
    scores, times = found.on_audio()
    assert torch.equal(scores, found.scores[: len(scores)]) and abs(len(scores) - seconds * 50) <= 1
    assert float(times[-1, 1]) == pytest.approx(seconds) and float(times[3, 0]) == pytest.approx(0.06)
    assert sum(found.shares().values()) == pytest.approx(1.0)


def test_the_meter_counts_the_sound_alone(adapter: limelight.Adapter) -> None:
    prompt = adapter.prepare("", {"audio": noise(1.0)})
    said = limelight.generate(adapter, messages=prompt, strategy="meter", max_new_tokens=2)
    found = limelight.attribute_generated(adapter, prompt, said.token_ids)
    for step, relevance in zip(said.steps, found, strict=True):
        support = next(phi for token, _, _, phi in step.candidates if token == step.token)
        assert support == pytest.approx(relevance.total("audio"), abs=1e-3)


def test_long_sounds_are_cut_by_transcribe_alone(adapter: limelight.Adapter) -> None:
    with pytest.raises(MediaError, match="its limit is 30 s"):
        adapter.prepare("", {"audio": noise(31.0)})
    done = limelight.transcribe(adapter, audio=noise(31.0), relevance=False, max_new_tokens=2)
    assert len(done.segments) == 2 and done.segments[-1].stop == pytest.approx(31.0)


def test_by_default_a_segment_fits_the_decoder(adapter: limelight.Adapter) -> None:
    done = limelight.transcribe(adapter, audio=noise(3.0), relevance=False, strategy="greedy")
    assert len(done.segments[0].generation.token_ids) == 64 - 4  # of 64 + 12 a second


@pytest.mark.parametrize(
    ("media", "message"),
    [({}, "contain none"), ({"audio": [noise(1.0), noise(1.0)]}, "contain 2 audio"), ({"image": np.zeros((4, 4, 3), np.uint8)}, "contain 1 image")],
)  # fmt: skip
def test_exactly_one_audio_is_required(adapter: limelight.Adapter, media: Any, message: str) -> None:
    with pytest.raises(MediaError, match=f"takes exactly one audio, the messages {message}"):
        adapter.prepare("", media)


def test_suppressed_tokens_stay_suppressed(adapter: limelight.Adapter) -> None:
    prompt = adapter.prepare("", {"audio": noise(1.0)})
    plain = limelight.generate(adapter, messages=prompt, relevance=False, max_new_tokens=3)
    config = adapter.model.generation_config
    before = config.suppress_tokens, config.begin_suppress_tokens
    try:
        config.suppress_tokens, config.begin_suppress_tokens = [1, *set(plain.token_ids[1:])], [plain.token_ids[0]]
        other = limelight.generate(adapter, messages=prompt, relevance=False, max_new_tokens=3)
    finally:
        config.suppress_tokens, config.begin_suppress_tokens = before
    assert other.token_ids[0] != plain.token_ids[0] and not set(other.token_ids) & set(plain.token_ids[1:])


def test_its_own_generate_gets_its_relevance(adapter: limelight.Adapter) -> None:
    """Long form, time marks, previous text: what it says is attributed window by window."""
    samples, rate = noise(40.0)
    extractor = adapter.processor.feature_extractor
    features = extractor(samples, sampling_rate=rate, return_tensors="pt", truncation=False, padding="longest")
    with torch.no_grad():
        out = adapter.model.generate(
            features.input_features, return_timestamps=True, return_segments=True, language="en", task="transcribe",
            max_new_tokens=6,
        )  # fmt: skip
    assert out["segments"][0]
    for segment in out["segments"][0]:
        said = segment["tokens"].tolist()
        start = int(float(segment["start"]) * rate)
        window = adapter.prepare(
            "<|startoftranscript|><|en|><|transcribe|>", {"audio": (samples[start : start + 30 * rate], rate)}
        )
        found = limelight.attribute_generated(adapter, window, said)
        assert [r.target for r in found] == said
        assert all(r.share("audio") > 0 and r.spans[0].seconds == 0.02 for r in found)


def test_its_own_generate_is_measured(adapter: limelight.Adapter) -> None:
    """`audit_segments`: its segments with their times, text and grounding; nothing of its own decoding is changed."""
    samples, rate = noise(40.0)
    extractor = adapter.processor.feature_extractor
    features = extractor(samples, sampling_rate=rate, return_tensors="pt", truncation=False, padding="longest")
    with torch.no_grad():
        out = adapter.model.generate(
            features.input_features, return_timestamps=True, return_segments=True, language="en", task="transcribe",
            max_new_tokens=6, no_speech_threshold=0.6, logprob_threshold=-1.0, temperature=(0.0, 0.4),
        )  # fmt: skip
    told = limelight.audit_segments(adapter, (samples, rate), out, language="en")
    marks = adapter.model.generation_config.no_timestamps_token_id
    special = special_tokens(adapter)
    want = [
        (float(s["start"]), [t for t in s["tokens"].tolist() if t not in special and t < marks])
        for s in out["segments"][0]
    ]
    want = [(min(start, 40.0 - SHORTEST), tokens) for start, tokens in want if tokens]
    assert [list(s.generation.token_ids) for s in told.segments] == [tokens for _, tokens in want]
    assert [s.start for s in told.segments] == [start for start, _ in want]
    for one in told.segments:
        row = {
            "audio": (samples[int(one.start * rate) : int(one.stop * rate)], rate), "prompt": told.prompt,
            "answer": one.text or "x", "token_ids": one.generation.token_ids,
        }  # fmt: skip
        (alone,) = limelight.audit(adapter, [row])
        assert [s.grounding for s in one.generation.steps] == pytest.approx([s.grounding for s in alone.answer.steps])
    strict = limelight.audit_segments(adapter, (samples, rate), out["segments"][0], language="en", drop_invented=1e9)
    assert len(strict.dropped) == len([s for s in told.segments if s.support is not None and s.text])
    for bad in ({"sequences": 1}, [[{}], [{}]], [{"start": 0.0}], "text"):
        with pytest.raises(DataError, match="segments"):
            limelight.audit_segments(adapter, (samples, rate), bad)


def test_whispers_without_a_calibration_take_the_threshold_of_the_family(adapter: limelight.Adapter) -> None:
    assert adapter.calibration is None
    assert segment_threshold(adapter, True) == FAMILY_THRESHOLDS["whisper"]


def test_server_and_app_know_that_it_takes_audio(adapter: limelight.Adapter) -> None:
    assert adapter.modalities == {"audio"}


def fetched(name: str, weights: Path) -> limelight.Adapter:
    if not (weights / name).is_dir():
        pytest.skip(f"{name} was not fetched (python -m recipes.real_weights {name})")
    return limelight.load(name)


def cough_in_silence(seconds: float = 6.0) -> Any:
    """A quiet room, and a cough: a burst of noise through the resonances of a mouth, with a voiced end."""
    rng = np.random.default_rng(7)
    samples = 10 ** (-70 / 20) * rng.standard_normal(int(seconds * 16_000))
    t = np.arange(5600) / 16_000
    spectrum, f = np.fft.rfft(rng.standard_normal(5600)), np.fft.rfftfreq(5600, 1 / 16_000)
    shape = sum(g * np.exp(-(((f - c) / 150) ** 2)) for c, g in ((500, 1.0), (1500, 0.7), (2800, 0.4)))
    hiss = np.fft.irfft(spectrum * shape, 5600)
    cough = hiss / hiss.std() * np.exp(-t / 0.09) * np.minimum(1, t / 0.004)
    cough += 0.3 * np.sign(np.sin(2 * np.pi * 150 * t)) * np.exp(-(((t - 0.25) / 0.05) ** 2))
    samples[40_000 : 40_000 + len(cough)] += 0.1 * cough
    return samples.astype(np.float32)


@pytest.mark.parametrize("name", ["whisper-base", "whisper-tiny.en"])
def test_a_cough_in_silence_prints_nothing(name: str, tmp_path: Path, fetched_weights: Path) -> None:
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
    adapter = fetched(name, fetched_weights)
    soundfile.write(tmp_path / "cough.wav", cough_in_silence(), 16_000)
    plain = limelight.transcribe(adapter, audio=tmp_path / "cough.wav", language="en", relevance=False)
    assert plain.text  # words are printed where nobody speaks
    assert all(s.invented for s in plain.segments)
    ask = ["transcribe", str(tmp_path / "cough.wav"), "--model", name, "--language", "en", "--no-relevance"]
    result = CliRunner().invoke(app, [*ask, "--drop-invented"])
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert plain.text in result.stderr


def spoken(text: str, folder: Path) -> Path:
    """A sentence by espeak-ng: the system's, else the one that `bench.whisper` has fetched."""
    espeak = shutil.which("espeak-ng")
    if espeak is not None:
        subprocess.run([espeak, "-v", "en-us", "-w", str(folder / "said.wav"), text], check=True)
        return folder / "said.wav"
    if not (whisper_data.CACHE / "packages" / ".libpcaudio0").exists():
        pytest.skip("espeak-ng is not installed (apt-get install espeak-ng), and bench.whisper has not fetched it")
    return whisper_data.spoken_by("espeak-ng en-us", text, folder)


@pytest.mark.parametrize("name", ["whisper-base", "whisper-tiny.en"])
def test_a_noisy_sentence_survives(name: str, tmp_path: Path, fetched_weights: Path) -> None:
    """At 5 dB of pink noise."""
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
    adapter = fetched(name, fetched_weights)
    voice = read_audio(spoken("The birch canoe slid on the smooth planks.", tmp_path), 16_000)
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(len(voice)))
    pink = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), len(voice))
    noisy = voice + pink / pink.std() * voice.std() * 10 ** (-5 / 20)
    soundfile.write(tmp_path / "noisy.wav", noisy / np.abs(noisy).max(), 16_000)
    told = limelight.transcribe(
        adapter, audio=tmp_path / "noisy.wav", language="en", relevance=False, drop_invented=True
    )
    assert "on the smooth" in told.text  # the models mishear some of the other words
    assert not told.dropped


@pytest.mark.parametrize("name", ["whisper-base", "whisper-tiny.en"])
def test_real_weights_hear_a_silence_as_their_own_generate_does(name: str, fetched_weights: Path) -> None:
    adapter = fetched(name, fetched_weights)
    prompt = adapter.prepare("", {"audio": (np.zeros(32_000, np.float32), 16_000)})
    with torch.no_grad():
        want = adapter.model.generate(prompt.tensors["input_features"], max_new_tokens=8, do_sample=False)[0].tolist()
    said = limelight.generate(adapter, messages=prompt, strategy="meter", max_new_tokens=8)
    start = len(prompt.tokens)
    assert list(said.token_ids)[: len(want)] in (want, want[start:])
    assert all(set(s.contributions) == {"audio", "text"} for s in said.steps)


def test_the_models_command_checks_it(adapter: limelight.Adapter) -> None:
    """Every check runs: an encoder-decoder has no placeholder tokens, and media nonetheless."""
    from limelight.cli.check import detected, self_test

    facts = detected(adapter)
    assert facts["inputs"] == "audio"
    results = {c.name: c for c in self_test(adapter, strategies=False)}
    assert [name for name, check in results.items() if not check.ok] == []
    assert next(iter(results)) == "prompt with audio" and "model untouched" in results and len(results) == 7


def test_an_audited_transcript_scores_as_the_meter_did(adapter: limelight.Adapter) -> None:
    """One forward over decoder prompt and answer; batches of recordings, and the blank that the text has lost."""
    sounds = [noise(1.0), noise(2.0, seed=1)]
    wanted = [
        limelight.generate(adapter, None, "", media={"audio": s}, strategy="meter", max_new_tokens=6) for s in sounds
    ]
    rows = [
        {"audio": s, "prompt": "", "answer": g.text or "x", "token_ids": g.token_ids}
        for s, g in zip(sounds, wanted, strict=True)
    ]
    for size in (1, 2):
        for audit, want in zip(limelight.audit(adapter, rows, batch_size=size), wanted, strict=True):
            assert audit.answer.token_ids == want.token_ids
            for got, step in zip(audit.answer.steps, want.steps, strict=True):
                assert got.grounding == pytest.approx(step.grounding, abs=1e-3)
                assert got.contributions["audio"] == pytest.approx(step.contributions["audio"], abs=1e-4)
    (written,) = limelight.audit(adapter, [{"audio": sounds[0], "prompt": "", "answer": "He said"}])
    assert list(written.answer.token_ids) == adapter.tokenizer(" He said", add_special_tokens=False).input_ids
