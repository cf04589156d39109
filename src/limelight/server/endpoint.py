"""Common processing of model endpoints: body, admission, queue, complete or streamed response, cleanup."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from fastapi.responses import Response
from starlette.requests import ClientDisconnect, Request

from limelight.models.adapter import Adapter
from limelight.models.prompts import sampling_rate
from limelight.server.admission import AdmissionControl, Uploads, client_of
from limelight.server.answering import Finished, GenerationRequest, TokenEvent, longest_prompt
from limelight.server.batching import answer
from limelight.server.conversation import Conversation, read
from limelight.server.media import MediaReader
from limelight.server.metrics import Metrics
from limelight.server.pages import Pages
from limelight.server.problems import ApiError, internal, invalid
from limelight.server.remote import Fetcher
from limelight.server.schema import AuditRequest, ChatRequest
from limelight.server.state import Deadline, EventQueue, EventStream, ServerConfig, unless_gone
from limelight.server.worker import Failed, Job, Worker, log

T = TypeVar("T")
CLIENT_GONE = 499
PING_SECONDS = 15.0


class Shape(Protocol):
    """Formats the answers of one request, complete or streamed."""

    @property
    def stream(self) -> bool: ...

    def opening(self) -> list[str]:
        """Events before the first token."""
        ...

    def events(self, event: TokenEvent | Finished) -> list[str]:
        """Server-sent events for one event of the model."""
        ...

    async def completed(self, done: Sequence[Finished]) -> None:
        """Called when all answers are complete, before the last one is sent."""
        ...

    def closing(self, done: Sequence[Finished]) -> list[str]:
        """Events after the last answer."""
        ...

    def complete(self, events: Sequence[TokenEvent], done: Sequence[Finished]) -> Response: ...


@dataclass(eq=False)
class Exchange:
    """One accepted request: its job, events, deadline and complete answers."""

    shape: Shape
    job: Job
    events: EventQueue
    deadline: Deadline
    finished: list[Finished] = field(default_factory=list)
    failed: bool = False

    @property
    def done(self) -> bool:
        return self.failed or bool(self.finished and len(self.finished) == self.finished[0].of)


@dataclass
class AppState:
    """State shared by the endpoints of one server."""

    adapter: Adapter
    config: ServerConfig
    worker: Worker
    metrics: Metrics
    pages: Pages
    admission: AdmissionControl = field(init=False)
    uploads: Uploads = field(init=False)
    fetcher: Fetcher = field(init=False)
    media: MediaReader = field(init=False)
    placeholders: tuple[str, ...] = field(init=False)
    # Few threads: bodies are large, and concurrent parsing multiplies memory.
    parsers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "limelight-parser"), init=False)

    def __post_init__(self) -> None:
        self.admission, self.uploads = AdmissionControl(self.config.limits), Uploads(self.config.limits)
        self.fetcher = Fetcher(self.config.remote_hosts, self.config.limits)
        self.media = MediaReader(self.config.limits, sampling_rate(self.adapter))
        self.placeholders = _placeholders(self.adapter)

    async def conversation(self, request: Request, given: ChatRequest | AuditRequest) -> Conversation:
        """Read a request's conversation and decode its media.

        The prompt is limited to the model's context: longer text is rejected before tokenisation.
        """
        limits = self.config.limits
        limits = replace(limits, prompt_tokens=longest_prompt(self.adapter, limits))
        client, needs_text = client_of(request.scope), self.adapter.encoder is None
        return await read(given, limits, self.fetcher, self.placeholders, self.media, client, needs_text=needs_text)

    async def parsed(self, parse: Callable[..., T], *given: Any) -> T:
        """Run ``parse(*given)`` outside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.parsers, parse, *given)


class Endpoint:
    """One endpoint of the server. Everything except ``_work`` runs in the event loop."""

    media_type = "application/json"

    def __init__(self, state: AppState) -> None:
        self.state, self.config = state, state.config
        self.worker, self.metrics, self.admission = state.worker, state.metrics, state.admission

    def check_model(self, name: str) -> None:
        """Raise ApiError unless ``name`` is the model that is served."""
        if name != self.config.model:
            what = f"unknown model; this server serves {self.config.model!r}"
            raise invalid(what, param="model", code="model_not_found", status=404)

    async def accepted(self, request: Request, body: bytearray) -> tuple[GenerationRequest, Shape]:
        """Validate a request as far as possible without the model."""
        raise NotImplementedError

    async def __call__(self, request: Request) -> Response:
        deadline, client = Deadline(self.config.limits.timeout), client_of(request.scope)
        self.worker.check()
        self.admission.check(client)  # before the body is read; the place is taken once it has arrived
        try:
            body = [await self.state.uploads.read(request, client, self.media_type)]
            size = len(body[0])
            self.admission.enter(client, size)
            leave = partial(self.admission.leave, client, size)
            response: Response | None = None
            try:
                response = await unless_gone(request, self._respond(request, body, client, deadline, leave))
                return response
            finally:
                if not isinstance(response, EventStream):  # a stream leaves when it ends
                    leave()
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)

    async def _respond(
        self, request: Request, body: list[bytearray], client: str, deadline: Deadline, leave: Callable[[], None]
    ) -> Response:
        """``body`` contains the body, which is freed as soon as it has been read."""
        try:
            async with asyncio.timeout(deadline.left):
                generation_request, shape = await self.accepted(request, body.pop())
        except TimeoutError:
            raise deadline.problem() from None
        events = EventQueue()
        job = Job(
            client, self._work, events.put, generation_request, generation_request.key, len(generation_request.seeds)
        )
        exchange = Exchange(shape, job, events, deadline)
        self.worker.submit(job)
        streaming = False
        try:
            first = await self._next(exchange)
            self.metrics.first.observe(deadline.spent)
            if shape.stream:
                streaming = True
                end = partial(self._streamed, exchange, leave)
                return EventStream(self._stream(exchange, first), end, self.config.limits.send_seconds)
            return await self._complete(exchange, first)
        finally:
            if not streaming:
                self._end(exchange)

    def _work(self, jobs: Sequence[Job]) -> None:
        """Runs in the worker's thread."""
        self.metrics.batch.observe(sum(job.rows for job in jobs))
        answer(jobs, self.state.adapter, self.config.limits, self.worker.batch, self.worker.fail)

    async def _next(self, exchange: Exchange, seconds: float | None = None) -> TokenEvent | Finished:
        """Wait for the next event.

        Raises:
            ApiError: the job failed or timed out. TimeoutError: no event within ``seconds``, if given.
        """
        left = exchange.deadline.left
        try:
            event = await exchange.events.next(left if seconds is None else min(seconds, left))
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
            if not exchange.finished or event.interval is not None:
                self.metrics.tokens.labels("prompt").inc(event.prompt_tokens)
            exchange.finished.append(event)
            self.metrics.tokens.labels("completion").inc(event.new_tokens)
            if exchange.done:
                await exchange.shape.completed(exchange.finished)
        return event

    async def _complete(self, exchange: Exchange, event: TokenEvent | Finished) -> Response:
        events: list[TokenEvent] = []
        while True:
            if isinstance(event, TokenEvent):
                events.append(event)
            if exchange.done:
                return exchange.shape.complete(events, exchange.finished)
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
                        yield ": in progress\n\n"
            for text in shape.closing(exchange.finished):
                yield text
        except Exception as error:  # noqa: BLE001  # the status is sent already: the stream has to say it
            yield sse(_problem(error).payload())

    def _streamed(self, exchange: Exchange, leave: Callable[[], None]) -> None:
        self._end(exchange)
        leave()

    def _end(self, exchange: Exchange) -> None:
        """Clean up after a sent or cancelled response."""
        exchange.job.request.conversation.release()
        if not exchange.done:
            self.worker.cancel(exchange.job)
            self.metrics.cancelled.inc()
        self.metrics.seconds.observe(exchange.deadline.spent)


def sse(value: Mapping[str, Any] | str) -> str:
    """Format a server-sent event."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
    return f"data: {text}\n\n"


def _problem(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    log.error("stream failed", exc_info=error)
    return internal()


def _placeholders(adapter: Adapter) -> tuple[str, ...]:
    """Return the text of the model's placeholders, which messages must not contain."""
    tokenizer = adapter.tokenizer
    found = tokenizer.convert_ids_to_tokens(sorted(adapter.placeholders)) if tokenizer is not None else []
    return tuple(t for t in found if isinstance(t, str) and t.strip())
