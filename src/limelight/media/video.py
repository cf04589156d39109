"""Reading video with PyAV: evenly spaced frames of a file and their timestamps."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from limelight.errors import LimelightError, MediaError, MediaWarning, MissingExtraError, SettingError
from limelight.media.container import contained
from limelight.media.frames import displayed, picture
from limelight.media.image import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    MAX_SECONDS,
    kind_of,
    opened,
    read_image,
    unwrapped,
)
from limelight.media.pixels import WHITE, frames_from_array, is_array
from limelight.types import Clip

FRAMES = 8
MAX_FRAMES = 768
_HINT = "convert it to MP4 (H.264)"


def read_video(
    source: Any,
    frames: int = FRAMES,
    *,
    max_seconds: float = MAX_SECONDS,
    max_pixels: int = MAX_PIXELS,
    max_total_pixels: int | None = None,
    container: str | None = None,
    codecs: frozenset[str] | None = None,
    background: Any = WHITE,
    between: tuple[float, float] | None = None,
) -> Clip:
    """Read ``frames`` evenly spaced RGB frames of a file (first and last included), with their timestamps.

    Frames are rotated by the display matrix, have square pixels and transparency on ``background``; HDR is converted to
    SDR. They are evenly spaced in time where frame durations differ, else by frame index.

    A :class:`Clip` is returned unchanged. A list of images, or an array or a tensor ``[T, H, W, C]`` or ``[T, C, H, W]``,
    has no timestamps and is read as one frame per second; build a Clip for anything else. A file shorter than its
    header declares is read as far as it goes, with a :class:`MediaWarning`.

    Args:
        max_pixels: per frame; ``max_total_pixels``: over all frames that must be decoded.
        between: (start, stop) in seconds: only frames of this part of a file.
        container: the demuxer to use; None: detected. ``codecs``: the allowed codecs; all by default.

    Raises:
        MediaError: missing, not a video, too long, too large, truncated, or no frames.
        MissingExtraError: PyAV is not installed (``limelight[video]``).
    """
    if not 1 <= frames <= MAX_FRAMES:
        raise SettingError(f"frames must be 1 to {MAX_FRAMES}, got {frames}", hint=f"{FRAMES} is a common choice")
    if isinstance(source, Clip):
        return source
    if isinstance(source, (list, tuple)):
        if not source:
            raise MediaError("the video has no frames", hint="pass at least one image")
        return _one_a_second([read_image(frame, max_pixels=max_pixels, background=background) for frame in source])
    if is_array(source) and not isinstance(source, Image.Image):
        return _one_a_second(
            [read_image(f, max_pixels=max_pixels, background=background) for f in frames_from_array(source)]
        )
    file, name = opened(unwrapped(source) if isinstance(source, Mapping) else source)
    if isinstance(file, Path) and file.suffix.lower() in IMAGE_SUFFIXES | AUDIO_SUFFIXES:
        raise MediaError(f"{name} is {kind_of(file)}, expected a video", hint="pass it as --image or --audio")
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("av", "video") from error
    film = _Film(av, file, name, max_seconds, max_pixels, max_total_pixels, container, codecs, background)
    try:
        return replace(film.clip(frames, between), source=source)
    except (LimelightError, MediaWarning, MemoryError):
        raise
    except Exception as error:  # decoders raise any kind of exception on bad input
        raise MediaError(f"{name} cannot be read as a video: {error}", hint=_HINT) from error


def _one_a_second(pictures: Sequence[Image.Image]) -> Clip:
    sizes = sorted({p.size for p in pictures})
    if len(sizes) > 1:
        raise MediaError(f"the frames differ in size: {sizes[:4]}", hint="resize them to one size first")
    return Clip(tuple(pictures), tuple(map(float, range(len(pictures)))))


@dataclass(frozen=True)
class _Facts:
    """What the packets of a video declare before decoding: times in seconds, in presentation order."""

    count: int
    times: Sequence[float]
    rate: float
    aspect: float


@dataclass(frozen=True)
class _Film:
    av: Any
    file: Path | io.BytesIO
    name: str
    max_seconds: float
    max_pixels: int
    max_total_pixels: int | None
    container: str | None
    codecs: frozenset[str] | None
    background: Any

    def clip(self, frames: int, between: tuple[float, float] | None = None) -> Clip:
        facts = self._facts()
        wanted = _spaced(facts, frames, between)
        clip, decoded = self._decoded(facts, wanted)
        if decoded <= max(wanted):
            if decoded < 0.9 * facts.count:
                raise MediaError(
                    f"only {decoded} of {facts.count} frames of {self.name} could be decoded",
                    hint="the file is truncated: download it again, or re-encode it",
                )
            # VP8 has packets without a visible frame
            shown = _Facts(decoded, (), facts.rate, facts.aspect)
            clip, decoded = self._decoded(shown, _spaced(shown, frames, between))
        return clip

    def _facts(self) -> _Facts:
        with contained(self.av, self.file, self.container) as film:
            if not film.streams.video:
                raise MediaError(f"{self.name} has no video stream", hint="pass audio files as --audio")
            stream = film.streams.video[0]
            codec = str(stream.codec_context.name)
            if self.codecs is not None and codec not in self.codecs:
                raise MediaError(f"the video codec {codec[:32]} is not accepted", hint=_HINT)
            aspect = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 0) or 1.0
            width, height = stream.codec_context.width, stream.codec_context.height
            self._check_size(width, height, aspect)
            declared = (film.duration or 0) / 1e6
            self._check_length(declared)
            count, ends, times = 0, 0.0, []
            # frame counts in headers are often missing or wrong; counting packets needs no decoding
            for packet in film.demux(stream, *film.streams.audio[:1]):
                if not packet.size:
                    continue
                at = packet.pts if packet.pts is not None else packet.dts
                seconds = None if at is None or packet.time_base is None else float(at * packet.time_base)
                if seconds is not None:
                    ends = max(ends, seconds + float((packet.duration or 0) * packet.time_base))
                if packet.stream is not stream:
                    continue
                count += 1
                if seconds is not None:
                    times.append(seconds)
                    self._check_length(max(times[0], seconds) - min(times[0], seconds))
                if self.max_total_pixels is not None and count * width * height > self.max_total_pixels:
                    raise MediaError(
                        f"the video has more than {self.max_total_pixels:,} pixels over all frames",
                        hint="make it smaller, or use fewer frames per second",
                    )
            rate = float(stream.average_rate or stream.guessed_rate or 0) or (count / declared if declared else 1.0)
            listed = int(stream.frames or 0)
            start = (film.start_time or 0) / 1e6
        if not count:
            raise MediaError(f"{self.name} has no frames", hint="check the file in a player")
        missing = declared - max(0.0, ends - start) if times else 0.0
        if listed - count > max(1, 0.02 * listed) or missing > max(0.5, 2 / rate, 0.02 * declared):
            of = f"{count} of {listed} frames" if listed > count else f"{declared - missing:.1f} s of {declared:.1f} s"
            warnings.warn(f"{self.name} is truncated: {of} are present", MediaWarning, stacklevel=4)
        return _Facts(count, sorted(times) if len(times) == count else (), rate, aspect)

    def _check_size(self, width: int, height: int, aspect: float) -> None:
        width, height = displayed(width, height, aspect)
        if not 0 < width * height <= self.max_pixels:
            raise MediaError(
                f"the video has {width} x {height} pixels per frame, the limit is {self.max_pixels:,}",
                hint="make it smaller first",
            )

    def _check_length(self, seconds: float) -> None:
        if seconds > self.max_seconds:
            raise MediaError(
                f"{self.name} is longer than the limit of {self.max_seconds:g} s", hint="split it into pieces"
            )

    def _decoded(self, facts: _Facts, wanted: set[int]) -> tuple[Clip, int]:
        """Decode up to the last wanted frame; return the wanted frames and how many were decoded."""
        pictures: list[Image.Image] = []
        times: list[float] = []
        decoded = pixels = 0
        first: float | None = None
        with contained(self.av, self.file, self.container) as film:
            stream = film.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in film.decode(stream):
                self._check_size(frame.width, frame.height, facts.aspect)  # the size may change within a stream
                pixels += frame.width * frame.height
                if self.max_total_pixels is not None and pixels > self.max_total_pixels:
                    break
                at = float(frame.time) if frame.time is not None else decoded / facts.rate
                first = at if first is None else first
                if decoded in wanted:
                    pictures.append(picture(frame, facts.aspect, self.background))
                    times.append(max(at - first, times[-1] if times else 0.0))
                decoded += 1
                if decoded > max(wanted):
                    break
        if not pictures:
            raise MediaError(f"no frame of {self.name} could be decoded", hint="re-encode the video")
        if len({p.size for p in pictures}) > 1:
            raise MediaError("the frames differ in size", hint="re-encode the video")
        duration = max(facts.count / facts.rate, times[-1] + 1 / facts.rate)
        return Clip(tuple(pictures), tuple(times), facts.rate, duration), decoded


def _spaced(facts: _Facts, frames: int, between: tuple[float, float] | None = None) -> set[int]:
    """Return the indices of the frames to read, in presentation order."""
    if between is not None:
        times = np.asarray(facts.times) if len(facts.times) else np.arange(facts.count) / facts.rate
        times = times - times[0]
        inside = np.flatnonzero((times >= between[0] - 1e-6) & (times <= between[1] + 1e-6))
        if not len(inside):
            inside = np.array([int(np.abs(times - sum(between) / 2).argmin())])
        return {int(i) for i in inside[np.linspace(0, len(inside) - 1, min(frames, len(inside))).round().astype(int)]}
    count = min(frames, facts.count)
    steps = np.diff(np.asarray(facts.times))
    if count < 3 or not len(steps) or steps.max() <= 1.5 * max(float(np.median(steps)), 1e-9):
        return set(np.linspace(0, facts.count - 1, count).round().astype(int).tolist())
    times = np.asarray(facts.times)
    targets = np.linspace(times[0], times[-1], count)
    return {int(np.abs(times - t).argmin()) for t in targets}
