"""HTTP/1.1 under bounds: what one connection may send before it is a request, how long it may be silent, and how many there are.

uvicorn speaks through h11 here; this adds what uvicorn leaves to a proxy. A request's head is bounded before it is parsed. A
connection that has no request under way has ``idle_seconds`` to send one. A client that does not read what it is sent is cut
off after ``send_seconds``. There are never more connections than descriptors: a new one takes the place of an idle one.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from limelight.server.admission import client_of
from limelight.server.limits import Limits
from limelight.server.problems import ApiError

READ_BYTES = 32_768  # of one read: parsing them blocks the event loop
REFUSAL_TURNS = 5  # of asyncio's loop: accept, make the transport, tell the protocol, abort, close
SPARE_DESCRIPTORS = 64  # for files, and pipes to other processes
MANY_CHUNKS, SMALL_CHUNK = 1024, 64
_HEAD_END = re.compile(rb"\n\r?\n")


class BoundedConnection(h11.Connection):
    """h11's parser, which looks at a head's size before it parses it."""

    def __init__(self, limits: Limits, requested: Callable[[], None]) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=limits.head_bytes)
        self.limits, self.requested = limits, requested
        self.refusal = ApiError(400, "this is not an HTTP request", code="invalid_http")
        self._chunks = self._bytes = 0

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            self._check_head(self.trailing_data[0])
        event = super().next_event()
        if isinstance(event, h11.Request):
            if len(event.headers) > self.limits.headers:
                self._refuse(f"a request may have {self.limits.headers} headers")
            self._chunks = self._bytes = 0
            self.requested()
        elif isinstance(event, h11.Data):
            self._chunks += 1
            self._bytes += len(event.data)
            if self._chunks > MANY_CHUNKS and self._bytes < SMALL_CHUNK * self._chunks:
                self.refusal = ApiError(400, "the body comes in too small chunks", code="small_chunks")
                raise h11.RemoteProtocolError(self.refusal.message)
        return event

    def _check_head(self, data: bytes) -> None:
        most = self.limits.head_bytes
        if len(data) > most and not _HEAD_END.search(data, 0, most):
            self._refuse(f"a request's line and headers may have {most:,} bytes")

    def _refuse(self, message: str) -> None:
        self.refusal = ApiError(431, message, code="headers_too_large")
        raise h11.RemoteProtocolError(message, error_status_hint=431)


@dataclass(eq=False)
class Connections:
    """All connections of one server, at most ``most`` of them."""

    most: int
    open: list[BoundedProtocol] = field(default_factory=list)

    def add(self, new: BoundedProtocol) -> None:
        """Where there is no room, an idle connection of the client that has most goes, or the new one."""
        self.open.append(new)
        if len(self.open) <= self.most:
            return
        count = Counter(c.group for c in self.open)
        idle = [c for c in self.open if c.idle and c is not new]  # oldest first
        (max(idle, key=lambda c: count[c.group]) if idle else new).abort()

    def discard(self, old: BoundedProtocol) -> None:
        if old in self.open:
            self.open.remove(old)


class BoundedProtocol(H11Protocol):
    """One connection."""

    def __init__(self, *given: Any, limits: Limits, registry: Connections, **more: Any) -> None:
        super().__init__(*given, **more)
        self.limits, self.registry = limits, registry
        self.conn = self.bounded = BoundedConnection(limits, self._requested)
        self.group = ""
        self.idle = True
        self._silence: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if hasattr(transport, "max_size"):  # asyncio's own reads 256 KB at a time
            transport.max_size = READ_BYTES
        self.group = client_of({"client": self.client})
        self.registry.add(self)
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self.registry.discard(self)
        _cancel(self._silence)
        _cancel(self._unread)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._wait_for_request()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self._unread or self.loop.call_later(self.limits.send_seconds, self.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._unread)
        self._unread = None

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, or one whose body breaks off; an answer that has begun is cut off."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.abort()
            return
        problem = self.bounded.refusal
        body = json.dumps(problem.payload()).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (
            h11.Response(status_code=problem.status, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self._wait_for_request()
        self.transport.close()

    def abort(self) -> None:
        """Close without waiting for what is not sent yet."""
        self.registry.discard(self)
        self.transport.abort()

    def _wait_for_request(self) -> None:
        self.idle = True
        _cancel(self._silence)
        self._silence = self.loop.call_later(self.limits.idle_seconds, self.abort)

    def _requested(self) -> None:
        self.idle = False
        _cancel(self._silence)


def bounded_protocol(limits: Limits, most: int) -> Callable[..., BoundedProtocol]:
    """What makes the connections of one server, ``most`` at a time."""
    return partial(BoundedProtocol, limits=limits, registry=Connections(most))


def room_for_connections(limits: Limits) -> tuple[int, int]:
    """``(connections, backlog)`` that the process has descriptors for.

    asyncio accepts as many as the backlog in one turn of its loop, and a connection that is refused is closed
    ``REFUSAL_TURNS`` turns later.
    """
    try:
        import resource
    except ImportError:  # not POSIX
        return limits.connections, 128
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits.connections, 128
    try:
        used = len(os.listdir("/proc/self/fd"))
    except OSError:
        used = 64
    room = max(soft - used - SPARE_DESCRIPTORS, 16)
    backlog = max(2, min(128, room // (2 * REFUSAL_TURNS)))
    return max(4, min(limits.connections, room - REFUSAL_TURNS * backlog)), backlog


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
