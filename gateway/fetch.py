"""Asks servers by HTTP: what a message refers to, and the interfaces of the channels' vendors.

An address that a customer or a vendor's message brings may point anywhere, also into our own network (server-side
request forgery). So every address that a connection would go to must be public, whatever name, redirect or way of
writing led there; and size, time and redirects are bounded. What the operator has configured is trusted instead.
"""

import asyncio
import socket
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from multidict import CIMultiDict
from yarl import URL

from gateway import __version__
from gateway.contract import HttpResponse
from gateway.errors import Rejected, Unavailable
from gateway.settings import MediaSettings

_CONNECT_SECS = 10.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {"User-Agent": f"huiru/{__version__}", "Accept-Encoding": "identity"}
_EMBEDDING = (ip_network("64:ff9b::/96"), ip_network("2002::/16"), ip_network("2001::/32"))  # an IPv4 address within
Networks = Sequence[IPv4Network | IPv6Network]


class Fetcher:
    """An Http of the contract. `close` ends its connections."""

    def __init__(self, settings: MediaSettings) -> None:
        self._settings = settings
        self._sessions: dict[bool, aiohttp.ClientSession] = {}  # trusted or not

    async def __call__(
        self,
        url: str,
        *,
        method: Literal["GET", "POST"] = "GET",
        headers: Mapping[str, str] = {},
        body: bytes = b"",
        trusted: bool = False,
        timeout_secs: float | None = None,
    ) -> HttpResponse:
        """See contract.Http. No error repeats more of the address than its host: the rest may hold a secret."""
        address = _parsed(url)
        try:
            async with asyncio.timeout(timeout_secs or self._settings.timeout_secs):
                return await self._follow(address, method, headers, body, trusted)
        except _NotPublic as error:
            raise Rejected("forbidden", f"{error} is not a public address") from None
        except TimeoutError:
            raise Unavailable("timeout", reason=f"{address.host}: no answer in time") from None
        except aiohttp.InvalidURL:
            raise _no_address() from None
        except (aiohttp.ClientError, OSError, UnicodeError, ValueError) as error:
            cause = getattr(error, "os_error", error)
            if isinstance(cause, _NotPublic):
                raise Rejected("forbidden", f"{cause} is not a public address") from None
            raise Unavailable(reason=f"{address.host}: {type(cause).__name__}") from None

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()

    async def _follow(
        self, address: URL, method: str, headers: Mapping[str, str], body: bytes, trusted: bool
    ) -> HttpResponse:
        for _ in range(self._settings.max_redirects + 1):
            answer = await self._ask(address, method, headers, body, trusted)
            target = answer.headers.get("Location")
            if trusted or method != "GET" or answer.status not in _REDIRECTS or target is None:
                return answer
            address, headers = _redirected(address, target), {}
        raise Rejected("not_found", "the address redirects too often")

    async def _ask(
        self, address: URL, method: str, headers: Mapping[str, str], body: bytes, trusted: bool
    ) -> HttpResponse:
        if not trusted:
            self._demand_public(address.host or "")
        request = self._session(trusted).request(
            method, address, headers={**_HEADERS, **headers}, data=body or None, allow_redirects=False
        )
        async with request as answer:
            content = await self._read(answer)
            return HttpResponse(answer.status, CIMultiDict(answer.headers), content, str(answer.url))

    def _session(self, trusted: bool) -> aiohttp.ClientSession:
        if trusted not in self._sessions:
            resolver = None if trusted else _PublicResolver(self._settings.allow_networks)
            self._sessions[trusted] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=resolver, limit=self._settings.concurrency * 4),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECS),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._sessions[trusted]

    def _demand_public(self, host: str) -> None:
        # aiohttp asks no resolver for an address in its plain form.
        try:
            literal = ip_address(host)
        except ValueError:
            return
        if not _is_public(literal, self._settings.allow_networks):
            raise _NotPublic(host)

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        limit = self._settings.max_bytes
        if (answer.content_length or 0) > limit:
            raise Rejected("too_large", f"the file has {answer.content_length} bytes, {limit} are allowed")
        content = bytearray()
        async for chunk in answer.content.iter_any():
            content += chunk
            if len(content) > limit:
                raise Rejected("too_large", f"the file has more than {limit} bytes")
        return bytes(content)


class _NotPublic(OSError):
    """An address within a network that is not for everybody."""


class _PublicResolver(AbstractResolver):
    """Gives the public ones of a name's addresses: what is checked is what is connected to."""

    def __init__(self, allowed: Networks) -> None:
        self._resolver = ThreadedResolver()
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        public = [one for one in found if _is_public(ip_address(one["host"].partition("%")[0]), self._allowed)]
        if not public:
            raise _NotPublic(host)
        return public

    async def close(self) -> None:
        await self._resolver.close()


def _is_public(address: IPv4Address | IPv6Address, allowed: Networks) -> bool:
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if any(address in network for network in allowed):
        return True
    return address.is_global and not address.is_multicast and not any(address in network for network in _EMBEDDING)


def _parsed(url: str) -> URL:
    """Raises Rejected for what is not an absolute http or https address."""
    try:
        address = URL(url)
        usable = address.scheme in {"http", "https"} and bool(address.host) and address.port is not None
    except (ValueError, TypeError):
        usable = False
    if not usable or address.user is not None or len(url) > 8192:
        raise _no_address()
    return address


def _no_address() -> Rejected:
    return Rejected("malformed", "not an address that can be fetched")


def _redirected(address: URL, target: str) -> URL:
    try:
        next_ = address.join(URL(target))
    except (ValueError, TypeError):
        raise Rejected("malformed", "the address redirects to something that is none") from None
    if address.scheme == "https" and next_.scheme != "https":
        raise Rejected("forbidden", "the address redirects to one without TLS")
    return _parsed(str(next_))
