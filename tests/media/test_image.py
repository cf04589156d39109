"""Reading pictures, sound and video: what is accepted, what is bounded, and what each refusal says."""

from __future__ import annotations

import builtins
import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limelight.errors import MediaError, MediaWarning, MissingExtraError, SettingError
from limelight.media import image as media
from limelight.media.audio import read_audio
from limelight.media.image import existing, kind_of, read_image
from limelight.media.video import read_video
from tests.models.films import film


def picture(path: Path, size: tuple[int, int] = (8, 6), mode: str = "RGB", **save: Any) -> Path:
    Image.new(mode, size, 120 if mode == "L" else None).save(path, **save)
    return path


def sound(path: Path, rate: int = 16000, channels: int = 1, seconds: float = 0.1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        count = int(rate * seconds)
        file.writeframes(b"".join(struct.pack("<h", 1000 * (c + 1)) for _ in range(count) for c in range(channels)))
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.PNG", "image"), ("b.jpeg", "image"), ("c.wav", "audio"), ("d.mp3", "audio"), ("e.mp4", "video")],
)
def test_kind_by_ending(name: str, kind: str) -> None:
    assert kind_of(name) == kind
    assert kind_of(Path("folder") / name) == kind


def test_an_unknown_ending_raises() -> None:
    for name in ("a.txt", "b", "c.png.exe"):
        with pytest.raises(MediaError) as caught:
            kind_of(name)
        assert ".wav" in caught.value.hint


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
def test_pictures_of_every_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    path = picture(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), mode=mode)
    for source in (path, str(path), Image.open(path)):
        got = read_image(source)
        assert got.mode == "RGB"
        assert got.size == (8, 6)


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 6))
    exif = image.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (6, 8)


def test_bad_pictures(tmp_path: Path) -> None:
    whole = picture(tmp_path / "whole.png", (64, 64)).read_bytes()
    cases = {
        "noise.png": b"\x00\x01\x02 no picture", "short.png": whole[:60], "empty.png": b"",
        "head.jpg": b"\xff\xd8\xff\xe0" + b"\x00" * 20, "text.gif": b"GIF89a",
    }  # fmt: skip
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MediaError) as caught:
            read_image(tmp_path / name)
        assert caught.value.hint, name


def test_pictures_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / "a.png", (30, 20))
    assert read_image(path, max_pixels=600).size == (30, 20)
    with pytest.raises(MediaError) as caught:
        read_image(path, max_pixels=599)
    assert "599" in str(caught.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(MediaError):  # Pillow's own bomb guard, as an error of the tree
        read_image(picture(tmp_path / "bomb.png", (40, 40)))


@pytest.mark.parametrize("source", [3, None, b"bytes", ["a.png"]])
def test_what_is_no_file_raises(source: Any) -> None:
    with pytest.raises(MediaError) as caught:
        existing(source)
    assert caught.value.hint


def test_paths(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    assert existing(str(path)) == path
    for bad in (tmp_path / "missing.png", tmp_path, "https://example.org/a.png", "file:///etc/hostname", ""):
        with pytest.raises(MediaError) as caught:
            existing(bad)
        assert caught.value.hint


def test_sound_for_a_picture_and_the_other_way_round(tmp_path: Path) -> None:
    with pytest.raises(MediaError) as caught:
        read_image(sound(tmp_path / "a.wav"))
    assert "audio" in str(caught.value)
    with pytest.raises(MediaError) as caught:
        read_audio(picture(tmp_path / "a.png"), 16000)
    assert "image" in str(caught.value)
    with pytest.raises(MediaError) as caught:
        read_video(picture(tmp_path / "b.png"))
    assert "image" in str(caught.value)


@pytest.mark.parametrize("channels", [1, 2])
def test_sound_is_mono_float32(tmp_path: Path, channels: int) -> None:
    pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
    got = read_audio(sound(tmp_path / "a.wav", channels=channels), 16000)
    assert got.dtype == np.float32
    assert got.shape == (1600,)
    want = 1000 / 32768 if channels == 1 else 1500 / 32768
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_sound_is_resampled(tmp_path: Path) -> None:
    pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
    pytest.importorskip("soxr", reason="soxr is not installed (pip install 'limelight[audio]')")
    got = read_audio(sound(tmp_path / "a.wav", rate=8000, seconds=0.5), 16000)
    assert abs(len(got) - 8000) <= 2
    samples = np.sin(np.arange(4000) / 8000 * 2 * np.pi * 440).astype(np.float32)
    loud = read_audio((samples, 8000), 16000)
    spectrum = np.abs(np.fft.rfft(loud))
    assert abs(int(spectrum.argmax()) * 16000 / len(loud) - 440) < 5


def test_samples_as_they_are() -> None:
    samples = np.linspace(-1, 1, 100)
    for source in (samples, (samples, 16000), (samples[:, None].repeat(2, 1), 16000)):
        got = read_audio(source, 16000)
        np.testing.assert_allclose(got, samples.astype(np.float32))


@pytest.mark.parametrize(
    "source",
    [
        np.zeros(0), np.zeros((2, 3, 4)), np.array([0.0, np.nan]), np.array([np.inf]), (np.zeros(10), 0),
        (np.zeros(10), -1),
    ],
)  # fmt: skip
def test_bad_samples(source: Any) -> None:
    with pytest.raises(MediaError) as caught:
        read_audio(source, 16000)
    assert caught.value.hint


def test_sound_is_bounded_before_and_after_decoding(tmp_path: Path) -> None:
    with pytest.raises(MediaError) as caught:
        read_audio((np.zeros(1600), 16000), 16000, max_seconds=0.05)
    assert "limit" in str(caught.value)
    pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
    with pytest.raises(MediaError) as caught:
        read_audio(sound(tmp_path / "a.wav", seconds=0.2), 16000, max_seconds=0.1)
    assert "limit" in str(caught.value)


def test_a_corrupt_sound(tmp_path: Path) -> None:
    pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
    (tmp_path / "a.wav").write_bytes(b"RIFF no sound at all")
    with pytest.raises(MediaError) as caught:
        read_audio(tmp_path / "a.wav", 16000)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("module", "extra", "call"),
    [
        ("soundfile", "audio", lambda p: read_audio(sound(p / "a.wav"), 16000)),
        ("soxr", "audio", lambda p: read_audio((np.zeros(100), 8000), 16000)),
        ("av", "video", lambda p: read_video(_written(p / "a.mp4"))),
    ],
)
def test_what_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str, call: Any
) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == module:
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError) as caught:
        call(tmp_path)
    assert f"limelight[{extra}]" in caught.value.hint


def _written(path: Path, data: bytes = b"film") -> Path:
    path.write_bytes(data)
    return path


def test_video_from_pictures() -> None:
    frames = read_video([Image.new("L", (4, 4)), Image.new("RGB", (4, 4))])
    assert [f.mode for f in frames.frames] == ["RGB", "RGB"]
    assert frames.seconds == (0.0, 1.0)
    with pytest.raises(SettingError) as caught:
        read_video([Image.new("RGB", (4, 4))], frames=0)
    assert caught.value.hint
    with pytest.raises(MediaError) as empty:
        read_video([])
    assert empty.value.hint


def test_video_from_a_file(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed (pip install 'limelight[video]')")
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for value in range(0, 250, 25):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), value, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    got = read_video(path, frames=4)
    assert len(got) == 4
    levels = [float(np.asarray(f).mean()) for f in got.frames]
    assert levels == sorted(levels)
    assert levels[-1] - levels[0] > 180  # first and last frame included
    assert len(read_video(path, frames=100)) == 10
    assert len(read_video(path, frames=1)) == 1
    with pytest.raises(MediaError) as caught:
        read_video(path, max_seconds=0.5)
    assert "limit" in str(caught.value)
    with pytest.raises(MediaError) as caught:
        read_video(_written(tmp_path / "b.mp4"))
    assert caught.value.hint


def test_films_that_are_broken_turned_or_without_frames(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed (pip install 'limelight[video]')")
    whole = film(tmp_path / "a.mp4", range(10, 240, 2), rate=10, size=(64, 64))
    clip = read_video(whole, 5)
    assert clip.fps == 10
    assert clip.seconds == pytest.approx([0, 2.8, 5.7, 8.6, 11.4], abs=0.11)
    assert clip.length == pytest.approx(11.5)
    avi = film(tmp_path / "a.avi", range(10, 110, 10), rate=5)  # its packets carry no presentation times
    assert read_video(avi, 3).seconds == pytest.approx([0, 0.8, 1.8], abs=0.25)
    film(tmp_path / "b.mkv")
    data = film(tmp_path / "c.mkv", range(0, 240, 2), size=(64, 64)).read_bytes()
    with pytest.warns(MediaWarning, match=r"cut\.mkv is truncated: 1\d\.\d s of 30\.0 s"):
        cut = read_video(_written(tmp_path / "cut.mkv", data[: len(data) // 2]), 4)  # what is left of it, evenly
    assert len(cut) == 4
    assert cut.seconds[-1] < 29
    sound(tmp_path / "sound.wav").rename(tmp_path / "sound.mkv")
    with pytest.raises(MediaError, match="no video stream"):
        read_video(tmp_path / "sound.mkv")
    with pytest.raises(MediaError, match="differ in size"):
        read_video([Image.new("RGB", (4, 4)), Image.new("RGB", (5, 4))])
    with pytest.raises(SettingError, match="768"):
        read_video(whole, 10_000)


def test_limits_are_there() -> None:
    assert media.MAX_PIXELS >= 4096 * 4096
    assert media.MAX_SECONDS == 1800
