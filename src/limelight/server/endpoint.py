"""What every endpoint that asks the model does: the door, the body, the line, the answer or a stream of it, the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from fastapi.responses import Response
from starlette.requests import ClientDisconnect, Request

from limelight.models.adapter import Adapter
from limelight.server.answering import Finished, GenerationRequest, TokenEvent
from limelight.server.batching import answer
from limelight.server.metrics import Metrics
from limelight.server.pages import Pages
from limelight.server.problems import ApiError, internal
from limelight.server.remote import Fetcher
from limelight.server.state import (
    AdmissionControl,
    Deadline,
    EventQueue,
    EventStream,
    ServerConfig,
    client_of,
    read_body,
    unless_gone,
)
from limelight.server.worker import Failed, Job, Worker, log

CLIENT_GONE = 499
PING_SECONDS = 15.0


class Shape(Protocol):
    """How the answers of one request look, whole and streamed."""

    @property
    def stream(self) -> bool: ...

    def opening(self) -> list[str]:
        """Events before the first token."""
        ...

    def events(self, event: TokenEvent | Finished) -> list[str]:
        """Events for one of the model's."""
        ...

    async def settled(self, done: Sequence[Finished]) -> None:
        """All answers are complete; the last one has not been told yet."""
        ...

    def closing(self, done: Sequence[Finished]) -> list[str]:
        """Events after the last answer."""
        ...

    def whole(self, said: Sequence[TokenEvent], done: Sequence[Finished]) -> Response: ...


@dataclass(eq=False)
class Exchange:
    """One request that has been accepted: its job, its inbox, its clock, and which answers are complete."""

    shape: Shape
    job: Job
    inbox: EventQueue
    deadline: Deadline
    finished: list[Finished] = field(default_factory=list)
    failed: bool = False

    @property
    def done(self) -> bool:
        return self.failed or bool(self.finished and len(self.finished) == self.finished[0].of)


@dataclass
class AppState:
    """What the endpoints of one server share."""

    adapter: Adapter
    offer: ServerConfig
    worker: Worker
    metrics: Metrics
    pages: Pages
    door: AdmissionControl = field(init=False)
    fetcher: Fetcher = field(init=False)
    placeholders: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.door = AdmissionControl(self.offer.limits)
        self.fetcher = Fetcher(self.offer.remote_hosts, self.offer.limits)
        self.placeholders = _placeholders(self.adapter)


class Endpoint:
    """One path over one model. All but ``_work`` runs in the event loop."""

    media_type = "application/json"

    def __init__(self, house: AppState) -> None:
        self.house, self.offer = house, house.offer
        self.worker, self.metrics, self.door = house.worker, house.metrics, house.door

    async def accepted(self, request: Request, body: bytes) -> tuple[GenerationRequest, Shape]:
        """Everything that can be refused without the model."""
        raise NotImplementedError

    async def __call__(self, request: Request) -> Response:
        deadline, client = Deadline(self.offer.limits.timeout), client_of(request.scope)
        self.door.enter(client)
        response: Response | None = None
        try:
            body = await read_body(request, self.offer.limits, self.media_type)
            response = await unless_gone(request, self._respond(request, body, client, deadline))
            return response
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        finally:
            if not isinstance(response, EventStream):  # a stream leaves at its own end
                self.door.leave(client)

    async def _respond(self, request: Request, body: bytes, client: str, deadline: Deadline) -> Response:
        try:
            async with asyncio.timeout(deadline.left):
                order, shape = await self.accepted(request, body)
        except TimeoutError:
            raise deadline.problem() from None
        inbox = EventQueue()
        job = Job(client, self._work, inbox.put, order, order.key, len(order.seeds))
        exchange = Exchange(shape, job, inbox, deadline)
        self.worker.submit(job)
        streaming = False
        try:
            first = await self._next(exchange)
            self.metrics.first.observe(deadline.spent)
            if shape.stream:
                streaming = True
                return EventStream(self._stream(exchange, first), partial(self._streamed, exchange, client))
            return await self._whole(exchange, first)
        finally:
            if not streaming:
                self._end(exchange)

    def _work(self, jobs: Sequence[Job]) -> None:
        """In the worker's thread."""
        self.metrics.batch.observe(sum(job.rows for job in jobs))
        answer(jobs, self.house.adapter, self.offer.limits, self.worker.batch, self.worker.fail)

    async def _next(self, exchange: Exchange, seconds: float | None = None) -> TokenEvent | Finished:
        """The next event.

        Raises:
            ApiError: the job failed, or its time is up. TimeoutError: nothing within ``seconds``, if given.
        """
        left = exchange.deadline.left
        try:
            event = await exchange.inbox.next(left if seconds is None else min(seconds, left))
        except TimeoutError:
            if seconds is not None and exchange.deadline.left > 0:
                raise
            raise exchange.deadline.problem() from None
        if isinstance(event, Failed):
            exchange.failed = True
            raise event.problem
        if not isinstance(event, (TokenEvent, Finished)):
            raise TypeError(f"unexpected event {type(event).__name__}")
        if isinstance(event, Finished):
            if not exchange.finished or event.stretch is not None:
                self.metrics.tokens.labels("prompt").inc(event.prompt_tokens)
            exchange.finished.append(event)
            self.metrics.tokens.labels("completion").inc(event.new_tokens)
            if exchange.done:
                await exchange.shape.settled(exchange.finished)
        return event

    async def _whole(self, exchange: Exchange, event: TokenEvent | Finished) -> Response:
        said: list[TokenEvent] = []
        while True:
            if isinstance(event, TokenEvent):
                said.append(event)
            if exchange.done:
                return exchange.shape.whole(said, exchange.finished)
            event = await self._next(exchange)

    async def _stream(self, exchange: Exchange, event: TokenEvent | Finished) -> AsyncIterator[str]:
        shape = exchange.shape
        try:
            for text in shape.opening():
                yield text
            while True:
                for text in shape.events(event):
                    yield text
                if exchange.done:
                    break
                while True:
                    try:
                        event = await self._next(exchange, PING_SECONDS)
                        break
                    except TimeoutError:
                        yield ": still at work\n\n"
            for text in shape.closing(exchange.finished):
                yield text
        except Exception as error:  # noqa: BLE001  # the status is sent already: the stream has to say it
            yield sse(_problem(error).payload())

    def _streamed(self, exchange: Exchange, client: str) -> None:
        self._end(exchange)
        self.door.leave(client)

    def _end(self, exchange: Exchange) -> None:
        """The answer is out, or nobody wants it any more."""
        if not exchange.done:
            self.worker.cancel(exchange.job)
            self.metrics.cancelled.inc()
        self.metrics.seconds.observe(exchange.deadline.spent)


def sse(value: Mapping[str, Any] | str) -> str:
    """One server-sent event."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
    return f"data: {text}\n\n"


def _problem(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    log.error("a stream broke", exc_info=error)
    return internal()


def _placeholders(adapter: Adapter) -> tuple[str, ...]:
    """How the model's placeholders are spelled: words may not hold them."""
    tokenizer = adapter.tokenizer
    found = tokenizer.convert_ids_to_tokens(sorted(adapter.placeholders)) if tokenizer is not None else []
    return tuple(t for t in found if isinstance(t, str) and t.strip())
