"""Accepted formats of untrusted videos: containers by media type and signature, codecs by name."""

from __future__ import annotations

from limelight.errors import MediaError
from limelight.server.limits import Limits
from limelight.server.media import Encoded

# media type -> (demuxer, signature: offset and bytes). libav must not guess: some of its demuxers are playlists.
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
    """Return the demuxer for a media type after checking the file signature.

    Raises:
        MediaError: the type is not supported, or the signature does not match.
    """
    if kind not in CONTAINERS:
        raise MediaError(f"unsupported video type; supported: {', '.join(CONTAINERS)}", hint=_HINT)
    demuxer, offset, starts = CONTAINERS[kind]
    if not data[offset:].startswith(starts):
        raise MediaError(f"the data is not {kind}", hint="declare the actual format")
    return demuxer


def video(data: bytes, kind: str, limits: Limits) -> Encoded:
    """Prepare a video for decoding to at most ``limits.frames`` evenly spaced frames.

    Raises:
        MediaError: see :func:`container_of`.
    """
    options = {
        "frames": limits.frames, "max_seconds": limits.video_seconds, "max_pixels": limits.frame_pixels,
        "max_total_pixels": limits.video_pixels, "container": container_of(kind, data), "codecs": sorted(CODECS),
    }  # fmt: skip
    return Encoded("video", data, options, 4 * limits.frames * limits.frame_pixels)
