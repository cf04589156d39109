"""The form of /v1/audio/transcriptions: size-limited parts in memory, every field validated."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Coroutine
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from limelight.errors import MissingExtraError
from limelight.server.json_body import read_json
from limelight.server.limits import Limits
from limelight.server.problems import ApiError, invalid
from limelight.server.schema import Closed, GroundedSpeech, validation_error

T = TypeVar("T")
MAX_FIELDS = 32
MAX_FIELD_BYTES = 16_384
MAX_PART_HEADERS = 8
MAX_PART_HEADER_BYTES = 4096
_FEED = 65_536  # bytes parsed at a time, so that other threads can run in between
_NESTED = re.compile(r"limelight\[(\w{1,32})\](?:\[(\w{1,32})\](\[\])?)?")
_NUMBER = re.compile(r"-?\d{1,30}(?:\.\d{0,30})?(?:[eE][+-]?\d{1,3})?")


def _truth(given: Any) -> Any:
    known = {"true": True, "1": True, "false": False, "0": False}
    return known.get(given.lower(), given) if isinstance(given, str) else given


def _number(given: Any) -> Any:
    return float(given) if isinstance(given, str) and _NUMBER.fullmatch(given) else given


class SpeechRequest(Closed):
    """OpenAI's transcription request without the file. Form values are text: ``true``, ``false`` and numbers are parsed."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    model: str = Field(max_length=512)
    language: str | None = Field(None, pattern="^[A-Za-z][A-Za-z -]{1,40}$", description="ISO 639-1 code or a name")
    prompt: str = Field("", max_length=4000, description="text appended to the model's transcription prompt")
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    temperature: Annotated[float, BeforeValidator(_number), Field(ge=0, le=2)] = 0.0
    stream: Annotated[bool, BeforeValidator(_truth)] = False
    timestamp_granularities: list[Literal["segment"]] | None = Field(None, max_length=1)
    include: list[Literal["logprobs"]] = Field(default_factory=list, max_length=1)
    chunking_strategy: Literal["auto"] | None = None
    limelight: GroundedSpeech = Field(default_factory=lambda: GroundedSpeech.model_validate({}))

    @model_validator(mode="before")
    @classmethod
    def _without_empty_text(cls, given: Any) -> Any:
        """Drop empty values: a form has no null."""
        return {k: v for k, v in given.items() if v not in ("", [""])} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _together(self) -> SpeechRequest:
        if self.stream and self.response_format not in ("json", "text"):
            raise ValueError("stream requires response_format json or text")
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise ValueError("timestamp_granularities requires response_format=verbose_json")
        if self.include and self.response_format not in ("json", "verbose_json") and not self.stream:
            raise ValueError("logprobs require response_format=json")
        return self

    @property
    def logprobs(self) -> bool:
        return bool(self.include)


class BoundedParser(MultiPartParser):
    """Starlette's parser with limits on the headers of each part."""

    spool_max_size = 2**62  # never on disk

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self._headers = self._header_bytes = 0

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        super().on_header_field(data, start, end)

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        super().on_header_value(data, start, end)

    def on_header_end(self) -> None:
        self._headers += 1
        self._count(0)
        super().on_header_end()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._headers > MAX_PART_HEADERS or self._header_bytes > MAX_PART_HEADER_BYTES:
            raise MultiPartException("a part has too many headers")


def parse_form(headers: Headers, body: bytearray, limits: Limits) -> tuple[SpeechRequest, bytes]:
    """Parse the request and the file's bytes; ``body`` is emptied. Call it in a thread: a hostile form can take a second.

    Raises:
        ApiError: 400, naming the invalid field; 413 for a file that is too large.
        MissingExtraError: python-multipart is not installed.
    """
    try:
        import python_multipart  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("python-multipart", "server") from error
    fields, data = _finished(_parts(headers, body))
    if data is None:
        raise invalid("the form has no file", param="file", code="invalid_request")
    if len(data) > limits.media_bytes:
        raise invalid(
            f"the file may have at most {limits.media_bytes:,} bytes", param="file", status=413, code="file_too_large"
        )
    try:
        return SpeechRequest.model_validate(_joined(fields)), data
    except ValidationError as error:
        raise validation_error(error) from None


def _finished(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, and return its result."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise RuntimeError("the coroutine suspended")


async def _parts(headers: Headers, body: bytearray) -> tuple[list[tuple[str, str]], bytes | None]:
    async def stream() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), _FEED):
            yield bytes(body[start : start + _FEED])
        body.clear()
        yield b""

    try:
        parser = BoundedParser(headers, stream(), max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
        form = await parser.parse()
    except MultiPartException as error:
        raise _unreadable(error.message[:200]) from error
    except Exception as error:  # the parser raises any kind of exception on bad input
        raise _unreadable() from error
    fields: list[tuple[str, str]] = []
    data: bytes | None = None
    for name, value in form.multi_items():
        if not isinstance(value, UploadFile):
            fields.append((name, value))
            continue
        if name != "file":
            raise invalid("unknown file field", param=name[:64], code="invalid_request")
        data = await value.read()
    await form.close()
    return fields, data


def _unreadable(why: str = "") -> ApiError:
    return invalid(f"the form cannot be read{': ' if why else ''}{why}", code="invalid_form")


def _joined(fields: list[tuple[str, str]]) -> dict[str, Any]:
    """Merge form fields: lists are ``name[]``; the extension field is JSON, or flattened as ``limelight[strategy]``."""
    out: dict[str, Any] = {}
    for name, value in fields:
        nested = _NESTED.fullmatch(name)
        if nested:
            inner = out.setdefault("limelight", {})
            inner = inner.setdefault(nested[1], {}) if nested[2] and isinstance(inner, dict) else inner
            _put(inner, nested[2] or nested[1], _scalar(value), name, many=bool(nested[3]))
        elif name.endswith("[]"):
            _put(out, name[:-2], value, name, many=True)
        elif name == "limelight":
            _put(out, name, _extra(value), name)
        else:
            _put(out, name, value, name)
    return out


def _put(target: Any, key: str, value: Any, name: str, *, many: bool = False) -> None:
    there = target.setdefault(key, []) if many and isinstance(target, dict) else None
    if isinstance(there, list):
        there.append(value)
    elif many or not isinstance(target, dict) or key in target:
        raise invalid("duplicate field", param=name[:64], code="invalid_request")
    else:
        target[key] = value


def _extra(text: str) -> Any:
    try:
        return read_json(text.encode("utf-8", "surrogatepass")) if text else {}
    except ApiError as error:
        message = error.message.replace("the body", "limelight", 1)
        raise invalid(message, param="limelight", code="invalid_json") from None


def _scalar(text: str) -> Any:
    """Parse a flattened value: true, false, null and numbers as in JSON, anything else as text."""
    if text in ("true", "false", "null") or _NUMBER.fullmatch(text):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
