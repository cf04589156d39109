"""Decoders of strangers' bytes: bounded, and whatever they are fed they raise MediaError or return a sound object."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from limelight.errors import MediaError
from limelight.server.limits import Limits
from limelight.server.media import decode_picture, decode_sound, from_base64, open_picture, split_data_url
from tests.server.conftest import data_url, png

SMALL = Limits(media_bytes=10_000, pixels=10_000, seconds=1.0, samples=40_000)


def wav(seconds: float = 0.5, rate: int = 16000, channels: int = 1, kind: str = "WAV") -> bytes:
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
    out = io.BytesIO()
    wave = np.sin(np.arange(int(seconds * rate)) * 0.05).astype(np.float32)
    soundfile.write(out, np.stack([wave] * channels, axis=1), rate, format=kind)
    return out.getvalue()


def test_a_picture_comes_through() -> None:
    picture = decode_picture(open_picture(split_data_url(data_url(png(7, 5)), "image", SMALL)[1], SMALL), SMALL)
    assert (picture.size, picture.mode) == ((7, 5), "RGB")
    assert picture.getpixel((0, 0)) == (200, 30, 30)


def test_size_is_told_from_the_header() -> None:
    opened = open_picture(png(100, 100), SMALL)
    assert opened.size == (100, 100)
    with pytest.raises(MediaError, match="pixels"):
        open_picture(png(101, 100), SMALL)


@pytest.mark.parametrize("text", ["A" * 13_400, "====", "A", "ä", ""])
def test_base64_is_strict(text: str) -> None:
    with pytest.raises(MediaError):
        from_base64(text, SMALL)


@pytest.mark.parametrize(("kind", "name"), [("WAV", "wav"), ("FLAC", "flac"), ("OGG", "ogg"), ("MP3", "mp3")])
def test_sounds_come_through(kind: str, name: str) -> None:
    samples, rate = decode_sound(wav(kind=kind, channels=2), name, SMALL)
    assert (samples.ndim, samples.dtype, rate) == (1, np.float32, 16000)
    assert abs(len(samples) - 8000) < 2500
    assert 0.5 < float(np.abs(samples).max()) < 1.2


@pytest.mark.parametrize(
    ("data", "kind", "match"),
    [
        (wav(1.5), "wav", "more than 1 s"),
        (wav(0.9, channels=4), "wav", "more than"),
        (wav(), "flac", "declared as flac"),
        (wav(rate=1000), "wav", "1000 Hz"),
        (wav(0.001)[:44], "wav", "empty|read"),
        (b"RIFFxxxxWAVE", "wav", "read"),
        (b"", "mp3", "read"),
    ],
    ids=["long", "wide", "other format", "slow", "empty", "head", "nothing"],
)
def test_sounds_that_are_refused(data: bytes, kind: str, match: str) -> None:
    with pytest.raises(MediaError, match=match):
        decode_sound(data, kind, SMALL)


def test_a_wav_with_nan_is_refused() -> None:
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
    out = io.BytesIO()
    soundfile.write(out, np.full(100, np.nan, np.float32), 16000, format="WAV", subtype="FLOAT")
    with pytest.raises(MediaError, match="NaN"):
        decode_sound(out.getvalue(), "wav", SMALL)


SEEDS = {"PNG": png(9, 9)}
for _kind in ("JPEG", "WEBP", "GIF", "BMP"):
    _out = io.BytesIO()
    Image.effect_noise((16, 16), 80).convert("RGB").save(_out, _kind)
    SEEDS[_kind] = _out.getvalue()


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(SEEDS)), st.data())
def test_damaged_pictures(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(SEEDS[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(1, len(damaged)))]
    try:
        picture = decode_picture(open_picture(bytes(damaged), SMALL), SMALL)
    except MediaError:
        return
    assert picture.mode == "RGB"
    assert 0 < picture.width * picture.height <= SMALL.pixels


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(["wav", "flac", "ogg"]), st.data())
def test_damaged_sounds(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(wav(0.02, kind=kind.upper()))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        samples, rate = decode_sound(bytes(damaged), kind, SMALL)
    except MediaError:
        return
    assert np.isfinite(samples).all()
    assert 0 < len(samples) <= rate * SMALL.seconds
