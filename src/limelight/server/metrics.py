"""Prometheus metrics of /metrics, in the server's own registry."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from limelight.server.worker import Worker

ROUTES = (
    "/v1/chat/completions", "/v1/audio/transcriptions", "/v1/grounding", "/v1/models", "/health", "/metrics", "/openapi.json"
)  # fmt: skip
_ROWS = (1, 2, 4, 8, 16, 32)
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, worker: Worker) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("limelight_requests", "Answered requests.", ["route", "status"], registry=self.registry)
        self.tokens = Counter("limelight_tokens", "Prompt and generated tokens.", ["kind"], registry=self.registry)
        self.cancelled = Counter(
            "limelight_cancelled",
            "Requests cancelled: the client disconnected or the timeout expired.",
            registry=self.registry,
        )
        self.seconds = Histogram(
            "limelight_request_seconds", "Arrival to end of answer.", buckets=_SECONDS, registry=self.registry
        )
        self.first = Histogram(
            "limelight_first_token_seconds", "Arrival to first token.", buckets=_SECONDS, registry=self.registry
        )
        self.batch = Histogram(
            "limelight_batch_answers", "Answers decoded together.", buckets=_ROWS, registry=self.registry
        )
        for name, description, read in (
            ("limelight_waiting", "Requests in the queue.", lambda: len(worker.queue)),
            ("limelight_running", "Requests in the worker.", lambda: len(worker.current)),
            ("limelight_worker_errors", "Requests that failed with an internal error.", lambda: worker.errors),
        ):
            Gauge(name, description, registry=self.registry).set_function(read)

    def page(self) -> bytes:
        return generate_latest(self.registry)


class Counted:
    """ASGI middleware that counts responses by route and status (unknown paths share one label, which bounds the labels)."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        route = path if path in ROUTES else "/pages" if path.startswith("/pages/") else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counted)
