"""Pictures and sounds that strangers send: bytes in, checked objects out. No path is ever opened."""

from __future__ import annotations

import base64
import binascii
import io
import re
from typing import Any

import numpy as np
from PIL import Image

from limelight.errors import LimelightError, MediaError, MissingExtraError
from limelight.media.image import read_image
from limelight.server.limits import Limits

PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # no format whose reader runs programs or reads other files
SOUNDS = {"wav": ("WAV", "WAVEX"), "mp3": ("MP3", "MPEG"), "flac": ("FLAC",), "ogg": ("OGG",)}
RATES = range(4000, 192_001)
MAX_CHANNELS = 8
_DATA_URL = re.compile(r"data:(?P<type>[a-z]+/[a-z0-9.+-]+);base64,", re.IGNORECASE)
_HINTS = {"image": "send it as data:image/png;base64,...", "video": "send it as data:video/mp4;base64,..."}


def is_data_url(url: str) -> bool:
    return url[:5].lower() == "data:"


def split_data_url(url: str, family: str, limits: Limits) -> tuple[str, bytes]:
    """``(media type, bytes)`` of a ``data:image/...;base64,`` or ``data:video/...;base64,`` address."""
    head = _DATA_URL.match(url[:128])
    if head is None or not head["type"].lower().startswith(f"{family}/"):
        raise MediaError(f"the data URL is not of the form data:{family}/...;base64,...", hint=_HINTS[family])
    return head["type"].lower(), from_base64(url[head.end() :], limits)


def from_base64(text: str, limits: Limits) -> bytes:
    """Strict base64, at most ``limits.media_bytes`` of it."""
    if len(text) * 3 // 4 > limits.media_bytes + 2:
        raise MediaError(f"more than {limits.media_bytes:,} bytes", hint="make it smaller first")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError("not valid base64", hint="encode the file's bytes, without line breaks") from error
    if not data:
        raise MediaError("no bytes", hint="encode a whole file")
    return data


def open_picture(data: bytes, limits: Limits) -> Image.Image:
    """A picture whose header was read and whose size fits; nothing is decompressed yet."""
    try:
        image = Image.open(io.BytesIO(data), formats=PICTURES)
    except Exception as error:  # a decoder fed with anything raises anything
        raise MediaError(f"not a picture of a kind read here ({', '.join(PICTURES)})", hint=_HINTS["image"]) from error
    if not 0 < image.width * image.height <= limits.pixels:
        raise MediaError(
            f"the picture has {image.width} x {image.height} pixels, the limit is {limits.pixels:,}",
            hint="make it smaller first",
        )
    return image


def decode_picture(image: Image.Image, limits: Limits) -> Image.Image:
    """The picture of :func:`open_picture`, decompressed: RGB, upright."""
    try:
        return read_image(image, max_pixels=limits.pixels)
    except LimelightError:
        raise
    except Exception as error:  # see open_picture
        raise MediaError("the picture is corrupt", hint="re-save it as PNG") from error


def decode_sound(data: bytes, kind: str | None, limits: Limits) -> tuple[np.ndarray[Any, np.dtype[np.float32]], int]:
    """``(samples [n] mono, rate)``; at most ``limits.seconds``, whatever the header says. ``kind`` None: any that is read.

    Raises:
        MediaError: not of that format, too long, too many channels, an odd rate, or not finite.
        MissingExtraError: soundfile is not installed.
    """
    try:
        import soundfile
    except ImportError as error:
        raise MissingExtraError("soundfile", "audio") from error
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            found, rate, channels = str(file.format), int(file.samplerate), int(file.channels)
            if kind is None and found not in sum(SOUNDS.values(), ()):
                raise MediaError(f"sound of the kind {found} is not read here", hint=f"one of {', '.join(SOUNDS)}")
            if kind is not None and found not in SOUNDS[kind]:
                raise MediaError(f"the sound is {found}, declared as {kind}", hint="declare the format it has")
            if rate not in RATES or not 1 <= channels <= MAX_CHANNELS:
                raise MediaError(
                    f"{rate} Hz with {channels} channels is not accepted",
                    hint=f"{RATES.start} to {RATES.stop - 1} Hz and at most {MAX_CHANNELS} channels",
                )
            most = min(int(limits.seconds * rate), limits.samples // channels)
            samples = file.read(frames=most + 1, dtype="float32", always_2d=True)
    except LimelightError:
        raise
    except Exception as error:  # see open_picture
        raise MediaError(
            f"not sound that can be read as {kind or ', '.join(SOUNDS)}", hint="convert it to WAV"
        ) from error
    if not 0 < len(samples) <= most:
        raise MediaError(
            "the sound is empty" if not len(samples) else f"the sound lasts more than {most / rate:.0f} s",
            hint="cut it into pieces of at least one sample",
        )
    mono = np.ascontiguousarray(samples.mean(axis=1), dtype=np.float32)
    if not np.isfinite(mono).all():
        raise MediaError("the sound holds NaN or infinity", hint="export it again")
    return mono, rate
