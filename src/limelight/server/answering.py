"""What a request wants of the model, and one answer to it as it grows: an event a token."""

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
LOWEST_LOGPROB = -9999.0  # OpenAI's number for a token that cannot come


@dataclass(frozen=True)
class TokenEvent:
    """One token of answer ``index``: its step (None for the end-of-text token), the text that may now be shown, rivals."""

    step: Step | None
    delta: str
    top: tuple[tuple[str, float], ...] = ()
    index: int = 0


@dataclass(frozen=True)
class PromptSpec:
    """One answer that a request wants: to which prompt, from which seed, how long; ``stretch``: the seconds it hears."""

    prompt: Prompt
    seed: int | None = None
    new_tokens: int | None = None
    stretch: tuple[float, float] | None = None


@dataclass(frozen=True)
class Finished:
    """Answer ``index`` of ``of`` is complete. ``generation`` is there when the request asked for a page."""

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
    stretch: tuple[float, float] | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """What a request wants of the model: an answer a seed.

    Attributes:
        grounding: run the meter beside the strategy. ``page``: keep every token's relevance.
        sampling: settings of generate() that draw tokens; empty: greedy.
        seeds: of the answers; one None for an answer that draws nothing.
        top: how many rivals of each token to tell.
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
        """Whether its answers may share a batch with others."""
        return capabilities_of(self.strategy).batches

    @property
    def key(self) -> Hashable | None:
        """What must agree for requests to be decoded together; None: alone.

        A page is alone: its relevance is laid out over the prompt as it is, without padding in front.
        """
        if self.page or not self.together:
            return None
        settings = repr(sorted(self.strategy.settings().items()))
        kinds = self.conversation.kinds
        return self.strategy.name, settings, self.grounding, tuple(sorted(self.sampling.items())), kinds

    def prompt_specs(self, adapter: Adapter, limits: Limits) -> list[PromptSpec]:
        """Every answer that is wanted. In the worker's thread.

        Raises:
            ApiError: the chat template refuses the turns. LimelightError: media that cannot be read, see the library.
        """
        prompt = prepared(adapter, self.conversation, regions=self.page)
        return [PromptSpec(prompt, seed, self.new_tokens) for seed in self.seeds]


@dataclass(eq=False)
class Row:
    """One answer on its way: a row of a batch."""

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
        """Whether no further token is wanted."""
        return self.ended or self.text.stopped or len(self.steps) >= self.room or self.job.cancelled.is_set()

    def push(self, step: Step) -> None:
        """One more token."""
        top = tuple((text, max(value, LOWEST_LOGPROB)) for text, value in step.top_logprobs[: self.request.top])
        self.steps.append(step)
        self.ended = step.token in self.ends
        delta = self.text.push(step.token)
        self.job.tell(
            TokenEvent(None, delta, (), self.index) if self.ended else TokenEvent(step, delta, top, self.index)
        )
        if self.stopped:
            self.finish()

    def finish(self) -> None:
        """Tell, once, that the answer is complete (nothing when nobody waits for it)."""
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
            tuple(self.steps), made, self.spec.stretch,
        )  # fmt: skip
        self.job.tell(finished)


def rows_of(job: Job, adapter: Adapter, limits: Limits) -> list[Row]:
    """The rows that a job's request asks for.

    Raises:
        ApiError: the prompt is too long, or leaves no room for the answer. LimelightError: see ``GenerationRequest.prompt_specs``.
    """
    request: GenerationRequest = job.request
    tokenizer, ends = adapter.tokenizer, end_tokens(adapter)
    specs = request.prompt_specs(adapter, limits)
    rows = []
    for index, spec in enumerate(specs):
        room = _room(adapter, spec.new_tokens, len(spec.prompt.tokens), limits)
        text = GrowingText(lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)), request.stops)
        rows.append(Row(adapter, job, request, index, len(specs), spec, room, ends, text))
    return rows


def prepared(adapter: Adapter, conversation: Conversation, *, regions: bool = True) -> Prompt:
    """A conversation as tensors. ``regions``: as for ``Adapter.prepare``.

    Raises:
        ApiError: the chat template refuses the turns, or there is none for turns without media.
    """
    owners = (adapter.processor, adapter.tokenizer)
    if not conversation.has_media and not any(getattr(o, "chat_template", None) for o in owners):
        raise invalid(
            "the model that is served here has no chat template: it answers about media alone", param="messages"
        )
    try:
        return adapter.prepare(conversation.messages(), regions=regions)
    except TemplateError as error:
        raise invalid(f"the model's chat template refuses these turns: {error}", param="messages") from error


def longest_prompt(adapter: Adapter, limits: Limits) -> int:
    """Tokens that a prompt may have: the server's bound, or what the model's context leaves for it."""
    context = _context(adapter)
    return limits.prompt_tokens if context is None else min(limits.prompt_tokens, context - 1)


def _context(adapter: Adapter) -> int | None:
    found = getattr(adapter.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def _room(adapter: Adapter, wanted: int | None, length: int, limits: Limits) -> int:
    """How many tokens may be generated after a prompt of ``length``: no more than the model's context has room for."""
    most = longest_prompt(adapter, limits)
    if length > most:
        raise invalid(
            f"the prompt has {length} tokens with its pictures and sounds, the limit is {most}",
            param="messages",
            code="context_length_exceeded",
        )
    context = _context(adapter)
    room = limits.new_tokens if context is None else min(limits.new_tokens, context - length)
    return min(DEFAULT_NEW_TOKENS if wanted is None else wanted, room)
