"""Conversion of any pixel format to 8-bit RGB, as an image viewer would show it."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor

from limelight.errors import MediaError, MediaWarning, SettingError

WHITE = "white"
TOLERANCE = 1e-3  # rounding error allowed around [0, 1] for floats
_WIDE = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_SPACES = {"RGB": "RGB", "RGBA": "RGB", "RGBX": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # mode -> colour space of a profile
Bytes = npt.NDArray[np.uint8]


def rgb(image: Image.Image, background: Any = WHITE) -> Image.Image:
    """Convert a loaded image of any mode to RGB.

    - 16 bits (``I;16`` and ``I`` of a 16-bit file) are divided by 257, 12 bits by 4095 / 255; ``I``, ``F``: see
      :func:`eight_bits`.
    - Transparency (an alpha channel, premultiplied or not, or a colour key) shows ``background``.
    - Colours with an embedded ICC profile other than sRGB (Adobe RGB, Display P3, CMYK) are converted to sRGB where
      Pillow has LittleCMS; without it, or with an unreadable profile, they are taken as sRGB.

    Raises:
        MediaError: values that are not finite, or LAB without LittleCMS.
        SettingError: ``background`` is not a colour.
    """
    source, profile = image, image.info.get("icc_profile")
    if image.mode in _WIDE:
        image = _narrowed(image)
    elif image.mode == "LAB":
        image, profile = _from_lab(image), None
    elif image.mode in ("P", "PA", "1", "YCbCr", "HSV", "La", "RGBa"):
        image = image.convert({"La": "LA"}.get(image.mode, "RGBA" if _is_transparent(image) else "RGB"))
    elif image.mode in ("L", "RGB") and "transparency" in image.info:
        image = _keyed(image)
    if profile:
        image = _managed(image, profile)
    if image.mode in _ALPHA:
        image = Image.alpha_composite(Image.new("RGBA", image.size, colour(background)), image.convert("RGBA"))
    if image.mode != "RGB":
        image = image.convert("RGB")
    elif image is source:
        image = image.copy()
    image.info = {}
    return image


def colour(value: Any) -> tuple[int, ...]:
    """Parse a colour name (``"white"``, ``"#ff8000"``) or three integers to RGB.

    Raises:
        SettingError: it is not a colour.
    """
    try:
        found = ImageColor.getrgb(value) if isinstance(value, str) else tuple(int(v) for v in value)
    except (ValueError, TypeError):
        found = ()
    if len(found) not in (3, 4) or not all(0 <= v <= 255 for v in found):
        raise SettingError(
            f"expected a colour for background, got {value!r}", hint="a name, #rrggbb, or (255, 255, 255)"
        )
    return found[:3]


def from_array(source: Any) -> Image.Image:
    """Build an image from a numpy array, a tensor, or an array-like: ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]``.

    ``C`` is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA). Where both ends could be channels, they are first in a tensor
    and last in an array. Values: see :func:`eight_bits`; alpha is scaled like the colours.

    Raises:
        MediaError: another shape, or values that are not an image.
    """
    return _image_of(_pixels(source, 3, "an image", "", "pass the images of a batch one at a time"))


def frames_from_array(source: Any) -> list[Image.Image]:
    """Convert a video ``[T, H, W]``, ``[T, H, W, C]`` or ``[T, C, H, W]`` to images, scaled by one common factor.

    Raises:
        MediaError: see :func:`from_array`.
    """
    return [_image_of(frame) for frame in _pixels(source, 4, "frames", "T, ", "pass a single video")]


def _pixels(source: Any, axes: int, what: str, front: str, hint: str) -> Bytes:
    """Return 8-bit values ``[..., H, W, C]`` of an array with ``axes`` axes, or one less without channels."""
    array = as_array(source)
    array = array[..., None] if array.ndim == axes - 1 else array
    if array.ndim != axes or not array.size:
        raise MediaError(
            f"expected {what} of shape [{front}H, W], [{front}H, W, C] or [{front}C, H, W], got {list(array.shape)}",
            hint=hint,
        )
    return eight_bits(channels_last(array, first=is_tensor(source)))


def is_tensor(source: Any) -> bool:
    return hasattr(source, "detach") and hasattr(source, "cpu")


def is_array(source: Any) -> bool:
    """Whether ``source`` is an array or tensor that numpy can convert directly."""
    return isinstance(source, np.ndarray) or is_tensor(source) or hasattr(source, "__array__")


def as_array(source: Any) -> npt.NDArray[Any]:
    """Convert an array, or a tensor on any device, to numpy; bfloat16 and half become float32."""
    if is_tensor(source):
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
    array: npt.NDArray[Any] = np.asarray(source)
    if array.dtype.kind not in "buif":
        raise MediaError(
            f"values of type {array.dtype} are not an image", hint="pass uint8, uint16, or floats in 0..1 or 0..255"
        )
    return array


def channels_last(array: npt.NDArray[Any], *, first: bool) -> npt.NDArray[Any]:
    """Move channels to the end, ``[..., H, W, C]``; ``first``: in ambiguous cases they come before height and width."""
    fits_first, fits_last = 1 <= array.shape[-3] <= 4, 1 <= array.shape[-1] <= 4
    if not fits_first and not fits_last:
        raise MediaError(
            f"no axis of shape {list(array.shape)} has 1 to 4 channels", hint="pass grey, grey and alpha, RGB or RGBA"
        )
    return np.moveaxis(array, -3, -1) if fits_first and (first or not fits_last) else array


def eight_bits(values: npt.NDArray[Any], full: float | None = None) -> Bytes:
    """Scale values of any type to 0..255.

    uint8 is unchanged, bool becomes 0 and 255, uint16 is divided by 257; ``full`` gives the value of white. Other integers
    are taken as 8 bits where all lie within 0..255, as 16 bits within 0..65535. Floats within [0, 1] are multiplied by 255,
    within [0, 255] rounded; integral floats within 0..65535 are 16 bits. Everything else is stretched from its minimum to
    its maximum, with a :class:`MediaWarning`, because black and white are not defined.

    Raises:
        MediaError: NaN or infinity.
    """
    if values.dtype == np.uint8 and full is None:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise MediaError("the image contains NaN or infinity", hint="replace these values first")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if full is None:
        full = _white(values, low, high)
    if full is None:
        warnings.warn(
            f"pixel values from {low:g} to {high:g} are neither 0..1 nor 8 or 16 bits: they were stretched from black to "
            "white",
            MediaWarning,
            stacklevel=3,
        )
    start, width = (low, (high - low) or 1.0) if full is None else (0.0, full)
    scaled = (values.astype(np.float32) - np.float32(start)) * np.float32(255.0 / width)
    narrow: Bytes = np.rint(scaled).clip(0, 255).astype(np.uint8)
    return narrow


def _white(values: npt.NDArray[Any], low: float, high: float) -> float | None:
    """Return the value of white; None where it is unknown."""
    if values.dtype == np.uint16 or values.dtype.newbyteorder("=") == np.uint16:
        return 65535.0
    whole = values.dtype.kind in "ui"
    if not whole and low >= -TOLERANCE and high <= 1 + TOLERANCE:
        return 1.0
    tolerance = 0.0 if whole else 0.5
    if low >= -tolerance and high <= 255 + tolerance:
        return 255.0
    return 65535.0 if low >= 0 and high <= 65535 and (whole or bool((values == np.rint(values)).all())) else None


def _image_of(array: Bytes) -> Image.Image:
    array = np.ascontiguousarray(array)
    if array.shape[-1] == 1:
        return Image.fromarray(array[..., 0])
    return Image.fromarray(array)  # two channels: LA, three: RGB, four: RGBA


def _narrowed(image: Image.Image) -> Image.Image:
    """Convert modes of more than 8 bits to L, or to LA where one value is marked transparent."""
    tags: Any = getattr(image, "tag_v2", None) or {}
    bits, signed = (tags.get(258) or (0,))[0], (tags.get(339) or (1,))[0] == 2
    values: npt.NDArray[Any] = np.asarray(image)
    full: float | None = None
    if bits == 32 and not signed and image.mode == "I":
        values = values.view(np.uint32)
    elif bits in (12, 16):
        full = float(2 ** (bits - signed) - 1) if not values.size or values.min() >= 0 else None
    elif image.mode == "I" and image.format in ("PNG", "PPM", "JPEG2000"):
        full = 65535.0
    grey = eight_bits(values, full)
    if tags.get(262) == 0 and image.mode != "I":  # white is zero, which Pillow inverts for 8 bits only
        grey = 255 - grey
    key = image.info.get("transparency")
    if isinstance(key, int):
        return Image.fromarray(np.stack([grey, np.where(values == key, 0, 255).astype(np.uint8)], axis=-1))
    return Image.fromarray(grey)


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in _ALPHA or "transparency" in image.info


def _keyed(image: Image.Image) -> Image.Image:
    """Apply the transparent colour key of L or RGB. For 16-bit samples Pillow keeps only the high byte, but the full key."""
    key = image.info["transparency"]
    parts = key if isinstance(key, tuple) else (key,)
    if all(isinstance(p, int) for p in parts) and max(parts) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(p >> 8 for p in parts) if isinstance(key, tuple) else key >> 8
    return image.convert("RGBA")


def _from_lab(image: Image.Image) -> Image.Image:
    cms = _cms()
    if cms is None:
        raise MediaError("the image is in LAB, and this Pillow has no LittleCMS", hint="re-save it as an RGB PNG")
    made = cms.profileToProfile(image, cms.createProfile("LAB"), cms.createProfile("sRGB"), outputMode="RGB")
    return made or image


def _managed(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert colours to sRGB, if the profile matches the image's colour space and is not sRGB already."""
    cms = _cms()
    plain = image.convert("L") if image.mode == "LA" else image
    if cms is None or plain.mode not in _SPACES:
        return image
    try:
        source = cms.ImageCmsProfile(io.BytesIO(profile))
        if str(source.profile.xcolor_space).strip() != _SPACES[plain.mode]:
            return image
        if "srgb" in cms.getProfileDescription(source).lower():
            return image
        mode = "RGBA" if plain.mode == "RGBA" else "RGB"
        made: Image.Image | None = cms.profileToProfile(plain, source, cms.createProfile("sRGB"), outputMode=mode)
    except (cms.PyCMSError, OSError, ValueError, TypeError):  # viewers ignore a profile that they cannot read
        return image
    if made is None:
        return image
    if image.mode == "LA":
        made.putalpha(image.getchannel("A"))
    return made


def _cms() -> Any:
    try:
        from PIL import ImageCms, features
    except ImportError:
        return None
    return ImageCms if features.check("littlecms2") else None
