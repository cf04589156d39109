"""/v1/audio/transcriptions with a Whisper: the language it detects, previous text, and what it refuses."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

import limelight
from limelight.server.state import ServerConfig
from tests.models.checkpoints import ct2
from tests.server.conftest import MODEL, Running, served

soundfile = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")


@pytest.fixture(scope="module")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> limelight.Adapter:
    return ct2.listening(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def server(hearing: limelight.Adapter) -> Iterator[Running]:
    with served(hearing, ServerConfig(MODEL)) as running:
        yield running


def noise() -> Any:
    return (0.1 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32)


def asked(server: Running, **form: str) -> httpx.Response:
    out = io.BytesIO()
    soundfile.write(out, noise(), 16000, format="WAV", subtype="FLOAT")
    return httpx.post(
        f"{server.url}/v1/audio/transcriptions", data={"model": MODEL, **form}, files={"file": ("a.wav", out.getvalue())},
        timeout=60,
    )  # fmt: skip


def test_the_detected_language_is_told(server: Running, hearing: limelight.Adapter) -> None:
    features = hearing.prepare("", {"audio": (noise(), 16000)}).tensors["input_features"]
    heard = hearing.tokenizer.convert_ids_to_tokens(int(hearing.model.detect_language(features)[0]))
    assert asked(server, response_format="verbose_json").json()["language"] == heard[2:-2] in ("en", "de")
    for code in ("en", "de"):
        assert asked(server, response_format="verbose_json", language=code).json()["language"] == code


def test_previous_text_leaves_room_for_the_answer(server: Running, hearing: limelight.Adapter) -> None:
    got = asked(server, prompt="word " * 40)
    assert got.status_code == 200, got.text
    usage = got.json()["usage"]
    assert usage["input_tokens"] + usage["output_tokens"] == 64


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"language": "Klingon"}, "does not know the language 'Klingon'"),
        ({"prompt": "<|startoftranscript|><|xx|>"}, "has no token <|xx|>"),
        ({"prompt": "<|startoftranscript|><|en|>", "language": "de"}, "the prompt is the decoder's own"),
        ({"prompt": "a <|endoftext|> b"}, "previous text contains <|endoftext|>"),
    ],
)
def test_what_is_refused(server: Running, form: dict[str, str], message: str) -> None:
    got = asked(server, **form)
    assert got.status_code == 400 and message in got.json()["error"]["message"]
