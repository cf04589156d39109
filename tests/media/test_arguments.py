"""The shapes in which people hand in media."""

from __future__ import annotations

import base64
import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limelight.errors import MediaError, PromptError
from limelight.media.arguments import by_kind, decoded, infer_kind, item
from limelight.media.audio import read_audio
from limelight.media.image import read_image
from limelight.media.video import read_video
from limelight.types import Clip

RATE = 16000
TONE = (np.sin(np.arange(1600) / 5) * 0.5).astype(np.float32)
PICTURE = Image.fromarray(np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3))


def png() -> bytes:
    out = io.BytesIO()
    PICTURE.save(out, "PNG")
    return out.getvalue()


def wav() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((TONE * 32767).astype("<i2").tobytes())
    return out.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "x.png").write_bytes(png())
    (tmp_path / "x.wav").write_bytes(wav())
    (tmp_path / "no suffix").write_bytes(png())
    return tmp_path


def shapes(root: Path) -> dict[str, list[Any]]:
    pixels = np.asarray(PICTURE)
    return {
        "image": [
            str(root / "x.png"), root / "x.png", str(root / "no suffix"), PICTURE, png(), bytearray(png()), io.BytesIO(png()),
            pixels, torch.from_numpy(pixels.copy()).permute(2, 0, 1), pixels[..., 0], {"bytes": png(), "path": None},
            {"path": str(root / "x.png")}, {"url": str(root / "x.png")}, f"data:image/png;base64,{b64(png())}",
            {"url": f"data:image/png;base64,{b64(png())}"}, (root / "x.png").as_uri(),
        ],
        "audio": [
            str(root / "x.wav"), root / "x.wav", wav(), io.BytesIO(wav()), (TONE, RATE), (RATE, TONE), [TONE, RATE],
            (np.int64(RATE), TONE), (TONE, float(RATE)), (RATE, TONE.tolist()), (torch.from_numpy(TONE), RATE), TONE,
            torch.from_numpy(TONE), TONE.tolist(), {"array": TONE, "sampling_rate": RATE, "path": None},
            {"array": TONE.tolist(), "sampling_rate": RATE}, {"bytes": wav(), "path": "x.wav"}, {"data": b64(wav()), "format": "wav"},
            f"data:audio/wav;base64,{b64(wav())}", (RATE, np.stack([TONE, TONE], axis=1)),
        ],
        "video": [Clip((PICTURE, PICTURE), (0.0, 1.0))],
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
def test_what_a_medium_is_and_that_it_can_be_read(kind: str, files: Path) -> None:
    read = {"image": read_image, "audio": lambda x: read_audio(x, RATE), "video": read_video}[kind]
    for source in shapes(files)[kind]:
        found = by_kind(source)
        assert {k: len(v) for k, v in found.items() if v} == {kind: 1}, source
        got: Any = read(found[kind][0])  # type: ignore[operator]
        if kind == "image":
            assert got.size == (16, 12)
        elif kind == "audio":
            assert np.abs(got - TONE).max() < 1e-3, type(source)
    for source in shapes(files)[kind]:  # the same under its name, alone and in a list
        assert len(by_kind({kind: source})[kind]) == 1, source
        assert len(by_kind({kind: [source]})[kind]) == 1, source


def test_lists() -> None:
    assert len(by_kind([PICTURE, PICTURE])["image"]) == 2
    mixed = by_kind([PICTURE, (RATE, TONE), PICTURE])
    assert (len(mixed["image"]), len(mixed["audio"])) == (2, 1)
    assert len(by_kind({"image": [PICTURE, PICTURE]})["image"]) == 2
    assert len(by_kind({"audio": [(TONE, RATE), (RATE, TONE)]})["audio"]) == 2
    assert len(by_kind({"audio": [TONE, TONE]})["audio"]) == 2
    pixels = np.asarray(PICTURE)
    for frames in ([PICTURE, PICTURE], [pixels, pixels], (PICTURE, PICTURE, PICTURE)):
        (film,) = by_kind({"video": frames})["video"]
        assert len(read_video(film)) == len(frames)
    assert len(by_kind({"video": [[PICTURE], [PICTURE, PICTURE]]})["video"]) == 2
    assert len(by_kind({"video": [Clip((PICTURE,), (0.0,)), "b.mp4"]})["video"]) == 2
    assert by_kind(None) == by_kind({}) == by_kind({"image": None}) == {"image": [], "audio": [], "video": []}


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (np.zeros((2, 1600), np.float32), "media type of an array"),  # channels of a sound, or a flat picture
        (np.zeros((20, 30, 30)), "media type of an array"),
        (np.zeros((1, 3, 20, 30)), "media type of an array"),
        (np.float32(1), "media type of an array"),
        (b"not a picture at all", "not the signature of a known image"),
        (object(), "media type of a object"),
        (3, "media type of a int"),
        ("https://example.org/picture", "no file"),
        ("lost", "no file"),
        ("data:text/plain;base64,aGVsbG8=", "not a data URL of an image"),
        ("data:image/png,rawbytes", "not a data URL"),
    ],
)
def test_undetectable_media_name_the_explicit_form(odd: Any, says: str) -> None:
    with pytest.raises(MediaError) as caught:
        by_kind(odd)
    assert says in str(caught.value)
    assert caught.value.hint


def test_kinds_that_do_not_fit() -> None:
    with pytest.raises(PromptError, match="'picture'"):
        by_kind({"picture": PICTURE})
    with pytest.raises(MediaError, match="a data URL of type image was passed as audio"):
        item("audio", f"data:image/png;base64,{b64(png())}")
    with pytest.raises(MediaError, match="samples, rate"):
        item("audio", (TONE, TONE))


def test_base64_with_and_without_padding_of_either_alphabet() -> None:
    data = bytes(range(256)) + b"?"
    for text in (
        b64(data),
        b64(data).rstrip("="),
        base64.urlsafe_b64encode(data).decode().rstrip("="),
        f" {b64(data)}\n",
    ):
        assert decoded(text) == data
    for wrong in ("a", "!!!!", ""):
        with pytest.raises(MediaError, match=r"base64|no bytes"):
            decoded(wrong)


@pytest.mark.parametrize("name", ["a.png", "b.JPG", Path("c.wav"), "film.mp4"])
def test_names_tell(name: Any) -> None:
    assert infer_kind(name) == {"a": "image", "b": "image", "c": "audio", "f": "video"}[str(name)[0]]
