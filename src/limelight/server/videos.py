"""Which videos of strangers are read: containers by their type and first bytes, codecs by name."""

from __future__ import annotations

from limelight.errors import MediaError
from limelight.server.limits import Limits
from limelight.server.media import Encoded

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


def video(data: bytes, kind: str, limits: Limits) -> Encoded:
    """At most ``limits.frames`` evenly spaced frames of a video of that media type, to be decoded.

    Raises:
        MediaError: see :func:`container_of`.
    """
    options = {
        "frames": limits.frames, "max_seconds": limits.video_seconds, "max_pixels": limits.frame_pixels,
        "max_total_pixels": limits.video_pixels, "container": container_of(kind, data), "codecs": sorted(CODECS),
    }  # fmt: skip
    return Encoded("video", data, options, 4 * limits.frames * limits.frame_pixels)
