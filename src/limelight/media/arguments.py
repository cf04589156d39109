"""Normalisation of the accepted forms of images, audio and video into what the readers take.

    file name or Path, bytes, file object, data URL, PIL image, array or tensor, Clip, (samples, rate) or (rate, samples),
    {"array", "sampling_rate"}, {"bytes"} or {"path"} of Hugging Face datasets, {"url"} and {"data", "format"} of OpenAI
    content; lists of these

Ambiguous input (stereo audio and a grey image are both 2-D arrays) is rejected with a hint on how to name its type.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image

from limelight.errors import MediaError, PromptError
from limelight.media.image import kind_of
from limelight.media.pixels import is_array
from limelight.types import Clip

KINDS = ("image", "audio", "video")
SAY = "say which it is: media={'image': ...}, {'audio': ...} or {'video': ...}"
_DATA_URL = re.compile(r"data:(?P<kind>[a-z]+)/[a-z0-9.+-]+(?:;[a-z0-9=._-]+)*;base64,", re.IGNORECASE)
_MARKS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG", "image"), (0, b"\xff\xd8\xff", "image"), (0, b"GIF8", "image"), (0, b"BM", "image"),
    (0, b"II*\x00", "image"), (0, b"MM\x00*", "image"), (8, b"WEBP", "image"), (8, b"WAVE", "audio"), (8, b"AVI ", "video"),
    (0, b"fLaC", "audio"), (0, b"OggS", "audio"), (0, b"ID3", "audio"), (0, b"\xff\xfb", "audio"), (0, b"\xff\xf3", "audio"),
    (0, b"FORM", "audio"), (4, b"ftypM4A", "audio"), (4, b"ftypavif", "image"), (4, b"ftyphei", "image"), (4, b"ftyp", "video"),
    (0, b"\x1aE\xdf\xa3", "video"),
)  # fmt: skip


def by_kind(media: Any) -> dict[str, list[Any]]:
    """Group media by type, in order, from ``{"image": x or [x, ...], ...}`` or media whose type can be inferred.

    Under ``"video"`` a list of images is the frames of one video; a list of anything else is several videos.

    Raises:
        PromptError: an unknown media type.
        MediaError: the type cannot be inferred.
    """
    found: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    if media is None:
        return found
    if isinstance(media, Mapping) and not _is_file(media):
        unknown = sorted(map(str, set(media) - set(KINDS)))
        if unknown:
            raise PromptError(f"unknown media type {', '.join(map(repr, unknown))}", hint="image, audio or video")
        for kind in KINDS:
            found[kind] = [item(kind, x) for x in _listed(kind, media.get(kind))]
        return found
    for one in _loose(media):
        kind = infer_kind(one)
        found[kind].append(item(kind, one))
    return found


def item(kind: str, source: Any) -> Any:
    """Normalise one medium of known type to what :func:`read_image`, :func:`read_audio` or :func:`read_video` takes.

    Raises:
        MediaError: a data URL of another type, or invalid base64.
    """
    if isinstance(source, Mapping):
        if isinstance(source.get("url"), str):
            return item(kind, source["url"])
        if isinstance(source.get("data"), str):
            return decoded(source["data"])
        if isinstance(source.get("data"), (bytes, bytearray)):
            return bytes(source["data"])
        return source
    if isinstance(source, str):
        if source[:5].lower() == "data:":
            family = _family(source)
            if family != kind:
                raise MediaError(f"a data URL of type {family} was passed as {kind}", hint=f"pass it as {family}")
            return decoded(source[source.index(",") + 1 :])
        return unquote(urlsplit(source).path) if source[:7].lower() == "file://" else source
    if callable(getattr(source, "read", None)) and not is_array(source):
        return source.read()
    if kind == "audio" and isinstance(source, (tuple, list)) and len(source) == 2:
        return _pair(source)
    return source


def infer_kind(source: Any) -> str:
    """Infer ``image``, ``audio`` or ``video`` from an object's type, its file name or its first bytes.

    Raises:
        MediaError: the media type cannot be inferred.
    """
    if isinstance(source, Image.Image):
        return "image"
    if isinstance(source, Clip):
        return "video"
    if isinstance(source, Mapping):
        if source.get("array") is not None or "sampling_rate" in source:
            return "audio"
        for key in ("bytes", "data", "url", "path"):
            if source.get(key) is not None:
                found = source[key]
                return infer_kind(decoded(found) if key == "data" and isinstance(found, str) else found)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _family(source)
    if isinstance(source, (str, Path)):
        return _by_name(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _by_bytes(bytes(source[:32]))
    if _is_pair(source):
        return "audio"
    if is_array(source):
        return _by_shape(tuple(int(n) for n in source.shape))
    raise MediaError(f"cannot infer the media type of a {type(source).__name__}", hint=SAY)


def decoded(text: str) -> bytes:
    """Decode base64 of either alphabet, with or without padding; white space is ignored."""
    plain = "".join(text.split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        data = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"invalid base64: {error}", hint="encode the file's bytes in base64") from error
    if not data:
        raise MediaError("the base64 data is empty", hint="encode a whole file")
    return data


def _loose(media: Any) -> list[Any]:
    """Return the media of a list, or a single medium as a list."""
    if callable(getattr(media, "read", None)) and not is_array(media):
        return [media.read()]
    if _is_pair(media) or not isinstance(media, (list, tuple)):
        return [media]
    if media and all(isinstance(x, Real) for x in media):
        return [np.asarray(media, dtype=np.float32)]
    return [x.read() if callable(getattr(x, "read", None)) and not is_array(x) else x for x in media]


def _listed(kind: str, value: Any) -> list[Any]:
    if value is None:
        return []
    if kind == "audio" and _is_pair(value):
        return [value]
    if not isinstance(value, (list, tuple)):
        return [value]
    if kind == "audio" and value and all(isinstance(x, Real) for x in value):
        return [np.asarray(value, dtype=np.float32)]
    if kind == "video" and value and all(_is_frame(x) for x in value):
        return [list(value)]
    return list(value)


def _is_frame(value: Any) -> bool:
    if isinstance(value, Image.Image):
        return True
    if is_array(value):
        return len(value.shape) in (2, 3)
    try:
        return isinstance(value, (str, Path)) and kind_of(value) == "image"
    except MediaError:
        return False


def _is_file(media: Mapping[str, Any]) -> bool:
    """Whether a mapping is one medium rather than media grouped by type."""
    return not set(media) & set(KINDS) and any(k in media for k in ("array", "bytes", "path", "url", "data"))


def _is_rate(value: Any) -> bool:
    plain = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return plain and float(value).is_integer() and float(value) > 0


def _is_samples(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(len(value)) and all(isinstance(x, (Real, list, tuple)) for x in value[:4])
    return is_array(value) and len(value.shape) in (1, 2)


def _is_pair(value: Any) -> bool:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return False
    a, b = value
    return (_is_rate(a) and _is_samples(b)) or (_is_rate(b) and _is_samples(a))


def _pair(value: Sequence[Any]) -> tuple[Any, Any]:
    """Return ``(samples, rate)``, given in either order."""
    if not _is_pair(value):
        raise MediaError(
            f"expected (samples, rate) or (rate, samples), got ({', '.join(type(x).__name__ for x in value)})",
            hint="a rate is a whole number of Hz, samples are an array",
        )
    a, b = value
    return (b, int(a)) if _is_rate(a) else (a, int(b))


def _family(url: str) -> str:
    head = _DATA_URL.match(url[:256])
    if head is None or head["kind"].lower() not in KINDS:
        raise MediaError(
            f"not a data URL of an image, audio or video: {url[:40]!r}", hint="such as data:image/png;base64,..."
        )
    return head["kind"].lower()


def _by_name(source: str | Path) -> str:
    if "://" in str(source):
        source = urlsplit(str(source)).path
    try:
        return kind_of(str(source).partition("?")[0])
    except MediaError:
        path = Path(source)
        try:
            with path.open("rb") as file:
                head = file.read(32)
        except OSError as error:
            raise MediaError(f"there is no file {str(source)[:80]!r}", hint="check the path") from error
        return _by_bytes(head, path.name)


def _by_bytes(head: bytes, name: str = "the bytes") -> str:
    for at, mark, kind in _MARKS:
        if head[at : at + len(mark)] == mark:
            return kind
    raise MediaError(
        f"cannot infer the media type of {name}: not the signature of a known image, audio or video format", hint=SAY
    )


def _by_shape(shape: tuple[int, ...]) -> str:
    """Infer the type from an array's shape: 1-D is audio, 2-D an image unless an axis may be channels."""
    if len(shape) == 1:
        return "audio"
    if len(shape) == 2 and min(shape) > 8:
        return "image"
    if len(shape) == 3 and (shape[-1] in (1, 3, 4) or shape[0] in (1, 3, 4)):
        return "image"
    raise MediaError(f"cannot infer the media type of an array of shape {list(shape)}", hint=SAY)
