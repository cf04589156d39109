"""Sound of every format that people have, what is refused, and sounds that a model would not hear to the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limelight.errors import MediaError, MediaWarning
from limelight.media.audio import read_audio
from limelight.media.truncation import window_seconds
from limelight.models.adapter import Adapter
from tests.models.films import film
from tests.models.test_processors import audioflamingo3
from tests.tiny import audio_processor
from tests.zoo import ZOO

soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
RATE = 16000


def tone(seconds: float = 0.5, rate: int = RATE, hz: float = 440.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (0.5 * np.sin(np.arange(round(seconds * rate)) / rate * 2 * np.pi * hz)).astype(np.float32)


def by_av(path: Path, samples: np.ndarray[Any, Any], codec: str, rate: int = RATE) -> Path:
    """A file of a format that soundfile does not write."""
    av = pytest.importorskip("av", reason="PyAV is not installed (pip install 'limelight[video]')")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.format, stream.layout, rate, frame_size=stream.frame_size or 1024)
        for piece in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(piece))
        container.mux(stream.encode())
    return path


def loudest(samples: np.ndarray[Any, Any], rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax()) * rate / len(samples)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3", "aiff"])
@pytest.mark.parametrize("channels", [1, 2])
def test_formats_of_soundfile(ending: str, channels: int, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, np.stack([tone()] * channels, 1), RATE)
    got = read_audio(path, 8000)
    assert got.dtype == np.float32
    assert len(got) / 8000 == pytest.approx(0.5, abs=0.08)  # mp3 pads
    assert loudest(got, 8000) == pytest.approx(440, abs=8)
    assert np.abs(got).max() == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(
    ("ending", "codec", "rate"), [("m4a", "aac", RATE), ("aac", "aac", RATE), ("opus", "libopus", 48000)]
)
def test_formats_of_pyav(ending: str, codec: str, rate: int, tmp_path: Path) -> None:
    path = by_av(tmp_path / f"a.{ending}", tone(rate=rate), codec, rate)
    got = read_audio(path, RATE)
    assert len(got) / RATE == pytest.approx(0.5, abs=0.1)
    assert loudest(got, RATE) == pytest.approx(440, abs=8)
    with pytest.raises(MediaError, match="limit"):
        read_audio(path, RATE, max_seconds=0.1)


def test_the_sound_of_a_film(tmp_path: Path) -> None:
    got = read_audio(by_av(tmp_path / "a.mp4", tone(), "aac"), RATE)
    assert loudest(got, RATE) == pytest.approx(440, abs=8)
    with pytest.raises(MediaError, match="no audio stream"):
        read_audio(film(tmp_path / "b.mp4"), RATE)


def test_shapes_and_types_of_samples() -> None:
    samples = tone(0.1)
    for two in (np.stack([samples, -samples]), np.stack([samples, -samples], 1)):  # channels first and last
        with pytest.warns(MediaWarning, match="cancel each other"):
            np.testing.assert_allclose(read_audio(two, RATE), samples)
    np.testing.assert_allclose(read_audio((np.array([0, 16384, -32768], np.int16), RATE), RATE), [0, 0.5, -1])
    np.testing.assert_allclose(read_audio((np.array([128, 192, 0], np.uint8), RATE), RATE), [0, 0.5, -1])
    with pytest.raises(MediaError, match="not audio"):
        read_audio(np.array(["a"]), RATE)


def test_refusals_name_file_and_reason(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(4000)
    for name in ("a.mp3", "a.m4a", "a.wav", "a.mp4"):
        (tmp_path / name).write_bytes(noise)
        with pytest.raises(MediaError, match=name.replace(".", r"\.")) as caught:
            read_audio(tmp_path / name, RATE)
        assert caught.value.hint
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), RATE)
    with pytest.raises(MediaError, match="empty"):
        read_audio(tmp_path / "empty.wav", RATE)
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan, 0], np.float32), RATE, subtype="FLOAT")
    with pytest.raises(MediaError, match="NaN"):
        read_audio(tmp_path / "nan.wav", RATE)
    cut = by_av(tmp_path / "long.m4a", tone(3.0), "aac").read_bytes()
    (tmp_path / "cut.m4a").write_bytes(cut[: len(cut) // 3])
    with pytest.raises(MediaError):
        read_audio(tmp_path / "cut.m4a", RATE)


def test_what_a_model_would_not_hear_is_refused() -> None:
    """The tiny extractors take 0.64 s; Whisper's own cut at 30 s is the same code."""
    adapter = Adapter(ZOO["qwen2_audio"].build(), audio_processor())
    assert window_seconds(adapter.processor) == pytest.approx(0.64)
    for seconds in (0.3, 0.64):
        prompt = adapter.prepare("what is here ?", {"audio": tone(seconds)})
        (span,) = [s for s in prompt.spans if s.modality == "audio"]
        assert len(span) * (span.seconds or 0) == pytest.approx(seconds, abs=0.05)
    silent_end = np.concatenate([tone(0.3), np.zeros(RATE // 4, np.float32)])  # a quiet end is no cut end
    adapter.prepare("what is here ?", {"audio": silent_end})
    with pytest.raises(
        MediaError, match=r"lasts 1\.0 s, and the model's processor cuts off its end; its limit is 0\.64 s"
    ) as e:
        adapter.prepare("what is here ?", {"audio": tone(1.0)})
    assert "transcribe" in e.value.hint
    with pytest.raises(MediaError, match="cuts off"):  # the second of two
        adapter.prepare("what is here ?", {"audio": [tone(0.3), tone(1.0)]})


def test_a_sound_too_short_for_the_model() -> None:
    adapter = Adapter(ZOO["qwen2_audio"].build(), audio_processor())
    with pytest.raises(MediaError, match=r"audio of 0\.001 s is too short"):
        adapter.prepare("what is here ?", {"audio": tone(0.001)})


def test_a_windowed_processor_covers_all_audio() -> None:
    adapter = Adapter(ZOO["audioflamingo3"].build(), audioflamingo3())
    prompt = adapter.prepare("what is here ?", {"audio": tone(1.2)})
    total = sum(len(s) * (s.seconds or 0) for s in prompt.spans if s.modality == "audio")
    assert total == pytest.approx(1.2, abs=0.1)
    ((samples, rate),) = prompt.media["audio"]
    assert (len(samples), rate) == (round(1.2 * RATE), RATE)
