"""OpenAI's chat completion objects, whole and in chunks, with limelight's own field beside them."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from limelight.server.answering import Finished, Said
from limelight.types import MODALITIES, Step

TEXT_ONLY = "no picture or sound in the messages: nothing to ground in, plain decoding"


def sse(value: Mapping[str, Any] | str) -> str:
    """One server-sent event."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
    return f"data: {text}\n\n"


@dataclass
class Reply:
    """One answer's objects. ``said`` collects tokens when the answer is wanted in one piece."""

    model: str
    logprobs: bool
    grounding: bool
    has_media: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self, usage: bool) -> dict[str, Any]:
        return self._chunk({"role": "assistant", "content": ""}, usage=usage)

    def token(self, said: Said, usage: bool) -> dict[str, Any] | None:
        """A chunk, or None when there is nothing to tell yet."""
        steps = [] if said.step is None else [(said.step, said)]
        tokens = [grounded(s) for s, _ in steps] if self.grounding else []
        logprobs = [logprob(s, x) for s, x in steps] if self.logprobs else []
        if not (said.delta or tokens or logprobs):
            return None
        extra = {"limelight": {"tokens": tokens}} if tokens else {}
        return self._chunk({"content": said.delta}, logprobs=logprobs, usage=usage, extra=extra)

    def closing(self, done: Finished, usage: bool) -> dict[str, Any]:
        delta = {"content": done.delta} if done.delta else {}
        return self._chunk(delta, reason=done.reason, usage=usage, extra={"limelight": self._about(done)})

    def usage(self, done: Finished) -> dict[str, Any]:
        """The last chunk of a stream with ``include_usage``: no choices."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage_of(done)}

    def whole(self, said: list[Said], done: Finished) -> dict[str, Any]:
        steps = [(s.step, s) for s in said if s.step is not None]
        about = self._about(done)
        if self.grounding:
            about["tokens"] = [grounded(s) for s, _ in steps]
            about["shares"] = mean_shares([s for s, _ in steps])
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "".join(s.delta for s in said) + done.delta, "refusal": None},
            "logprobs": {"content": [logprob(s, x) for s, x in steps], "refusal": None} if self.logprobs else None,
            "finish_reason": done.reason,
        }
        return {
            **self._head("chat.completion"), "choices": [choice], "usage": usage_of(done), "limelight": about
        }  # fmt: skip

    def _about(self, done: Finished) -> dict[str, Any]:
        note = {} if self.has_media else {"note": TEXT_ONLY}
        return {"strategy": done.strategy, "settings": plain(done.settings), "seed": done.seed, **note}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(
        self,
        delta: dict[str, Any],
        *,
        logprobs: list[dict[str, Any]] | None = None,
        reason: str | None = None,
        usage: bool,
        extra: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": {"content": logprobs, "refusal": None} if logprobs else None,
            "finish_reason": reason,
        }
        told = {"usage": None} if usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **told, **(extra or {})}


def usage_of(done: Finished) -> dict[str, int]:
    total = done.prompt_tokens + done.new_tokens
    return {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.new_tokens, "total_tokens": total}


def grounded(step: Step) -> dict[str, Any]:
    """Where one token comes from."""
    return {
        "token": step.text,
        "shares": {k: number(v) for k, v in step.shares.items()},
        "intervened": step.intervened,
        "flagged": step.flagged,
        "changed": None if step.plain is None else step.plain != step.token,
    }


def logprob(step: Step, said: Said) -> dict[str, Any]:
    return {
        **_spelled(step.text, step.logprob if math.isfinite(step.logprob) else -9999.0),
        "top_logprobs": [_spelled(t, v) for t, v in said.top],
    }


def _spelled(token: str, value: float) -> dict[str, Any]:
    return {"token": token, "logprob": value, "bytes": list(token.encode())}


def mean_shares(steps: list[Step]) -> dict[str, float | None]:
    rows = [s.shares for s in steps if s.shares]
    present = [m for m in MODALITIES if any(m in r for r in rows)]
    return {m: number(sum(r.get(m, 0.0) for r in rows) / len(rows)) for m in present}


def number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def plain(value: Any) -> Any:
    """A setting as JSON takes it."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return number(value)
    return value if isinstance(value, (str, int, bool)) or value is None else str(value)
