"""The request of /v1/chat/completions. A field that would have no effect is refused, not ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from limelight.server.limits import MAX_ANSWERS, MAX_MESSAGES, MAX_STOPS
from limelight.server.problems import ApiError, invalid

Stop = Annotated[str, Field(min_length=1, max_length=256)]


_BRANCHES = frozenset({"str", "constrained-str", "user", "system", "developer", "assistant"})


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TextPart(Closed):
    type: Literal["text"]
    text: str


class ImageUrl(Closed):
    url: str = Field(description="data:image/png;base64,... or an https address of a host the operator allowed")
    detail: Literal["auto"] | None = None


class ImagePart(Closed):
    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(Closed):
    data: str = Field(description="base64")
    format: Literal["wav", "mp3", "flac", "ogg"]


class AudioPart(Closed):
    type: Literal["input_audio"]
    input_audio: InputAudio


class VideoUrl(Closed):
    url: str = Field(description="data:video/mp4;base64,... (also webm, x-matroska, quicktime, x-msvideo)")


class VideoPart(Closed):
    """A video: evenly spaced frames of it are looked at, its sound is not heard."""

    type: Literal["video_url"]
    video_url: VideoUrl


Part = Annotated[TextPart | ImagePart | AudioPart | VideoPart, Field(discriminator="type")]


class UserMessage(Closed):
    role: Literal["user"]
    content: str | list[Part]
    name: str | None = None


class OtherMessage(Closed):
    role: Literal["system", "developer", "assistant"]
    content: str | list[TextPart]
    name: str | None = None


Message = Annotated[UserMessage | OtherMessage, Field(discriminator="role")]


class StreamOptions(Closed):
    include_usage: bool = False


class TextFormat(Closed):
    type: Literal["text"]


class Grounded(Closed):
    """limelight's own field: which decoding method, and whether to tell where each token comes from."""

    strategy: str | None = Field(None, max_length=64, description="a name from `limelight strategies`")
    settings: dict[str, Any] = Field(default_factory=dict, description="the strategy's settings")
    grounding: bool = Field(False, description="per token: contributions to its logit, intervened, flagged")
    page: bool = Field(False, description="make a report page of the answer; its address comes back as page_url")


class ChatRequest(Closed):
    """As OpenAI's. Without ``temperature`` and ``top_p`` decoding is greedy."""

    model: str = Field(max_length=512)
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=MAX_ANSWERS, description="answers; more than one only when sampling")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    limelight: Grounded = Field(default_factory=lambda: Grounded.model_validate({}))
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    response_format: TextFormat | None = None
    user: str | None = Field(None, max_length=512)

    @model_validator(mode="after")
    def _together(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are the same thing: give one")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream=true")
        if self.answers > 1 and not self.samples:
            raise ValueError("n above 1 needs a temperature or top_p: greedy answers are all the same")
        if not any(m.role == "user" for m in self.messages):
            raise ValueError("messages hold no user message")
        return self

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens

    @property
    def words(self) -> str:
        """What the last user message says."""
        content = next(m.content for m in reversed(self.messages) if m.role == "user")
        return content if isinstance(content, str) else " ".join(p.text for p in content if isinstance(p, TextPart))

    @property
    def answers(self) -> int:
        return self.n or 1

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn: a temperature of at least 1e-4 (below it logits overflow), or a top_p alone."""
        return self.temperature >= 1e-4 if self.temperature is not None else self.top_p is not None

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def parse(body: bytes) -> ChatRequest:
    """A request from its body.

    Raises:
        ApiError: 400, naming the first field that is wrong; values are not echoed.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise told_of(error) from None


def told_of(error: ValidationError) -> ApiError:
    """The first field that is wrong; values are not echoed."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    first = max(found, key=lambda e: len(e["loc"]))  # of a union's branches the one that got furthest
    where = ".".join(str(p) for p in first["loc"] if str(p) not in _BRANCHES and "[" not in str(p)) or None
    if first["type"] == "json_invalid":
        return invalid(f"the body is not JSON: {first['msg']}", code="invalid_json")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "this server does not know the field"
    if where and len(where) > 200:  # a field's name may be the client's own text
        where = where[:200] + "..."
    return invalid(f"{where}: {message}" if where else message, param=where, code="invalid_request")
