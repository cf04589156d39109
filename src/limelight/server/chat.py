"""POST /v1/chat/completions: OpenAI's request and response."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi.responses import JSONResponse, Response
from starlette.requests import Request

from limelight.decoding.answer import end_markers
from limelight.decoding.dual import flag_of
from limelight.decoding.methods.greedy import Greedy
from limelight.decoding.strategy import capabilities_of
from limelight.server.answering import Finished, GenerationRequest, TokenEvent
from limelight.server.endpoint import Endpoint, sse
from limelight.server.pages import PageMaker
from limelight.server.problems import invalid
from limelight.server.replies import Reply
from limelight.server.schema import ChatRequest, parse
from limelight.server.token_options import strategy_of


@dataclass
class ChatShape:
    """Formats a chat completion, complete or in chunks."""

    stream: bool
    answers: int
    reply: Reply
    page: PageMaker | None = None

    def opening(self) -> list[str]:
        return [sse(self.reply.opening(index)) for index in range(self.answers)]

    def events(self, event: TokenEvent | Finished) -> list[str]:
        chunk = self.reply.closing(event) if isinstance(event, Finished) else self.reply.token(event)
        return [] if chunk is None else [sse(chunk)]

    async def completed(self, done: Sequence[Finished]) -> None:
        if self.page is not None:
            self.reply.page_url = await self.page.made([d.generation for d in done if d.generation is not None])

    def closing(self, done: Sequence[Finished]) -> list[str]:
        return [*([sse(self.reply.total(done))] if self.reply.usage else []), sse("[DONE]")]

    def complete(self, events: Sequence[TokenEvent], done: Sequence[Finished]) -> Response:
        return JSONResponse(self.reply.complete(events, done))


class Chat(Endpoint):
    """The chat completions endpoint."""

    async def accepted(self, request: Request, body: bytearray) -> tuple[GenerationRequest, ChatShape]:
        config, state = self.config, self.state
        chat = await state.parsed(parse, body)
        self.check_model(chat.model)
        if (chat.wanted_tokens or 0) > config.limits.new_tokens:
            raise invalid(f"max_tokens may be at most {config.limits.new_tokens}", param="max_tokens")
        own = chat.limelight
        strategy = strategy_of(own, config.strategy, config.strategies)
        conversation = await self.state.conversation(request, chat)
        if not conversation.has_media and capabilities_of(strategy).needs_media:
            strategy = Greedy()  # stated in the reply's note, so that a chat can continue with a text-only turn
        sampling = {
            "do_sample": True, "temperature": chat.temperature or 1.0, "top_p": chat.top_p or 1.0,
            "top_k": max(chat.top_k or 0, 0),
        } if chat.samples else {}  # fmt: skip
        generation_request = GenerationRequest(
            conversation, strategy, own.grounding, own.page, sampling, seeds_of(chat), chat.stops,
            chat.wanted_tokens, chat.top_logprobs or 0,
        )  # fmt: skip
        usage = chat.stream_options is not None and chat.stream_options.include_usage
        reply = Reply(
            config.model, strategy, bool(chat.logprobs), own.grounding, conversation.has_media, usage=usage,
            warnings=conversation.warnings, flag=flag_of(state.adapter, strategy), ends=end_markers(state.adapter),
        )  # fmt: skip
        page = PageMaker(state.pages, state.adapter, str(request.base_url), chat.words) if own.page else None
        return generation_request, ChatShape(chat.stream, chat.answers, reply, page)


def seeds_of(chat: ChatRequest) -> tuple[int | None, ...]:
    """Return one seed per answer: the request's (or a random one) and the following integers."""
    if not chat.samples:
        return (None,)
    first = chat.seed if chat.seed is not None else secrets.randbits(31)
    return tuple(first + k for k in range(chat.answers))
