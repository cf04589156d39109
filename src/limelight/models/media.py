"""Reading pictures, sound and video that people hand in: checked, bounded, with errors that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from limelight.errors import MediaError, MissingExtraError, SettingError

MAX_PIXELS = 64_000_000
MAX_SECONDS = 30 * 60.0
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".m4a", ".opus", ".aiff"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".webm", ".mov", ".avi"})


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


def read_audio(source: Any, rate: int, *, max_seconds: float = MAX_SECONDS) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Mono float32 samples at ``rate`` Hz, from a file or from ``(samples, rate)``; ``[n]`` or ``[n, channels]``.

    Raises:
        MediaError: missing, not sound, empty, too long, or not finite.
        MissingExtraError: soundfile or soxr is not installed (``limelight[audio]``).
    """
    if isinstance(source, tuple) and len(source) == 2:
        samples, found = np.asarray(source[0], dtype=np.float32), int(source[1])
    elif isinstance(source, np.ndarray):
        samples, found = source.astype(np.float32), rate
    else:
        samples, found = _decode(existing(source), max_seconds)
    if found <= 0:
        raise MediaError(
            f"a sampling rate of {found} Hz makes no sense", hint="pass (samples, rate) with the true rate"
        )
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if samples.ndim != 1 or samples.size == 0:
        raise MediaError(
            f"the sound is empty or has shape {samples.shape}", hint="expected [samples] or [samples, channels]"
        )
    if not np.isfinite(samples).all():
        raise MediaError("the sound holds NaN or infinity", hint="export it again")
    if samples.size / found > max_seconds:
        raise MediaError(
            f"the sound lasts {samples.size / found:.0f} s, the limit is {max_seconds:.0f} s", hint="cut it into pieces"
        )
    if found != rate:
        try:
            import soxr
        except ImportError as error:
            raise MissingExtraError("soxr", "audio") from error
        samples = soxr.resample(samples, found, rate).astype(np.float32)
    return samples


def _decode(path: Path, max_seconds: float) -> tuple[np.ndarray[Any, np.dtype[np.float32]], int]:
    if path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        raise MediaError(f"{path.name} is {kind_of(path)}, expected sound", hint="pass it as --image or --video")
    try:
        import soundfile
    except ImportError as error:
        raise MissingExtraError("soundfile", "audio") from error
    try:
        info = soundfile.info(str(path))
        if info.duration > max_seconds:
            raise MediaError(
                f"{path.name} lasts {info.duration:.0f} s, the limit is {max_seconds:.0f} s", hint="cut it into pieces"
            )
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=False)
    except soundfile.SoundFileError as error:
        raise MediaError(
            f"{path.name} is not sound that can be read: {error}", hint="convert it to WAV or FLAC"
        ) from error
    return samples, int(rate)


def read_video(source: Any, frames: int = 8, *, max_seconds: float = MAX_SECONDS) -> list[Image.Image]:
    """``frames`` evenly spaced RGB frames of a file (first and last included), or a list of pictures as it is.

    Raises:
        MediaError: missing, not a video, too long, or no frames.
        MissingExtraError: PyAV is not installed (``limelight[video]``).
    """
    if frames < 1:
        raise SettingError(f"frames must be at least 1, got {frames}", hint="8 is a common choice")
    if isinstance(source, (list, tuple)):
        if not source:
            raise MediaError("the video has no frames", hint="pass at least one picture")
        return [read_image(frame) for frame in source]
    path = existing(source)
    if path.suffix.lower() in IMAGE_SUFFIXES | AUDIO_SUFFIXES:
        raise MediaError(f"{path.name} is {kind_of(path)}, expected a video", hint="pass it as --image or --audio")
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("av", "video") from error
    try:
        with av.open(str(path)) as container:
            seconds = (container.duration or 0) / 1e6
            if seconds > max_seconds:
                raise MediaError(
                    f"{path.name} lasts {seconds:.0f} s, the limit is {max_seconds:.0f} s", hint="cut it into pieces"
                )
            stream = container.streams.video[0]
            total = stream.frames or sum(1 for _ in container.decode(stream))
            container.seek(0)
            wanted = set(np.linspace(0, max(total - 1, 0), min(frames, total)).round().astype(int).tolist())
            picked = [frame.to_image() for i, frame in enumerate(container.decode(stream)) if i in wanted]
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise MediaError(
            f"{path.name} is not a video that can be read: {error}", hint="convert it to MP4 (H.264)"
        ) from error
    if not picked:
        raise MediaError(f"{path.name} has no frames", hint="check the file in a player")
    return [picture.convert("RGB") for picture in picked]


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
