"""Who may come in: the API key, and the Host header where the server listens on this machine alone."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from limelight.server.problems import ApiError

OPEN = ("/health",)  # a load balancer has no key


class Guard:
    """ASGI middleware. The key is compared by digest and in constant time.

    Args:
        key: expected after ``Authorization: Bearer``; None: nobody is asked.
        hosts: accepted names of the Host header; None: any. On a loopback address this keeps web pages that rebind
            their DNS name to 127.0.0.1 from reading answers.
    """

    def __init__(self, app: ASGIApp, key: str | None, hosts: Collection[str] | None) -> None:
        self.app = app
        self.digest = None if key is None else _digest(key.encode())
        self.hosts = None if hosts is None else frozenset(h.lower() for h in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            problem = self._refusal(scope)
            if problem is not None:
                response = JSONResponse(problem.payload(), problem.status, headers=problem.headers)
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = dict(scope["headers"])
        if self.hosts is not None and _name(headers.get(b"host", b"")) not in self.hosts:
            return ApiError(421, "this server does not go by that Host name", code="wrong_host")
        if self.digest is None or scope["path"] in OPEN:
            return None
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        same = hmac.compare_digest(_digest(given.strip()), self.digest)
        if same and kind.lower() == b"bearer":
            return None
        return ApiError(401, "wrong or missing API key", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def _name(host: bytes) -> str:
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]
