"""Reading user-supplied files and images: validated and size-limited, with actionable errors.

Audio is read in :mod:`limelight.media.audio`, video in :mod:`limelight.media.video`.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from limelight.errors import LimelightError, MediaError, MediaWarning
from limelight.media.pixels import WHITE, colour, from_array, is_array, rgb

MAX_PIXELS = 64_000_000
MAX_SECONDS = 30 * 60.0
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".mp3", ".m4a", ".aac", ".opus", ".aiff", ".aif", ".wma"})
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi"})
_MANY = frozenset({"GIF", "PNG", "WEBP", "TIFF", "AVIF"})  # formats whose files may hold several images
_TURNS = {  # EXIF orientation -> transpose that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def kind_of(path: str | Path) -> str:
    """Infer ``image``, ``audio`` or ``video`` from a file's extension.

    Raises:
        MediaError: the extension is not known.
    """
    suffix = Path(path).suffix.lower()
    for kind, suffixes in (("image", IMAGE_SUFFIXES), ("audio", AUDIO_SUFFIXES), ("video", VIDEO_SUFFIXES)):
        if suffix in suffixes:
            return kind
    raise MediaError(
        f"cannot tell the media type of {Path(path).name!r} from its extension {suffix!r}",
        hint=f"images {', '.join(sorted(IMAGE_SUFFIXES))}; audio {', '.join(sorted(AUDIO_SUFFIXES))}; "
        f"video {', '.join(sorted(VIDEO_SUFFIXES))}",
    )


def read_image(
    source: Any,
    *,
    max_pixels: int = MAX_PIXELS,
    background: Any = WHITE,
    formats: Sequence[str] | None = None,
) -> Image.Image:
    """Read an upright RGB image, as a viewer shows it, from a file, a file's bytes, a PIL image, an array or a tensor.

    Values, transparency and colours: :func:`limelight.media.pixels.rgb`; arrays:
    :func:`limelight.media.pixels.from_array`. EXIF orientation is applied. From an animation (GIF, APNG, WebP) or a
    multi-page TIFF the first image is read, with a :class:`MediaWarning`; from a PIL image its current frame.

    Args:
        source: also ``{"bytes": ..., "path": ...}``, as in Hugging Face datasets.
        background: the colour behind transparent pixels.
        formats: Pillow's names of the formats that may be read; all by default.

    Raises:
        MediaError: missing, not an image, truncated, or more than ``max_pixels``.
        SettingError: ``background`` is not a colour.
    """
    colour(background)
    if isinstance(source, Mapping):
        source = unwrapped(source)
    if isinstance(source, Image.Image):
        return _decoded(source, max_pixels, background)
    if is_array(source):
        shape = [n for n in getattr(source, "shape", ()) if n > 4]
        _check_size(int(np.prod(shape[:2], dtype=np.int64)) if shape else 1, tuple(shape[:2]), max_pixels)
        return rgb(from_array(source), background)
    file, name = opened(source)
    if isinstance(file, Path) and file.suffix.lower() in AUDIO_SUFFIXES | VIDEO_SUFFIXES:
        raise MediaError(f"{name} is {kind_of(file)}, expected an image", hint="pass it as --audio or --video")
    try:
        image = Image.open(file, formats=None if formats is None else tuple(formats))
    except Image.DecompressionBombError as error:
        raise MediaError(f"{name} has too many pixels: {error}", hint="make it smaller first") from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise any kind of exception on bad input
        known = f" in a supported format ({', '.join(formats)})" if formats else " that can be read"
        raise MediaError(f"{name} is not an image{known}: {error}", hint="open and re-save it as PNG") from error
    with image:
        if _holds_several(image):
            warnings.warn(f"{name} contains several images: only the first is used", MediaWarning, stacklevel=2)
        return _decoded(image, max_pixels, background)


def _decoded(image: Image.Image, max_pixels: int, background: Any) -> Image.Image:
    _check_size(image.width * image.height, image.size, max_pixels)
    try:
        image.load()
        turn = _TURNS.get(image.getexif().get(0x0112, 1))
        upright = rgb(image, background)
    except (LimelightError, MediaWarning, MemoryError):
        raise
    except Exception as error:  # see read_image
        raise MediaError(
            f"the image is corrupt: {error}", hint="download the file again, or re-save it as PNG"
        ) from error
    return upright if turn is None else upright.transpose(turn)


def _holds_several(image: Image.Image) -> bool:
    if image.format not in _MANY:
        return False
    try:
        return bool(getattr(image, "is_animated", False))  # n_frames would read all of them
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  # the rest of the file is broken; the first image is read anyway
        return True


def _check_size(pixels: int, size: tuple[int, ...], most: int) -> None:
    if pixels > most:
        raise MediaError(
            f"the image has {' x '.join(map(str, size))} pixels, the limit is {most:,}", hint="make it smaller first"
        )
    if not pixels:
        raise MediaError(f"the image is {' x '.join(map(str, size))} pixels", hint="it needs at least one pixel")


def unwrapped(source: Mapping[str, Any]) -> Any:
    """Return the bytes or the path of ``{"bytes": ..., "path": ...}``.

    Raises:
        MediaError: it has neither.
    """
    found = next((source[k] for k in ("bytes", "path") if source.get(k) is not None), None)
    if found is None:
        raise MediaError(
            f"expected bytes or a path in the mapping, got {sorted(map(str, source))[:9]}",
            hint="{'bytes': data} or {'path': 'file'}",
        )
    return found


def opened(source: Any) -> tuple[Path | io.BytesIO, str]:
    """Return a file's path, or its bytes as a file object, and its name for error messages.

    Raises:
        MediaError: see :func:`existing`; or there are no bytes.
    """
    if not isinstance(source, (bytes, bytearray, memoryview)):
        path = existing(source)
        return path, path.name
    if not len(source):
        raise MediaError("the file is empty (0 bytes)", hint="download the file again")
    return io.BytesIO(source), "the file"


def existing(source: Any) -> Path:
    """Return the path of a readable, non-empty local file.

    Raises:
        MediaError: not a path, a URL, missing, a folder, or empty.
    """
    if not isinstance(source, (str, Path)):
        raise MediaError(
            f"expected a file or an object of a supported type, got {type(source).__name__}", hint="pass a path"
        )
    if "://" in str(source) or re.match("https?:/", str(source)):  # a Path has one slash left
        raise MediaError(
            f"{str(source)[:60]!r} is a URL; nothing is downloaded here", hint="download the file and pass its path"
        )
    path = Path(source)
    if path.is_dir():
        raise MediaError(f"{str(source)!r} is a folder", hint="pass the files in it")
    if not path.is_file():
        raise MediaError(f"there is no file {str(source)!r}", hint="check the path")
    if path.stat().st_size == 0:
        raise MediaError(f"{path.name} is empty (0 bytes)", hint="download the file again")
    return path
