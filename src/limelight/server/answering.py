"""Generation requests, and the incremental state of one answer: one event per token."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jinja2 import TemplateError

from limelight.decoding.answer import end_tokens, generation_of
from limelight.decoding.strategy import Strategy, capabilities_of
from limelight.models.adapter import Adapter
from limelight.server.conversation import Conversation
from limelight.server.limits import Limits
from limelight.server.problems import invalid
from limelight.server.text import GrowingText
from limelight.server.worker import Job
from limelight.types import Generation, Prompt, Step

DEFAULT_NEW_TOKENS = 256
LOWEST_LOGPROB = -9999.0  # OpenAI's value for an impossible token


@dataclass(frozen=True)
class TokenEvent:
    """One token of answer ``index``: its step (None for the end-of-text token), newly emitted text, top alternatives."""

    step: Step | None
    delta: str
    top: tuple[tuple[str, float], ...] = ()
    index: int = 0


@dataclass(frozen=True)
class PromptSpec:
    """One answer of a request: its prompt, seed and length; ``interval``: (start, stop) of its audio in seconds."""

    prompt: Prompt
    seed: int | None = None
    new_tokens: int | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Finished:
    """Event: answer ``index`` of ``of`` is complete. ``generation`` is set when the request asked for a page."""

    delta: str
    reason: Literal["stop", "length"]
    prompt_tokens: int
    new_tokens: int
    seed: int | None
    index: int = 0
    of: int = 1
    text: str = ""
    steps: tuple[Step, ...] = ()
    generation: Generation | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """A request to the model: one answer per seed.

    Attributes:
        grounding: run the meter with the strategy. ``page``: keep every token's relevance.
        sampling: sampling settings of generate(); empty: greedy.
        seeds: one per answer; a single None for a greedy answer.
        top: number of top alternatives to report per token.
    """

    conversation: Conversation
    strategy: Strategy
    grounding: bool = False
    page: bool = False
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int | None, ...] = (None,)
    stops: tuple[str, ...] = ()
    new_tokens: int | None = None
    top: int = 0

    @property
    def together(self) -> bool:
        """Whether its answers may share a batch with other requests."""
        return capabilities_of(self.strategy).batches

    @property
    def key(self) -> Hashable | None:
        """Batching key: requests with equal keys may be decoded together; None: decoded alone.

        Requests for a page are decoded alone: their relevance refers to the prompt without left padding.
        """
        if self.page or not self.together:
            return None
        settings = repr(sorted(self.strategy.settings().items()))
        kinds = self.conversation.kinds
        return self.strategy.name, settings, self.grounding, tuple(sorted(self.sampling.items())), kinds

    def prompt_specs(self, adapter: Adapter, limits: Limits) -> list[PromptSpec]:
        """Return a spec for every answer. Called in the worker's thread.

        Raises:
            ApiError: the chat template rejects the messages. LimelightError: media that cannot be read, see the library.
        """
        own = capabilities_of(self.strategy)
        regions = self.page or own.originals
        prompt = prepared(adapter, self.conversation, regions=regions, long_audio=own.long_audio)
        return [PromptSpec(prompt, seed, self.new_tokens) for seed in self.seeds]


@dataclass(eq=False)
class Row:
    """One answer in progress: a row of a batch."""

    adapter: Adapter
    job: Job
    request: GenerationRequest
    index: int
    of: int
    spec: PromptSpec
    room: int
    ends: frozenset[int]
    text: GrowingText
    steps: list[Step] = field(default_factory=list)
    ended: bool = False
    done: bool = False

    @property
    def prompt(self) -> Prompt:
        return self.spec.prompt

    @property
    def seed(self) -> int | None:
        return self.spec.seed

    @property
    def stopped(self) -> bool:
        """Whether no further token is needed."""
        return self.ended or self.text.stopped or len(self.steps) >= self.room or self.job.cancelled.is_set()

    def push(self, step: Step) -> None:
        """Add one token."""
        top = tuple((text, max(value, LOWEST_LOGPROB)) for text, value in step.top_logprobs[: self.request.top])
        self.steps.append(step)
        self.ended = step.token in self.ends
        delta = self.text.push(step.token)
        self.job.send(
            TokenEvent(None, delta, (), self.index) if self.ended else TokenEvent(step, delta, top, self.index)
        )
        if self.stopped:
            self.finish()

    def finish(self) -> None:
        """Emit, once, that the answer is complete (nothing if the job was cancelled)."""
        if self.done or self.job.cancelled.is_set():
            return
        self.done = True
        delta, made = self.text.finish(), None
        if self.request.page:
            made = generation_of(self.adapter, self.request.strategy, self.prompt, tuple(self.steps))
            made = replace(made, text=self.text.text)
        reason: Literal["stop", "length"] = "stop" if self.ended or self.text.stopped else "length"
        finished = Finished(
            delta, reason, len(self.prompt.tokens), len(self.steps), self.seed, self.index, self.of, self.text.text,
            tuple(self.steps), made, self.spec.interval,
        )  # fmt: skip
        self.job.send(finished)


def rows_of(job: Job, adapter: Adapter, limits: Limits) -> list[Row]:
    """Create the rows of a job's request.

    Raises:
        ApiError: the prompt is too long, or leaves no room for the answer. LimelightError: see ``GenerationRequest.prompt_specs``.
    """
    request: GenerationRequest = job.request
    ends, specs = end_tokens(adapter), request.prompt_specs(adapter, limits)
    rows = []
    for index, spec in enumerate(specs):
        room = _room(adapter, spec.new_tokens, len(spec.prompt.tokens), limits)
        text = GrowingText.of(adapter.tokenizer, request.stops)
        rows.append(Row(adapter, job, request, index, len(specs), spec, room, ends, text))
    return rows


def prepared(adapter: Adapter, conversation: Conversation, *, regions: bool = True, long_audio: bool = False) -> Prompt:
    """Convert a conversation to tensors. ``regions``, ``long_audio``: as for ``Adapter.prepare``.

    Raises:
        ApiError: the chat template rejects the messages, or there is none and the messages have no media.
    """
    owners = (adapter.processor, adapter.tokenizer)
    if not conversation.has_media and not any(getattr(o, "chat_template", None) for o in owners):
        raise invalid("the model has no chat template: messages must contain media", param="messages")
    try:
        return adapter.prepare(conversation.messages(), regions=regions, long_audio=long_audio)
    except TemplateError as error:
        raise invalid(f"the model's chat template rejects these messages: {error}", param="messages") from error


def longest_prompt(adapter: Adapter, limits: Limits) -> int:
    """Return the maximum prompt length in tokens: the server's limit, or what fits the model's context."""
    context = _context(adapter)
    return limits.prompt_tokens if context is None else min(limits.prompt_tokens, context - 1)


def _context(adapter: Adapter) -> int | None:
    found = getattr(adapter.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def _room(adapter: Adapter, wanted: int | None, length: int, limits: Limits) -> int:
    """Return the maximum number of new tokens after a prompt of ``length``, limited by the model's context."""
    most = longest_prompt(adapter, limits)
    if length > most:
        raise invalid(
            f"the prompt has {length} tokens including its media, the limit is {most}",
            param="messages",
            code="context_length_exceeded",
        )
    context = _context(adapter)
    room = limits.new_tokens if context is None else min(limits.new_tokens, context - length)
    return min(DEFAULT_NEW_TOKENS if wanted is None else wanted, room)
