"""Admission control: per-client quotas on uploads and on queued requests and their bytes. Event loop only."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from limelight.server.limits import Limits
from limelight.server.problems import ApiError, busy, invalid


class Quota:
    """A capacity shared by clients.

    Args:
        total: capacity for all clients.
        share: maximum per client.
        kept: the part of the capacity reserved for clients that use nothing yet.
    """

    def __init__(self, total: int, share: int, kept: int) -> None:
        self.total, self.share, self.kept = total, share, kept
        self.held: Counter[str] = Counter()

    def full(self, client: str, amount: int = 1) -> bool:
        room = self.total - (self.kept if self.held[client] else 0)
        return self.held.total() + amount > room

    def over_share(self, client: str, amount: int = 1) -> bool:
        return self.held[client] > 0 and self.held[client] + amount > self.share

    def take(self, client: str, amount: int = 1) -> None:
        self.held[client] += amount

    def release(self, client: str, amount: int = 1) -> None:
        self.held[client] -= amount
        if self.held[client] <= 0:
            del self.held[client]


class AdmissionControl:
    """Counts requests from the end of their body to the end of their answer.

    ``limits.queue`` requests are admitted in addition to the running one, ``limits.per_client`` per client in addition to
    its running one. A quarter of the places is reserved for clients without requests, as far as ``per_client`` permits.
    The bytes of the bodies are limited in the same way.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        kept = max(0, min(limits.queue // 4, limits.queue - limits.share))
        self.requests = Quota(limits.queue + 1, limits.share + 1, kept)
        self.bytes = Quota(limits.waiting_bytes, limits.waiting_bytes // 4, limits.waiting_bytes // 4)

    @property
    def inside(self) -> Counter[str]:
        """The number of admitted requests per client."""
        return self.requests.held

    def check(self, client: str, size: int = 0) -> None:
        """Raises ApiError 429 when the queue, or the client's share of it, is full."""
        if self.requests.over_share(client):
            raise busy(f"you have {self.limits.share} requests queued, the limit per client")
        if self.requests.full(client) or self.bytes.full(client, size):
            raise busy("queue full")
        if self.bytes.over_share(client, size):
            raise busy("your queued requests use all of the memory per client")

    def enter(self, client: str, size: int = 0) -> None:
        """Admit a request. Raises like :meth:`check`."""
        self.check(client, size)
        self.requests.take(client)
        self.bytes.take(client, size)

    def leave(self, client: str, size: int = 0) -> None:
        self.requests.release(client)
        self.bytes.release(client, size)


@dataclass(eq=False)
class Upload:
    """A request body being received."""

    client: str
    timeout: asyncio.Timeout
    size: int = 0
    ended: bool = False

    def end(self) -> None:
        """Abort the upload: its reader gets a TimeoutError."""
        self.ended = True
        self.timeout.reschedule(asyncio.get_running_loop().time())


class Uploads:
    """Request bodies being received. They take no place in the queue, and slow ones do not block other clients.

    When there are too many uploads or bytes, one upload of the client with the most is aborted: its oldest, or its
    largest.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.open: list[Upload] = []

    async def read(self, request: Request, client: str, media_type: str = "application/json") -> bytearray:
        """Read the body of a request.

        Raises:
            ApiError: 415 wrong type, 413 too long, 408 too slow, 429 too many uploads.
            ClientDisconnect: the client has disconnected.
        """
        limits, body = self.limits, bytearray()
        too_long = _checked_head(request, limits, media_type)
        upload = Upload(client, asyncio.timeout(limits.body_seconds))
        try:
            async with upload.timeout:
                self.open.append(upload)
                self._bound()
                async for chunk in request.stream():
                    if len(body) + len(chunk) > limits.body_bytes:
                        raise too_long
                    body += chunk
                    upload.size = len(body)
                    self._bound()
        except TimeoutError:
            if upload.ended:
                raise busy("too many concurrent uploads") from None
            raise invalid(
                f"the body did not arrive within {limits.body_seconds:g} s", status=408, code="slow_body"
            ) from None
        finally:
            with contextlib.suppress(ValueError):
                self.open.remove(upload)
        return body

    def _bound(self) -> None:
        """Abort uploads until the rest is within the limits."""
        while len(self.open) > self.limits.uploads:
            count = Counter(upload.client for upload in self.open)
            self._end(next(u for u in self.open if count[u.client] == max(count.values())))
        while sum(upload.size for upload in self.open) > self.limits.upload_bytes:
            held: Counter[str] = Counter()
            for upload in self.open:
                held[upload.client] += upload.size
            greedy = max(held, key=held.__getitem__)
            self._end(max((u for u in self.open if u.client == greedy), key=lambda u: u.size))

    def _end(self, upload: Upload) -> None:
        self.open.remove(upload)
        upload.end()


def _checked_head(request: Request, limits: Limits, media_type: str) -> ApiError:
    """Check a body's headers; return the error to raise if the body turns out to be too long."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != media_type:
        raise invalid(f"the body's Content-Type must be {media_type}", status=415)
    too_long = invalid(f"the body may have at most {limits.body_bytes:,} bytes", status=413, code="body_too_large")
    with contextlib.suppress(ValueError):
        if int(request.headers.get("content-length", "0")) > limits.body_bytes:
            raise too_long
    return too_long


def client_of(scope: Mapping[str, Any]) -> str:
    """Return the client that a request counts for: the peer's IPv4 address, or the /64 network of its IPv6 address.

    Headers are ignored, because clients can forge them. With a trusted proxy, uvicorn has replaced the peer's address by
    the one that the proxy reports.
    """
    peer = scope.get("client")
    if not peer:
        return "local"
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except ValueError:
        return str(peer[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
