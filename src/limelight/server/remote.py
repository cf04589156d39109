"""Fetching images from allowed https hosts, protected against server-side request forgery (SSRF).

Disabled unless hosts are configured. Addresses are checked when connecting, and the connection uses the checked address,
so that DNS cannot change in between; every redirect is checked again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

from limelight.errors import MediaError
from limelight.server.limits import Limits

REDIRECTS = 3
_REDIRECT = frozenset({301, 302, 303, 307, 308})
# Globally routable by registry, but with an embedded IPv4 address that may be private.
_TUNNELS = tuple(ipaddress.ip_network(n) for n in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))
Resolve = Callable[[str, int], Awaitable[list[str]]]


async def resolve(host: str, port: int) -> list[str]:
    """Resolve all addresses of a host."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(info[4][0]) for info in found]


def is_public(address: str) -> bool:
    """Whether an address is on the public internet: not loopback, private, link-local, multicast, tunnelled ..."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif any(ip in network for network in _TUNNELS) or ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


class PublicOnly(httpcore.AsyncNetworkBackend):
    """Network backend that connects only to public addresses."""

    def __init__(self, inner: httpcore.AsyncNetworkBackend, resolve: Resolve) -> None:
        self.inner, self.resolve = inner, resolve

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self.resolve(host, port)
        if not addresses or not all(is_public(a) for a in addresses):
            raise MediaError("the host has no public address", hint="send the image as a data URL")
        return await self.inner.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise MediaError("only https is fetched", hint="send the image as a data URL")

    async def sleep(self, seconds: float) -> None:
        await self.inner.sleep(seconds)


@dataclass(frozen=True)
class Fetcher:
    """Fetches images from ``hosts`` (exact names, lower case) over https on port 443."""

    hosts: frozenset[str]
    limits: Limits
    backend: httpcore.AsyncNetworkBackend = field(default_factory=httpcore.AnyIOBackend)
    resolve: Resolve = resolve

    async def fetch(self, url: str) -> bytes:
        """Fetch the bytes at a URL.

        Raises:
            MediaError: remote images are disabled, the URL is not allowed, or the fetch failed or timed out.
        """
        try:
            async with asyncio.timeout(self.limits.fetch_seconds):
                return await self._fetch(url)
        except TimeoutError as error:
            raise MediaError("the remote image took too long", hint="send it as a data URL") from error
        except (OSError, ValueError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise MediaError("the remote image could not be fetched", hint="send it as a data URL") from error

    async def _fetch(self, url: str) -> bytes:
        async with httpcore.AsyncConnectionPool(
            ssl_context=_context(), network_backend=PublicOnly(self.backend, self.resolve), max_connections=1
        ) as pool:
            for _ in range(REDIRECTS + 1):
                target = checked(url, self.hosts)
                async with pool.stream(
                    "GET",
                    target,
                    headers={"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "limelight"},
                ) as response:
                    headers = {k.lower(): v for k, v in response.headers}
                    if response.status in _REDIRECT and b"location" in headers:
                        url = urljoin(target, headers[b"location"].decode("latin-1"))
                        continue
                    if response.status != 200:
                        raise MediaError(f"the remote host returned status {response.status}", hint="check the URL")
                    data = bytearray()
                    async for chunk in response.aiter_stream():
                        data += chunk
                        if len(data) > self.limits.media_bytes:
                            raise MediaError(
                                f"the remote image has more than {self.limits.media_bytes:,} bytes",
                                hint="make it smaller first",
                            )
                    return bytes(data)
        raise MediaError(f"more than {REDIRECTS} redirects", hint="use the final URL")


@cache
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()


def checked(url: str, hosts: frozenset[str]) -> str:
    """Return the URL if it is https to an allowed host on port 443, without credentials."""
    if not hosts:
        raise MediaError(
            "remote images are disabled on this server", hint="send the image as data:image/png;base64,..."
        )
    if len(url) > 2048 or any(ord(c) <= 32 or ord(c) > 126 or c == "\\" for c in url):
        raise MediaError("the URL contains invalid characters", hint="percent-encode it")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError as error:
        raise MediaError("invalid URL", hint="https://host/path") from error
    if parts.scheme != "https" or parts.username is not None or parts.password is not None or port not in (None, 443):
        raise MediaError("only https URLs on port 443 without credentials are fetched", hint="https://host/path")
    if host not in hosts:
        raise MediaError("the host of the URL is not allowed on this server", hint="send the image as a data URL")
    query = f"?{parts.query}" if parts.query else ""
    return f"https://{host}{parts.path or '/'}{query}"
