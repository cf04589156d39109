"""One answer, in the worker's thread: prompt, limits, generation, and an event a token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from limelight.decoding.generate import generate
from limelight.decoding.greedy import Greedy
from limelight.decoding.loop import decode
from limelight.decoding.strategy import Chooser, Run, Strategy
from limelight.models.adapter import Adapter
from limelight.server.conversation import Conversation
from limelight.server.limits import Limits
from limelight.server.problems import invalid
from limelight.server.text import GrowingText
from limelight.server.worker import Job
from limelight.types import Step

DEFAULT_NEW_TOKENS = 256


@dataclass(frozen=True)
class Said:
    """One token: its step (None for the end-of-text token), the text that may now be shown, rivals if asked for."""

    step: Step | None
    delta: str
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Finished:
    """The answer is complete."""

    delta: str
    reason: str
    prompt_tokens: int
    new_tokens: int
    strategy: str
    settings: Mapping[str, Any]
    seed: int | None


@dataclass(frozen=True)
class Order:
    """What a request wants of the model."""

    conversation: Conversation
    strategy: Strategy
    grounding: bool
    sampling: Mapping[str, Any]
    seed: int | None
    stops: tuple[str, ...]
    new_tokens: int | None
    top: int


class Watch(StoppingCriteria):  # type: ignore[misc]
    """Sees every token after its choice: passes it on, and stops at a stop string or when nobody waits any more."""

    def __init__(self, job: Job, order: Order, adapter: Adapter, text: GrowingText, ends: frozenset[int]) -> None:
        self.job, self.order, self.adapter, self.text, self.ends = job, order, adapter, text, ends
        self.pending: Step | None = None
        self.count = 0
        self.ended = False

    def stepped(self, row: int, step: Step) -> None:
        self.pending = step

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Any:
        step, self.pending = self.pending, None
        if step is not None and not self.job.cancelled.is_set():
            self.count += 1
            self.ended = step.token in self.ends
            delta = self.text.push(step.token)
            self.job.emit(Said(None if self.ended else step, delta, () if self.ended else self._top(scores)))
        stop = self.job.cancelled.is_set() or self.text.stopped
        return torch.full((ids.shape[0],), stop, dtype=torch.bool, device=ids.device)

    def _top(self, scores: Any) -> tuple[tuple[str, float], ...]:
        if not self.order.top or not scores:
            return ()
        found = torch.log_softmax(scores[-1][0].double(), dim=-1).topk(min(self.order.top, scores[-1].shape[-1]))
        words = self.adapter.tokens(found.indices)
        return tuple((w, max(float(v), -9999.0)) for w, v in zip(words, found.values, strict=True))


def answer(job: Job, order: Order, adapter: Adapter, limits: Limits) -> None:
    """Run one order; emits :class:`Said` a token and one :class:`Finished` (nothing more once cancelled).

    Raises:
        ApiError: too many tokens, or the chat template refuses the turns. LimelightError: from the library.
    """
    messages = order.conversation.messages(limits)
    try:
        prompt = adapter.prepare(messages) if order.conversation.has_media else _text_only(adapter, messages)
    except TemplateError as error:
        raise invalid(f"the model's chat template refuses these turns: {error}", param="messages") from error
    tensors = prompt if isinstance(prompt, dict) else prompt.tensors
    length = int(tensors["input_ids"].shape[1])
    new_tokens = _room(adapter, order.new_tokens, length, limits)
    tokenizer = adapter.tokenizer
    text = GrowingText(lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)), order.stops)
    watch = Watch(job, order, adapter, text, _ends(adapter))
    settings: dict[str, Any] = {
        **order.sampling,
        "max_new_tokens": new_tokens,
        "stopping_criteria": StoppingCriteriaList([watch]),
        "output_scores": order.top > 0,
    }
    used: Strategy = order.strategy
    if isinstance(prompt, dict):
        used = Greedy()
        _plain(adapter, prompt, settings, order.seed, watch.stepped)
    else:
        generate(
            adapter, None, prompt, strategy=order.strategy, relevance=False, meter=order.grounding, seed=order.seed,
            on_step=watch.stepped, **settings,
        )  # fmt: skip
    if job.cancelled.is_set():
        return
    reason = "stop" if watch.ended or text.stopped else "length"
    job.emit(Finished(text.finish(), reason, length, watch.count, used.name, used.settings(), order.seed))


def _room(adapter: Adapter, wanted: int | None, length: int, limits: Limits) -> int:
    """How many tokens may be generated after a prompt of ``length``."""
    context = getattr(adapter.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    most = limits.prompt_tokens if not isinstance(context, int) else min(limits.prompt_tokens, context - 1)
    if length > most:
        raise invalid(
            f"the prompt has {length} tokens with its pictures and sounds, the limit is {most}",
            param="messages",
            code="context_length_exceeded",
        )
    room = limits.new_tokens if not isinstance(context, int) else min(limits.new_tokens, context - length)
    if wanted is not None and wanted > room:
        raise invalid(
            f"max_tokens may be at most {room} after this prompt of {length} tokens, got {wanted}",
            param="max_tokens",
            code="context_length_exceeded",
        )
    return wanted if wanted is not None else min(DEFAULT_NEW_TOKENS, room)


def _ends(adapter: Adapter) -> frozenset[int]:
    found = adapter.model.generation_config.eos_token_id
    return frozenset([found] if isinstance(found, int) else found or ())


def _text_only(adapter: Adapter, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Tensors of turns without any picture or sound."""
    owner = adapter.processor if getattr(adapter.processor, "chat_template", None) else adapter.tokenizer
    made = owner.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return dict(made.to(adapter.device))


def _plain(
    adapter: Adapter,
    tensors: Mapping[str, Any],
    settings: Mapping[str, Any],
    seed: int | None,
    on_step: Callable[[int, Step], None],
) -> None:
    """Plain decoding in the library's own loop: without a percept there is no span that a strategy could ground in."""

    def method(
        model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **kwargs: Any
    ) -> Any:  # fmt: skip
        seeds = None if seed is None else [seed]
        chooser = Chooser(logits_processor, sample=bool(generation_config.do_sample), seeds=seeds)
        no_percept, mask = torch.zeros_like(input_ids), torch.ones_like(input_ids, dtype=torch.bool)
        run = Run(adapter, input_ids, kwargs, no_percept, mask, chooser, generation_config)
        return decode(Greedy(), run, stopping_criteria, None, on_step)

    defaults = {"do_sample": False, "disable_compile": True, "return_dict_in_generate": True}
    if not settings.get("do_sample"):
        defaults |= dict.fromkeys(("temperature", "top_p", "top_k"))  # type: ignore[arg-type]
    adapter.model.generate(**tensors, custom_generate=method, **{**defaults, **settings})
