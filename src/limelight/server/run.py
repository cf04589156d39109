"""Running the application under uvicorn."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI

from limelight.server.limits import Limits
from limelight.server.protocol import bounded_protocol, room_for_connections

FAILED = 70  # the exit status when the worker has died: a supervisor starts the server again
TELLING_SECONDS = 1.0  # after the worker's death, in which requests are told of it
log = logging.getLogger("limelight.server")


class Server(uvicorn.Server):
    """uvicorn's server, which ends when the application's worker dies."""

    failed = False

    def fail(self) -> None:
        """From any thread: end soon, with a status that says so."""
        self.failed = True
        self.config.timeout_graceful_shutdown = 5
        end = threading.Timer(TELLING_SECONDS, self._end)
        end.daemon = True
        end.start()

    def _end(self) -> None:
        self.should_exit = True


def configured(
    app: FastAPI, host: str, port: int, *, drain_seconds: float, trusted_proxies: Sequence[str] = ()
) -> Server:
    """A uvicorn server. On SIGTERM it takes no new connections, finishes what it has, for ``drain_seconds`` at most.

    Always asyncio's own loop and h11, whatever else is installed: the bounds of :mod:`limelight.server.protocol` are theirs.

    Args:
        trusted_proxies: addresses or networks whose X-Forwarded-For and X-Forwarded-Proto are believed.
    """
    limits: Limits = app.state.limits
    most, backlog = room_for_connections(limits)
    if most < limits.connections:
        log.warning("at most %d connections: the process may open few descriptors (ulimit -n)", most)
    protocol: Any = bounded_protocol(limits, most)  # uvicorn calls it, class or not
    config = uvicorn.Config(
        app, host=host, port=port, lifespan="on", ws="none", loop="asyncio", http=protocol, server_header=False,
        proxy_headers=bool(trusted_proxies), forwarded_allow_ips=list(trusted_proxies), backlog=backlog,
        timeout_graceful_shutdown=max(1, round(drain_seconds)), timeout_keep_alive=round(limits.idle_seconds) + 1,
        log_level="info",
    )  # fmt: skip
    server = Server(config)
    app.state.worker.on_death = server.fail
    return server
