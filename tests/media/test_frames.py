"""Films as people see them: turned, squeezed, transparent, of 10 bits, HDR, with frames of unequal length."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limelight.errors import MediaError, MediaWarning
from limelight.media.frames import HLG, PQ, displayed, tone_mapped
from limelight.media.video import read_video

av = pytest.importorskip("av", reason="PyAV is not installed (pip install 'limelight[video]')")

CORNERS = np.zeros((48, 64, 3), np.uint8)  # four colours, one a quarter: every turn can be told
CORNERS[:24, :32], CORNERS[:24, 32:], CORNERS[24:, :32], CORNERS[24:, 32:] = (
    (220, 30, 30), (30, 200, 30), (40, 40, 220), (230, 230, 230),
)  # fmt: skip


def film(
    frames: Any, kind: str = "mp4", codec: str = "libx264", pixels: str = "yuv420p", aspect: Fraction | None = None,
    times: Any = None, format: str = "rgb24", **options: str,
) -> bytes:  # fmt: skip
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width = np.asarray(frames[0]).shape[:2]
        stream.pix_fmt = pixels
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for k, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=format)
            if times is not None:
                frame.pts, frame.time_base = times[k], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def with_matrix(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    at = data.index(b"tkhd") + 44
    matrix = struct.pack(">9i", *(v * 65536 for v in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    return data[:at] + matrix + data[at + 36 :]


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    w, h = image.size
    return [image.getpixel((x, y)) for y in (h // 8, 7 * h // 8) for x in (w // 8, 7 * w // 8)]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((1, 0, 0, 1), None),
        ((0, 1, -1, 0), Image.Transpose.ROTATE_270),
        ((-1, 0, 0, -1), Image.Transpose.ROTATE_180),
        ((0, -1, 1, 0), Image.Transpose.ROTATE_90),
        ((-1, 0, 0, 1), Image.Transpose.FLIP_LEFT_RIGHT),
        ((1, 0, 0, -1), Image.Transpose.FLIP_TOP_BOTTOM),
    ],
)
def test_the_display_matrix(matrix: tuple[int, int, int, int], turn: Any) -> None:
    got = read_video(with_matrix(film([CORNERS] * 3), *matrix)).frames[0]
    want = Image.fromarray(CORNERS)
    want = want if turn is None else want.transpose(turn)
    assert got.size == want.size
    np.testing.assert_allclose(corners(got), corners(want), atol=12)


@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(1, 2), Fraction(4, 3)])
def test_pixels_that_are_not_square(aspect: Fraction) -> None:
    got = read_video(film([CORNERS] * 3, aspect=aspect)).frames[0]
    assert got.size == ((round(64 * aspect), 48) if aspect > 1 else (64, round(48 / aspect)))
    np.testing.assert_allclose(corners(got), corners(Image.fromarray(CORNERS)), atol=12)
    with pytest.raises(MediaError, match="the limit is"):
        read_video(film([CORNERS] * 3, aspect=aspect), max_pixels=64 * 48 + 1)
    assert displayed(10, 10, 1000.0) == (10, 10)  # a mistake of the file


@pytest.mark.parametrize(("kind", "codec", "pixels"), [("mov", "qtrle", "argb"), ("mov", "png", "rgba")])
def test_transparent_films(kind: str, codec: str, pixels: str) -> None:
    clear = np.concatenate([CORNERS, np.full((48, 64, 1), 255, np.uint8)], -1)
    clear[:24, :32, 3] = 0
    data = film([clear] * 3, kind, codec, pixels, format="rgba")
    want = Image.fromarray(np.where(clear[..., 3:] > 0, CORNERS, 255).astype(np.uint8))
    np.testing.assert_allclose(corners(read_video(data).frames[0]), corners(want), atol=4)
    assert read_video(data, background="black").frames[0].getpixel((3, 3)) == (0, 0, 0)


@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuv444p", "yuv422p10le"])
def test_depths_and_samplings(pixels: str) -> None:
    got = np.asarray(read_video(film([CORNERS] * 3, pixels=pixels)).frames[0]).astype(float)
    assert np.abs(got - CORNERS).mean() < 5


def test_hdr_is_brought_to_sdr() -> None:
    nits = np.array([0.0, 1.0, 20.0, 203.0, 1000.0])
    y = (nits / 10_000) ** 0.1593017578125
    code = ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375
    grey = np.repeat((code * 65535).round().astype(np.uint16)[None, :, None], 3, -1)
    got = tone_mapped(grey, PQ)[0]
    assert np.ptp(got, axis=-1).max() <= 1  # grey stays grey
    assert got[0, 0] == 0
    assert got[-1, 0] >= 254
    assert 180 <= got[3, 0] <= 210  # diffuse white
    assert (np.diff(got[:, 0].astype(int)) > 0).all()
    linear = 20 / 203
    assert got[2, 0] == pytest.approx(255 * (1.055 * (linear / (1 + linear)) ** (1 / 2.4) - 0.055), abs=3)
    hlg = tone_mapped(np.repeat(np.array([0, 32768, 49151, 65535], np.uint16)[None, :, None], 3, -1), HLG)[0]
    assert np.ptp(hlg, axis=-1).max() <= 1
    assert (np.diff(hlg[:, 0].astype(int)) > 0).all()
    assert hlg[0, 0] == 0 and hlg[-1, 0] >= 254 and 180 <= hlg[2, 0] <= 215  # signal 0.75 is diffuse white (BT.2408)


def test_hdr_video_is_recognised_by_its_transfer_function() -> None:
    if "libx265" not in av.codecs_available:
        pytest.skip("this PyAV has no libx265")
    grey = np.full((64, 64, 3), 148, np.uint8)  # 0.58: diffuse white in PQ
    more = {"x265-params": "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:log-level=none"}
    hdr = read_video(film([grey] * 3, codec="libx265", pixels="yuv420p10le", **more)).frames[0].getpixel((9, 9))
    sdr = read_video(film([grey] * 3, codec="libx265", pixels="yuv420p10le", **{"x265-params": "log-level=none"}))
    assert min(hdr) >= 180
    assert sdr.frames[0].getpixel((9, 9))[0] == pytest.approx(148, abs=4)


def test_frames_of_unequal_length_are_even_in_time() -> None:
    times = [0, 40, 80, 120, 160, 200, 240, 280, 4000, 8000]  # a screen that hardly changed after the first moment
    shades = [np.full((32, 32, 3), 10 + 24 * k, np.uint8) for k in range(len(times))]
    clip = read_video(film(shades, "matroska", times=times), 3)
    assert clip.seconds == pytest.approx([0, 4, 8], abs=0.05)
    assert [round((f.getpixel((9, 9))[0] - 10) / 24) for f in clip.frames] == [0, 8, 9]


def test_a_film_cut_short_warns(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
    whole = film(noise, "matroska")
    path = tmp_path / "a.mkv"
    path.write_bytes(whole[: len(whole) // 2])
    for source in (path, path.read_bytes()):
        with pytest.warns(MediaWarning, match="truncated"):
            clip = read_video(source, 3)
        assert clip.seconds[-1] < 1.5


def test_arrays_and_tensors_as_films() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 3), dtype=np.uint8)
    for source in (
        frames, frames.transpose(0, 3, 1, 2), torch.from_numpy(frames).permute(0, 3, 1, 2), frames / 255, list(frames),
        [Image.fromarray(f) for f in frames], list(torch.from_numpy(frames)),
    ):  # fmt: skip
        clip = read_video(source)
        assert clip.seconds == (0.0, 1.0, 2.0)
        np.testing.assert_allclose(np.stack([np.asarray(f) for f in clip.frames]), frames, atol=1)
    with pytest.raises(MediaError):
        read_video(np.zeros((3, 6)))


def test_frames_between_two_times_are_read_more_densely() -> None:
    data = film([np.full((48, 64, 3), 8 * i, np.uint8) for i in range(30)])  # 3 seconds, 10 a second
    whole = read_video(data, 4)
    assert whole.seconds == pytest.approx((0.0, 1.0, 1.9, 2.9), abs=0.11) and whole.source is data
    dense = read_video(data, 4, between=(1.0, 1.5))
    assert dense.seconds[0] == pytest.approx(1.0, abs=0.01) and dense.seconds[-1] == pytest.approx(1.5, abs=0.01)
    assert len(dense) == 4 and all(a < b for a, b in pairwise(dense.seconds))
    assert len(read_video(data, 4, between=(1.02, 1.04))) == 1  # none lies inside: the nearest
