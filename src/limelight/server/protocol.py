"""HTTP/1.1 with limits on the size of request heads, idle time, unread responses and the number of connections.

Uses uvicorn with h11 and adds what uvicorn leaves to a proxy. The size of a request's head is checked before parsing. A
connection without an active request has ``idle_seconds`` to send one. A client that does not read its response is
disconnected after ``send_seconds``. Connections never exceed the available descriptors: a new one replaces an idle one.
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

READ_BYTES = 32_768  # per read: parsing blocks the event loop
REFUSAL_TURNS = 5  # event loop iterations: accept, create the transport, connection_made, abort, close
SPARE_DESCRIPTORS = 64  # for files, and pipes to other processes
MANY_CHUNKS, SMALL_CHUNK = 1024, 64
_HEAD_END = re.compile(rb"\n\r?\n")


class BoundedConnection(h11.Connection):
    """h11's parser with a limit on the size of a request's head, checked before parsing."""

    def __init__(self, limits: Limits, requested: Callable[[], None]) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=limits.head_bytes)
        self.limits, self.requested = limits, requested
        self.refusal = ApiError(400, "not a valid HTTP request", code="invalid_http")
        self._chunks = self._bytes = 0

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            self._check_head(self.trailing_data[0])
        event = super().next_event()
        if isinstance(event, h11.Request):
            if len(event.headers) > self.limits.headers:
                self._refuse(f"a request may have at most {self.limits.headers} headers")
            self._chunks = self._bytes = 0
            self.requested()
        elif isinstance(event, h11.Data):
            self._chunks += 1
            self._bytes += len(event.data)
            if self._chunks > MANY_CHUNKS and self._bytes < SMALL_CHUNK * self._chunks:
                self.refusal = ApiError(400, "the chunks of the body are too small", code="small_chunks")
                raise h11.RemoteProtocolError(self.refusal.message)
        return event

    def _check_head(self, data: bytes) -> None:
        most = self.limits.head_bytes
        if len(data) > most and not _HEAD_END.search(data, 0, most):
            self._refuse(f"the request line and headers may have at most {most:,} bytes")

    def _refuse(self, message: str) -> None:
        self.refusal = ApiError(431, message, code="headers_too_large")
        raise h11.RemoteProtocolError(message, error_status_hint=431)


@dataclass(eq=False)
class Connections:
    """The open connections of one server, at most ``most``."""

    most: int
    open: list[BoundedProtocol] = field(default_factory=list)

    def add(self, new: BoundedProtocol) -> None:
        """Add a connection; when full, close an idle one of the client with the most connections, or else the new one."""
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
        if hasattr(transport, "max_size"):  # asyncio's default is 256 KB per read
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
        """Reject an invalid request, or one with an incomplete body; a response in progress is aborted."""
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
        """Close without flushing unsent data."""
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
    """Return the protocol factory of one server with at most ``most`` connections."""
    return partial(BoundedProtocol, limits=limits, registry=Connections(most))


def room_for_connections(limits: Limits) -> tuple[int, int]:
    """Return ``(connections, backlog)`` that the process's file descriptors allow.

    asyncio accepts up to the backlog in one iteration of its loop, and a refused connection is closed ``REFUSAL_TURNS``
    iterations later.
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
