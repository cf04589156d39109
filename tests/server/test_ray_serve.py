"""Two replicas on this machine: both answer, streams stream, pages are found, and the key is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import limelight
from limelight.errors import SettingError
from tests.running import ended, free_port
from tests.server.conftest import MODEL, ask

pytest.importorskip("ray.serve", reason="the extra `ray` is not installed (pip install 'ray[serve]')")

from limelight.server.ray_serve import Replicas, app

KEY = "a key"
SERVER = """
import sys
import ray
from limelight.server.ray_serve import app, run

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
run(app({"model": "demo-vision", "replicas": 2, "cpus": 0.5, "queue": 8, "per_client": 8}), "127.0.0.1", int(sys.argv[1]))
"""


@contextmanager
def serving(log: Path) -> Iterator[str]:
    """A process of its own (Ray leaves warnings and threads behind) and its address; "" where it gave up."""
    port = free_port()
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "LIMELIGHT_API_KEY": KEY,
        "PYTHONPATH": str(Path(limelight.__file__).parents[1]), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_DISABLE_SHUTTING_DOWN_INGRESS_REPLICAS_FORCEFULLY": "1",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-W", "ignore", "-c", SERVER, str(port)]
    with log.open("wb") as sink:  # not a pipe: Ray's daemons inherit it and keep it open
        started = subprocess.Popen(command, env=environment, stderr=sink, stdout=sink)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 240
    try:
        while not healthy(address):
            if started.poll() is not None:
                address = ""
                break
            assert time.monotonic() < end, f"Ray Serve did not start: {log.read_text(errors='replace')[-4000:]}"
            time.sleep(0.5)
        yield address
    finally:
        status = ended(started, 120)
    assert not address or status == 0, log.read_text(errors="replace")[-4000:]


def healthy(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", trust_env=False, timeout=20).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("serve")
    for attempt in range(3):  # Ray gives its proxy a minute to start, which a busy machine may not have
        with serving(folder / f"log{attempt}") as address:
            if address:
                yield address
                return
    told = (folder / "log2").read_text(errors="replace")[-4000:]
    pytest.fail(f"Ray Serve did not start: {told}")


def post(url: str, **body: Any) -> httpx.Response:
    asked = {"model": MODEL, "messages": ask(), "max_tokens": 12, **body}
    headers = {"Authorization": f"Bearer {KEY}"}
    return httpx.post(f"{url}/v1/chat/completions", json=asked, headers=headers, timeout=120, trust_env=False)


@pytest.mark.slow
@pytest.mark.timeout(900)  # with its start, three times if need be
def test_two_replicas_answer_stream_and_share_their_pages(url: str) -> None:
    got: list[httpx.Response] = []
    replicas: set[str] = set()
    for _ in range(10):  # Ray draws who answers
        with ThreadPoolExecutor(8) as pool:
            got += pool.map(lambda _: post(url), range(24))
        assert {g.status_code for g in got} == {200}
        replicas = {g.headers["x-limelight-replica"] for g in got}
        if len(replicas) == 2:
            break
    assert len(replicas) == 2
    assert len({g.json()["choices"][0]["message"]["content"] for g in got}) == 1

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=120)
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=ask(), max_tokens=12, stream=True  # type: ignore[arg-type]
    ) as raw:  # fmt: skip
        arrived = [line for line in raw.iter_lines() if line.startswith("data: ")]
    assert len(arrived) > 6
    chunks = list(client.chat.completions.create(model=MODEL, messages=ask(), max_tokens=12, stream=True))  # type: ignore[arg-type]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == got[0].json()["choices"][0]["message"]["content"]

    page = post(url, max_tokens=2, limelight={"page": True}).json()["limelight"]["page_url"]
    headers = {"Authorization": f"Bearer {KEY}"}
    pages: list[httpx.Response] = []
    for _ in range(10):
        with ThreadPoolExecutor(4) as pool:
            pages += pool.map(lambda _: httpx.get(page, headers=headers, timeout=120, trust_env=False), range(16))
        assert {p.status_code for p in pages} == {200}
        if (found := {p.headers["x-limelight-replica"] for p in pages}) == replicas:
            break
    assert found == replicas
    assert "default-src 'none'" in pages[0].headers["content-security-policy"]

    assert httpx.get(page, timeout=120, trust_env=False).status_code == 401
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0, timeout=120).models.list()
    refused = post(url, messages=ask(url="file:///etc/passwd"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_media")

    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", headers=headers, timeout=120, trust_env=False,
        json={"model": MODEL, "messages": ask(), "max_tokens": 50, "stream": True},
    ) as leaving:  # fmt: skip
        next(leaving.iter_lines())
    assert post(url).status_code == 200


def test_arguments_are_checked() -> None:
    for wrong, match in (
        ({}, "model"),
        ({"model": "x", "replica": 2}, "replica"),
        ({"model": "x", "replicas": 0}, "replicas"),
    ):
        with pytest.raises(SettingError, match=match):
            app(wrong)
    with pytest.raises(SettingError, match="invalid replicas: 2 to 1"):
        Replicas(2, 1)


def test_autoscaling_reaches_ray() -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fixed, scaled = (
            app({"model": MODEL, **more}) for more in ({"replicas": "2"}, {"max_replicas": "3", "gpus": "0.5"})
        )
    one, two = (a._bound_deployment for a in (fixed, scaled))
    assert one.num_replicas == 2
    assert two._deployment_config.autoscaling_config.max_replicas == 3
    assert two._deployment_config.autoscaling_config.min_replicas == 1
    assert two.ray_actor_options["num_gpus"] == 0.5
    assert one.max_ongoing_requests == 48
