"""Sound of every width, made by hand or read from a file, against the floats it was made from; and what is cut short."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limelight.errors import MediaError, MediaWarning
from limelight.media.audio import frames_declared, read_audio, read_samples

soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
RATE = 16000
WAVE = (0.5 * np.sin(np.arange(8000) * 0.05)).astype(np.float32)


def wav(samples: Any = WAVE, subtype: str = "PCM_16", kind: str = "WAV") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, RATE, format=kind, subtype=subtype)
    return out.getvalue()


@pytest.mark.parametrize(
    ("subtype", "error"),
    [("PCM_U8", 1e-2), ("PCM_16", 1e-4), ("PCM_24", 1e-6), ("PCM_32", 1e-6), ("FLOAT", 0), ("DOUBLE", 0)],
)
@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "RF64", "AIFF"])
def test_files_of_every_width(subtype: str, error: float, kind: str) -> None:
    if (kind, subtype) == ("AIFF", "PCM_U8"):
        subtype = "PCM_S8"
    np.testing.assert_allclose(read_audio(wav(subtype=subtype, kind=kind), RATE), WAVE, atol=error)


FULL = {
    "int8": (2**7, np.int8), "int16": (2**15, np.int16), "int32": (2**31, np.int32), "int64 of 16 bits": (2**15, np.int64),
    "int32 of 16 bits": (2**15, np.int32), "int64 of 24 bits": (2**23, np.int64), "int64 of 32 bits": (2**31, np.int64),
}  # fmt: skip


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_integers_by_hand(name: str, as_tensor: bool) -> None:
    full, kind = FULL[name]
    samples: Any = (WAVE.astype(np.float64) * (full - 1)).round().astype(kind)
    if as_tensor:
        samples = torch.from_numpy(samples)
    np.testing.assert_allclose(read_audio((samples, RATE), RATE), WAVE, atol=1.5 / full)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_unsigned_integers_are_centred(kind: Any) -> None:
    half = 2 ** (8 * np.dtype(kind).itemsize - 1)
    np.testing.assert_allclose(read_audio((WAVE * (half - 1) + half).astype(kind), RATE), WAVE, atol=2 / half)


def test_unscaled_floats_are_refused() -> None:
    with pytest.raises(MediaError, match=r"reach 163\d\d"):
        read_audio(WAVE * 32768, RATE)
    np.testing.assert_array_equal(read_audio(WAVE * 4, RATE), WAVE * 4)  # a little too loud is still sound


def test_channels() -> None:
    other = (0.5 * np.cos(np.arange(8000) * 0.031)).astype(np.float32)
    np.testing.assert_allclose(read_audio(wav(np.stack([WAVE, other], 1)), RATE), (WAVE + other) / 2, atol=1e-4)
    six = np.stack([WAVE, other, WAVE, 0 * WAVE, other, other], 1)
    np.testing.assert_allclose(read_audio(wav(six), RATE), six.mean(1), atol=1e-4)
    np.testing.assert_allclose(read_audio(wav(np.stack([WAVE, 0 * WAVE], 1)), RATE), WAVE / 2, atol=1e-4)
    np.testing.assert_allclose(read_audio(np.zeros((8000, 2)), RATE), 0)  # silence cancels nothing
    for weak in (1.0, 0.95):
        with pytest.warns(MediaWarning, match="cancel each other"):
            np.testing.assert_allclose(read_audio(wav(np.stack([WAVE, -weak * WAVE], 1)), RATE), WAVE, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_other_rates(rate: int) -> None:
    wave = np.sin(np.arange(rate) / rate * 2 * np.pi * 440).astype(np.float32)
    got = read_audio((wave, float(rate)), RATE)
    assert abs(len(got) - RATE) <= 2
    assert abs(int(np.abs(np.fft.rfft(got)).argmax()) - 440) <= 1


def test_datasets_items() -> None:
    np.testing.assert_allclose(read_audio({"array": WAVE, "sampling_rate": RATE, "path": None}, RATE), WAVE)
    np.testing.assert_allclose(read_audio({"bytes": wav(), "path": None}, RATE), WAVE, atol=1e-4)
    assert read_samples(wav())[1] == RATE
    for source in ({}, {"array": WAVE}, (WAVE, None), (WAVE, "fast"), (WAVE, float("inf")), b"", [[0.0], [0.0, 0.1]]):
        with pytest.raises(MediaError) as caught:
            read_samples(source, RATE if isinstance(source, list) else None)
        assert caught.value.hint


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite(bad: float) -> None:
    samples = WAVE.copy()
    samples[7] = bad
    for source in ((samples, RATE), wav(samples, "FLOAT"), torch.from_numpy(samples)):
        with pytest.raises(MediaError, match="NaN or infinity"):
            read_audio(source, RATE)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT", "ULAW"])
def test_a_wav_cut_short_gives_what_is_there_and_warns(subtype: str, tmp_path: Path) -> None:
    whole = wav(subtype=subtype)
    path = tmp_path / "a.wav"
    path.write_bytes(whole[: len(whole) // 2])
    for source in (path, path.read_bytes()):
        with pytest.warns(MediaWarning, match=r"truncated: 0\.2\d s of 0\.50 s are present"):
            got = read_audio(source, RATE)
        np.testing.assert_allclose(got, WAVE[: len(got)], atol=2e-2)


def test_a_truncated_flac_is_never_taken_for_complete() -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 64_000).astype(np.float32)
    whole = wav(noise, kind="FLAC")
    for part in (0.3, 0.6, 0.9):
        with pytest.raises(MediaError, match="corrupt after"):
            read_audio(whole[: int(len(whole) * part)], RATE)


@pytest.mark.parametrize("size", [0, 0xFFFF_FFFF, 0x7FFF_FFFF, 0x7FFF_F000])
def test_a_wav_of_unknown_length_is_read_completely(size: int) -> None:
    data = bytearray(wav())
    at = data.index(b"data")
    data[at + 4 : at + 8] = struct.pack("<I", size)
    assert frames_declared(io.BytesIO(data)) is None
    if size:
        np.testing.assert_allclose(read_audio(bytes(data), RATE), WAVE, atol=1e-4)


def test_a_header_that_claims_hours_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(wav(kind="FLAC"))
    at = data.index(b"fLaC") + 8 + 13  # total samples: the last 36 bits before the checksum
    data[at] |= 0x0F
    with pytest.raises(MediaError, match="limit"):
        read_audio(bytes(data), RATE)
    data[at : at + 5] = bytes([data[at] & 0xF0, *(20_000_000).to_bytes(4, "big")])  # 21 minutes of 0.5 s
    taken: list[int] = []
    empty = np.empty
    monkeypatch.setattr(
        np, "empty", lambda shape, *a, **k: (taken.append(int(np.prod(shape))), empty(shape, *a, **k))[1]
    )
    with pytest.warns(MediaWarning, match="truncated"):
        got = read_audio(bytes(data), RATE)
    np.testing.assert_allclose(got, WAVE, atol=1e-4)
    assert max(taken) <= 2**20


def test_a_playlist_opens_nothing(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed (pip install 'limelight[video]')")
    (tmp_path / "real.wav").write_bytes(wav())
    for name, text in (
        ("a.m3u8.mp3", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nreal.wav\n#EXT-X-ENDLIST\n"),
        ("b.mp3", "ffconcat version 1.0\nfile real.wav\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(MediaError):
            read_audio(tmp_path / name, RATE)
