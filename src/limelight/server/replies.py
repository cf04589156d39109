"""OpenAI's chat completion objects, complete and in chunks, with limelight's extension field."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from limelight.decoding.strategy import Strategy
from limelight.server.answering import LOWEST_LOGPROB, Finished, TokenEvent
from limelight.server.responses import (
    AnswerGrounding,
    ChatCompletion,
    Choice,
    Grounding,
    Head,
    Logprob,
    Parts,
    Spelled,
    TakenView,
    TokenGrounding,
    Usage,
)
from limelight.types import Step, mean_parts
from limelight.types import TakenView as View

CHUNK = "chat.completion.chunk"
TEXT_ONLY = "no image, audio or video in the messages: plain decoding, without grounding"


@dataclass
class Reply:
    """Builds the objects of one request. ``usage``: whether to stream it; ``page_url``: set once rendered; ``warnings``: of
    media; ``flag``: the flag's rule (:func:`limelight.calibration.flag_rule`)."""

    model: str
    strategy: Strategy
    logprobs: bool = False
    grounding: bool = False
    has_media: bool = True
    usage: bool = False
    page_url: str | None = None
    warnings: Sequence[str] = ()
    flag: Mapping[str, Any] = field(default_factory=dict)
    ends: frozenset[int] = frozenset()  # tokens that are no part of the text
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self, index: int = 0) -> dict[str, Any]:
        return self._chunk(index, {"role": "assistant", "content": ""})

    def token(self, event: TokenEvent) -> dict[str, Any] | None:
        """Return a chunk, or None when there is nothing to send yet."""
        steps = [] if event.step is None else [(event.step, event)]
        tokens = [grounded(s) for s, _ in steps] if self.grounding else []
        logprobs = [logprob(s, x) for s, x in steps] if self.logprobs else []
        if not (event.delta or tokens or logprobs):
            return None
        extra = {"limelight": {"tokens": tokens}} if tokens else {}
        return self._chunk(event.index, {"content": event.delta}, logprobs=logprobs, extra=extra)

    def closing(self, done: Finished) -> dict[str, Any]:
        """Return the chunk that ends one answer."""
        delta = {"content": done.delta} if done.delta else {}
        about = {"limelight": self._about(done.seed)}
        return self._chunk(done.index, delta, reason=done.reason, extra=about)

    def total(self, done: Sequence[Finished]) -> dict[str, Any]:
        """Return the last chunk of a stream with ``include_usage``, without choices."""
        return {**self._head(), "object": CHUNK, "choices": [], "usage": usage_of(done)}

    def complete(self, events: Sequence[TokenEvent], done: Sequence[Finished]) -> ChatCompletion:
        done = sorted(done, key=lambda d: d.index)
        rows = [[(s.step, s) for s in events if s.index == d.index and s.step is not None] for d in done]
        about = self._about(done[0].seed)
        details = [grounding([s for s, _ in row], self.ends) for row in rows]
        if len(done) > 1:
            about["answers"] = [
                {"seed": d.seed, **(t if self.grounding else {})} for d, t in zip(done, details, strict=True)
            ]
        elif self.grounding:
            about = {**about, **details[0]}
        choices: list[Choice] = [
            {
                "index": d.index,
                "message": {
                    "role": "assistant",
                    "content": "".join(s.delta for s in events if s.index == d.index) + d.delta,
                    "refusal": None,
                },
                "logprobs": {"content": [logprob(s, x) for s, x in row], "refusal": None} if self.logprobs else None,
                "finish_reason": d.reason,
            }
            for d, row in zip(done, rows, strict=True)
        ]
        usage = usage_of(done)
        return {**self._head(), "object": "chat.completion", "choices": choices, "usage": usage, "limelight": about}

    def _about(self, seed: int | None) -> Grounding:
        about: Grounding = {
            "strategy": self.strategy.name, "settings": plain(self.strategy.settings()), "seed": seed
        }  # fmt: skip
        if self.grounding and self.has_media:
            about["flag"] = plain(self.flag)
        if self.page_url is not None:
            about["page_url"] = self.page_url
        if not self.has_media:
            about["note"] = TEXT_ONLY
        if self.warnings:
            about["warnings"] = list(self.warnings)
        return about

    def _head(self) -> Head:
        return {"id": self.id, "created": self.created, "model": self.model}

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: list[Logprob] | None = None,
        reason: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": {"content": logprobs, "refusal": None} if logprobs else None,
            "finish_reason": reason,
        }
        usage = {"usage": None} if self.usage else {}
        return {**self._head(), "object": CHUNK, "choices": [choice], **usage, **(extra or {})}


def usage_of(done: Sequence[Finished]) -> Usage:
    """Compute token usage; the prompt counts once for all answers."""
    read, written = done[0].prompt_tokens, sum(d.new_tokens for d in done)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def grounded(step: Step) -> TokenGrounding:
    """Return one token's grounding: shares of its relevance (backward pass) and of its logit (meter)."""
    out: TokenGrounding = {
        "token": step.text,
        "shares": _numbers(step.shares),
        "contributions": _numbers(step.contributions),
        "intervened": step.intervened,
        "flagged": step.flagged,
        "grounding": known(step.grounding),
        "grounding_by_modality": _numbers(step.grounding_by_modality),
        "p_supported": known(step.p_supported),
        "changed": None if step.plain is None else step.plain != step.token,
    }
    if step.views:
        out["views"] = [taken(v) for v in step.views]
    return out


def taken(view: View) -> TakenView:
    """A view that the strategy took, as plain values."""
    return {
        "kind": view.kind,
        "source": view.source,
        "box": None if view.box is None else [round(x, 1) for x in view.box],
        "interval": None if view.interval is None else [round(x, 3) for x in view.interval],
        "answer": view.answer,
        "margin": number(view.margin),
        "between": list(view.between),
        "weight": number(view.weight),
        "evidence": known(view.evidence),
    }


def logprob(step: Step, event: TokenEvent) -> Logprob:
    return {**spelled(step.text, step.logprob), "top_logprobs": [spelled(t, v) for t, v in event.top]}


def spelled(token: str, value: float) -> Spelled:
    return {"token": token, "logprob": value if math.isfinite(value) else LOWEST_LOGPROB, "bytes": list(token.encode())}


def grounding(steps: list[Step], ends: frozenset[int] = frozenset()) -> AnswerGrounding:
    """Return every token's grounding, and mean ``shares`` and ``contributions`` over the tokens that have them; a last token
    among ``ends`` does not count in the means."""
    said = steps[:-1] if len(steps) > 1 and steps[-1].token in ends else steps
    return {
        "tokens": [grounded(s) for s in steps],
        "shares": _numbers(mean_parts([s.shares for s in said])),
        "contributions": _numbers(mean_parts([s.contributions for s in said])),
    }


def _numbers(parts: Mapping[str, float]) -> Parts:
    return {m: number(v) for m, v in parts.items()}


def known(value: float | None) -> float | None:
    return None if value is None else number(value)


def number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def plain(value: Any) -> Any:
    """Convert a setting to plain JSON."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return number(value)
    return value if isinstance(value, (str, int, bool)) or value is None else str(value)
