"""Running the server with uvicorn."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI

from limelight.server.limits import Limits
from limelight.server.protocol import bounded_protocol, room_for_connections

FAILED = 70  # exit status when the worker has died, for a supervisor to restart the server
FAILING_SECONDS = 1.0  # time after the worker's death to fail the remaining requests
log = logging.getLogger("limelight.server")


class Server(uvicorn.Server):
    """uvicorn's server, which exits when the application's worker dies."""

    failed = False

    def fail(self) -> None:
        """Request an exit with status ``FAILED``; callable from any thread."""
        self.failed = True
        self.config.timeout_graceful_shutdown = 5
        end = threading.Timer(FAILING_SECONDS, self._end)
        end.daemon = True
        end.start()

    def _end(self) -> None:
        self.should_exit = True


def configured(
    app: FastAPI, host: str, port: int, *, drain_seconds: float, trusted_proxies: Sequence[str] = ()
) -> Server:
    """Configure a uvicorn server. On SIGTERM it accepts no new connections and finishes its requests within ``drain_seconds``.

    It always uses asyncio's loop and h11, which the limits of :mod:`limelight.server.protocol` depend on.

    Args:
        trusted_proxies: addresses or networks whose X-Forwarded-For and X-Forwarded-Proto are trusted.
    """
    limits: Limits = app.state.limits
    most, backlog = room_for_connections(limits)
    if most < limits.connections:
        log.warning("limited to %d connections by the number of file descriptors (ulimit -n)", most)
    protocol: Any = bounded_protocol(limits, most)  # uvicorn only calls it
    config = uvicorn.Config(
        app, host=host, port=port, lifespan="on", ws="none", loop="asyncio", http=protocol, server_header=False,
        proxy_headers=bool(trusted_proxies), forwarded_allow_ips=list(trusted_proxies), backlog=backlog,
        timeout_graceful_shutdown=max(1, round(drain_seconds)), timeout_keep_alive=round(limits.idle_seconds) + 1,
        log_level="info",
    )  # fmt: skip
    server = Server(config)
    app.state.worker.on_death = server.fail
    return server
