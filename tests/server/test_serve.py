"""``limelight serve`` as people start it: a process, its key from the environment, and SIGTERM."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from limelight.cli.main import app
from tests.server.conftest import MODEL, ask
from tests.server.process import serving

KEY = "from the environment"


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server with a key, which may open 256 file descriptors, and its address."""
    folder = tmp_path_factory.mktemp("serve")
    limited = folder / "python"
    limited.write_text(f'#!/bin/sh\nulimit -n 256\nexec {sys.executable} "$@"\n')
    limited.chmod(0o755)
    # one by one and slowly: four requests cannot all be answered between two looks at the queue
    slow = ("--batch", "1", "--strategy", "lime", "--timeout", "300", "--drain", "300")
    command = [str(limited), "-m", "limelight", "serve"]
    with serving(MODEL, folder / "log", *slow, environment={"LIMELIGHT_API_KEY": KEY}, command=command) as started:
        yield started
    assert "out of system resource" not in (folder / "log").read_text()


def test_idle_sockets_beyond_the_file_descriptors_do_not_block_health(
    process: tuple[subprocess.Popen[bytes], str],
) -> None:
    """320 sockets that send nothing, at a server that may open 256 descriptors."""
    _, url = process
    host, port = url.removeprefix("http://").split(":")
    with ExitStack() as stack:
        for _ in range(320):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
        for _ in range(5):
            assert httpx.get(f"{url}/health", trust_env=False, timeout=60).status_code == 200


def test_sigterm_finishes_what_is_running(process: tuple[subprocess.Popen[bytes], str]) -> None:
    """The last test of this process."""
    started, url = process
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": MODEL, "messages": ask(), "max_tokens": 8, "limelight": {"grounding": True}}
    assert httpx.post(f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=60).status_code == 401
    got: list[httpx.Response] = []

    def post() -> None:
        got.append(httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=300, trust_env=False))

    inside = [threading.Thread(target=post) for _ in range(4)]
    for thread in inside:
        thread.start()
    with httpx.Client(trust_env=False, headers=headers, timeout=60) as http:
        end = time.monotonic() + 60
        while True:  # until all have arrived, and the last are still waiting
            told = http.get(f"{url}/metrics").text
            waiting, running = (
                int(float(re.findall(rf"\nlimelight_{x} (\S+)", told)[0])) for x in ("waiting", "running")
            )
            if waiting and waiting + running + len(got) >= 4:
                break
            assert time.monotonic() < end, told
            assert any(t.is_alive() for t in inside), got
    started.send_signal(signal.SIGTERM)
    for thread in inside:
        thread.join(300)
    assert [g.status_code for g in got] == [200] * 4
    assert len({g.json()["choices"][0]["message"]["content"] for g in got}) == 1
    assert "image" in got[0].json()["limelight"]["contributions"]
    assert started.wait(60) in (0, -signal.SIGTERM)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health", trust_env=False, timeout=60)


DEADLY = """
import sys
from limelight.cli.main import app
from limelight.decoding.methods.greedy import Greedy

def session(self, run):
    raise SystemExit(0)

Greedy.session = session
app(["serve", *sys.argv[1:]])
"""


def test_the_process_ends_with_its_worker(tmp_path: Path) -> None:
    """So that a supervisor starts it again: with a status that is not 0, and without the drain's time."""
    program = tmp_path / "limelight"
    program.write_text(f"#!{sys.executable}\n{DEADLY}")
    program.chmod(0o755)
    log = tmp_path / "log"
    with serving(MODEL, log, "--drain", "600", command=[str(program)]) as (started, url):
        body = {"model": MODEL, "messages": ask(), "max_tokens": 2}
        assert httpx.post(f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=60).status_code == 503
        assert started.wait(60) == 70
    assert "the worker has died" in log.read_text()


def test_a_folder_is_served_under_its_name_alone(tmp_path: Path) -> None:
    from limelight.cli.options import public_name

    folder = tmp_path / "secret" / "llava"
    folder.mkdir(parents=True)
    assert public_name(str(folder)) == "llava"
    assert public_name(f"{folder}/../llava/") == "llava"
    assert public_name("/nowhere/llava") == "llava"
    assert public_name("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"
    assert public_name(MODEL) == MODEL


def test_proxies_are_addresses() -> None:
    code, told = run(MODEL, "--trusted-proxy", "proxy.example")
    assert (code, "--trusted-proxy" in told, "10.0.0.0/8" in told) == (2, True, True)
    assert run(MODEL, "--trusted-proxy", "*")[0] == 2


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["serve", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_what_cannot_be_served_is_refused_before_loading(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    code, told = run(tmp_path)
    assert (code, "safetensors" in told, "--allow-pickle" in told) == (2, True, True)
    code, told = run(MODEL, "--offer", "nothing")
    assert (code, "unknown strategy" in told) == (2, True)
    empty = tmp_path / "key"
    empty.write_text("\n")
    assert run(MODEL, "--api-key-file", empty)[0] == 2
    assert run(MODEL, "--api-key-file", tmp_path / "none")[0] == 2
    assert run(MODEL, "--set", "lr=1")[0] == 2


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "limelight.server.run", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, told = run(MODEL)
    assert (code, "limelight[server]" in told) == (2, True)


def test_remote_code_and_public_addresses_are_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server itself is not started: what is said before it is."""
    from limelight.server import run as running

    monkeypatch.delenv("LIMELIGHT_API_KEY", raising=False)
    monkeypatch.setattr(running.uvicorn.Server, "run", lambda self: None)
    code, told = run(MODEL, "--host", "0.0.0.0", "--trust-remote-code")
    assert code == 0
    assert "--trust-remote-code" in told
    assert "anyone who can reach" in told
    assert "anyone" not in run(MODEL)[1]


def test_replicas_go_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.serve", reason="the extra `ray` is not installed")
    from limelight.server import ray_serve

    got: list[Any] = []
    monkeypatch.setattr(ray_serve, "application", lambda load, config, replicas: got.append((config, replicas)))
    monkeypatch.setattr(ray_serve, "run", lambda application, host, port: got.append((host, port)))
    code, told = run(MODEL, "--replicas", 1, "--max-replicas", 3, "--batch", 4, "--replica-gpus", 0.5, "--drain", 9)
    assert code == 0, told
    (config, replicas), where = got
    assert (config.model, config.batch, where) == (MODEL, 4, ("127.0.0.1", 8000))
    assert (replicas.least, replicas.most, replicas.gpus, replicas.drain_seconds) == (1, 3, 0.5, 9)
    assert run(MODEL, "--max-replicas", 3)[0] == 2
    assert run(MODEL, "--replicas", 3, "--max-replicas", 2)[0] == 2
