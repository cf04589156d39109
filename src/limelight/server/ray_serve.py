"""The server on many machines: replicas under Ray Serve, each with its own model.

    limelight serve MODEL --replicas 2
    serve run limelight.server.ray_serve:app model=demo-vision replicas=2

A replica is a complete server of :mod:`limelight.server.app` with its own queue, limits and worker. Ray Serve distributes
requests, passes on streams and client disconnects, scales with load and replaces failed replicas. Report pages are stored
by one small actor, because the request for a page may reach a different replica than the one that rendered it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from limelight.errors import MissingExtraError, SettingError
from limelight.server.limits import Limits
from limelight.server.pages import PageStore
from limelight.server.state import ServerConfig

PAGES = "limelight-pages"
REPLICA = b"x-limelight-replica"
KEY_VARIABLE = "LIMELIGHT_API_KEY"
FAILING_SECONDS, FAILED = 1.0, 70
SPARE = 16  # requests beyond a replica's queue that still reach it: /health, and those answered with 429


@dataclass(frozen=True)
class Replicas:
    """Number of replicas and the resources of each.

    Attributes:
        least, most: range of autoscaling; equal: a fixed number.
        target: requests per replica above which another one is started.
        cpus, gpus: per replica, in Ray's logical resources (used for placement, not enforced).
        drain_seconds: time for a stopping replica to finish its requests.
    """

    least: int = 1
    most: int = 1
    target: float = 4.0
    cpus: float = 1.0
    gpus: float = 0.0
    drain_seconds: float = 120.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most or self.target <= 0 or self.cpus < 0 or self.gpus < 0:
            raise SettingError(
                f"invalid replicas: {self.least} to {self.most}, with {self.target:g} requests, {self.cpus:g} CPUs and "
                f"{self.gpus:g} GPUs each",
                hint="use at least one replica, and a maximum not below the minimum",
            )


@dataclass
class SharedPageStore:
    """Page storage in an actor, shared by all replicas."""

    name: str = PAGES
    _actor: Any = field(default=None, init=False)

    @property
    def actor(self) -> Any:
        if self._actor is None:
            import ray

            options = {
                "name": self.name,
                "get_if_exists": True,
                "lifetime": "detached",
                "num_cpus": 0,
                "max_restarts": -1,
            }
            self._actor = ray.remote(PageStore).options(**options).remote()
        return self._actor

    async def put(self, page: bytes) -> str:
        return str(await self.actor.put.remote(page))

    async def get(self, name: str) -> bytes | None:
        found: bytes | None = await self.actor.get.remote(name)
        return found


class Named:
    """ASGI middleware that adds the replica's name to every response."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self.app, self.name = app, name.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (REPLICA, self.name)]
            await send(message)

        await self.app(scope, receive, named)


def application(load: Callable[[], Any], config: ServerConfig, replicas: Replicas | None = None) -> Any:
    """Build the Ray Serve application.

    Args:
        load: returns the Adapter; called in each replica, so must be picklable.

    Raises:
        MissingExtraError: ``ray[serve]`` is not installed.
    """
    serve = _serve()
    wanted = replicas or Replicas()

    def build() -> FastAPI:
        from limelight.server.app import create_app

        app = create_app(load(), config, SharedPageStore())
        app.state.worker.on_death = _end_replica
        app.add_middleware(Named, name=serve.get_replica_context().replica_id.unique_id)
        return app

    options: dict[str, Any] = {"num_replicas": wanted.least}
    if wanted.most > wanted.least:
        scaling = {"min_replicas": wanted.least, "max_replicas": wanted.most, "target_ongoing_requests": wanted.target}
        options = {"autoscaling_config": scaling}
    deployment = serve.deployment(
        name="limelight",
        max_ongoing_requests=config.limits.queue + SPARE,
        max_queued_requests=config.limits.queue * wanted.most,
        ray_actor_options={"num_cpus": wanted.cpus, "num_gpus": wanted.gpus},
        graceful_shutdown_timeout_s=wanted.drain_seconds,
        **options,
    )
    return deployment(serve.ingress(build)()).bind()


class ServeArguments(BaseModel):
    """``key=value`` arguments of ``serve run``. The API key is read from the environment, where other users cannot see it."""

    model_config = ConfigDict(extra="forbid")

    model: str
    strategy: str = "greedy"
    dtype: str = "auto"
    device: str | None = None
    replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)
    batch: int = Field(8, ge=1)
    queue: int = Field(32, ge=1)
    per_client: int | None = Field(None, ge=1)
    timeout: float = Field(120.0, gt=0)


def app(arguments: Mapping[str, Any]) -> Any:
    """Build the application for ``serve run limelight.server.ray_serve:app model=... replicas=2`` or a Serve config file.

    Raises:
        SettingError: an argument is unknown, missing or out of range.
    """
    try:
        parsed = ServeArguments.model_validate(dict(arguments))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise SettingError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            hint=f"arguments: {', '.join(ServeArguments.model_fields)}",
        ) from None
    from limelight.decoding.registry import strategy

    limits = Limits(queue=parsed.queue, per_client=parsed.per_client, timeout=parsed.timeout)
    config = ServerConfig(
        parsed.model, strategy(parsed.strategy), limits=limits, api_key=os.environ.get(KEY_VARIABLE) or None,
        batch=parsed.batch,
    )  # fmt: skip
    replicas = Replicas(parsed.replicas, parsed.max_replicas or parsed.replicas, cpus=parsed.cpus, gpus=parsed.gpus)
    return application(loader(parsed.model, dtype=parsed.dtype, device=parsed.device), config, replicas)


def loader(model: str, **settings: Any) -> Any:
    """Return a picklable function that loads the model, with ``settings`` of ``limelight.load``."""

    def load() -> Any:
        import limelight

        return limelight.load(model, **settings)

    return load


def run(application: Any, host: str, port: int, *, address: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain the replicas.

    Args:
        address: address of a running cluster; None: RAY_ADDRESS, or a new cluster on this machine.
    """
    import ray

    serve = _serve()
    ended = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: ended.set())
    if not ray.is_initialized():
        ray.init(address=address, include_dashboard=None if address else False, log_to_driver=True)
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(application, name="limelight", route_prefix="/")
        ended.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


def _end_replica() -> None:
    """Exit a replica whose worker has died, after failing its requests; Ray Serve replaces it."""
    end = threading.Timer(FAILING_SECONDS, os._exit, (FAILED,))
    end.daemon = True
    end.start()


def _serve() -> Any:
    try:
        from ray import serve
    except ImportError as error:
        raise MissingExtraError("ray[serve]", "ray") from error
    return serve
