"""Host and Origin headers: who may come in."""

from __future__ import annotations

import socket

import httpx
import pytest

from limelight.server.guard import Guard, host_name, host_names, is_loopback
from tests.server.conftest import MODEL, Running, Serve

OWN = [
    "127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:80", "localhost.", "LocalHost.:1", "[::1]", "[::1]:8000",
    "127.8.8.8", "[::ffff:127.0.0.1]:80", "[::FFFF:7f00:1]", "[0:0:0:0:0:0:0:1]", "localhost:",
]  # fmt: skip
FOREIGN = [
    "", "evil.example", "[::1]evil.example", "[::1]evil.example:80", "[::1", "::1", "[::1]:80:80", "[::1]x", "[::1]:x",
    "127.0.0.1.evil.example", "127.0.0.1@evil.example", "evil@127.0.0.1", "localhost@evil.example:80", "localhost:80@evil",
    "localhost:80:90", "localhost..", "localhost:\u0662", "localhost/", "localhost evil", "127.0.0.01", "127.1", "0x7f.1",
    "2130706433", "0.0.0.0", "[::]", "[::1%25lo]", "[::1%lo]", "[fe80::1]", "[127.0.0.1]", "[localhost]", ".localhost",
    "evil.localhost", "[::ffff:10.0.0.1]", "localhost\u2024", "\u212aocalhost", ".",
]  # fmt: skip


def known(name: str) -> bool:
    guard = Guard(None, hosts=host_names("127.0.0.1"))  # type: ignore[arg-type]
    try:
        headers = [(b"host", name.encode("latin-1"))]
    except UnicodeEncodeError:
        headers = [(b"host", name.encode())]
    return guard._refusal({"type": "http", "method": "GET", "path": "/health", "headers": headers}) is None


def test_names_of_this_machine() -> None:
    assert [name for name in OWN if not known(name)] == []
    assert [name for name in FOREIGN if known(name)] == []


def test_two_hosts_are_none() -> None:
    guard = Guard(None, hosts=host_names("127.0.0.1"))  # type: ignore[arg-type]
    for headers in ([], [(b"host", b"localhost"), (b"host", b"evil.example")], [(b"host", b"localhost")] * 2):
        refusal = guard._refusal({"type": "http", "method": "GET", "path": "/", "headers": headers})
        assert refusal is not None
        assert refusal.status == 421


def test_loopback() -> None:
    assert all(is_loopback(h) for h in ("127.0.0.1", "localhost", "::1", "127.0.0.2", "::ffff:127.0.0.1", "localhost."))
    assert not any(is_loopback(h) for h in ("0.0.0.0", "::", "example.org", "10.0.0.1", ""))
    assert host_names("0.0.0.0") is None
    assert "localhost" in (host_names("::1") or ())
    assert host_name("Example.ORG.:80") == "example.org"


ORIGINS = [
    ("http://{}", True), ("https://{}", False), ("null", False), ("", False), ("http://evil.example", False),
    ("http://127.0.0.1", False), ("http://127.0.0.1:1", False), ("http://localhost:{port}", False), ("file://", False),
    ("http://{}.evil.example", False), ("http://{}@evil.example", False), ("http://evil.example#{}", False),
]  # fmt: skip


@pytest.mark.parametrize(("origin", "own"), ORIGINS)
def test_pages_of_other_origins_send_nothing(server: Running, origin: str, own: bool) -> None:
    place = server.url.removeprefix("http://")
    headers = {"Origin": origin.format(place, port=place.rpartition(":")[2])}
    form = {"files": {"file": b"RIFF"}, "data": {"model": MODEL}}
    told = [
        server.post_to("/v1/audio/transcriptions", headers=headers, **form),
        server.post(content=b"{}", headers={**headers, "Content-Type": "text/plain"}),
        server.post({}, headers=headers),
    ]
    if own or origin.startswith("https://{}"):  # TLS may end at a proxy, which passes the Host header on
        assert [t.status_code for t in told] == [400, 415, 400]
        return
    assert [t.status_code for t in told] == [403] * 3
    assert told[0].json()["error"]["code"] == "foreign_origin"
    # what is only looked at is not given to pages either: no CORS header
    seen = httpx.get(f"{server.url}/v1/models", headers=headers, trust_env=False, timeout=60)
    assert seen.status_code == 200
    assert not [h for h in seen.headers if h.startswith("access-control")]


def test_a_preflight_is_not_answered(server: Running) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    told = httpx.options(f"{server.url}/v1/chat/completions", headers=headers, trust_env=False, timeout=60)
    assert told.status_code == 405
    assert not [h for h in told.headers if h.startswith("access-control")]


def test_a_key_that_is_given_twice_is_none(serve: Serve) -> None:
    with serve(api_key="right") as running:
        host, port = running.url.removeprefix("http://").split(":")
        lines = [
            "GET /v1/models HTTP/1.1",
            f"Host: {host}",
            "Authorization: Bearer wrong",
            "Authorization: Bearer right",
        ]
        with socket.create_connection((host, int(port)), timeout=60) as link:
            link.sendall("\r\n".join([*lines, "", ""]).encode())
            assert b" 401 " in link.recv(100)
