"""The same application on many machines: replicas under Ray Serve, each with its own model.

    limelight serve MODEL --replicas 2
    serve run limelight.server.ray_serve:app model=demo-vision replicas=2

A replica is the whole server of :mod:`limelight.server.app`: its queue, its bounds, its worker. Ray Serve spreads requests
over them, passes streams and departures of clients through, starts more under load and replaces one that dies. Report
pages are kept by one small actor, because the request for a page may reach another replica than the one that made it.
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
from limelight.server.pages import Shelf
from limelight.server.state import ServerConfig

PAGES = "limelight-pages"
REPLICA = b"x-limelight-replica"
KEY_VARIABLE = "LIMELIGHT_API_KEY"
TELLING_SECONDS, FAILED = 1.0, 70
SPARE = 16  # requests beyond a replica's own queue that reach it: it answers them with 429, and /health


@dataclass(frozen=True)
class Replicas:
    """How many replicas, and what each takes.

    Attributes:
        least, most: between which Ray Serve scales; equal: fixed.
        target: requests in a replica at which another one is started.
        cpus, gpus: of each replica, as Ray counts them (they place replicas, they do not bound them).
        drain_seconds: for a replica that is stopped to finish the requests it has.
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
                f"replicas from {self.least} to {self.most}, {self.target:g} requests, {self.cpus:g} CPUs and {self.gpus:g} "
                "GPUs each make no sense",
                hint="at least one replica, and not fewer at most than at least",
            )


@dataclass
class SharedShelf:
    """Pages that an actor keeps for every replica."""

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
            self._actor = ray.remote(Shelf).options(**options).remote()
        return self._actor

    async def put(self, page: bytes) -> str:
        return str(await self.actor.put.remote(page))

    async def get(self, name: str) -> bytes | None:
        found: bytes | None = await self.actor.get.remote(name)
        return found


class Named:
    """ASGI middleware: every answer says which replica gave it."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self.app, self.name = app, name.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (REPLICA, self.name)]
            await send(message)

        await self.app(scope, receive, named)


def application(load: Callable[[], Any], config: ServerConfig, replicas: Replicas | None = None) -> Any:
    """A Ray Serve application.

    Args:
        load: returns the Adapter; called in each replica, so it must be picklable.

    Raises:
        MissingExtraError: ``ray[serve]`` is not installed.
    """
    serve = _serve()
    wanted = replicas or Replicas()

    def build() -> FastAPI:
        from limelight.server.app import create_app

        app = create_app(load(), config, SharedShelf())
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


class Asked(BaseModel):
    """``key=value`` arguments of ``serve run``. The API key comes from the environment, where others cannot read it."""

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
    """What ``serve run limelight.server.ray_serve:app model=... replicas=2`` and a Serve config file build.

    Raises:
        SettingError: an argument is unknown, missing or out of range.
    """
    try:
        asked = Asked.model_validate(dict(arguments))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise SettingError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}", hint=f"it takes {', '.join(Asked.model_fields)}"
        ) from None
    from limelight.decoding.registry import strategy

    limits = Limits(queue=asked.queue, per_client=asked.per_client, timeout=asked.timeout)
    config = ServerConfig(
        asked.model, strategy(asked.strategy), limits=limits, api_key=os.environ.get(KEY_VARIABLE) or None,
        batch=asked.batch,
    )  # fmt: skip
    replicas = Replicas(asked.replicas, asked.max_replicas or asked.replicas, cpus=asked.cpus, gpus=asked.gpus)
    return application(loader(asked.model, asked.dtype, asked.device), config, replicas)


def loader(model: str, dtype: str = "auto", device: str | None = None, trust_remote_code: bool = False) -> Any:
    """Loads the model where it is called."""

    def load() -> Any:
        import limelight

        return limelight.load(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)

    return load


def run(application: Any, host: str, port: int, *, address: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then let the replicas drain.

    Args:
        address: of a running cluster; None: that of RAY_ADDRESS, or one started on this machine.
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
    """A replica whose worker has died tells its requests so, and ends; Ray Serve starts another."""
    end = threading.Timer(TELLING_SECONDS, os._exit, (FAILED,))
    end.daemon = True
    end.start()


def _serve() -> Any:
    try:
        from ray import serve
    except ImportError as error:
        raise MissingExtraError("ray[serve]", "ray") from error
    return serve
