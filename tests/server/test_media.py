"""Decoders of strangers' bytes: bounded, and whatever they are fed they raise MediaError or return a sound object."""

from __future__ import annotations

import asyncio
import base64
import io
import warnings
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from limelight.errors import MediaError, MediaWarning
from limelight.media.decoder import decode
from limelight.server.limits import Limits
from limelight.server.media import Budget, Encoded, from_base64, is_data_url, picture, size_of, sound, split_data_url
from tests.server.conftest import data_url, png

SMALL = Limits(media_bytes=10_000, pixels=10_000, seconds=1.0, samples=40_000)


def made(file: Encoded) -> Any:
    """What a decoding process makes of it, here."""
    value = decode(file.kind, file.data, file.options)
    assert size_of(value) <= file.most
    return value


def wav(seconds: float = 0.5, rate: int = 16000, channels: int = 1, kind: str = "WAV") -> bytes:
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
    out = io.BytesIO()
    wave = np.sin(np.arange(int(seconds * rate)) * 0.05).astype(np.float32)
    soundfile.write(out, np.stack([wave] * channels, axis=1), rate, format=kind)
    return out.getvalue()


def test_a_picture_comes_through() -> None:
    image = made(picture(split_data_url(data_url(png(7, 5)), "image", SMALL)[1], SMALL))
    assert (image.size, image.mode) == ((7, 5), "RGB")
    assert image.getpixel((0, 0)) == (200, 30, 30)


def test_size_is_read_from_the_header() -> None:
    assert made(picture(png(100, 100), SMALL)).size == (100, 100)
    with pytest.raises(MediaError, match="pixels"):
        made(picture(png(101, 100), SMALL))


BYTES = bytes(range(256)) * 3 + b"\xfb\xff"  # with every character of both alphabets


@pytest.mark.parametrize("cut", range(4))
def test_base64_of_every_spelling(cut: int) -> None:
    data = BYTES[: len(BYTES) - cut]
    plain = base64.b64encode(data).decode()
    lines = "\r\n".join(plain[i : i + 76] for i in range(0, len(plain), 76)) + "\n"
    safe = base64.urlsafe_b64encode(data).decode()
    for text in (plain, plain.rstrip("="), safe, safe.rstrip("="), lines, f" {plain}\t", quote(plain, safe="")):
        assert from_base64(text, SMALL) == data
        assert split_data_url(f"data:image/png;base64,{text}", "image", SMALL) == ("image/png", data)
    assert split_data_url(f"DATA:image/PNG;charset=utf-8;base64,{plain}", "image", SMALL) == ("image/png", data)
    assert is_data_url("DATA:image/png")


@pytest.mark.parametrize("text", ["A" * 13_400, "====", "A", "AAAAA", "ä", "", "AA*A", "AA=A", "%zz", "AAAA%", "\n"])
def test_what_is_no_base64(text: str) -> None:
    with pytest.raises(MediaError):
        from_base64(text, SMALL)


@pytest.mark.parametrize(("kind", "name"), [("WAV", "wav"), ("FLAC", "flac"), ("OGG", "ogg"), ("MP3", "mp3")])
def test_sounds_come_through(kind: str, name: str) -> None:
    samples, rate = made(sound(wav(kind=kind, channels=2), name, SMALL))
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
        (b"", "mp3", "empty"),
    ],
    ids=["long", "wide", "other format", "slow", "empty", "head", "nothing"],
)
def test_sounds_that_are_refused(data: bytes, kind: str, match: str) -> None:
    with pytest.raises(MediaError, match=match):
        made(sound(data, kind, SMALL))


def test_a_wav_with_nan_is_refused() -> None:
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
    out = io.BytesIO()
    soundfile.write(out, np.full(100, np.nan, np.float32), 16000, format="WAV", subtype="FLOAT")
    with pytest.raises(MediaError, match="NaN"):
        made(sound(out.getvalue(), "wav", SMALL))


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are more pictures than one; what Pillow says of metadata
            image = made(picture(bytes(damaged), SMALL))
    except MediaError:
        return
    assert image.mode == "RGB"
    assert 0 < image.width * image.height <= SMALL.pixels


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(["wav", "flac", "ogg"]), st.data())
def test_damaged_sounds(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(wav(0.02, kind=kind.upper()))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MediaWarning)  # cut short
            samples, rate = made(sound(bytes(damaged), kind, SMALL))
    except MediaError:
        return
    assert np.isfinite(samples).all()
    assert 0 < len(samples) <= rate * SMALL.seconds


def test_room_is_taken_in_turn_and_given_back() -> None:
    async def play() -> list[str]:
        budget, order = Budget(100), []

        async def hold(name: str, size: int, wait: asyncio.Event) -> None:
            await budget.take(size)
            order.append(name)
            await wait.wait()
            budget.give(size)

        first, rest = asyncio.Event(), asyncio.Event()
        tasks = [asyncio.create_task(hold("large", 500, first))]  # alone it may have more than there is
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(hold(n, s, rest)) for n, s in (("a", 60), ("b", 60), ("c", 10))]
        await asyncio.sleep(0.01)
        assert order == ["large"]
        first.set()
        await asyncio.sleep(0.01)
        assert order == ["large", "a"]  # c fits, and does not overtake b for ever
        left = asyncio.create_task(budget.take(30))
        await asyncio.sleep(0.01)
        left.cancel()
        rest.set()
        await asyncio.gather(*tasks)
        assert budget.used == 0
        return order

    assert asyncio.run(play()) == ["large", "a", "b", "c"]
