"""What one server is: its model, what it offers, and what waits between the event loop and the worker."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from limelight.decoding.methods.greedy import Greedy
from limelight.decoding.registry import strategies
from limelight.decoding.strategy import Strategy
from limelight.errors import SettingError
from limelight.server.limits import Limits
from limelight.server.problems import ApiError, busy, invalid, late

T = TypeVar("T")


@dataclass(frozen=True)
class ServerConfig:
    """What a server offers.

    Attributes:
        model: the name clients call it by.
        strategy: how it decodes unless a request says otherwise.
        strategies: names a request may choose.
        api_key: None: nobody is asked for one.
        remote_hosts: https hosts whose pictures are fetched; empty: none.
        host_names: accepted Host headers; None: any.
        batch: answers decoded together where requests agree; 1: one after the other.
    """

    model: str
    strategy: Strategy = field(default_factory=Greedy)
    strategies: frozenset[str] = field(default_factory=lambda: frozenset(strategies()))
    limits: Limits = field(default_factory=Limits)
    api_key: str | None = None
    remote_hosts: frozenset[str] = frozenset()
    host_names: frozenset[str] | None = None
    batch: int = 8

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise SettingError(f"a batch of {self.batch} answers nobody", hint="1 decodes one request after the other")


class AdmissionControl:
    """Counts who is in the house, from the first byte of a body to the last of an answer. Event loop only."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.inside: Counter[str] = Counter()

    def enter(self, client: str) -> None:
        """Raises ApiError 429 when the house, or the client's share of it, is full."""
        if self.inside.total() > self.limits.queue:
            raise busy(f"{self.limits.queue} requests are waiting; try again later")
        if self.inside[client] > self.limits.per_client:
            raise busy(f"{self.limits.per_client} requests of yours are waiting; try again later")
        self.inside[client] += 1

    def leave(self, client: str) -> None:
        self.inside[client] -= 1
        if not self.inside[client]:
            del self.inside[client]


class EventQueue:
    """Events of one job: put from the worker's thread, awaited in the event loop. Bounded by the answer's length."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, event: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self, seconds: float) -> Any:
        """The next event; raises TimeoutError."""
        return await asyncio.wait_for(self._events.get(), max(seconds, 0.0))


@dataclass(frozen=True)
class Deadline:
    """When an answer must be there."""

    seconds: float
    arrived: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.arrived + self.seconds - time.monotonic()

    @property
    def spent(self) -> float:
        return time.monotonic() - self.arrived

    def problem(self) -> ApiError:
        return late(self.seconds)


class EventStream(StreamingResponse):
    """Server-sent events; ``end`` runs however the stream ends, also when the client has gone."""

    def __init__(self, content: Any, end: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self.end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.end()


async def read_body(request: Request, limits: Limits, media_type: str = "application/json") -> bytes:
    """The body of a request.

    Raises:
        ApiError: 415 of another type, 413 too long, 408 too slow. ClientDisconnect: the client has gone.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != media_type:
        raise invalid(f"the body's Content-Type must be {media_type}", status=415)
    too_long = invalid(f"the body may have {limits.body_bytes:,} bytes", status=413, code="body_too_large")
    with contextlib.suppress(ValueError):
        if int(request.headers.get("content-length", "0")) > limits.body_bytes:
            raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise too_long
    except TimeoutError:
        raise invalid(
            f"the body did not arrive within {limits.body_seconds:g} s", status=408, code="slow_body"
        ) from None
    return bytes(body)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """``work``'s result; it is cancelled when the client goes away (its body must have been read).

    Raises:
        ClientDisconnect: the client has gone.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


def client_of(scope: Mapping[str, Any]) -> str:
    """Whose turn a request takes: the peer's address (a header could be forged)."""
    peer = scope.get("client")
    return str(peer[0]) if peer else "local"
