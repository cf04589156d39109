"""POST /v1/chat/completions: from a body to an answer or a stream of it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect, Request

from limelight.models.adapter import Adapter
from limelight.server.answering import Finished, Order, Said, answer
from limelight.server.chosen import strategy_of
from limelight.server.conversation import read
from limelight.server.house import Deadline, Door, EventStream, Inbox, Offer, client_of, read_body, unless_gone
from limelight.server.metrics import Metrics
from limelight.server.problems import ApiError, internal, invalid
from limelight.server.remote import Fetcher
from limelight.server.replies import Reply, sse
from limelight.server.schema import ChatRequest, parse
from limelight.server.worker import Failed, Job, Worker, log

CLIENT_GONE = 499
PING_SECONDS = 15.0


@dataclass(eq=False)
class Exchange:
    """One request that has been accepted: its job, its inbox, its clock."""

    asked: ChatRequest
    reply: Reply
    job: Job
    inbox: Inbox
    deadline: Deadline
    done: bool = False

    @property
    def usage(self) -> bool:
        return self.asked.stream_options is not None and self.asked.stream_options.include_usage


class Chat:
    """The endpoint over one model. All but ``_work`` runs in the event loop."""

    def __init__(self, adapter: Adapter, offer: Offer, worker: Worker, metrics: Metrics) -> None:
        self.adapter, self.offer, self.worker, self.metrics = adapter, offer, worker, metrics
        self.door = Door(offer.limits)
        self.fetcher = Fetcher(offer.remote_hosts, offer.limits)
        self.placeholders = _placeholders(adapter)

    async def __call__(self, request: Request) -> Response:
        deadline, client = Deadline(self.offer.limits.timeout), client_of(request.scope)
        self.door.enter(client)
        response: Response | None = None
        try:
            body = await read_body(request, self.offer.limits)
            response = await unless_gone(request, self._respond(body, client, deadline))
            return response
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        finally:
            if not isinstance(response, EventStream):  # a stream leaves at its own end
                self.door.leave(client)

    async def _respond(self, body: bytes, client: str, deadline: Deadline) -> Response:
        try:
            async with asyncio.timeout(deadline.left):
                exchange = await self._accepted(body, client, deadline)
        except TimeoutError:
            raise deadline.problem() from None
        self.worker.submit(exchange.job)
        streaming = False
        try:
            first = await self._next(exchange)
            self.metrics.first.observe(deadline.spent)
            if exchange.asked.stream:
                streaming = True
                return EventStream(self._stream(exchange, first), partial(self._streamed, exchange, client))
            return JSONResponse(await self._whole(exchange, first))
        finally:
            if not streaming:
                self._end(exchange)

    async def _accepted(self, body: bytes, client: str, deadline: Deadline) -> Exchange:
        """Everything that can be refused without the model."""
        offer = self.offer
        asked = await asyncio.to_thread(parse, body)
        if asked.model != offer.model:
            raise invalid(
                f"there is no model of that name here, only {offer.model!r}",
                param="model", code="model_not_found", status=404,
            )  # fmt: skip
        if (asked.wanted_tokens or 0) > offer.limits.new_tokens:
            raise invalid(f"max_tokens may be at most {offer.limits.new_tokens} here", param="max_tokens")
        strategy = strategy_of(asked.limelight, offer.strategy, offer.strategies)
        conversation = await read(asked, offer.limits, self.fetcher, self.placeholders)
        own = asked.limelight
        if not conversation.has_media and (own.grounding or own.settings or own.strategy not in (None, "greedy")):
            raise invalid("without a picture or sound there is nothing to ground in", param="limelight")
        sampling = {
            "do_sample": True, "temperature": asked.temperature or 1.0, "top_p": asked.top_p or 1.0, "top_k": 0
        } if asked.samples else {}  # fmt: skip
        seed = asked.seed if asked.seed is not None else secrets.randbits(31)
        order = Order(
            conversation, strategy, own.grounding, sampling, seed if asked.samples else None, asked.stops,
            asked.wanted_tokens, asked.top_logprobs or 0,
        )  # fmt: skip
        inbox = Inbox()
        job = Job(client, partial(self._work, order), inbox.put)
        reply = Reply(offer.model, bool(asked.logprobs), own.grounding, conversation.has_media)
        return Exchange(asked, reply, job, inbox, deadline)

    def _work(self, order: Order, job: Job) -> None:
        """In the worker's thread."""
        answer(job, order, self.adapter, self.offer.limits)

    async def _next(self, exchange: Exchange, seconds: float | None = None) -> Said | Finished:
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
            exchange.done = True
            raise event.problem
        if not isinstance(event, (Said, Finished)):
            raise TypeError(f"unexpected event {type(event).__name__}")
        if isinstance(event, Finished):
            exchange.done = True
            self.metrics.tokens.labels("prompt").inc(event.prompt_tokens)
            self.metrics.tokens.labels("completion").inc(event.new_tokens)
        return event

    async def _whole(self, exchange: Exchange, event: Said | Finished) -> dict[str, object]:
        said: list[Said] = []
        while isinstance(event, Said):
            said.append(event)
            event = await self._next(exchange)
        return exchange.reply.whole(said, event)

    async def _stream(self, exchange: Exchange, event: Said | Finished) -> AsyncIterator[str]:
        reply, usage = exchange.reply, exchange.usage
        yield sse(reply.opening(usage))
        try:
            while isinstance(event, Said):
                chunk = reply.token(event, usage)
                if chunk is not None:
                    yield sse(chunk)
                while True:
                    try:
                        event = await self._next(exchange, PING_SECONDS)
                        break
                    except TimeoutError:
                        yield ": still at work\n\n"
        except Exception as error:  # noqa: BLE001  # the status is sent already: the stream has to say it
            yield sse(_problem(error).payload())
            return
        yield sse(reply.closing(event, usage))
        if usage:
            yield sse(reply.usage(event))
        yield sse("[DONE]")

    def _streamed(self, exchange: Exchange, client: str) -> None:
        self._end(exchange)
        self.door.leave(client)

    def _end(self, exchange: Exchange) -> None:
        """The answer is out, or nobody wants it any more."""
        if not exchange.done:
            self.worker.cancel(exchange.job)
            self.metrics.cancelled.inc()
        self.metrics.seconds.observe(exchange.deadline.spent)


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
