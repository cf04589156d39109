"""The form of /v1/audio/transcriptions: bounded parts, kept in memory, every field checked."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from limelight.errors import MissingExtraError
from limelight.server.limits import Limits
from limelight.server.problems import invalid
from limelight.server.schema import Closed, Grounded, told_of

MAX_FIELDS = 32
MAX_FIELD_BYTES = 16_384
_NESTED = re.compile(r"limelight\[(\w{1,32})\](?:\[(\w{1,32})\])?")


class SpeechRequest(Closed):
    """As OpenAI's, without the file. A field that would have no effect is refused."""

    model: str = Field(max_length=512)
    language: str | None = Field(None, pattern="^[A-Za-z][A-Za-z -]{1,40}$", description="ISO 639-1 code or a name")
    prompt: str = Field("", max_length=4000, description="words put behind the model's own transcription prompt")
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    temperature: float = Field(0.0, ge=0, le=2)
    stream: bool = False
    timestamp_granularities: list[Literal["segment"]] | None = Field(None, max_length=1)
    include: list[Literal["logprobs"]] = Field(default_factory=list, max_length=1)
    chunking_strategy: Literal["auto"] | None = None
    limelight: Grounded = Field(default_factory=lambda: Grounded.model_validate({}))

    @model_validator(mode="after")
    def _together(self) -> SpeechRequest:
        if self.stream and self.response_format not in ("json", "text"):
            raise ValueError("a stream tells text: response_format must be json or text")
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise ValueError("timestamp_granularities needs response_format=verbose_json")
        if self.include and self.response_format not in ("json", "verbose_json") and not self.stream:
            raise ValueError("logprobs need response_format=json")
        return self

    @property
    def logprobs(self) -> bool:
        return bool(self.include)


async def parse_form(request: Request, body: bytes, limits: Limits) -> tuple[SpeechRequest, bytes]:
    """The request and the file's bytes.

    Raises:
        ApiError: 400, naming the field that is wrong; 413 a file that is too large.
        MissingExtraError: python-multipart is not installed.
    """
    fields, data = await _parts(request, body, limits)
    if data is None:
        raise invalid("the form has no file", param="file", code="invalid_request")
    try:
        return SpeechRequest.model_validate(_joined(fields)), data
    except ValidationError as error:
        raise told_of(error) from None


async def _parts(request: Request, body: bytes, limits: Limits) -> tuple[list[tuple[str, str]], bytes | None]:
    try:
        import python_multipart  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("python-multipart", "server") from error

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    parser = MultiPartParser(
        request.headers, stream(), max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
    )
    parser.spool_max_size = len(body) + 1  # never on disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise invalid(f"the form cannot be read: {error.message[:200]}", code="invalid_form") from error
    except Exception as error:  # a parser fed with anything raises anything
        raise invalid("the form cannot be read", code="invalid_form") from error
    fields: list[tuple[str, str]] = []
    data: bytes | None = None
    for name, value in form.multi_items():
        if not isinstance(value, UploadFile):
            fields.append((name, value))
            continue
        if name != "file":
            raise invalid("this server does not know the file", param=name[:64], code="invalid_request")
        data = await value.read()
    await form.close()
    if data is not None and len(data) > limits.media_bytes:
        raise invalid(
            f"the file may have {limits.media_bytes:,} bytes", param="file", status=413, code="file_too_large"
        )
    return fields, data


def _joined(fields: list[tuple[str, str]]) -> dict[str, Any]:
    """Lists are spelled ``name[]``; the extra field is JSON, or spelled ``limelight[strategy]`` as clients flatten it."""
    out: dict[str, Any] = {}
    for name, value in fields:
        nested = _NESTED.fullmatch(name)
        if nested:
            inner = out.setdefault("limelight", {})
            inner = inner.setdefault(nested[1], {}) if nested[2] and isinstance(inner, dict) else inner
            if not isinstance(inner, dict):
                raise invalid("limelight is given twice", param="limelight", code="invalid_request")
            inner[nested[2] or nested[1]] = value
        elif name.endswith("[]"):
            out.setdefault(name[:-2], []).append(value)
        elif name in out:
            raise invalid("the field is given twice", param=name[:64], code="invalid_request")
        elif name == "limelight":
            try:
                out[name] = json.loads(value)
            except (ValueError, RecursionError):
                raise invalid("limelight is not JSON", param="limelight", code="invalid_json") from None
        else:
            out[name] = value
    return out
