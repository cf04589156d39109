"""Access control: the API key, the Host header on loopback addresses, and the Origin header."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Collection

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from limelight.server.problems import ApiError

OPEN = ("/health",)  # needs no key, for load balancers
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_PORTS = {"http": "80", "https": "443"}


class Guard:
    """ASGI middleware for access control. The key is compared by digest in constant time.

    Args:
        key: expected after ``Authorization: Bearer``; None: not required.
        hosts: accepted Host headers, in addition to loopback addresses; None: any. On a loopback address this prevents
            DNS rebinding: web pages cannot point their own name to 127.0.0.1 and read answers.

    A state-changing request with an Origin header must come from a page of this server, because browsers submit forms of
    any page.
    """

    def __init__(self, app: ASGIApp, key: str | None = None, hosts: Collection[str] | None = None) -> None:
        self.app = app
        self.digest = None if key is None else _digest(key.encode())
        self.hosts = None if hosts is None else frozenset(h.lower().rstrip(".") for h in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = None
        if scope["type"] in ("http", "websocket"):
            problem = self._refusal(scope)
        if problem is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            response = JSONResponse(problem.payload(), problem.status, headers=problem.headers)
            await response(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        hosts = _values(scope, b"host")
        if self.hosts is not None and not (len(hosts) == 1 and self._known(host_name(hosts[0]))):
            return ApiError(421, "unknown Host header", code="wrong_host")
        if scope.get("method") not in SAFE_METHODS and not all(
            _same_origin(origin, hosts[-1] if hosts else "") for origin in _values(scope, b"origin")
        ):
            return ApiError(403, "requests from other origins are not allowed", code="foreign_origin")
        if self.digest is None or scope["path"] in OPEN:
            return None
        given = _values(scope, b"authorization")
        kind, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        same = hmac.compare_digest(_digest(key.strip().encode("latin-1")), self.digest)
        if same and kind.lower() == "bearer":
            return None
        return ApiError(401, "wrong or missing API key", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _known(self, name: str | None) -> bool:
        return name is not None and self.hosts is not None and (name in self.hosts or _is_loopback_address(name))


def is_loopback(host: str) -> bool:
    """Whether a bind address is reachable only from this machine."""
    return host.lower().rstrip(".") == "localhost" or _is_loopback_address(host)


def host_names(host: str) -> frozenset[str] | None:
    """Return the Host headers to accept when listening on ``host``: on loopback its own names, elsewhere any (None)."""
    return LOOPBACK | {host.lower()} if is_loopback(host) else None


def host_name(host: str) -> str | None:
    """Parse the name in a Host header: lower case, without port and trailing dot; None when it is not ``name[:port]``.

    ``[::1]:8000`` gives the address ::1; ``[::1]evil.example`` is invalid.
    """
    if host.startswith("["):
        name, closed, rest = host[1:].partition("]")
        if not closed or not _is_address(name, 6):
            return None
    else:
        name, colon, rest = host.partition(":")
        rest = colon + rest
    if rest and not (rest[0] == ":" and (rest[1:].isdecimal() or rest == ":") and rest.isascii()):
        return None
    name = name.lower()
    return name.removesuffix(".") or None


def _same_origin(origin: str, host: str) -> bool:
    """Whether an Origin header names the host and port of the Host header (a proxy may have taken TLS away)."""
    scheme, found, place = origin.lower().partition("://")
    if not found or scheme not in _PORTS or host_name(place) is None:
        return False
    return _with_port(place, _PORTS[scheme]) in {_with_port(host.lower(), port) for port in _PORTS.values()}


def _with_port(place: str, port: str) -> tuple[str | None, str]:
    rest = place.rpartition("]")[2] if place.startswith("[") else place
    return host_name(place), rest.partition(":")[2] or port


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _is_address(text: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False


def _is_loopback_address(text: str) -> bool:
    if "%" in text:  # no IPv6 zone identifiers
        return False
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()
