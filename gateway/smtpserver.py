"""What stands behind all SMTP connections: their limits, the channel's say, a count of who is here, an end in time.

The protocol itself is in `smtpsession.py`.
"""

import asyncio
import ssl
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv6Network
from pathlib import Path
from typing import Protocol

from pydantic import ByteSize, Field

from gateway.address import Address
from gateway.contract import Settings
from gateway.errors import ANSWERS, Unavailable, wire_error

_AUTH_WINDOW_SECS, _AUTH_CLIENTS = 600, 10_000


class Limits(Settings):
    """What one client, and all of them together, may ask of us."""

    max_message_bytes: ByteSize = Field(default=ByteSize(32 << 20), ge=1024, description="larger mail is refused (552)")
    max_inflight_bytes: ByteSize = Field(
        default=ByteSize(128 << 20),
        ge=1024,
        description="of mail being received, all together; beyond: try later (452)",
    )
    max_line_bytes: ByteSize = Field(
        default=ByteSize(1 << 20), ge=998, description="mail with a longer line is refused; RFC 5322 allows 998"
    )
    max_recipients: int = Field(default=500, ge=100, description="of one mail; more are asked to come again (452)")
    max_connections: int = Field(default=500, ge=1, description="at a time; more are asked to come again (421)")
    max_connections_per_client: int = Field(default=50, ge=1, description="of one address, an IPv6 /64 counting as one")
    max_commands: int = Field(default=2000, ge=10, description="of a connection since its last mail")
    max_errors: int = Field(default=20, ge=1, description="of a connection since its last mail")
    max_auth_failures: int = Field(
        default=3, ge=1, description="of a connection; of an address ten times that in 10 minutes"
    )
    idle_timeout_secs: float = Field(default=300, gt=0, description="for a command, and for a sign of life in a body")
    data_timeout_secs: float = Field(default=1800, gt=0, description="for a whole body, however slow")


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message, and what is known of how it came."""

    client: str  # an address; "" over a unix socket
    helo: str
    tls: str  # version and cipher; "" in clear
    user: str  # who authenticated; ""
    mail_from: str  # "" for the null sender
    rcpt_to: tuple[str, ...]  # as `recipient` gave them
    body: bytes


@dataclass(frozen=True, slots=True)
class Service:
    """What the channel behind a server says. `admit`, `recipient` and `deliver` raise a HuiruError to refuse."""

    hostname: str
    limits: Limits
    admit: Callable[[str], None]  # a client's address
    recipient: Callable[[str], str]  # an address of a RCPT; returns it in its usual form
    deliver: Callable[[Delivery], Awaitable[str]]  # returns its reference once it is durable
    lmtp: bool = False
    tls: Callable[[], ssl.SSLContext] | None = None
    tls_first: bool = False  # implicit TLS
    require_tls: bool = False
    authenticate: Callable[[str, bytes], Awaitable[bool]] | None = None
    require_auth: bool = False
    is_proxy: Callable[[str], bool] = lambda client: False


def answer(error: BaseException) -> str:
    """The reply to an error: its code's, with its public text alone (R9)."""
    known = wire_error(error)
    text = "".join(character if character.isprintable() else " " for character in known.public)
    return f"{ANSWERS[known.code].smtp} {text}"


class Guest(Protocol):
    """A connection, as the server sees it."""

    client: str  # its address; "" over a unix socket
    admitted: bool

    def wind_up(self) -> None:
        """At a stop: who is in the middle of a message may end it."""

    def cut_off(self, words: str = "") -> None:
        """At once."""


class Server:
    """Serves until its `serving` is left. One object serves once."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.stopping = False
        self._sessions: set[Guest] = set()
        self._clients: Counter[str] = Counter()
        self._inflight = 0
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()  # client -> how many, since when
        self._emptied = asyncio.Event()
        self._checking = asyncio.Lock()  # passwords cost memory: one at a time

    @asynccontextmanager
    async def serving(
        self,
        make: Callable[[], asyncio.Protocol],
        address: Address | None,
        path: Path | None,
        mode: int,
        drain_secs: float,
    ) -> AsyncIterator[None]:
        """Raises OSError when an address cannot be had. At the end whoever is in the middle may finish in time."""
        loop = asyncio.get_running_loop()
        listeners: list[asyncio.Server] = []
        try:
            if address is not None:
                listeners.append(await loop.create_server(make, address.host, address.port, backlog=1024))
            if path is not None:
                listeners.append(await loop.create_unix_server(make, path, backlog=1024))
                path.chmod(mode)  # noqa: ASYNC240 - no wait
            yield
        finally:
            self.stopping = True
            for listener in listeners:
                listener.close()
            await self._drain(drain_secs)

    async def _drain(self, seconds: float) -> None:
        try:
            for session in list(self._sessions):
                session.wind_up()
            if self._sessions:
                async with asyncio.timeout(seconds):
                    await self._emptied.wait()
        except TimeoutError:
            pass
        finally:
            for session in list(self._sessions):
                session.cut_off(answer(Unavailable("stopping")))

    # Who is here

    def enter(self, session: Guest) -> None:
        self._sessions.add(session)

    def admit(self, client: str) -> None:
        """Counts a client whose address is known now. Raises what is to be said to it instead of a greeting."""
        limits = self.service.limits
        if self.stopping:
            raise Unavailable("stopping")
        if len(self._sessions) > limits.max_connections:
            raise Unavailable("busy", "Too many connections", reason="max_connections is reached")
        if client and self._clients[_network(client)] >= limits.max_connections_per_client:
            raise Unavailable("rate_limited", "Too many connections", reason="max_connections_per_client is reached")
        if client:
            self.service.admit(client)
            self._clients[_network(client)] += 1

    def leave(self, session: Guest) -> None:
        """More than once does no harm."""
        if session not in self._sessions:
            return
        self._sessions.discard(session)
        if session.admitted and session.client:
            network = _network(session.client)
            self._clients[network] -= 1
            if not self._clients[network]:
                del self._clients[network]
        if not self._sessions:
            self._emptied.set()

    # Bytes in flight

    def reserve(self, size: int) -> bool:
        if self._inflight + size > self.service.limits.max_inflight_bytes:
            return False
        self._inflight += size
        return True

    def release(self, size: int) -> None:
        self._inflight -= size

    # Passwords

    async def authenticate(self, client: str, user: str, password: bytes) -> bool:
        """Raises Unavailable when this client has failed too often."""
        now = asyncio.get_running_loop().time()
        failures, since = self._failures.get(client, (0, now))
        if now - since > _AUTH_WINDOW_SECS:
            failures, since = 0, now
        if failures >= 10 * self.service.limits.max_auth_failures:
            raise Unavailable("rate_limited", "Too many failures, try later")
        async with self._checking:
            authentic = self.service.authenticate is not None and await self.service.authenticate(user, password)
        if not authentic:
            self._failures[client] = self._failures.pop(client, (0, since))[0] + 1, since
            while len(self._failures) > _AUTH_CLIENTS:
                self._failures.popitem(last=False)
        return authentic


def _network(client: str) -> str:
    """Who has one IPv6 address has the other 2^64 of its network too."""
    return str(IPv6Network((client, 64), strict=False)) if ":" in client else client
