"""The server's configuration, and the communication between the event loop and the worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from limelight.decoding.methods.greedy import Greedy
from limelight.decoding.registry import strategies
from limelight.decoding.strategy import Strategy
from limelight.errors import SettingError
from limelight.server.limits import Limits
from limelight.server.problems import ApiError, late

log = logging.getLogger("limelight.server")
T = TypeVar("T")


@dataclass(frozen=True)
class ServerConfig:
    """Configuration of a server.

    Attributes:
        model: the model's name for clients.
        strategy: the default decoding strategy.
        strategies: names of strategies that requests may choose.
        api_key: None: not required.
        remote_hosts: https hosts from which images are fetched; empty: none.
        host_names: accepted Host headers; None: any.
        batch: maximum number of answers decoded together; 1: one at a time.
        prefix_cache: prompts whose prefill later ones with the same beginning share
            (:class:`limelight.PrefixCache`); 0: none.
    """

    model: str
    strategy: Strategy = field(default_factory=Greedy)
    strategies: frozenset[str] = field(default_factory=lambda: frozenset(strategies()))
    limits: Limits = field(default_factory=Limits)
    api_key: str | None = None
    remote_hosts: frozenset[str] = frozenset()
    host_names: frozenset[str] | None = None
    batch: int = 8
    prefix_cache: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise SettingError(f"batch must be at least 1, got {self.batch}", hint="1 decodes one request at a time")
        if self.prefix_cache < 0:
            raise SettingError(f"prefix_cache must not be negative, got {self.prefix_cache}", hint="0 turns it off")


class EventQueue:
    """Events of one job: put by the worker's thread, awaited in the event loop. Bounded by the answer's length."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, event: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self, seconds: float) -> Any:
        """Wait for the next event; raises TimeoutError."""
        return await asyncio.wait_for(self._events.get(), max(seconds, 0.0))


@dataclass(frozen=True)
class Deadline:
    """The deadline of an answer."""

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
    """Server-sent events; ``end`` runs however the stream ends, including when the client disconnects or stops reading.

    Args:
        send_seconds: time for the client to accept the next event; then the stream is aborted.
    """

    def __init__(self, content: Any, end: Callable[[], None], send_seconds: float) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self.end, self.send_seconds = end, send_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def bounded(message: Message) -> None:
            try:
                async with asyncio.timeout(self.send_seconds):
                    await send(message)
            except TimeoutError:
                raise ClientDisconnect from None

        try:
            await super().__call__(scope, receive, bounded)
        except ClientDisconnect:
            log.info("stream aborted: the client disconnected or did not read for %g s", self.send_seconds)
        finally:
            self.end()


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Await ``work``, cancelling it when the client disconnects (the body must have been read).

    Raises:
        ClientDisconnect: the client has disconnected.
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
        del task  # breaks a reference cycle: task -> error -> frames -> task and the request's data
