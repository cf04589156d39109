"""Running the application under uvicorn."""

from __future__ import annotations

import ipaddress

import uvicorn
from fastapi import FastAPI

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str) -> bool:
    """Whether a bind address is reachable from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_names(host: str) -> frozenset[str] | None:
    """Host headers to accept when listening on ``host``: on loopback its own names, elsewhere any."""
    return LOOPBACK | {host.lower()} if is_loopback(host) else None


def configured(app: FastAPI, host: str, port: int, *, drain_seconds: float) -> uvicorn.Server:
    """A uvicorn server. On SIGTERM it takes no new connections, finishes what it has, for ``drain_seconds`` at most."""
    config = uvicorn.Config(
        app, host=host, port=port, lifespan="on", ws="none", proxy_headers=False, server_header=False,
        timeout_graceful_shutdown=max(1, round(drain_seconds)), timeout_keep_alive=10, backlog=256, log_level="info",
    )  # fmt: skip
    return uvicorn.Server(config)
