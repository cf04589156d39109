"""Fetching: allowed https hosts at public addresses alone, checked at every redirect and at the connection itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import httpcore
import pytest

from limelight.errors import MediaError
from limelight.server.limits import Limits
from limelight.server.remote import Fetcher, checked, is_public
from tests.server.conftest import png

HOSTS = frozenset({"a.example", "b.example"})
PUBLIC = "93.184.216.34"


class Net(httpcore.AsyncNetworkBackend):
    """Connections answer from a list of recorded replies; every address connected to is written down."""

    def __init__(self, *replies: bytes) -> None:
        self.replies, self.connected = list(replies), list[str]()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.connected.append(f"{host}:{port}")
        return httpcore.AsyncMockStream([self.replies.pop(0)])


def reply(status: int, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{k}: {v}" for k, v in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def fetch(url: str, net: Net, addresses: dict[str, list[str]] | None = None, **limits: Any) -> bytes:
    async def resolve(host: str, port: int) -> list[str]:
        return {"a.example": [PUBLIC], "b.example": [PUBLIC], **(addresses or {})}[host]

    fetcher = Fetcher(HOSTS, replace(Limits(), **limits), net, resolve)
    return asyncio.run(fetcher.fetch(url))


def test_a_picture_is_fetched_from_the_checked_address() -> None:
    net = Net(reply(200, png()))
    assert fetch("https://a.example/x.png?y=1", net) == png()
    assert net.connected == [f"{PUBLIC}:443"]


def test_redirects_are_followed_between_allowed_hosts() -> None:
    net = Net(reply(302, Location="https://b.example/x.png"), reply(301, Location="/z.png"), reply(200, png()))
    assert fetch("https://a.example/x.png", net) == png()


@pytest.mark.parametrize(
    "location",
    ["http://a.example/", "https://c.example/", "https://127.0.0.1/", "file:///etc/passwd", "https://a.example:8443/",
     "//169.254.169.254/latest", "https://a.example@c.example/"],
)  # fmt: skip
def test_redirects_elsewhere_are_refused(location: str) -> None:
    net = Net(reply(302, Location=location), reply(200, png()))
    with pytest.raises(MediaError):
        fetch("https://a.example/x.png", net)
    assert len(net.connected) == 1


def test_a_redirect_to_a_host_that_resolves_inward_is_refused() -> None:
    net = Net(reply(302, Location="https://b.example/"), reply(200, png()))
    with pytest.raises(MediaError, match="public"):
        fetch("https://a.example/", net, {"b.example": ["10.0.0.1"]})
    assert len(net.connected) == 1


def test_redirects_end() -> None:
    with pytest.raises(MediaError, match="redirects"):
        fetch("https://a.example/", Net(*[reply(302, Location="https://b.example/")] * 9))


INWARD = ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
          "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "::ffff:127.0.0.1",
          "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001::1", "198.18.0.1", "240.0.0.1", "", "name"]  # fmt: skip


@pytest.mark.parametrize("address", INWARD)
def test_inward_addresses_are_refused(address: str) -> None:
    assert not is_public(address)
    net = Net(reply(200, png()))
    with pytest.raises(MediaError, match="public"):
        fetch("https://a.example/", net, {"a.example": [PUBLIC, address]})
    assert net.connected == []


def test_public_addresses_pass() -> None:
    assert all(is_public(a) for a in (PUBLIC, "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"))


@pytest.mark.parametrize(
    "url",
    ["http://a.example/", "ftp://a.example/", "https://c.example/", "https://a.example:80/", "https://u:p@a.example/",
     "https://a.example.c.example/", "https://a.example\\@c.example/", "https://a.example /", "https://[::1]/",
     "https://2130706433/", "https://0x7f.1/", "https://", "https://a.example:x/", "https://a.example/\r\nX: y",
     "https://ａ.example/", "https://a.example/" + "x" * 3000, "gopher://a.example"],
)  # fmt: skip
def test_addresses_that_are_not_fetched(url: str) -> None:
    with pytest.raises(MediaError):
        checked(url, HOSTS)
    with pytest.raises(MediaError, match="disabled"):
        checked("https://a.example/", frozenset())


def test_what_is_fetched_is_spelled_anew() -> None:
    assert checked("https://A.Example.:443/x?y=1#frag", HOSTS) == "https://a.example/x?y=1"


def test_too_many_bytes_other_statuses_and_slow_hosts() -> None:
    with pytest.raises(MediaError, match="bytes"):
        fetch("https://a.example/", Net(reply(200, bytes(2000))), media_bytes=1000)
    with pytest.raises(MediaError, match="404"):
        fetch("https://a.example/", Net(reply(404, png())))
    with pytest.raises(MediaError, match="fetched"):
        fetch("https://a.example/", Net(b"not http at all\r\n\r\n"))

    class Slow(Net):
        async def connect_tcp(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
            await asyncio.sleep(30)
            raise OSError

    with pytest.raises(MediaError, match="too long"):
        fetch("https://a.example/", Slow(), fetch_seconds=0.05)


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "127.0.0.1", "localhost", "0", "169.254.169.254"]
)
def test_a_host_that_is_allowed_by_mistake_is_still_not_reached(host: str) -> None:
    """The real resolver: other spellings of inward addresses lead to inward addresses."""
    net = Net(reply(200, png()))
    with pytest.raises(MediaError, match=r"public|fetched"):
        asyncio.run(Fetcher(frozenset({host}), Limits(), net).fetch(f"https://{host}/latest/meta-data"))
    assert net.connected == []


def test_changing_dns_answers_are_looked_up_once() -> None:
    answers = iter([[PUBLIC], ["127.0.0.1"]])
    net = Net(reply(200, png()))

    async def resolve(host: str, port: int) -> list[str]:
        return next(answers)

    assert asyncio.run(Fetcher(HOSTS, Limits(), net, resolve).fetch("https://a.example/x.png")) == png()
    assert net.connected == [f"{PUBLIC}:443"]
    assert next(answers) == ["127.0.0.1"]
