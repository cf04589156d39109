"""Pictures of every mode and depth are what a person sees: each is held against the 8-bit original it was made from."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from limelight.errors import MediaError, MediaWarning, SettingError
from limelight.media.image import read_image
from limelight.media.pixels import eight_bits, frames_from_array, from_array

GREY = np.linspace(0, 255, 48).round().astype(np.uint8).reshape(6, 8)
COLOUR = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
ALPHA = np.where(np.arange(48).reshape(6, 8) % 3 == 0, 0, np.where(np.arange(48).reshape(6, 8) % 3 == 1, 255, 128))
ALPHA = ALPHA.astype(np.uint8)


def seen(source: Any, **more: Any) -> np.ndarray[Any, Any]:
    image = read_image(source, **more)
    assert image.mode == "RGB"
    assert not image.info
    return np.asarray(image)


def grey(level: Any = GREY) -> np.ndarray[Any, Any]:
    return np.repeat(np.asarray(level)[..., None], 3, axis=-1)


def on(colours: np.ndarray[Any, Any], alpha: np.ndarray[Any, Any], background: int = 255) -> np.ndarray[Any, Any]:
    a = alpha[..., None].astype(float) / 255
    return np.rint(colours * a + background * (1 - a))


def saved(image: Image.Image, kind: str, **more: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples: np.ndarray[Any, Any], depth: int, colour_type: int, *chunks: bytes) -> bytes:
    """A PNG of any depth, which Pillow does not write for colours of 16 bits."""
    height, width = samples.shape[:2]
    rows = samples.astype(">u2" if depth == 16 else "u1").reshape(height, -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks)
        + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    )  # fmt: skip


WIDE = GREY.astype(np.uint16) * 257
DEEP: dict[str, Callable[[], Any]] = {
    "png of 16 bits": lambda: saved(Image.fromarray(WIDE), "PNG"),
    "tiff of 16 bits": lambda: saved(Image.fromarray(WIDE), "TIFF"),
    "tiff of 16 bits, big-endian": lambda: saved(Image.fromarray(WIDE.astype(">u2")), "TIFF"),
    "tiff of 16 bits, white is zero": lambda: saved(Image.fromarray(65535 - WIDE), "TIFF", tiffinfo={262: 0}),
    "tiff of 8 bits, white is zero": lambda: saved(Image.fromarray(GREY), "TIFF", tiffinfo={262: 0}),  # Pillow inverts
    "float tiff, 0..1": lambda: saved(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"),
    "float tiff, 0..255": lambda: saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
    "I;16": lambda: Image.fromarray(WIDE),
    "I;16B": lambda: Image.fromarray(WIDE.astype(">u2")),
    "I of 8 bits": lambda: Image.fromarray(GREY).convert("I"),
    "I of 16 bits": lambda: Image.fromarray(WIDE.astype(np.int32)),
    "F of 8 bits": lambda: Image.fromarray(GREY).convert("F"),
    "F of 16 bits": lambda: Image.fromarray(WIDE.astype(np.float32)),
    "F, 0..1": lambda: Image.fromarray(GREY.astype(np.float32) / 255),
    "L": lambda: Image.fromarray(GREY),
}


@pytest.mark.parametrize("name", DEEP)
def test_grey_of_every_depth(name: str) -> None:
    source = DEEP[name]()
    np.testing.assert_array_equal(seen(source), grey())


@pytest.mark.parametrize(("channels", "kind"), [(3, 2), (4, 6), (2, 4)])
def test_colour_png_of_16_bits(channels: int, kind: int) -> None:
    colours = COLOUR if channels > 2 else GREY[..., None]
    whole = np.concatenate([colours, ALPHA[..., None]], -1) if channels != 3 else colours
    wanted = colours.repeat(3 // colours.shape[-1], -1)
    if channels != 3:
        wanted = on(wanted, ALPHA)
    np.testing.assert_allclose(seen(png(whole.astype(np.uint16) * 257, 16, kind)), wanted, atol=1)


def test_a_transparent_value_of_16_bits() -> None:
    key = int(WIDE[2, 3])
    got = seen(png(WIDE, 16, 0, chunk(b"tRNS", struct.pack(">H", key))))
    np.testing.assert_array_equal(got, grey(np.where(key == WIDE, 255, GREY)))
    colours = COLOUR.astype(np.uint16) * 257
    got = seen(png(colours, 16, 2, chunk(b"tRNS", colours[1, 1].astype(">u2").tobytes())))
    assert got[1, 1].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(np.delete(got.reshape(-1, 3), 9, 0), np.delete(COLOUR.reshape(-1, 3), 9, 0))


RGBA = np.concatenate([COLOUR, ALPHA[..., None]], -1)
CLEAR: dict[str, Callable[[], Any]] = {
    "RGBA": lambda: Image.fromarray(RGBA),
    "RGBa": lambda: Image.fromarray(RGBA).convert("RGBa"),
    "png": lambda: saved(Image.fromarray(RGBA), "PNG"),
    "webp": lambda: saved(Image.fromarray(RGBA), "WEBP", lossless=True, exact=True),
    "tiff": lambda: saved(Image.fromarray(RGBA), "TIFF"),
    "array": lambda: RGBA,
    "array, channels first": lambda: RGBA.transpose(2, 0, 1),
    "tensor": lambda: torch.from_numpy(RGBA).permute(2, 0, 1),
}


@pytest.mark.parametrize("name", CLEAR)
@pytest.mark.parametrize("background", ["white", "#000000"])
def test_transparency_is_put_on_a_background(name: str, background: str) -> None:
    got = seen(CLEAR[name](), background=background)
    np.testing.assert_allclose(
        got, on(COLOUR, ALPHA, 255 if background == "white" else 0), atol=1 + (name == "RGBa") * 1
    )


@pytest.mark.parametrize("mode", ["LA", "La"])
def test_grey_with_alpha(mode: str) -> None:
    image = Image.fromarray(np.stack([GREY, ALPHA], -1)).convert(mode)
    np.testing.assert_allclose(seen(image), on(grey(), ALPHA), atol=2)


def test_palettes_with_transparent_entries() -> None:
    palette = Image.fromarray(COLOUR).quantize(8)
    index = np.asarray(palette)
    opaque = np.asarray(palette.convert("RGB"))
    for transparency in (3, bytes([255, 255, 255, 0])):
        for kind in ("PNG", *(["GIF"] if isinstance(transparency, int) else [])):
            got = seen(saved(palette, kind, transparency=transparency))
            np.testing.assert_array_equal(got, np.where((index == 3)[..., None], 255, opaque))
    rgba = palette.convert("RGBA")
    rgba.putalpha(Image.fromarray(ALPHA))
    np.testing.assert_allclose(
        seen(rgba.convert("PA")), on(np.asarray(rgba.convert("PA").convert("RGB")), ALPHA), atol=1
    )


@pytest.mark.parametrize(
    "image",
    [Image.fromarray(GREY), Image.fromarray(COLOUR), Image.fromarray(GREY > 99)],
    ids=["L", "RGB", "1"],
)
def test_one_colour_that_is_named_transparent(image: Image.Image) -> None:
    key: Any = image.getpixel((1, 1))
    plain = np.asarray(image.convert("RGB"))
    image.info["transparency"] = key
    mine = (plain == plain[1, 1]).all(-1)
    np.testing.assert_array_equal(seen(image), np.where(mine[..., None], 255, plain))
    assert image.info["transparency"] == key  # what was handed in is as it was


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "RGBX", "LAB"])
def test_other_colour_spaces(mode: str) -> None:
    smooth = np.asarray(Image.fromarray(COLOUR).resize((64, 48), Image.Resampling.BICUBIC))
    image = Image.fromarray(smooth)
    if mode == "LAB":
        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    else:
        image = image.convert(mode)
    got = seen(image).astype(int)
    assert np.abs(got - smooth).mean() < 4
    assert np.quantile(np.abs(got - smooth), 0.99) < 24


def test_jpegs_of_adobe_are_not_inverted(tmp_path: Path) -> None:
    white = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    path = tmp_path / "a.jpg"
    white.save(path)  # Pillow writes Adobe's marker, and the values inverted as Adobe does
    assert b"Adobe" in path.read_bytes()
    assert seen(path).min() >= 250


def test_colours_of_a_wide_profile() -> None:
    srgb = ImageCms.createProfile("sRGB")
    swapped = _profile_with_red_and_green_swapped()
    for image in (Image.fromarray(COLOUR), Image.fromarray(RGBA)):
        got = seen(saved(image, "PNG", icc_profile=swapped))
        want = COLOUR[..., [1, 0, 2]]
        np.testing.assert_allclose(got, want if image.mode == "RGB" else on(want, ALPHA), atol=6)
        plain = seen(saved(image, "PNG", icc_profile=ImageCms.ImageCmsProfile(srgb).tobytes()))
        np.testing.assert_allclose(plain, COLOUR if image.mode == "RGB" else on(COLOUR, ALPHA), atol=1)
    for profile in (b"no profile", swapped):  # damaged, or of another colour space than the picture's
        np.testing.assert_array_equal(seen(saved(Image.fromarray(GREY), "PNG", icc_profile=profile)), grey())


def _profile_with_red_and_green_swapped() -> bytes:
    """sRGB whose columns of red and green, and whose name, are others."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", data[128:132])[0]
    tags = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    data[red + 4 : red + 12], data[green + 4 : green + 12] = data[green + 4 : green + 12], data[red + 4 : red + 12]
    return bytes(data).replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be")).replace(b"sRGB", b"wide")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    backward = {  # how the stored pixels come from the upright ones
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    stored = Image.fromarray(np.ascontiguousarray(backward[orientation](COLOUR)))
    for kind in ("PNG", "TIFF", "WEBP"):
        more = {"lossless": True} if kind == "WEBP" else {}
        np.testing.assert_array_equal(seen(saved(stored, kind, exif=exif, **more)), COLOUR)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_pictures_and_a_word_about_the_rest(kind: str) -> None:
    frames = [Image.new("RGB", (6, 4), c) for c in ("red", "lime", "blue")]
    more = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **more)
    with pytest.warns(MediaWarning, match="first"):
        got = seen(data)
    assert got[0, 0].tolist() == [255, 0, 0]
    image = Image.open(io.BytesIO(data))
    image.seek(1)  # an object says itself which picture is meant
    assert seen(image)[0, 0].tolist() == [0, 255, 0]


ARRAYS: dict[str, Any] = {
    "uint8": COLOUR,
    "uint8, channels first": COLOUR.transpose(2, 0, 1),
    "uint16": COLOUR.astype(np.uint16) * 257,
    "big-endian": (COLOUR.astype(np.uint16) * 257).astype(">u2"),
    "int64": COLOUR.astype(np.int64),
    "int32 of 16 bits": COLOUR.astype(np.int32) * 257,
    "float64, 0..1": COLOUR / 255,
    "float32, 0..255": COLOUR.astype(np.float32),
    "float16, 0..1": (COLOUR / 255).astype(np.float16),
    "tensor": torch.from_numpy(COLOUR).permute(2, 0, 1),
    "tensor, bfloat16": (torch.from_numpy(COLOUR).permute(2, 0, 1) / 255).bfloat16(),
    "tensor with a gradient": (torch.from_numpy(COLOUR) / 255).requires_grad_(),
    "not contiguous": COLOUR[::-1, ::-1][::-1, ::-1],
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_and_tensors(name: str) -> None:
    got = seen(ARRAYS[name])
    np.testing.assert_allclose(got, COLOUR, atol=1 if "float" in name else 0)


def test_grey_arrays() -> None:
    for source in (GREY, GREY[..., None], GREY[None], GREY / 255, torch.from_numpy(GREY)):
        np.testing.assert_array_equal(seen(source), grey())
    np.testing.assert_array_equal(seen(GREY > 99), grey((GREY > 99) * 255))
    np.testing.assert_allclose(seen(np.stack([GREY, ALPHA], -1)), on(grey(), ALPHA), atol=1)


def test_where_the_channels_stand_when_both_ends_could_be() -> None:
    cube = np.random.default_rng(1).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    np.testing.assert_array_equal(seen(cube), cube)
    np.testing.assert_array_equal(seen(torch.from_numpy(cube)), cube.transpose(1, 2, 0))


def test_unscaled_values_are_stretched_and_reported() -> None:
    for source in (GREY.astype(float) * 1000 - 7e4 + 0.5, Image.fromarray(GREY.astype(np.float32) - 300)):
        with pytest.warns(MediaWarning, match="stretched"):
            np.testing.assert_array_equal(seen(source), grey())
    np.testing.assert_array_equal(eight_bits(np.array([-0.0005, 1.0005, 0.5])), [0, 255, 128])


def test_a_films_frames_are_scaled_together() -> None:
    film = np.stack([COLOUR / 255 * f for f in (0.003, 1.0)])
    dark, bright = frames_from_array(film)
    assert np.asarray(dark).max() <= 1
    np.testing.assert_array_equal(np.asarray(bright), COLOUR)
    assert frames_from_array(torch.zeros(2, 3, 5, 7))[0].size == (7, 5)
    assert frames_from_array(np.zeros((2, 5, 7), np.uint8))[0].size == (7, 5)


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((2, 5, 5, 3)), np.zeros((5, 7, 5)), np.zeros(9), np.zeros((0, 5, 3)), np.array([["a"]]),
        np.full((4, 4), np.nan), Image.fromarray(np.full((4, 4), np.inf, np.float32)), {}, {"bytes": None}, b"",
    ],
)  # fmt: skip
def test_what_is_no_picture(source: Any) -> None:
    with pytest.raises(MediaError) as caught:
        read_image(source)
    assert caught.value.hint


def test_backgrounds_that_are_no_colour() -> None:
    for background in ("whit", (1, 2), 7, (300, 0, 0), None):
        with pytest.raises(SettingError):
            read_image(COLOUR, background=background)
    assert seen(np.zeros((2, 2, 4), np.uint8), background=(10, 20, 30))[0, 0].tolist() == [10, 20, 30]


def test_bytes_and_mappings(tmp_path: Path) -> None:
    data = saved(Image.fromarray(COLOUR), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    for source in (
        data,
        bytearray(data),
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(tmp_path / "a.png")},
    ):
        np.testing.assert_array_equal(seen(source), COLOUR)
    with pytest.raises(MediaError, match="supported format"):
        read_image(data, formats=("JPEG",))


def test_from_array_keeps_what_it_is_given() -> None:
    before = COLOUR.copy()
    from_array(COLOUR).putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(COLOUR, before)
