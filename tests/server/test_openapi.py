"""schemathesis against the server's own OpenAPI document: what it generates is answered or refused as documented."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limelight.models.adapter import Adapter
from limelight.server.limits import Limits
from limelight.server.state import ServerConfig
from tests.server.conftest import MODEL, Running, served, until
from tests.tiny import audio_processor, built

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own imports
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
LIMITS = Limits(body_bytes=100_000, media_bytes=50_000, prompt_tokens=200, new_tokens=4, seconds=1)
PATHS = {
    "/v1/chat/completions": 40, "/v1/audio/transcriptions": 30, "/v1/grounding": 30, "/v1/models": 2, "/v1/models/{name}": 8, "/health": 2,
    "/pages/{name}": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    hearing = Adapter(built("qwen2_audio").model, audio_processor())
    with served(hearing, ServerConfig(MODEL, limits=LIMITS)) as running:
        yield running


def check(operation: Any, examples: int, modes: list[Any]) -> int:
    """Generate cases of one operation and check each answer; how many were sent."""
    sent = []

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.one_of(*[operation.as_strategy(generation_mode=mode) for mode in modes]))
    def run(case: Any) -> None:
        if isinstance(case.body, dict) and case.body.get("model") and len(sent) % 2:
            case.body = {**case.body, "model": MODEL}  # further than the name of the model
        sent.append(case)
        case.call_and_validate(checks=CHECKS, timeout=120)

    run()
    return len(sent)


@pytest.mark.parametrize("path", PATHS)
def test_responses_conform_to_the_document(server: Running, path: str) -> None:
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    (operation,) = (o.ok() for o in document.get_all_operations() if o.ok().path == path)
    modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
    if operation.method == "get" and "{" not in path:
        modes = modes[:1]
    assert check(operation, PATHS[path], modes) >= 1
    assert server.metric("limelight_worker_errors") == 0
    until(lambda: not server.chat.admission.inside)  # a stream leaves a moment after its end has been read


def test_streams_conform_to_the_document(server: Running) -> None:
    """Whether a generated case is a good request with ``stream`` is chance; these are."""
    soundfile = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
    out = io.BytesIO()
    soundfile.write(out, np.sin(np.arange(8000) * 0.1) / 2, 16000, format="WAV")
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    words = [{"role": "user", "content": "what is the sound ?"}]
    chat = {"model": MODEL, "messages": words, "stream": True, "logprobs": True, "top_logprobs": 2}
    speech = {"model": MODEL, "file": out.getvalue(), "stream": "true"}
    for path, body, kind in (
        ("/v1/chat/completions", chat, "application/json"),
        ("/v1/audio/transcriptions", speech, "multipart/form-data"),
    ):
        case = document[path]["POST"].Case(body=body, media_type=kind)
        answer = case.call_and_validate(checks=CHECKS, timeout=120)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"][0].startswith("text/event-stream")


def test_every_path_is_described(server: Running) -> None:
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    assert {o.ok().path for o in document.get_all_operations()} == {*PATHS, "/metrics"}
