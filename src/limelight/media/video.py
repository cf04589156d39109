"""Reading video: evenly spaced frames of a file and when each was shown, by PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from limelight.errors import MediaError, MissingExtraError, SettingError
from limelight.media.image import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    MAX_SECONDS,
    existing,
    kind_of,
    read_image,
)
from limelight.types import Clip

FRAMES = 8
MAX_FRAMES = 768


def read_video(source: Any, frames: int = FRAMES, *, max_seconds: float = MAX_SECONDS) -> Clip:
    """``frames`` evenly spaced RGB frames of a file (first and last included), with their times.

    A :class:`Clip` is taken as it is. A list of pictures says nothing about time, and is taken as one picture a second;
    build a Clip for anything else.

    Raises:
        MediaError: missing, not a video, too long, too large, cut short, or no frames.
        MissingExtraError: PyAV is not installed (``limelight[video]``).
    """
    if not 1 <= frames <= MAX_FRAMES:
        raise SettingError(f"frames must be 1 to {MAX_FRAMES}, got {frames}", hint=f"{FRAMES} is a common choice")
    if isinstance(source, Clip):
        return source
    if isinstance(source, (list, tuple)):
        if not source:
            raise MediaError("the video has no frames", hint="pass at least one picture")
        return Clip(_same_size([read_image(frame) for frame in source]), tuple(map(float, range(len(source)))))
    path = existing(source)
    if path.suffix.lower() in IMAGE_SUFFIXES | AUDIO_SUFFIXES:
        raise MediaError(f"{path.name} is {kind_of(path)}, expected a video", hint="pass it as --image or --audio")
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("av", "video") from error
    try:
        return _decode(path, frames, max_seconds)
    except (av.FFmpegError, IndexError, OverflowError) as error:
        raise MediaError(
            f"{path.name} is not a video that can be read: {error}", hint="convert it to MP4 (H.264)"
        ) from error


def _decode(path: Path, frames: int, max_seconds: float) -> Clip:
    import av

    with av.open(str(path)) as container:
        if not container.streams.video:
            raise MediaError(f"{path.name} has no video in it", hint="pass sound as --audio")
        seconds = (container.duration or 0) / 1e6
        if seconds > max_seconds:
            raise MediaError(
                f"{path.name} lasts {seconds:.0f} s, the limit is {max_seconds:.0f} s", hint="cut it into pieces"
            )
        stream = container.streams.video[0]
        if stream.width * stream.height > MAX_PIXELS:
            raise MediaError(
                f"the frames have {stream.width} x {stream.height} pixels, the limit is {MAX_PIXELS:,}",
                hint="make the video smaller first",
            )
        # a header's count of frames is missing or wrong often enough; counting packets does not decode
        total = sum(1 for packet in container.demux(stream) if packet.size)
        rate = float(stream.average_rate or stream.guessed_rate or 0) or (total / seconds if seconds else 1.0)
    if not total:
        raise MediaError(f"{path.name} has no frames", hint="check the file in a player")
    wanted = set(np.linspace(0, total - 1, min(frames, total)).round().astype(int).tolist())
    pictures, times = [], []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        first: float | None = None
        for i, frame in enumerate(container.decode(stream)):
            at = float(frame.time) if frame.time is not None else i / rate
            first = at if first is None else first
            if i not in wanted:
                continue
            picture = frame.to_image()
            turned = int(getattr(frame, "rotation", 0) or 0)
            pictures.append((picture.rotate(turned, expand=True) if turned else picture).convert("RGB"))
            times.append(max(0.0, at - first))
            if len(pictures) == len(wanted):
                break
    if len(pictures) < len(wanted):
        raise MediaError(
            f"only {len(pictures)} of the {len(wanted)} frames that were asked for could be decoded from {path.name}",
            hint="the file is cut short: get it again, or re-encode it",
        )
    return Clip(tuple(pictures), tuple(times), rate, max(total / rate, times[-1] + 1 / rate))


def _same_size(pictures: Sequence[Image.Image]) -> tuple[Image.Image, ...]:
    sizes = sorted({p.size for p in pictures})
    if len(sizes) > 1:
        raise MediaError(f"the frames differ in size: {sizes[:4]}", hint="bring them to one size first")
    return tuple(pictures)
