"""Connections under bounds: heads, chunks, silence, answers that nobody reads, and how many there may be."""

from __future__ import annotations

import json
import resource
import socket
import time
from contextlib import ExitStack

import httpx
import pytest

from limelight.server.limits import Limits
from limelight.server.pages import packed
from limelight.server.protocol import REFUSAL_TURNS, room_for_connections
from tests.server.conftest import MODEL, Gate, Running, Serve, ask, until

GET = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
BODY = {"model": MODEL, "messages": ask(), "max_tokens": 1}


def link(running: Running, receive: int = 0) -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    made = socket.socket()
    if receive:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    made.settimeout(60)
    made.connect((host, int(port)))
    return made


def told(running: Running, *data: bytes) -> bytes:
    """What comes back until the connection ends, or has answered."""
    got = b""
    with link(running) as made:
        try:
            for part in data:
                made.sendall(part)
            while not (b"\r\n\r\n" in got and got.endswith(b"}")) and (more := made.recv(65536)):
                got += more
        except ConnectionError:
            pass
    return got


HEADS: dict[str, tuple[bytes, int]] = {
    "a long value": (GET + b"X: " + b"a" * 40_000 + b"\r\n\r\n", 431),
    "a long value that never ends": (GET + b"X: " + b"a" * 33_000, 431),
    "a long name": (GET + b"a" * 33_000, 431),
    "no line at all": (b"a" * 33_000, 431),
    "a long address": (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
    "many headers": (GET + b"a: b\r\n" * 101 + b"\r\n", 431),
    "very many headers": (GET + b"a:b\r\n" * 60_000 + b"\r\n", 431),
    "folded headers": (GET + b"X: a\r\n" + b" a\r\n" * 20_000 + b"\r\n", 431),
    "TLS": (b"\x16\x03\x01\x02\x00\x01", 400),
    "no version": (b"GET /\r\n\r\n", 400),
    "two hosts": (GET + b"Host: evil.example\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{", 400),
    "length and chunks": (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "a chunk of letters": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "small chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 3000, 400),
    "a long chunk head": (POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 80_000, 400),
    "an endless trailer": (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n" + b"a: b\r\n" * 30_000, 400),
}


@pytest.mark.parametrize("name", HEADS)
def test_what_is_no_request_is_refused(server: Running, name: str) -> None:
    data, status = HEADS[name]
    got = told(server, data)
    if got:  # a client that goes on sending may see a reset instead
        assert got.startswith(f"HTTP/1.1 {status} ".encode()), got[:200]
        assert set(json.loads(got.partition(b"\r\n\r\n")[2])["error"]) == {"message", "type", "param", "code"}
    else:
        assert len(data) > 70_000
    assert httpx.get(f"{server.url}/health", trust_env=False, timeout=60).status_code == 200


def test_a_head_within_the_bounds_is_answered(server: Running) -> None:
    assert told(server, GET + b"X: " + b"a" * 30_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    assert told(server, GET, b"X: ", b"a" * 10_000, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    assert told(server, GET + b"a: b\r\n" * 90 + b"\r\n").startswith(b"HTTP/1.1 200 ")


def test_sixty_megabytes_of_header_are_cut_off_early(server: Running) -> None:
    sent = 0
    with link(server) as made, pytest.raises(ConnectionError):
        made.sendall(GET + b"X: ")
        for _ in range(60):
            made.sendall(b"a" * 1_000_000)
            sent += 1
    assert sent < 20  # the sockets' buffers hold some


def test_requests_one_after_another(server: Running) -> None:
    got, want = b"", 500
    with link(server) as made:
        made.sendall((GET + b"\r\n") * want)
        while got.count(b'"status"') < want:
            got += made.recv(65536)
        made.sendall(GET + b"Connection: close\r\n\r\n")
        while more := made.recv(65536):
            got += more
    assert got.count(b"HTTP/1.1 200") == want + 1


def test_small_chunks_of_some_size_are_a_body(server: Running) -> None:
    data = json.dumps(BODY).encode()

    def parts() -> object:
        for start in range(0, len(data), 100):
            yield data[start : start + 100]

    got = server.post(content=parts(), headers={"Content-Type": "application/json"})
    assert got.status_code == 200, got.text


@pytest.mark.parametrize(
    "first", [b"", b"G", GET, GET + b"\r\n", b"POST /x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999\r\n\r\n{"],
    ids=["nothing", "a letter", "half a head", "a whole request", "half a body that nobody reads"],
)  # fmt: skip
def test_silence_ends_a_connection(serve: Serve, first: bytes) -> None:
    with serve(limits=Limits(idle_seconds=0.4)) as running, link(running) as made:
        made.sendall(first)
        made.settimeout(20)
        try:
            while made.recv(65536):
                pass
        except ConnectionResetError:
            pass


def test_dribbling_a_head_gives_no_more_time(serve: Serve) -> None:
    with serve(limits=Limits(idle_seconds=0.5)) as running, link(running) as made, pytest.raises(ConnectionError):
        for _ in range(200):
            made.sendall(b"a")
            time.sleep(0.05)


def test_a_waiting_request_is_not_idle(serve: Serve) -> None:
    gate = Gate()
    with serve(strategy=gate, limits=Limits(idle_seconds=0.3)) as running, link(running) as made:
        data = json.dumps(BODY).encode()
        made.sendall(POST + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
        until(lambda: running.chat.worker.current)
        time.sleep(1)
        gate.open()
        assert made.recv(20).startswith(b"HTTP/1.1 200")


def test_unread_streams_release_their_slots(serve: Serve) -> None:
    gate = Gate(free=100_000)
    limits = Limits(queue=2, per_client=2, send_seconds=0.5, timeout=300)
    body = {**BODY, "stream": True, "max_tokens": 900, "n": 8, "temperature": 2.0, "logprobs": True, "top_logprobs": 20}
    with serve(strategy=gate, limits=limits, batch=1) as running, ExitStack() as stack:
        for listening in running.server.servers[0].sockets:  # connections inherit it: small buffers are full at once
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        data = json.dumps(body).encode()
        for _ in range(3):
            made = stack.enter_context(link(running, receive=2048))
            made.sendall(POST + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
        until(lambda: running.chat.admission.inside.total() == 3)
        until(lambda: not running.chat.admission.inside, 120)
        assert running.metric("limelight_cancelled_total") >= 1
        until(lambda: not running.chat.worker.current)
        assert gate.tokens < 3 * 8 * 900
        assert running.post({**BODY}).status_code == 200


def test_an_unread_page_is_dropped(serve: Serve) -> None:
    with serve(limits=Limits(send_seconds=0.4, idle_seconds=0.4)) as running:
        text = "<p>" + "x" * 30_000_000
        running.chat.state.pages.kept["x"] = packed(text)  # type: ignore[attr-defined]
        assert httpx.get(f"{running.url}/pages/x", trust_env=False, timeout=60).text == text
        with link(running, receive=2048) as made:
            made.sendall(b"GET /pages/x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            until(running.connections)
            (held,) = running.connections()
            until(lambda: held.transport.get_write_buffer_size())
            assert held.transport.get_write_buffer_size() < 500_000
            until(lambda: not running.connections(), 20)


def test_a_new_connection_takes_the_place_of_an_idle_one(serve: Serve) -> None:
    gate = Gate()
    with serve(strategy=gate, limits=Limits(connections=8)) as running, ExitStack() as stack:
        busy = stack.enter_context(link(running))
        data = json.dumps(BODY).encode()
        busy.sendall(POST + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
        until(lambda: running.chat.worker.current)
        idle = [stack.enter_context(link(running)) for _ in range(40)]
        assert httpx.get(f"{running.url}/health", trust_env=False, timeout=60).status_code == 200
        assert len(running.connections()) <= 8
        assert idle[0].recv(1) == b""  # the oldest has gone
        gate.open()
        assert busy.recv(20).startswith(b"HTTP/1.1 200")


def test_room_for_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, most in ((10_000, 512), (400, 400), (64, 64), (resource.RLIM_INFINITY, 512)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        connections, backlog = room_for_connections(Limits())
        assert 4 <= connections <= most
        assert connections + REFUSAL_TURNS * backlog <= soft or soft == resource.RLIM_INFINITY
