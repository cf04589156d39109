"""The request of /v1/chat/completions. Fields without effect are rejected, not ignored, unless they are empty.

Types are strict: true is not a number, "yes" is not a boolean. A null counts as an omitted field, and unknown fields are
accepted when empty (null, "", [], {}): clients send back objects that they received, with all their empty fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from limelight.server.json_body import is_empty, read_json
from limelight.server.limits import MAX_ANSWERS, MAX_MESSAGES, MAX_METADATA, MAX_PARTS, MAX_STOPS
from limelight.server.problems import ApiError, invalid

RequestT = TypeVar("RequestT", bound=BaseModel)
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Label = Annotated[str, Field(max_length=512)]
Zero = Annotated[float, Field(ge=0, le=0)]
One = Annotated[float, Field(ge=1, le=1)]


def _boolean(given: Any) -> Any:
    """In Python 0 equals false."""
    if not isinstance(given, bool):
        raise ValueError("expected true or false")
    return given


No = Annotated[Literal[False], BeforeValidator(_boolean)]
Yes = Annotated[Literal[True], BeforeValidator(_boolean)]

_BRANCHES = frozenset({"str", "constrained-str", "user", "system", "developer", "assistant"})


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {k: v for k, v in given.items() if v is not None and (k in cls.model_fields or not is_empty(v))}


class TextPart(Closed):
    type: Literal["text"]
    text: str


class ImageUrl(Closed):
    url: str = Field(description="data:image/png;base64,... or an https URL of a host allowed by the operator")
    detail: Literal["auto", "low", "high"] | None = Field(None, description="no effect: the model's resolution is used")


class ImagePart(Closed):
    type: Literal["image_url"]
    image_url: ImageUrl

    @field_validator("image_url", mode="before")
    @classmethod
    def _address(cls, given: Any) -> Any:
        """Accept the URL itself, as some clients send it."""
        return {"url": given} if isinstance(given, str) else given


class InputAudio(Closed):
    data: str = Field(description="base64")
    format: Literal["wav", "mp3", "flac", "ogg"]


class AudioPart(Closed):
    type: Literal["input_audio"]
    input_audio: InputAudio


class VideoUrl(Closed):
    url: str = Field(description="data:video/mp4;base64,... (also webm, x-matroska, quicktime, x-msvideo)")


class VideoPart(Closed):
    """A video: evenly spaced frames are used, its audio is ignored."""

    type: Literal["video_url"]
    video_url: VideoUrl


Part = Annotated[TextPart | ImagePart | AudioPart | VideoPart, Field(discriminator="type")]


class UserMessage(Closed):
    role: Literal["user"]
    content: str | Annotated[list[Part], Field(max_length=MAX_PARTS, fail_fast=True)]
    name: Label | None = None


class SystemMessage(Closed):
    role: Literal["system", "developer"]
    content: str | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)]
    name: Label | None = None


class AssistantMessage(Closed):
    role: Literal["assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)] = ""
    name: Label | None = None


Message = Annotated[UserMessage | SystemMessage | AssistantMessage, Field(discriminator="role")]


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class StreamOptions(Closed):
    include_usage: bool = False
    include_obfuscation: No | None = None


class TextFormat(Closed):
    type: Literal["text"]


class Grounded(Closed):
    """limelight's extension field: the decoding strategy, and whether to report each token's grounding."""

    strategy: str | None = Field(None, max_length=64, description="a name from `limelight strategies`")
    settings: dict[str, Any] = Field(default_factory=dict, max_length=64, description="the strategy's settings")
    grounding: bool = Field(
        False, description="report per token: contributions to its logit, grounding, intervened, flagged"
    )
    page: bool = Field(False, description="create a report page of the answer; its URL is returned as page_url")


class GroundedSpeech(Grounded):
    """The same for a transcription."""

    drop_invented: bool = Field(
        False, description="leave out segments that the audio does not support; they are listed as limelight.dropped"
    )
    threshold: float | None = Field(
        None,
        description="mean support (in logits) below which a segment counts as invented; by default the model's own",
    )


class WithoutEffect(Closed):
    """Standard fields accepted only with values that have no effect here."""

    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    metadata: dict[Annotated[str, Field(max_length=64)], Label] | None = Field(None, max_length=MAX_METADATA)
    store: No | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1, fail_fast=True)] | None = None
    response_format: TextFormat | None = None
    tool_choice: Literal["none", "auto"] | None = None
    function_call: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    repetition_penalty: One | None = None
    length_penalty: One | None = None
    min_p: Zero | None = None
    min_tokens: Annotated[int, Field(ge=0, le=0)] | None = None
    ignore_eos: No | None = None
    use_beam_search: No | None = None
    skip_special_tokens: Yes | None = None


class ChatRequest(WithoutEffect):
    """OpenAI's chat completion request. Without ``temperature`` and ``top_p`` decoding is greedy."""

    model: str = Field(max_length=512)
    messages: Messages
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1, description="for sampling; 0 or -1: all tokens")
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=MAX_ANSWERS, description="number of answers; more than one only with sampling")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    limelight: Grounded = Field(default_factory=lambda: Grounded.model_validate({}))

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, given: Any) -> Any:
        """Drop empty stop strings."""
        if isinstance(given, list) and len(given) <= MAX_STOPS:
            return [s for s in given if not is_empty(s)]
        return given or None if isinstance(given, str) else given

    @model_validator(mode="after")
    def _together(self) -> ChatRequest:
        if len({self.max_tokens, self.max_completion_tokens} - {None}) > 1:
            raise ValueError("max_tokens and max_completion_tokens are the same: give only one")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs requires logprobs=true")
        if self.stream_options is not None and self.stream_options.include_usage and not self.stream:
            raise ValueError("stream_options requires stream=true")
        if self.answers > 1 and not self.samples:
            raise ValueError("n above 1 requires temperature or top_p: greedy answers are identical")
        if not any(m.role == "user" for m in self.messages):
            raise ValueError("messages contain no user message")
        return self

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens

    @property
    def words(self) -> str:
        """The text of the last user message."""
        return last_question(self.messages)

    @property
    def answers(self) -> int:
        return self.n or 1

    @property
    def samples(self) -> bool:
        """Whether to sample: a temperature of at least 1e-4 (below it logits overflow), or top_p alone."""
        return self.temperature >= 1e-4 if self.temperature is not None else self.top_p is not None

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class AuditOptions(Closed):
    """limelight's extension field of an audit request."""

    page: bool = Field(False, description="create a report page of the answer; its URL is returned as page_url")


class AuditRequest(WithoutEffect):
    """OpenAI messages that end with the assistant's turn: the answer to audit."""

    model: str = Field(max_length=512)
    messages: Messages
    limelight: AuditOptions = Field(default_factory=lambda: AuditOptions.model_validate({}))

    @model_validator(mode="after")
    def _answered(self) -> AuditRequest:
        if not any(m.role == "user" for m in self.messages):
            raise ValueError("messages contain no user message")
        if self.messages[-1].role != "assistant" or not self.answer.strip():
            raise ValueError("the last message must be a non-empty answer of the assistant")
        return self

    @property
    def answer(self) -> str:
        content = self.messages[-1].content
        return content if isinstance(content, str) else "".join(p.text for p in content if isinstance(p, TextPart))

    @property
    def words(self) -> str:
        """The text of the last user message."""
        return last_question(self.messages)


def last_question(messages: Sequence[Message]) -> str:
    """Return the text of the last user message."""
    content = next(m.content for m in reversed(messages) if m.role == "user")
    return content if isinstance(content, str) else " ".join(p.text for p in content if isinstance(p, TextPart))


def parse(body: bytes | bytearray) -> ChatRequest:
    """Parse the body of a chat request; see :func:`parse_as`."""
    return parse_as(ChatRequest, body)


def parse_as(kind: type[RequestT], body: bytes | bytearray) -> RequestT:
    """Parse a request body.

    Raises:
        ApiError: 400, naming the first invalid field; values are not echoed.
    """
    value = read_json(body)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise validation_error(error) from None


def validation_error(error: ValidationError) -> ApiError:
    """Return the error for the first invalid field; values are not echoed."""
    found = error.errors(include_url=False, include_input=False)
    first = max(found, key=lambda e: len(e["loc"]))  # for a union, the branch that matched furthest
    branch = [k > 0 and (str(p) in _BRANCHES or "[" in str(p)) for k, p in enumerate(first["loc"])]
    where = ".".join(str(p) for p, within in zip(first["loc"], branch, strict=True) if not within) or None
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown field"
    elif first["type"] == "union_tag_invalid":  # pydantic's own message echoes the value
        message = f"expected one of {first.get('ctx', {}).get('expected_tags', 'the types in the documentation')}"
    if where and len(where) > 200:  # a field's name may be arbitrary client text
        where = where[:200] + "..."
    message = message[:500]
    return invalid(f"{where}: {message}" if where else message, param=where, code="invalid_request")
