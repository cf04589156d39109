"""The OpenAPI document: FastAPI describes responses; request bodies, which the routes read themselves, are added here."""

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
    status: {"description": description, "model": Error}
    for status, description in {
        400: "invalid request, media or settings", 401: "wrong or missing API key", 403: "foreign origin", 404: "unknown model or page",
        405: "wrong method", 408: "body too slow", 413: "body too large",
        415: "wrong media type of the body", 421: "unknown Host header", 429: "queue full",
        431: "headers too large", 500: "internal error", 501: "a package is missing on the server",
        503: "the worker has died", 504: "timeout",
    }.items()
}  # fmt: skip
_STRING = {"type": "string"}
# `itemSchema` (OpenAPI 3.2) describes each event; earlier versions do not define whether `schema` is the stream or an event
_EVENT = {"type": "object", "required": ["data"], "properties": {"data": _STRING, "event": _STRING}}
EVENTS = {"text/event-stream": {"itemSchema": _EVENT}}
HTML, TEXT = {"text/html": {"schema": _STRING}}, {"text/plain": {"schema": _STRING}}


def body(kind: str, model: type[BaseModel]) -> dict[str, Any]:
    """Return a route's ``openapi_extra`` for a body of media type ``kind`` that the route reads itself."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema}}}}


def with_requests(app: FastAPI) -> None:
    """Add the requests to ``app``'s document, and remove 422, which FastAPI adds wherever a path has a parameter."""
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
    """Return the JSON schemas of the requests and their parts."""
    out: dict[str, Any] = {}
    for model in (ChatRequest, SpeechRequest, AuditRequest):
        schema = model.model_json_schema(ref_template=_REF)
        out |= json.loads(json.dumps(schema.pop("$defs", {})))
        out[model.__name__] = schema
    speech = out["SpeechRequest"]
    speech["properties"] = {"file": {"type": "string", "format": "binary"}, **speech["properties"]}
    speech["required"] = ["file", *speech["required"]]
    for name in ("timestamp_granularities", "include"):  # lists in a form have names with brackets
        speech["properties"][f"{name}[]"] = speech["properties"].pop(name)
    return out
