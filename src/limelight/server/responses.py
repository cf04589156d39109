"""Response types of the endpoints: checked by mypy, and converted by pydantic to the OpenAPI document."""
# ruff: noqa: UP013  (one line per object)

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

Problem = TypedDict("Problem", {"message": str, "type": str, "param": str | None, "code": str | None})
Error = TypedDict("Error", {"error": Problem})

Message = TypedDict("Message", {"role": Literal["assistant"], "content": str, "refusal": None})
Spelled = TypedDict("Spelled", {"token": str, "logprob": float, "bytes": list[int]})
Logprob = TypedDict("Logprob", {"token": str, "logprob": float, "bytes": list[int], "top_logprobs": list[Spelled]})
Logprobs = TypedDict("Logprobs", {"content": list[Logprob], "refusal": None})
Parts = dict[str, float | None]  # modality -> part
TakenView = TypedDict("TakenView", {
    "kind": str, "source": int, "box": list[float] | None, "interval": list[float] | None, "answer": str,
    "margin": float | None, "between": list[str], "weight": float | None, "evidence": float | None,
})  # fmt: skip
TokenGrounding = TypedDict("TokenGrounding", {
    "token": str, "shares": Parts, "contributions": Parts, "intervened": bool, "flagged": bool,
    "grounding": float | None, "grounding_by_modality": Parts, "p_supported": float | None, "changed": bool | None,
    "views": NotRequired[list[TakenView]],
})  # fmt: skip
AnswerGrounding = TypedDict(
    "AnswerGrounding", {"tokens": list[TokenGrounding], "shares": Parts, "contributions": Parts}
)
Means = TypedDict("Means", {"grounding": float | None, "support": float | None})
Dropped = TypedDict("Dropped", {
    "start": float | None, "end": float | None, "text": str, "grounding": float | None, "support": float | None,
})  # fmt: skip
Grounding = TypedDict("Grounding", {
    "strategy": str, "settings": dict[str, Any], "seed": int | None, "page_url": NotRequired[str],
    "note": NotRequired[str], "flag": NotRequired[dict[str, Any]], "warnings": NotRequired[list[str]], "tokens": NotRequired[list[TokenGrounding]],
    "shares": NotRequired[Parts], "contributions": NotRequired[Parts], "answers": NotRequired[list[dict[str, Any]]],
    "threshold": NotRequired[float | None], "dropped": NotRequired[list[Dropped]],
})  # fmt: skip
Choice = TypedDict("Choice", {
    "index": int, "message": Message, "logprobs": Logprobs | None, "finish_reason": Literal["stop", "length"],
})  # fmt: skip
Usage = TypedDict("Usage", {"prompt_tokens": int, "completion_tokens": int, "total_tokens": int})
Head = TypedDict("Head", {"id": str, "created": int, "model": str})
ChatCompletion = TypedDict("ChatCompletion", {
    "id": str, "object": Literal["chat.completion"], "created": int, "model": str,
    "choices": Annotated[list[Choice], Field(min_length=1)], "usage": Usage, "limelight": Grounding,
})  # fmt: skip

AuditToken = TypedDict("AuditToken", {
    "id": int, "text": str, "logprob": float | None, "grounding": float | None, "rival_grounding": float | None, "support": float | None,
    "grounding_by_modality": Parts, "flagged": bool, "p_supported": float | None, "contributions": Parts,
    "plain": int | None, "candidates": list[list[Any]], "thought": NotRequired[Literal[True]],
})  # fmt: skip
AuditWord = TypedDict("AuditWord", {
    "text": str, "grounding": float | None, "flagged": bool, "p_supported": float | None, "logprob": float | None,
    "contributions": Parts, "start": int, "stop": int,
})  # fmt: skip
AuditSentence = TypedDict("AuditSentence", {
    "text": str, "grounding": float | None, "margin": float | None, "flagged": bool, "start": int, "stop": int
})  # fmt: skip
AuditReply = TypedDict("AuditReply", {
    "id": str, "object": Literal["grounding"], "created": int, "model": str, "answer": str, "summary": dict[str, Any],
    "tokens": list[AuditToken], "words": list[AuditWord], "sentences": list[AuditSentence], "flag": dict[str, Any],
    "usage": Usage, "page_url": NotRequired[str], "note": NotRequired[str], "warnings": NotRequired[list[str]],
})  # fmt: skip

SpeechUsage = TypedDict("SpeechUsage", {
    "type": Literal["tokens"], "input_tokens": int, "output_tokens": int, "total_tokens": int
})  # fmt: skip
SegmentGrounding = TypedDict("SegmentGrounding", {
    "grounding": float | None, "support": float | None, "invented": bool,
})  # fmt: skip
Segment = TypedDict("Segment", {
    "id": int, "seek": int, "start": float | None, "end": float | None, "text": str, "tokens": list[int],
    "temperature": float, "avg_logprob": float | None, "compression_ratio": float | None, "no_speech_prob": None,
    "limelight": NotRequired[SegmentGrounding],
})  # fmt: skip
Transcription = TypedDict("Transcription", {
    "text": str, "usage": SpeechUsage, "limelight": Grounding, "logprobs": NotRequired[list[Spelled]],
    "task": NotRequired[Literal["transcribe"]], "language": NotRequired[str], "duration": NotRequired[float | None],
    "segments": NotRequired[list[Segment]],
})  # fmt: skip

Model = TypedDict("Model", {
    "id": str, "object": Literal["model"], "created": int, "owned_by": str, "limelight": dict[str, Any]
})  # fmt: skip
Models = TypedDict("Models", {"object": Literal["list"], "data": list[Model]})
Health = TypedDict("Health", {"status": str, "waiting": int})
