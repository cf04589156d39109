"""Untrusted images, audio and videos: from bytes to validated objects. No path is ever opened.

Media are decoded in separate processes (:mod:`limelight.media.worker`), before a request is queued for the model;
:attr:`Limits.decoded_bytes` bounds the decoded media in memory.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

from limelight.errors import MediaError
from limelight.media import worker
from limelight.media.process import Decoded
from limelight.server.limits import Limits

PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # no format whose decoder runs programs or reads other files
SOUNDS = {"wav": ("WAV", "WAVEX"), "mp3": ("MP3", "MPEG"), "flac": ("FLAC",), "ogg": ("OGG",)}
RATES = (4000, 192_000)
MAX_CHANNELS = 8
RATE = 16_000  # sampling rate of audio where the model does not declare one
_DATA_URL = re.compile(r"data:(?P<type>[a-z]+/[a-z0-9.+-]+)(;[a-z0-9-]+=[^;,]*)*;base64,", re.IGNORECASE)
_HINTS = {
    "image": "send it as data:image/png;base64,...", "video": "send it as data:video/mp4;base64,...",
    "audio": "send the file's bytes in base64",
}  # fmt: skip
_SAFE = bytes.maketrans(b"-_", b"+/")


def is_data_url(url: str) -> bool:
    return url[:5].lower() == "data:"


def split_data_url(url: str, family: str, limits: Limits) -> tuple[str, bytes]:
    """Split a ``data:image/...;base64,`` or ``data:video/...;base64,`` URL into ``(media type, bytes)``."""
    head = _DATA_URL.match(url[:256])
    if head is None or not head["type"].lower().startswith(f"{family}/"):
        raise MediaError(f"the data URL is not of the form data:{family}/...;base64,...", hint=_HINTS[family])
    return head["type"].lower(), from_base64(url[head.end() :], limits)


def from_base64(text: str, limits: Limits) -> bytes:
    """Decode base64 of either alphabet, with or without line breaks and padding, to at most ``limits.media_bytes``.

    Raises:
        MediaError: an invalid character or length, too long, or empty.
    """
    most = limits.media_bytes
    if len(text) * 3 // 4 > most + most // 16 + 256:  # allows for line breaks
        raise MediaError(f"more than {most:,} bytes", hint="make it smaller first")
    try:
        raw = unquote_to_bytes(text) if "%" in text else text.encode("ascii")
        raw = raw.translate(_SAFE, b" \t\r\n").rstrip(b"=")
        data = base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError("not valid base64", hint="encode the file's bytes") from error
    if len(data) > most:
        raise MediaError(f"more than {most:,} bytes", hint="make it smaller first")
    if not data:
        raise MediaError("the base64 data is empty", hint="encode a whole file")
    return data


@dataclass(frozen=True)
class Encoded:
    """A file's encoded bytes, how to decode them, and the maximum decoded size."""

    kind: str
    data: bytes
    options: dict[str, Any]
    most: int


def picture(data: bytes, limits: Limits) -> Encoded:
    return Encoded("image", data, {"max_pixels": limits.pixels, "formats": PICTURES}, 4 * limits.pixels)


def sound(data: bytes, format: str | None, limits: Limits, rate: int = RATE) -> Encoded:
    """Prepare audio for decoding to mono at ``rate`` Hz. ``format`` None: any supported format."""
    options = {
        "max_seconds": limits.seconds, "max_samples": limits.samples, "max_channels": MAX_CHANNELS, "rates": RATES,
        "formats": SOUNDS, "format": format, "to_rate": rate,
    }  # fmt: skip
    return Encoded("audio", data, options, round(4 * limits.seconds * rate))


@dataclass
class Budget:
    """Memory budget for decoded media: requests wait in turn for the total that they need.

    A request that needs more than the whole budget gets it when no other request holds any. Event loop only.
    """

    size: int
    used: int = 0
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _change: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, size: int) -> None:
        async with self._turn:
            while self.used and self.used + size > self.size:
                self._change.clear()
                await self._change.wait()
            self.used += size

    def give(self, size: int) -> None:
        self.used -= size
        self._change.set()


class MediaReader:
    """Decodes the media of one server within its memory budget."""

    def __init__(self, limits: Limits, rate: int = RATE) -> None:
        self.rate = rate
        self.budget = Budget(limits.decoded_bytes)

    async def reserve(self, files: Sequence[Encoded]) -> Hold:
        """Wait until there is memory for the decoded files, and reserve it."""
        hold = Hold(self.budget, sum(f.most for f in files))
        await self.budget.take(hold.size)
        return hold

    async def decode(self, file: Encoded, hold: Hold, client: str = "") -> Decoded:
        """Decode a file to the model's input. Decoding stops when the task is cancelled (disconnect or timeout).

        Raises:
            LimelightError: see :mod:`limelight.media.worker`.
        """
        found = await worker.read_async(file.kind, file.data, group=client, **file.options)
        hold.shrink(file.most - size_of(found.value))
        return found


@dataclass(eq=False)
class Hold:
    """A reservation in a budget; released when it is closed, or with the object that it is bound to."""

    budget: Budget
    size: int

    def shrink(self, by: int) -> None:
        by = max(0, min(by, self.size))
        self.size -= by
        self.budget.give(by)

    def close(self) -> None:
        self.shrink(self.size)

    def bind(self, owner: Any) -> None:
        """Release the reservation when ``owner`` is garbage-collected, in any thread."""
        loop = asyncio.get_running_loop()

        def gone(hold: Hold = self) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(hold.close)

        weakref.finalize(owner, gone).atexit = False


def size_of(value: Any) -> int:
    """Return the bytes of a decoded image, audio or video; Pillow stores RGB in four bytes per pixel."""
    if isinstance(value, tuple):
        return int(value[0].nbytes)
    pictures = getattr(value, "frames", (value,))
    return sum(4 * p.width * p.height for p in pictures)
