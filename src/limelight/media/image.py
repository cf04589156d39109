"""Files that people hand in, and pictures: checked, bounded, with errors that say what to do.

Sound is read in :mod:`limelight.media.audio`, video in :mod:`limelight.media.video`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from limelight.errors import MediaError

MAX_PIXELS = 64_000_000
MAX_SECONDS = 30 * 60.0
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".mp3", ".m4a", ".aac", ".opus", ".aiff", ".aif", ".wma"})
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi"})


def kind_of(path: str | Path) -> str:
    """``image``, ``audio`` or ``video``, from the file's name.

    Raises:
        MediaError: the ending is of none of them.
    """
    suffix = Path(path).suffix.lower()
    for kind, suffixes in (("image", IMAGE_SUFFIXES), ("audio", AUDIO_SUFFIXES), ("video", VIDEO_SUFFIXES)):
        if suffix in suffixes:
            return kind
    raise MediaError(
        f"cannot tell what {Path(path).name!r} is from its ending {suffix!r}",
        hint=f"pictures {', '.join(sorted(IMAGE_SUFFIXES))}; sound {', '.join(sorted(AUDIO_SUFFIXES))}; "
        f"video {', '.join(sorted(VIDEO_SUFFIXES))}",
    )


def read_image(source: Any, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An RGB picture from a file or a PIL image, turned upright by its EXIF orientation.

    Raises:
        MediaError: missing, not a picture, cut short, or more than ``max_pixels``.
    """
    from PIL import ImageOps

    if isinstance(source, Image.Image):
        image = source
    else:
        path = existing(source)
        if path.suffix.lower() in AUDIO_SUFFIXES | VIDEO_SUFFIXES:
            raise MediaError(
                f"{path.name} is {kind_of(path)}, expected a picture", hint="pass it as --audio or --video"
            )
        try:
            image = Image.open(path)
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise MediaError(
                f"{path.name} is not a picture that can be read: {error}", hint="open and re-save it as PNG"
            ) from error
    if image.width * image.height > max_pixels:
        if image is not source:
            image.close()
        raise MediaError(
            f"the picture has {image.width} x {image.height} pixels, the limit is {max_pixels:,}",
            hint="make it smaller first",
        )
    if not image.width or not image.height:
        raise MediaError(f"the picture is {image.width} x {image.height} pixels", hint="it needs at least one pixel")
    try:
        image.load()
        upright: Image.Image = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"the picture is corrupt: {error}", hint="get the file again, or re-save it as PNG") from error
    finally:
        if image is not source:
            image.close()
    return upright


def existing(source: Any) -> Path:
    """A readable file.

    Raises:
        MediaError: not a path, a URL, missing, a folder, or empty.
    """
    if not isinstance(source, (str, Path)):
        raise MediaError(
            f"expected a file or an object of the right kind, got {type(source).__name__}", hint="pass a path"
        )
    if "://" in str(source):
        raise MediaError(
            f"{str(source)[:60]!r} is a URL; nothing is downloaded here", hint="download the file and pass its path"
        )
    path = Path(source)
    if not path.is_file():
        raise MediaError(f"there is no file {str(source)!r}", hint="check the path")
    if path.stat().st_size == 0:
        raise MediaError(f"{path.name} is empty (0 bytes)", hint="get the file again")
    return path
