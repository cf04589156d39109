"""Report pages of answers: rendered on request, stored for a limited time, bounded in number and bytes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import re
import secrets
import time
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cachetools import TTLCache
from fastapi.responses import StreamingResponse

from limelight.models.adapter import Adapter
from limelight.report.media import Media
from limelight.report.page import render_page
from limelight.report.payload import Case
from limelight.server.problems import invalid
from limelight.types import Generation

_PART = 65_536  # bytes of HTML unpacked at a time
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


class Pages(Protocol):
    """Storage of pages. Called only from the server's event loop."""

    async def put(self, page: bytes) -> str:
        """Store a page (see :func:`packed`) and return its name."""
        ...

    async def get(self, name: str) -> bytes | None:
        """Return a page by name; None if it has expired."""
        ...


@dataclass
class PageStore:
    """In-memory page storage: least recently used pages are evicted when it is full, all of them after a time.

    Attributes:
        most: maximum number of pages. ``most_bytes``: maximum total size as stored. ``seconds``: lifetime of a page.
    """

    most: int = 64
    most_bytes: int = 64_000_000
    seconds: float = 3600.0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.kept: TTLCache[str, bytes] = TTLCache(self.most_bytes, self.seconds, self.clock, getsizeof=len)

    async def put(self, page: bytes) -> str:
        name = secrets.token_urlsafe(24)
        with contextlib.suppress(ValueError):  # larger than the store: not kept
            self.kept[name] = page
        while len(self.kept) > self.most:
            self.kept.popitem()
        return name

    async def get(self, name: str) -> bytes | None:
        self.kept.expire()
        return self.kept.get(name)


@dataclass(frozen=True)
class PageMaker:
    """Renders the page of one request's answers, outside the event loop and the model's thread."""

    pages: Pages
    adapter: Adapter
    base_url: str
    question: str

    async def made(self, answers: Sequence[Generation]) -> str:
        """Render and store the page; return its URL."""
        name = await self.pages.put(await asyncio.to_thread(self._render, answers))
        return f"{self.base_url}pages/{name}"

    def _render(self, answers: Sequence[Generation]) -> bytes:
        media = Media.of(answers[0].prompt)
        case = Case(answers, media, question=self.question, spell=lambda token: self.adapter.tokens([token])[0])
        return packed(render_page(case))


def packed(text: str) -> bytes:
    """Encode a page for storage: its content security policy in one line, then gzipped HTML."""
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in _SCRIPT.findall(text)) or "'none'"
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; media-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox allow-scripts"
    )
    return policy.encode() + b"\n" + gzip.compress(text.encode(), 6)


def served(page: bytes | None) -> StreamingResponse:
    """Build the response of a page: it may run its own script and style, but fetch nothing.

    It is decompressed as the client reads it, so that unread responses take no memory.

    Raises:
        ApiError: 404, the page does not exist or has expired.
    """
    if page is None:
        raise invalid("the page does not exist or has expired", status=404, code="page_not_found")
    policy, _, text = page.partition(b"\n")
    return StreamingResponse(
        _unpacked(text),
        media_type="text/html; charset=utf-8",
        headers={
            "Content-Security-Policy": policy.decode(),
            "Cache-Control": "private, no-store",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        },
    )


async def _unpacked(text: bytes) -> AsyncIterator[bytes]:
    """Yield the HTML in parts."""
    unpack = zlib.decompressobj(wbits=31)
    while text and not unpack.eof:
        if part := unpack.decompress(text, _PART):
            yield part
            await asyncio.sleep(0)
        text = unpack.unconsumed_tail
    yield unpack.flush()


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
