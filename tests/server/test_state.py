"""The queue before the model: bounds, turns, clients that leave, time that is up, and what breaks inside."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from limelight.server.limits import Limits
from tests.server.conftest import MODEL, Gate, Serve, ask, create, until


def test_a_full_queue_returns_429_and_health_still_answers(serve: Serve) -> None:
    gate = Gate()
    with (
        serve(strategy=gate, limits=Limits(queue=2, per_client=2, timeout=120)) as running,
        ThreadPoolExecutor(3) as pool,
    ):
        body = {"model": MODEL, "messages": ask(), "max_tokens": 3}
        inside = [pool.submit(running.post, body) for _ in range(3)]
        until(lambda: running.chat.admission.inside.total() == 3)
        refused = running.post(body)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        with pytest.raises(openai.RateLimitError):
            create(running.openai())
        assert httpx.get(f"{running.url}/health", timeout=10, trust_env=False).status_code == 200
        gate.open()
        assert {f.result(60).status_code for f in inside} == {200}
        assert running.post(body).status_code == 200
        assert not running.chat.admission.inside


def test_a_client_that_leaves_mid_stream_frees_the_worker(serve: Serve) -> None:
    gate = Gate(free=2)
    with serve(strategy=gate, limits=Limits(timeout=120)) as running:
        with running.openai() as client:
            stream = create(client, max_tokens=900, stream=True)
            assert next(iter(stream)).choices[0].delta.role == "assistant"
            stream.close()
        until(lambda: not running.chat.admission.inside)
        gate.open()
        until(lambda: not running.chat.worker.current)
        assert gate.tokens < 10
        assert create(running.openai(), max_tokens=2).usage.completion_tokens == 2
        assert running.metric("limelight_cancelled_total") == 1


def test_a_client_that_disconnects_while_waiting_is_removed(serve: Serve) -> None:
    gate = Gate()
    with serve(strategy=gate, limits=Limits(timeout=120)) as running:
        body = {"model": MODEL, "messages": ask(), "max_tokens": 2}
        first = threading.Thread(target=running.post, args=(body,))
        first.start()
        until(lambda: running.chat.worker.current)
        with running.send(body):
            until(lambda: len(running.chat.worker.queue) == 1)
        until(lambda: running.chat.admission.inside.total() == 1)
        assert len(running.chat.worker.queue) == 0
        gate.open()
        first.join(60)
        assert gate.tokens == 2


@pytest.mark.parametrize("stream", [False, True])
def test_time_is_up(serve: Serve, stream: bool) -> None:
    gate = Gate(free=1)
    with serve(strategy=gate) as running:
        running.give(3 if stream else 0.6)
        got = running.post({"model": MODEL, "messages": ask(), "max_tokens": 8, "stream": stream})
        if stream:  # it had begun
            assert got.status_code == 200
            last = [json.loads(line[6:]) for line in got.text.splitlines() if line.startswith("data: ")][-1]
            with pytest.raises(openai.APIError, match="not ready"):
                gate.open(1)
                list(create(running.openai(), stream=True))
        else:
            assert got.status_code == 504
            last = got.json()
        assert last["error"]["code"] == "timeout"
        gate.open()
        running.give(120)
        until(lambda: not running.chat.worker.current)
        assert running.post({"model": MODEL, "messages": ask(), "max_tokens": 2}).status_code == 200


def test_internal_errors_are_not_exposed(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(broken=True)
    with serve(strategy=gate) as running:
        for more in ({}, {"stream": True}):
            got = running.post({"model": MODEL, "messages": ask(), "max_tokens": 2, **more})
            assert got.status_code == 500
            assert got.json()["error"]["type"] == "server_error"
            assert "secret" not in got.text
            assert "Traceback" not in got.text
        assert "secret of the server" in caplog.text
        assert running.metric("limelight_worker_errors") == 2
        gate.broken = False
        gate.open()
        assert running.post({"model": MODEL, "messages": ask(), "max_tokens": 2}).status_code == 200


def test_one_client_may_only_fill_its_share(serve: Serve) -> None:
    with serve(limits=Limits(queue=8, per_client=1), strategy=(gate := Gate())) as running:
        body = {"model": MODEL, "messages": ask(), "max_tokens": 1}
        with ThreadPoolExecutor(2) as pool:
            inside = [pool.submit(running.post, body) for _ in range(2)]
            until(lambda: running.chat.admission.inside.total() == 2)
            assert running.post(body).json()["error"]["message"].startswith("you have 1 requests queued")
            gate.open()
            assert {f.result(60).status_code for f in inside} == {200}


def test_clients_take_turns(serve: Serve) -> None:
    gate = Gate()
    body = {"model": MODEL, "messages": ask(), "max_tokens": 1}
    order: list[str] = []

    def post(url: str, address: str) -> None:
        with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=120) as http:
            assert http.post(f"{url}/v1/chat/completions", json=body).status_code == 200
        order.append(address)

    with serve(strategy=gate) as running, ThreadPoolExecutor(5) as pool:
        inside = []
        for count, address in enumerate(["127.0.0.1"] * 4 + ["127.0.0.2"], start=1):
            inside.append(pool.submit(post, running.url, address))
            until(lambda count=count: len(running.chat.worker.queue) == count - 1 and running.chat.worker.current)  # type: ignore[misc]
        for count in range(1, 6):
            gate.open(1)
            until(lambda count=count: len(order) == count)  # type: ignore[misc]
        for done in inside:
            done.result(60)
    assert order.index("127.0.0.2") <= 2  # though it came last of five


class Deadly(Gate):
    """Ends the worker's thread instead of answering."""

    def session(self, run: Any) -> Gate.Session:
        self.permits.acquire(timeout=60)
        raise SystemExit("secret of the server")


def test_a_worker_that_dies_is_seen_by_everybody(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    gate = Deadly()
    body = {"model": MODEL, "messages": ask(), "max_tokens": 3}
    with serve(strategy=gate, limits=Limits(timeout=120)) as running, ThreadPoolExecutor(5) as pool:
        with httpx.Client(trust_env=False, timeout=60) as http:
            assert http.get(f"{running.url}/health").status_code == 200
            waiting = [pool.submit(running.post, {**body, "stream": k % 2 == 0}) for k in range(5)]
            until(lambda: running.chat.admission.inside.total() == 5)
            gate.open()
            assert [f.result(60).status_code for f in waiting] == [503] * 5
            assert "secret" not in waiting[0].result().text
            assert waiting[0].result().json()["error"]["type"] == "server_error"
            for told in (http.get(f"{running.url}/health"), http.post(f"{running.url}/v1/chat/completions", json=body)):
                assert told.status_code == 503
            assert http.get(f"{running.url}/v1/models").status_code == 200
        assert running.server.failed
        until(lambda: running.server.should_exit)
    assert not running.chat.admission.inside
