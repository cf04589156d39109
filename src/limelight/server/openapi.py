"""The OpenAPI document: FastAPI writes the answers; bodies are read by hand (bounded, off the event loop), so they are added."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from limelight.server.forms import SpeechRequest
from limelight.server.responses import Error
from limelight.server.schema import AuditRequest, ChatRequest

_REF = "#/components/schemas/{model}"


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": told, "model": Error}
    for status, told in {
        400: "the request, its media or its settings", 401: "the API key", 403: "a page of another origin", 404: "no such model or page",
        405: "another method", 408: "a body that is too slow", 413: "a body that is too long",
        415: "a body of another type", 421: "a Host name the server does not go by", 429: "queue full",
        431: "headers that are too large", 500: "something broke here", 501: "a package is missing on the server",
        503: "the worker has died", 504: "the time for one request is up",
    }.items()
}  # fmt: skip
_STRING = {"type": "string"}
# `itemSchema` (OpenAPI 3.2): of each event; before it, readers do not agree whether `schema` is of the stream or of an event
_EVENT = {"type": "object", "required": ["data"], "properties": {"data": _STRING, "event": _STRING}}
EVENTS = {"text/event-stream": {"itemSchema": _EVENT}}
HTML, TEXT = {"text/html": {"schema": _STRING}}, {"text/plain": {"schema": _STRING}}


def body(kind: str, model: type[BaseModel]) -> dict[str, Any]:
    """A route's ``openapi_extra`` for a body of media type ``kind`` that the route reads by hand."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema}}}}


def with_requests(app: FastAPI) -> None:
    """Let ``app``'s document hold the requests, and no 422, which FastAPI promises wherever a path has a parameter."""
    of_fastapi = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = of_fastapi()
            schemas = found["components"]["schemas"]
            schemas |= _requests()
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            for operation in (o for methods in found["paths"].values() for o in methods.values()):
                operation["responses"].pop("422", None)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]


def _requests() -> dict[str, Any]:
    """The requests' JSON schemas with their parts."""
    out: dict[str, Any] = {}
    for model in (ChatRequest, SpeechRequest, AuditRequest):
        schema = model.model_json_schema(ref_template=_REF)
        out |= json.loads(json.dumps(schema.pop("$defs", {})))
        out[model.__name__] = schema
    speech = out["SpeechRequest"]
    speech["properties"] = {"file": {"type": "string", "format": "binary"}, **speech["properties"]}
    speech["required"] = ["file", *speech["required"]]
    for name in ("timestamp_granularities", "include"):  # lists of a form are spelled with brackets
        speech["properties"][f"{name}[]"] = speech["properties"].pop(name)
    return out
