"""The OpenAPI document. Bodies are read by hand (bounded, off the event loop), so they are described by hand."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from limelight.server.forms import SpeechRequest
from limelight.server.schema import ChatRequest

_REF = "#/components/schemas/{model}"
_STRING, _NUMBER, _INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}
_MAYBE = {"type": ["string", "null"]}
REFUSALS = {
    "400": "the request, its media or its settings", "401": "the API key", "403": "a page of another origin", "404": "no such model or page",
    "405": "another method", "408": "a body that is too slow", "413": "a body that is too long",
    "415": "a body of another type", "421": "a Host name the server does not go by", "429": "queue full",
    "431": "headers that are too large", "500": "something broke here", "501": "a package is missing on the server",
    "503": "the worker has died", "504": "the time for one request is up",
}  # fmt: skip


def _object(required: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **more}}


ANSWERS: dict[str, Any] = {
    "Error": _object({
        "error": _object({"message": _STRING, "type": _STRING, "param": _MAYBE, "code": _MAYBE}),
    }),
    "ChatCompletion": _object(
        {
            "id": _STRING,
            "object": {"const": "chat.completion"},
            "created": _INTEGER,
            "model": _STRING,
            "choices": {"type": "array", "minItems": 1, "items": _object({
                "index": _INTEGER,
                "message": _object({"role": {"const": "assistant"}, "content": _STRING}),
                "finish_reason": {"enum": ["stop", "length"]},
            }, logprobs={"type": ["object", "null"]})},
            "usage": _object(dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), _INTEGER)),
            "limelight": _object({"strategy": _STRING, "settings": {"type": "object"}, "seed": {"type": ["integer", "null"]}},
                page_url=_STRING, note=_STRING, warnings={"type": "array"}, tokens={"type": "array"}, shares={"type": "object"}, contributions={"type": "object"}, answers={"type": "array"}),
        }
    ),
    "Transcription": _object(
        {"text": _STRING, "usage": {"type": "object"}, "limelight": {"type": "object"}},
        duration=_NUMBER, language=_STRING, segments={"type": "array"}, logprobs={"type": "array"},
    ),
    "Model": _object({"id": _STRING, "object": {"const": "model"}, "created": _INTEGER, "owned_by": _STRING}),
    "Models": _object({"object": {"const": "list"}, "data": {"type": "array", "items": {"$ref": _REF.format(model="Model")}}}),
    "Health": _object({"status": _STRING, "waiting": _INTEGER}),
}  # fmt: skip


def _ref(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": _REF.format(model=name)}}


# `itemSchema` (OpenAPI 3.2): of each event; before it, readers do not agree whether `schema` is of the stream or of an event
_EVENTS = {"text/event-stream": {"itemSchema": _object({"data": _STRING}, event=_STRING)}}
_TEXT = {"text/plain": {"schema": _STRING}}
# (path, method) -> what a 200 holds, by media type.
GOOD: dict[tuple[str, str], dict[str, Any]] = {
    ("/v1/chat/completions", "post"): {"application/json": _ref("ChatCompletion"), **_EVENTS},
    ("/v1/audio/transcriptions", "post"): {"application/json": _ref("Transcription"), **_EVENTS, **_TEXT},
    ("/v1/models", "get"): {"application/json": _ref("Models")},
    ("/v1/models/{name}", "get"): {"application/json": _ref("Model")},
    ("/health", "get"): {"application/json": _ref("Health")},
    ("/metrics", "get"): _TEXT,
    ("/pages/{name}", "get"): {"text/html": {"schema": _STRING}},
}


def described(app: FastAPI) -> None:
    """Let ``app`` describe itself: requests, answers, refusals."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    found["components"] = {"schemas": {**ANSWERS, **_requests()}}
    paths = found["paths"]
    paths["/v1/chat/completions"]["post"]["requestBody"] = {
        "required": True, "content": {"application/json": _ref("ChatRequest")}
    }  # fmt: skip
    paths["/v1/audio/transcriptions"]["post"]["requestBody"] = {
        "required": True, "content": {"multipart/form-data": _ref("SpeechRequest")}
    }  # fmt: skip
    refused = {s: {"description": d, "content": {"application/json": _ref("Error")}} for s, d in REFUSALS.items()}
    for path, methods in paths.items():
        for method, operation in methods.items():
            responses = {"200": {"description": "as asked", "content": GOOD[path, method]}, **refused}
            if path == "/health":
                responses["503"] = {
                    "description": "the worker has died",
                    "content": {"application/json": _ref("Health")},
                }
            operation["responses"] = responses
    return found


def _requests() -> dict[str, Any]:
    """The requests' JSON schemas with their parts."""
    out: dict[str, Any] = {}
    for model in (ChatRequest, SpeechRequest):
        schema = model.model_json_schema(ref_template=_REF)
        out |= json.loads(json.dumps(schema.pop("$defs", {})))
        out[model.__name__] = schema
    speech = out["SpeechRequest"]
    speech["properties"] = {"file": {"type": "string", "format": "binary"}, **speech["properties"]}
    speech["required"] = ["file", *speech["required"]]
    for name in ("timestamp_granularities", "include"):  # lists of a form are spelled with brackets
        speech["properties"][f"{name}[]"] = speech["properties"].pop(name)
    return out
