"""Places and bytes that clients share, and bodies that do not arrive."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from limelight.server.admission import AdmissionControl, Quota, client_of
from limelight.server.limits import Limits
from limelight.server.problems import ApiError
from tests.server.conftest import MODEL, Gate, Running, Serve, ask, until

BODY = {"model": MODEL, "messages": ask(), "max_tokens": 1}
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"


def test_a_share_and_what_is_kept() -> None:
    quota = Quota(total=8, share=4, kept=2)
    for _ in range(4):
        assert not quota.full("a")
        assert not quota.over_share("a")
        quota.take("a")
    assert quota.over_share("a")
    for _ in range(2):
        assert not quota.full("b")
        quota.take("b")
    assert quota.full("b")  # the last two are for who has none
    assert not quota.full("c")
    quota.take("c")
    quota.take("d")
    assert quota.full("e")
    for client in "aaaabbcd":
        quota.release(client)
    assert not quota.held


def test_a_quarter_for_one_client() -> None:
    admission = AdmissionControl(Limits(queue=32))
    for _ in range(9):  # eight that wait beside one that runs
        admission.enter("a")
    with pytest.raises(ApiError, match="requests queued") as caught:
        admission.enter("a")
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "1")
    for client in "bc":
        for _ in range(8):
            admission.enter(client)
    with pytest.raises(ApiError, match="queue full, retry in 1 s"):
        admission.enter("b")
    for k in range(8):  # whoever has none finds a place
        admission.enter(f"new {k}")
    with pytest.raises(ApiError, match="queue full"):
        admission.enter("new 8")
    alone = AdmissionControl(Limits(queue=8, per_client=8))  # an operator who gives one client the whole queue
    for _ in range(9):
        alone.enter("a")
    assert (Limits(queue=1).share, Limits(queue=3).share, Limits(queue=32, per_client=5).share) == (1, 1, 5)


def test_bytes_of_bodies_are_shared_too() -> None:
    admission = AdmissionControl(Limits(waiting_bytes=1000))
    admission.enter("a", 900)  # a first one may be large
    with pytest.raises(ApiError) as caught:
        admission.enter("a", 1)
    assert caught.value.status == 429
    admission.enter("b", 100)
    with pytest.raises(ApiError):
        admission.enter("c", 1)
    admission.leave("a", 900)
    admission.enter("c", 1)


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("10.1.2.3", "10.1.2.3"), ("::ffff:10.1.2.3", "10.1.2.3"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"), ("fe80::1%eth0", "fe80::/64"), ("testclient", "testclient"), (None, "local"),
    ],
)  # fmt: skip
def test_whose_share_it_is(address: str | None, client: str) -> None:
    assert client_of({"client": None if address is None else (address, 1)}) == client


def place(running: Running, address: str = "127.0.0.1") -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60, source_address=(address, 0))


def test_unfinished_bodies_take_no_place(serve: Serve) -> None:
    with serve(limits=Limits(queue=2, uploads=8)) as running, ExitStack() as stack:
        for _ in range(40):
            link = stack.enter_context(place(running))
            link.sendall((HEAD.format(1000) + "{").encode())
        until(lambda: len(running.chat.state.uploads.open) == 8)
        assert not running.chat.admission.inside
        for _ in range(3):
            assert running.post(BODY).status_code == 200
    until(lambda: not running.chat.state.uploads.open)


def test_the_largest_upload_of_the_greediest_client_goes(serve: Serve) -> None:
    limits = Limits(body_bytes=1_000_000, upload_bytes=1_500_000)
    with serve(limits=limits) as running, ExitStack() as stack:
        links = [stack.enter_context(place(running)) for _ in range(3)]
        for link in links:
            link.sendall((HEAD.format(900_000) + "{" + " " * 600_000).encode())
        told = [_told(link) for link in links]
        assert sum(b" 429 " in t for t in told) == 1
        assert running.post(BODY).status_code == 200


def _told(link: socket.socket) -> bytes:
    link.settimeout(2)
    try:
        return link.recv(200)
    except TimeoutError:
        return b""


def test_one_address_cannot_starve_the_others(serve: Serve) -> None:
    """200 open requests of one address; nineteen others come one after the other."""
    gate = Gate()

    def post(address: str) -> int:
        with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=120) as http:
            return http.post(f"{running.url}/v1/chat/completions", json=BODY).status_code

    with serve(strategy=gate, limits=Limits(queue=32, timeout=100)) as running, ThreadPoolExecutor(200) as pool:
        greedy = [pool.submit(post, "127.0.0.1") for _ in range(200)]
        until(lambda: sum(f.done() for f in greedy) == 191)
        others = [pool.submit(post, f"127.0.0.{k}") for k in range(2, 21)]
        until(lambda: running.chat.admission.inside.total() == 28)
        gate.open()
        assert [f.result(100) for f in others] == [200] * 19
        assert sorted(f.result(100) for f in greedy) == [200] * 9 + [429] * 191


def test_forwarded_addresses_are_believed_from_named_proxies_alone(serve: Serve) -> None:
    seen: list[Any] = []
    for trusted in ((), ("127.0.0.0/8",)):
        with serve(trusted_proxies=trusted) as running:
            enter = running.chat.admission.enter
            running.chat.admission.enter = lambda c, size=0, enter=enter: (seen.append(c), enter(c, size))  # type: ignore[method-assign, misc, return-value]
            headers = {"X-Forwarded-For": "6.6.6.6, 2001:db8::5"}
            assert running.post(BODY, headers=headers).status_code == 200
    assert seen == ["127.0.0.1", "2001:db8::/64"]
