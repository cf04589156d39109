"""A real uvicorn on 127.0.0.1 over the shipped miniature, and a decoding method that the test lets go, token by token."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `server` is not installed")
pytest.importorskip("uvicorn", reason="the extra `server` is not installed")

import httpx
import openai
from torch import Tensor

import limelight
from limelight.decoding.methods.greedy import Greedy
from limelight.decoding.strategy import Capabilities, GenerationContext, StepOutput
from limelight.models.adapter import Adapter
from limelight.server.app import create_app
from limelight.server.chat import Chat
from limelight.server.run import Server, configured
from limelight.server.state import ServerConfig

EXAMPLES = Path(limelight.__file__).parent / "demo" / "vision" / "examples"
MODEL = "demo-vision"


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(width: int = 8, height: int = 8) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(out, "PNG")
    return out.getvalue()


def example(number: int = 0) -> bytes:
    return (EXAMPLES / f"E-wrong-00{number}.png").read_bytes()


def ask(text: str = "Describe the picture.", url: str | None = None) -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": data_url(example()) if url is None else url}}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


def create(client: openai.OpenAI, text: str = "Describe the picture.", **more: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "messages": ask(text), "max_tokens": 16, **more})


def alike(got: Any, want: Any) -> bool:
    """Equal, numbers with a fraction aside: those of a padded batch differ in their last digits."""
    if isinstance(want, dict):
        return isinstance(got, dict) and got.keys() == want.keys() and all(alike(got[k], want[k]) for k in want)
    if isinstance(want, (list, tuple)):
        return len(got) == len(want) and all(map(alike, got, want))
    return bool(got == pytest.approx(want, rel=1e-3, abs=1e-5)) if isinstance(want, float) else bool(got == want)


@dataclass
class Gate:
    """Greedy decoding that never ends by itself and waits for a permit before every token but the first ``free``."""

    free: int = 0
    broken: bool = False
    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    tokens: int = 0
    name: str = "gate"
    together: bool = False  # whether its rows share a batch

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(batches=self.together)

    def settings(self) -> dict[str, Any]:
        return {}

    def session(self, context: GenerationContext) -> Gate.Session:
        if self.broken:
            raise ZeroDivisionError("secret of the server")
        return Gate.Session(self, context)

    class Session:
        def __init__(self, gate: Gate, context: GenerationContext) -> None:
            self.gate, self.inner, self.count = gate, Greedy().session(context), 0
            self.ends = context.adapter.model.generation_config.eos_token_id

        def next(self, tokens: Tensor | None) -> StepOutput:
            step_output = self.inner.next(tokens)
            step_output.logits[:, self.ends] = float("-inf")
            if self.count >= self.gate.free:
                self.gate.permits.acquire(timeout=60)
            self.count += 1
            self.gate.tokens += 1
            return step_output

    def open(self, permits: int = 10_000) -> None:
        self.permits.release(permits)


@dataclass
class Running:
    """A server that answers."""

    url: str
    chat: Chat
    server: Server

    def connections(self) -> list[Any]:
        """Those that are open."""
        return list(self.server.server_state.connections)

    def openai(self, **more: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 120, **more})

    def post(self, body: Any = None, **more: Any) -> httpx.Response:
        given = {"json": body} if body is not None else {}
        return httpx.post(f"{self.url}/v1/chat/completions", **given, timeout=120, trust_env=False, **more)

    def post_to(self, path: str, **more: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", timeout=120, trust_env=False, **more)

    def give(self, seconds: float) -> None:
        """From now on a request has so long."""
        self.chat.config = replace(self.chat.config, limits=replace(self.chat.config.limits, timeout=seconds))

    def send(self, body: Any) -> socket.socket:
        """A request whose answer is not awaited; closing the socket is leaving."""
        host, port = self.url.removeprefix("http://").split(":")
        data = json.dumps(body).encode()
        link = socket.create_connection((host, int(port)), timeout=60)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        link.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return link

    def metric(self, name: str) -> float:
        page = httpx.get(f"{self.url}/metrics", trust_env=False, timeout=60).text
        return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(name))


@contextmanager
def served(adapter: Adapter, config: ServerConfig, trusted_proxies: Sequence[str] = ()) -> Iterator[Running]:
    app = create_app(adapter, config)
    server = configured(app, "127.0.0.1", 0, drain_seconds=5, trusted_proxies=trusted_proxies)
    server.config.log_level = "critical"
    server.config.configure_logging()
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Running(f"http://127.0.0.1:{port}", app.state.chat, server)
    finally:
        server.should_exit = True
        thread.join(20)


def until(true: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def adapter() -> Adapter:
    return limelight.load(MODEL)


@pytest.fixture(scope="session")
def server(adapter: Adapter) -> Iterator[Running]:
    with served(adapter, ServerConfig(MODEL)) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Running) -> openai.OpenAI:
    return server.openai()


Serve = Callable[..., AbstractContextManager[Running]]


@pytest.fixture
def serve(adapter: Adapter) -> Serve:
    """``with serve(strategy=..., limits=..., **config) as running``."""

    def call(*, trusted_proxies: Sequence[str] = (), **config: Any) -> AbstractContextManager[Running]:
        return served(adapter, replace(ServerConfig(MODEL), **config), trusted_proxies)

    return call
