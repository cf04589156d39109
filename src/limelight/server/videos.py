"""Videos that strangers send: bytes in, a few frames out. No path is ever opened, and no other file by what a video says."""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
from PIL import Image

from limelight.errors import LimelightError, MediaError, MissingExtraError
from limelight.server.limits import Limits
from limelight.types import Clip

# media type -> (demuxer, how its files begin: offset and bytes). libav may not guess: some of its demuxers are playlists.
CONTAINERS: dict[str, tuple[str, int, tuple[bytes, ...]]] = {
    "video/mp4": ("mp4", 4, (b"ftyp", b"moov", b"mdat", b"free", b"wide")),
    "video/quicktime": ("mov", 4, (b"ftyp", b"moov", b"mdat", b"free", b"wide")),
    "video/webm": ("matroska", 0, (b"\x1a\x45\xdf\xa3",)),
    "video/x-matroska": ("matroska", 0, (b"\x1a\x45\xdf\xa3",)),
    "video/x-msvideo": ("avi", 0, (b"RIFF",)),
}
CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4", "mjpeg", "theora"})
_HINT = "convert it to MP4 (H.264)"


def container_of(kind: str, data: bytes) -> str:
    """The demuxer for a media type, if the bytes begin like one of its files.

    Raises:
        MediaError: a type that is not read here, or bytes of another one.
    """
    if kind not in CONTAINERS:
        raise MediaError(f"videos of that type are not read here, only {', '.join(CONTAINERS)}", hint=_HINT)
    demuxer, offset, starts = CONTAINERS[kind]
    if not data[offset:].startswith(starts):
        raise MediaError(f"the bytes are not those of {kind}", hint="declare the format it has")
    return demuxer


def decode_video(data: bytes, container: str, limits: Limits) -> Clip:
    """At most ``limits.frames`` evenly spaced RGB frames, first and last included, with their times.

    Raises:
        MediaError: not such a video, or too long, too large, of a codec that is not read, or without frames.
        MissingExtraError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("av", "video") from error
    logging.getLogger("libav").setLevel(logging.CRITICAL)  # what strangers send is no news for the log
    try:
        count = _count(av, data, container, limits)
        frames, decoded = _frames(av, data, container, limits, _spaced(count, limits))
        if 0.9 * count <= decoded < count:  # VP8 has packets that show nothing
            frames, decoded = _frames(av, data, container, limits, _spaced(decoded, limits))
        elif decoded < count:
            raise MediaError(f"only {decoded} of {count} frames could be decoded", hint="re-encode the video")
        return frames
    except LimelightError:
        raise
    except Exception as error:  # a decoder fed with anything raises anything
        raise MediaError("the video is corrupt, or of a kind that is not read here", hint=_HINT) from error


def _open(av: Any, data: bytes, container: str) -> Any:
    # no protocol at all: the demuxer reads the bytes it is handed and can open nothing beside them
    return av.open(io.BytesIO(data), format=container, options={"protocol_whitelist": "none"})


def _count(av: Any, data: bytes, container: str, limits: Limits) -> int:
    """Frames of the video, from its packets; nothing is decoded."""
    with _open(av, data, container) as opened:
        if not opened.streams.video:
            raise MediaError("the file holds no video", hint="send sound as input_audio")
        stream = opened.streams.video[0]
        codec = str(stream.codec_context.name)
        if codec not in CODECS:
            raise MediaError(f"the video is coded as {codec[:32]}, which is not read here", hint=_HINT)
        _check_size(stream.codec_context.width, stream.codec_context.height, limits)
        if (opened.duration or 0) / 1e6 > limits.video_seconds:
            raise _too_long(limits)
        first = last = None
        count = 0
        for packet in opened.demux(stream):
            if not packet.size:
                continue
            count += 1
            at = packet.pts if packet.pts is not None else packet.dts
            if at is not None:
                first, last = (at, at) if first is None else (min(first, at), max(last, at))
            if first is not None and float((last - first) * stream.time_base) > limits.video_seconds:
                raise _too_long(limits)
            if count * stream.codec_context.width * stream.codec_context.height > limits.video_pixels:
                raise MediaError(
                    f"the video has more than {limits.video_pixels:,} pixels over all its frames",
                    hint="make it smaller, or take fewer frames a second",
                )
    if not count:
        raise MediaError("the video has no frames", hint="check the file in a player")
    return count


def _spaced(count: int, limits: Limits) -> set[int]:
    return set(np.linspace(0, count - 1, min(limits.frames, count)).round().astype(int).tolist())


def _frames(av: Any, data: bytes, container: str, limits: Limits, wanted: set[int]) -> tuple[Clip, int]:
    """The wanted frames, and how many were decoded (none is after the last wanted one)."""
    picked: list[Image.Image] = []
    times: list[float] = []
    decoded = seen = 0
    first: float | None = None
    with _open(av, data, container) as opened:
        stream = opened.streams.video[0]
        rate = float(stream.average_rate or stream.guessed_rate or 0) or 1.0
        for frame in opened.decode(stream):
            _check_size(frame.width, frame.height, limits)  # a stream may change its size on the way
            seen += frame.width * frame.height
            if decoded > max(wanted) or seen > limits.video_pixels:
                break
            at = float(frame.time) if frame.time is not None else decoded / rate
            first = at if first is None else first
            if decoded in wanted:
                picked.append(frame.to_image().convert("RGB"))
                times.append(max(at - first, times[-1] if times else 0.0))
            decoded += 1
    if len({p.size for p in picked}) > 1:
        raise MediaError("the frames differ in size", hint="re-encode the video")
    if not picked:
        raise MediaError("no frame could be decoded", hint="re-encode the video")
    return Clip(tuple(picked), tuple(times), rate, times[-1] + 1 / rate), decoded


def _check_size(width: int, height: int, limits: Limits) -> None:
    if not 0 < width * height <= limits.frame_pixels:
        raise MediaError(
            f"the video has {width} x {height} pixels a frame, the limit is {limits.frame_pixels:,}",
            hint="make it smaller first",
        )


def _too_long(limits: Limits) -> MediaError:
    return MediaError(f"the video lasts more than {limits.video_seconds:g} s", hint="cut it into pieces")
