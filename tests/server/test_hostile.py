"""A corpus of hostile requests against a real server: each gets an error of OpenAI's shape, and the server stays well."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limelight.models.adapter import Adapter
from limelight.server.limits import Limits
from limelight.server.state import ServerConfig
from tests.server.conftest import MODEL, Running, ask, data_url, example, png, served, until

SMALL = Limits(body_bytes=300_000, media_bytes=100_000, pixels=1_000_000, seconds=2, prompt_tokens=300, new_tokens=32)


@pytest.fixture(scope="module")
def server(adapter: Adapter) -> Iterator[Running]:
    with served(adapter, ServerConfig(MODEL, limits=SMALL)) as running:
        yield running


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int = 30_000) -> bytes:
    """A PNG of a few kilobytes that claims side x side pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(500_000)))
        + chunk(b"IEND", b"")
    )


def text_bomb() -> bytes:
    """A small picture with a compressed text chunk of 50 MB."""
    whole = png()
    text = b"Comment\x00\x00" + zlib.compress(bytes(50_000_000), 9)
    return whole[:33] + chunk(b"zTXt", text) + whole[33:]


def tiff() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "TIFF")
    return out.getvalue()


def sound(data: str, kind: str = "wav") -> list[dict[str, Any]]:
    part = {"type": "input_audio", "input_audio": {"data": data, "format": kind}}
    return [{"role": "user", "content": [part, {"type": "text", "text": "What is heard?"}]}]


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/etc/passwd) (r) file\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
PICTURES: dict[str, str] = {
    "file": "file:///etc/passwd",
    "file in capitals": "FILE:///etc/passwd",
    "path": "/etc/passwd",
    "relative path": "../../../etc/passwd",
    "windows path": "\\\\host\\share\\a.png",
    "http": "http://127.0.0.1:1/a.png",
    "https while off": "https://example.org/a.png",
    "ftp": "ftp://example.org/a.png",
    "metadata service": "http://169.254.169.254/latest/meta-data/",
    "no scheme": "example.org/a.png",
    "empty": "",
    "data of another kind": data_url(png(), "text/html"),
    "data without base64": "data:image/png,abc",
    "data without comma": "data:image/png;base64",
    "not base64": "data:image/png;base64,!!!!",
    "base64 with breaks": "data:image/png;base64,AA\nAA",
    "no bytes": "data:image/png;base64,",
    "words": data_url(b"this is no picture"),
    "eps": data_url(EPS),
    "svg": data_url(SVG, "image/svg+xml"),
    "tiff": data_url(tiff()),
    "bomb": data_url(bomb()),
    "smaller bomb": data_url(bomb(9000)),
    "text bomb": data_url(text_bomb()),
    "cut short": data_url(example()[:400]),
    "head alone": data_url(png()[:33]),
    "too many bytes": "data:image/png;base64," + "A" * 200_000,
    "too many pixels": data_url(png(1100, 1000)),
}
GOOD = {"model": MODEL, "messages": ask(url=data_url(png())), "max_tokens": 2}
BODIES: dict[str, Any] = {
    "empty object": {},
    "list": [],
    "null": None,
    "no messages": {"model": MODEL},
    "empty messages": {**GOOD, "messages": []},
    "messages of words": {**GOOD, "messages": "hello"},
    "role unknown": {**GOOD, "messages": [{"role": "tool", "content": "x"}]},
    "no user": {**GOOD, "messages": [{"role": "system", "content": "x"}]},
    "no words": {**GOOD, "messages": [{"role": "user", "content": [ask()[0]["content"][0]]}]},
    "content number": {**GOOD, "messages": [{"role": "user", "content": 3}]},
    "part unknown": {**GOOD, "messages": [{"role": "user", "content": [{"type": "file", "file": "/etc/passwd"}]}]},
    "path in a part": {**GOOD, "messages": [{"role": "user", "content": [{"type": "image", "path": "/etc/passwd"}]}]},
    "picture of the system": {**GOOD, "messages": [{"role": "system", "content": ask()[0]["content"]}, *ask()]},
    "other model": {**GOOD, "model": "../../etc"},
    "temperature": {**GOOD, "temperature": 3},
    "temperature words": {**GOOD, "temperature": "hot"},
    "top_p": {**GOOD, "top_p": 0},
    "seed": {**GOOD, "seed": 2**70},
    "n": {**GOOD, "n": 2},
    "max_tokens 0": {**GOOD, "max_tokens": 0},
    "max_tokens many": {**GOOD, "max_tokens": 33},
    "max_tokens huge": {**GOOD, "max_tokens": 10**30},
    "two maxima": {**GOOD, "max_completion_tokens": 3},
    "stops many": {**GOOD, "stop": ["a"] * 5},
    "top_logprobs alone": {**GOOD, "top_logprobs": 2},
    "penalty": {**GOOD, "presence_penalty": 1},
    "json format": {**GOOD, "response_format": {"type": "json_object"}},
    "tools": {**GOOD, "tools": [{"type": "function"}]},
    "unknown field": {**GOOD, "trust_remote_code": True},
    "unknown strategy": {**GOOD, "limelight": {"strategy": "__import__"}},
    "unknown setting": {**GOOD, "limelight": {"strategy": "lime", "settings": {"__class__": 1}}},
    "setting of another type": {**GOOD, "limelight": {"strategy": "lime", "settings": {"lr": "fast"}}},
    "setting too costly": {**GOOD, "limelight": {"strategy": "lime", "settings": {"steps": "100000000"}}},
    "setting too long": {**GOOD, "limelight": {"strategy": "lime", "settings": {"layers": [1] * 2000}}},
    "setting out of range": {**GOOD, "limelight": {"strategy": "vcd", "settings": {"noise_step": 10**9}}},
    "setting at odds with the model": {**GOOD, "limelight": {"strategy": "lime-cached", "settings": {"layers": [99]}}},
    "beams with sampling": {**GOOD, "temperature": 1, "limelight": {"strategy": "opera"}},
    "placeholder": {**GOOD, "messages": ask("<image>" * 100, data_url(png()))},
    "too long for the model": {**GOOD, "messages": ask("cup " * 1000, data_url(png()))},
    "far too long": {**GOOD, "messages": ask("a" * 100_000, data_url(png()))},
    "too many pictures": {**GOOD, "messages": [{"role": "user", "content": [ask(url=data_url(png()))[0]["content"][0]] * 9 + [{"type": "text", "text": "x"}]}]},
    "sound that is none": {**GOOD, "messages": sound(base64.b64encode(b"RIFF" + bytes(99)).decode())},
    "sound of another format": {**GOOD, "messages": sound("AAAA", "exe")},
    "sound that is a path": {**GOOD, "messages": sound("/etc/passwd")},
}  # fmt: skip
RAW: dict[str, bytes] = {
    "nothing": b"",
    "half": b'{"model": "demo-vision", "messages": [',
    "not utf-8": b'{"model": "\xff\xfe"}',
    "lone surrogate": b'{"model": "\\ud800", "messages": []}',
    "deep": b"[" * 100_000,
    "deep objects": b'{"limelight": ' * 50_000,
    "NaN": json.dumps({**GOOD, "temperature": float("nan")}).encode(),
    "huge number": b'{"seed": ' + b"9" * 100_000 + b"}",
    "null bytes": bytes(1000),
    "twice": json.dumps(GOOD).encode() * 2,
}


def refused(got: Any) -> None:
    assert 400 <= got.status_code < 500, got.text[:300]
    error = got.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert len(got.text) < 2000
    for leak in ("Traceback", "site-packages", "limelight/", "root:"):
        assert leak not in got.text


@pytest.mark.parametrize("url", PICTURES.values(), ids=PICTURES)
def test_pictures(server: Running, url: str) -> None:
    refused(server.post({**GOOD, "messages": ask(url=url)}))


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_bodies(server: Running, body: Any) -> None:
    refused(server.post(content=json.dumps(body), headers={"Content-Type": "application/json"}))


@pytest.mark.parametrize("body", RAW.values(), ids=RAW)
def test_what_is_not_json(server: Running, body: bytes) -> None:
    refused(server.post(content=body, headers={"Content-Type": "application/json"}))


def test_errors_name_the_field_that_is_wrong(server: Running) -> None:
    part = {"type": "image_url", "image_url": {"uri": "x"}}
    wrong = {**GOOD, "messages": [{"role": "user", "content": [part]}]}
    assert server.post(wrong).json()["error"]["param"].startswith("messages.0.content.0.image_url")
    assert server.post(BODIES["temperature"] | {"messages": ask()}).json()["error"]["param"] == "temperature"
    assert "pixels" in server.post({**GOOD, "messages": ask(url=PICTURES["smaller bomb"])}).text


def test_a_stream_is_refused_with_a_status(server: Running) -> None:
    refused(server.post({**GOOD, "messages": ask(url=PICTURES["cut short"]), "stream": True}))


def test_bodies_that_are_too_long(server: Running) -> None:
    told = server.post(content=b"x" * 400_000, headers={"Content-Type": "application/json"})
    assert told.status_code == 413
    refused(told)

    def dribble() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 10_000

    assert server.post(content=dribble(), headers={"Content-Type": "application/json"}).status_code == 413
    refused(server.post(content=json.dumps(GOOD), headers={"Content-Type": "text/plain"}))


def test_broken_http(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for data in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                 b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\nabc"):  # fmt: skip
        with socket.create_connection((host, int(port)), timeout=60) as link:
            link.sendall(data)
    server.post(GOOD)


def test_a_body_that_does_not_come(adapter: Adapter) -> None:
    with served(adapter, ServerConfig(MODEL, limits=Limits(body_seconds=0.2))) as running:
        host, port = running.url.removeprefix("http://").split(":")
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=60) as link:
            link.sendall(head + b"{")
            assert b" 408 " in link.recv(100)
        until(lambda: not running.chat.admission.inside)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "messages",
    "stream",
    "temperature",
    "top_p",
    "stop",
    "logprobs",
    "top_logprobs",
    "limelight",
    "seed",
    "n",
    "stream_options",
]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(FIELDS), json_values, min_size=1, max_size=2))
def test_any_json_is_answered_or_refused(server: Running, changes: dict[str, Any]) -> None:
    body = json.dumps({**GOOD, **changes}).encode("utf-8", "replace")
    got = server.post(content=body, headers={"Content-Type": "application/json"})
    if got.status_code != 200:
        refused(got)


def test_after_all_that_it_answers(server: Running) -> None:
    assert server.post(GOOD).status_code == 200
    assert server.metric("limelight_worker_errors") == 0
    assert not server.chat.admission.inside
