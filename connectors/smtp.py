"""Mail by SMTP or LMTP: the gateway as what an MX points to, or as the next hop of a mail server.

Protocol: SMTP (RFC 5321) or LMTP (RFC 2033), with STARTTLS (RFC 3207) or TLS from the first byte, 8BITMIME, SIZE,
    SMTPUTF8, and AUTH PLAIN and LOGIN over TLS. One transaction is one message, however many recipients it has.
Authentication: of the client by its network, and by AUTH where users are configured. Of the author by nothing here:
    what a message says of itself is for the normalizer to judge, by the headers of `authserv_ids`. Nothing is ever
    relayed: a recipient is one of `domains` or `recipients`, or refused.
Redelivery: the client's, until it reads a 2xx or a 5xx. 250 is said once the message is durable. The same mail again,
    by whatever way and to whichever recipients, is the same ticket, with the recipients that came first.
Limits: those of `gateway/smtpserver.py`; the protocol's details are in `gateway/smtpsession.py`.
Source: the RFCs; aiosmtpd's documentation, and its source where that is silent.
"""

import asyncio
import errno
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from gateway import password
from gateway.address import Address, Listen, Network, network
from gateway.certificate import Certificate
from gateway.contract import Accept, ChannelSettings, Context, RawMessage, RunningConnector, Settings
from gateway.errors import ConfigError, Rejected, Unavailable
from gateway.mail import authentication, identity, replyaddress
from gateway.smtpserver import Delivery, Limits, Server, Service
from gateway.smtpsession import sessions

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver

_REPLY_ADDRESSES = "reply-address"  # the purpose of the key that acknowledgements sign theirs with
_DRAIN_SECS = 2
_RENEW_SECS = 7 * 86400  # what renews itself does it weeks before
_PROBE_SECS = 10
_THREAD_BYTES = 1 << 18  # a larger message is digested beside the event loop
# Loopback, RFC 1918, RFC 4193 and what is local to a link.
_PRIVATE = "127.0.0.0/8 ::1 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 169.254.0.0/16 fc00::/7 fe80::/10"
# RFC 5321's atoms and what RFC 6531 adds, without % and !, by which mail was once relayed.
_LOCAL_PART = re.compile(r"[A-Za-z0-9#$&'*+/=?^_`{|}~.\x80-\U0010ffff-]{1,256}")


# Settings


class Route(Settings):
    """What mail to an address gets in the place of, or beside, the channel's own."""

    queue: str | None = Field(default=None, description="in the place of the channel's `queue`")
    tags: tuple[str, ...] = Field(default=(), description="beside the channel's `tags`")
    priority: str | None = Field(
        default=None, description="in the place of the channel's `priority`; a mail's own is before both"
    )


class User(Settings):
    """Who may authenticate."""

    name: str = Field(min_length=1, max_length=255, description="stands in the facts of every message it brought")
    password: SecretStr = Field(
        description="scrypt:<hex salt>:<hex hash>; the example configuration shows how to make it"
    )

    @field_validator("password")
    @classmethod
    def _demand_hash(cls, value: SecretStr) -> SecretStr:
        if not re.fullmatch(password.FORM, value.get_secret_value()):
            raise ValueError("expected scrypt:<32 hex digits>:<64 hex digits>, a hash and not the password itself")
        return value


class SenderCheck(Settings):
    """Our own look at SPF, DKIM and DMARC. Right where an MX points here; a server in front of us knows better."""

    resolver: Listen = Field(default=Address("127.0.0.1", 53), description="host:port of a name server; an IP address")
    timeout_secs: float = Field(default=5, gt=0, le=60, description="in all; what is not known by then is `temperror`")

    @field_validator("resolver")
    @classmethod
    def _demand_address(cls, address: Address) -> Address:
        try:
            ip_address(address.host)
        except ValueError as error:
            raise ValueError("a name server is found by its IP address, such as 127.0.0.1:53") from error
        return address


class SmtpSettings(ChannelSettings, Limits):
    """The keys of an `smtp` channel."""

    type: Literal["smtp"]
    protocol: Literal["smtp", "lmtp"] = Field(default="smtp", description="lmtp: one answer for each recipient")
    listen: Listen | None = Field(default=None, description="host:port")
    unix_socket: Path | None = Field(default=None, description="path of a socket, beside or in the place of `listen`")
    unix_socket_mode: str = Field(default="0660", pattern="^0?[0-7]{3}$", description="who may use it, in octal")
    hostname: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9.-]{1,255}$", description="in the greeting; null: ours"
    )
    domains: tuple[str, ...] = Field(default=(), description="every address of these is received")
    recipients: dict[str, Route] = Field(
        default={}, description="addresses, one * standing for anything in the part before the @, and what they get"
    )
    plus: str = Field(
        default="+",
        max_length=1,
        description="name+anything@… is name@… where that has no entry of its own; empty: off",
    )
    networks: tuple[Network, ...] = Field(
        default=tuple(map(network, _PRIVATE.split())),
        description='whose connections are taken; default: private ones. For the internet: ["0.0.0.0/0", "::/0"]',
    )
    trusted_proxies: tuple[Network, ...] = Field(
        default=(), description="networks that begin with a PROXY protocol header (version 1 or 2) naming the client"
    )
    tls: Literal["none", "starttls", "implicit"] = Field(default="none", description="implicit: from the first byte")
    certificate: Path | None = Field(default=None, description="chain in PEM; read anew when it changes")
    private_key: Path | None = Field(default=None, description="in PEM; null: in the same file")
    min_tls: Literal["1.2", "1.3"] = Field(default="1.2", description="the oldest version that is spoken")
    require_tls: bool = Field(default=False, description="mail in clear is refused (530)")
    users: tuple[User, ...] = Field(default=(), description="who may authenticate, over TLS only")
    require_auth: bool = Field(default=False, description="mail of others is refused (530)")
    authserv_ids: tuple[str, ...] = Field(
        default=(), description="of the servers in front of us whose Authentication-Results are believed (RFC 8601)"
    )
    verify_sender: SenderCheck | None = Field(default=None, description="check SPF, DKIM and DMARC ourselves; null: no")

    @field_validator("domains")
    @classmethod
    def _known_domains(cls, domains: tuple[str, ...]) -> tuple[str, ...]:
        for domain in domains:
            if not _a_label(domain) or "@" in domain or "*" in domain:
                raise ValueError(f"{domain!r} is no domain; write for example acme.cn")
        return domains

    @field_validator("recipients")
    @classmethod
    def _known_recipients(cls, recipients: dict[str, Route]) -> dict[str, Route]:
        for address in recipients:
            local, _, domain = address.rpartition("@")
            if not _LOCAL_PART.fullmatch(local) or local.count("*") > 1 or not _a_label(domain) or "*" in domain:
                raise ValueError(f"{address!r}: write an address, or one with a single * before its @")
        return recipients

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.listen is None and self.unix_socket is None:
            raise ValueError('nobody could connect; add listen: "127.0.0.1:2525" or a unix_socket')
        if not self.domains and not self.recipients:
            raise ValueError("no address would be received; add domains: [acme.cn] or recipients")
        return self

    @model_validator(mode="after")
    def _secure(self) -> Self:
        if (self.tls == "none") != (self.certificate is None):
            raise ValueError("tls and certificate go together: give both or none")
        if self.tls == "none" and (self.require_tls or self.users):
            raise ValueError("require_tls and users need tls: starttls or implicit")
        if self.require_auth and not self.users:
            raise ValueError("require_auth needs users")
        if self.trusted_proxies and self.tls == "implicit":
            raise ValueError("trusted_proxies speak before TLS begins: let the proxy end TLS, or use starttls")
        return self

    @model_validator(mode="after")
    def _own_keys(self) -> Self:
        if "max_request_bytes" in self.model_fields_set:
            raise ValueError("max_request_bytes is for requests; here it is max_message_bytes")
        if self.rate is not None:
            raise ValueError("rate is for requests; here it is max_connections_per_client")
        return self

    @cached_property
    def book(self) -> "_Book":
        return _Book(self)

    @property
    def where(self) -> str:
        return f"{self.protocol}://{self.listen}" if self.listen else f"{self.protocol}:unix:{self.unix_socket}"

    def receives(self, address: str) -> bool:
        return self.book.route(address) is not None


# Recipients


class _Book:
    """Which addresses are ours, and what mail to them gets."""

    def __init__(self, settings: SmtpSettings) -> None:
        routes = {_folded(address): route for address, route in settings.recipients.items()}
        self._exact = {address: route for address, route in routes.items() if "*" not in address}
        patterns = sorted((address for address in routes if "*" in address), key=len, reverse=True)
        self._patterns = [(*address.partition("*")[::2], routes[address]) for address in patterns]
        self._domains = [_a_label(domain) for domain in settings.domains]
        self._reached = {*self._domains, *(address.rpartition("@")[2] for address in routes)}
        self._plus = settings.plus

    def recipient(self, path: str) -> str:
        """The address in a RCPT, in its usual form. Raises Rejected when it is not ours."""
        local, at, domain = path.rpartition("@")
        if not at and path.lower() == "postmaster":  # RFC 5321 section 4.5.1: without a domain too
            local, domain = path, next(iter(self._domains or sorted(self._reached)))
        local = _unquoted(local)
        if _a_label(domain) not in self._reached:
            raise Rejected("forbidden", "Not a domain of ours", reason=f"relaying to {path!r}")
        if not _LOCAL_PART.fullmatch(local) or not local.isprintable():
            raise Rejected("forbidden", "No such form of an address here", reason=f"local part of {path!r}")
        address = f"{local}@{domain.lower().rstrip('.')}"
        if self.route(address) is None:
            raise Rejected("not_found", "No such address here", reason=f"unknown recipient {path!r}")
        return address

    def route(self, address: str) -> Route | None:
        """Its own entry, else that of the name before the plus, else the longest pattern's, else the domain's."""
        folded = _folded(address)
        local, _, domain = folded.rpartition("@")
        name = f"{local.partition(self._plus)[0]}@{domain}" if self._plus else folded
        for known in (folded, name):
            if known in self._exact:
                return self._exact[known]
        for known in (folded, name):
            for head, tail, route in self._patterns:
                if len(known) >= len(head) + len(tail) and known.startswith(head) and known.endswith(tail):
                    return route
        return Route() if domain in self._domains or local == "postmaster" else None


def _folded(address: str) -> str:
    """For comparison: no customer knows that a local part may be case-sensitive."""
    local, _, domain = address.rpartition("@")
    return f"{local.lower()}@{_a_label(domain)}"


def _a_label(domain: str) -> str:
    """A domain in the form of the DNS; "" when it is none."""
    try:
        return domain.lower().rstrip(".").encode("idna").decode("ascii") if len(domain) < 256 else ""
    except UnicodeError:
        return ""


def _unquoted(local: str) -> str:
    if len(local) < 2 or local[0] != '"' or local[-1] != '"':
        return local
    return re.sub(r"\\(.)", r"\1", local[1:-1])


# The channel


class Connector(RunningConnector):
    """`smtp`: see the module."""

    Settings = SmtpSettings
    redelivers = True
    settings: SmtpSettings

    def __init__(self, name: str, settings: SmtpSettings, context: Context) -> None:
        super().__init__(name, settings, context)
        self._book = settings.book
        self._users = {user.name: user.password.get_secret_value() for user in settings.users}
        self._certificate: Certificate | None = None
        self._resolver = _resolver(settings.verify_sender) if settings.verify_sender else None

    @property
    def credential_expires_at(self) -> float | None:
        """Of the certificate in use."""
        return self._certificate.expires_at if self._certificate else None

    async def run(self, accept: Accept, up: Callable[[bool], None]) -> None:
        settings = self.settings
        server = Server(self._service(accept))
        mode = int(settings.unix_socket_mode, 8)
        try:
            async with server.serving(sessions(server), settings.listen, settings.unix_socket, mode, _DRAIN_SECS):
                up(True)
                await asyncio.Event().wait()
        except OSError as error:
            raise Unavailable(reason=f"cannot listen: {error.strerror or error}") from error

    def _service(self, accept: Accept) -> Service:
        """Raises ConfigError when the certificate cannot be used."""
        settings = self.settings
        certificate = self._certificate = _certificate(settings)

        async def deliver(delivery: Delivery) -> str:
            return (await accept(await self._message(delivery))).reference

        return Service(
            hostname=settings.hostname or socket.gethostname(),
            limits=settings,
            admit=self._admit,
            recipient=self._book.recipient,
            deliver=deliver,
            lmtp=settings.protocol == "lmtp",
            tls=(lambda: certificate.context) if certificate else None,
            tls_first=settings.tls == "implicit",
            require_tls=settings.require_tls,
            authenticate=self._authenticate if self._users else None,
            require_auth=settings.require_auth,
            is_proxy=lambda client: bool(settings.trusted_proxies) and _is_in(client, settings.trusted_proxies),
        )

    def _admit(self, client: str) -> None:
        if not _is_in(client, self.settings.networks):
            raise Rejected("forbidden", "Your network is not served here", reason="not in networks")

    async def _authenticate(self, user: str, given: bytes) -> bool:
        expected = self._users.get(user, password.NOBODY)  # an unknown user takes as long
        return await asyncio.to_thread(password.matches, given, expected) and user in self._users

    async def _message(self, delivery: Delivery) -> RawMessage:
        body = delivery.body
        if len(body) > _THREAD_BYTES:
            native_id = await asyncio.to_thread(identity.native_id, body)
        else:
            native_id = identity.native_id(body)
        facts = dict(self._facts(delivery))
        if self._resolver and self.settings.verify_sender and delivery.client:
            facts["authentication"] = await authentication.evaluate(
                body,
                ip=delivery.client,
                helo=delivery.helo,
                mail_from=delivery.mail_from,
                resolver=self._resolver,
                timeout_secs=self.settings.verify_sender.timeout_secs,
            )
        return RawMessage("rfc5322", body, native_id, "message/rfc822", facts, identity.fingerprint(native_id))

    def _facts(self, delivery: Delivery) -> Iterator[tuple[str, Any]]:
        """What is known beside the bytes, which stay as they came: our trace is here and not in a Received header."""
        yield "mail_from", delivery.mail_from
        yield "rcpt_to", list(delivery.rcpt_to)
        yield "remote", delivery.client
        yield "helo", delivery.helo[:255]
        if delivery.tls:
            yield "tls", delivery.tls
        if delivery.user:
            yield "user", delivery.user
        if self.settings.authserv_ids:
            yield "authserv_ids", list(self.settings.authserv_ids)
        key = self.context.secret(_REPLY_ADDRESSES)
        if reference := _first(replyaddress.verify(address, key) for address in delivery.rcpt_to):
            yield "reference", reference
        routes = [route for route in map(self._book.route, delivery.rcpt_to) if route]
        if queue := _first(route.queue for route in routes):
            yield "queue", queue
        if priority := _first(route.priority for route in routes):
            yield "priority", priority
        if tags := list(dict.fromkeys(tag for route in routes for tag in route.tags)):
            yield "tags", tags

    # Probe

    async def probe(self) -> None:
        """The certificate can be used for some time, and the address is free, or served by this channel's daemon."""
        certificate = _certificate(self.settings)
        if certificate and certificate.expires_at - self.context.now().timestamp() < _RENEW_SECS:
            left = (certificate.expires_at - self.context.now().timestamp()) / 86400
            said = f"expires in {left:.0f} days" if left > 0 else "has expired"
            raise ConfigError(
                f"the certificate {self.settings.certificate} {said}; renew it, it is read when it changes"
            )
        if self.settings.listen is not None and not _can_bind(self.settings.listen):
            async with asyncio.timeout(_PROBE_SECS):
                await self._demand_greeting(self.settings.listen)

    async def _demand_greeting(self, address: Address) -> None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104 - not listened on
        context = _trusting() if self.settings.tls == "implicit" else None
        try:
            reader, writer = await asyncio.open_connection(host, address.port, ssl=context)
            greeting = await reader.readline()
            writer.close()
        except (OSError, ValueError) as error:
            raise ConfigError(f"listen: {address} is taken, by something that does not answer: {error}") from error
        ours = b" LMTP huiru" if self.settings.protocol == "lmtp" else b" ESMTP huiru"
        if ours not in greeting:
            raise ConfigError(f"listen: {address} is taken by another program, which says {greeting[:80]!r}")


def _certificate(settings: SmtpSettings) -> Certificate | None:
    """Raises ConfigError."""
    if settings.certificate is None:
        return None
    oldest = ssl.TLSVersion.TLSv1_3 if settings.min_tls == "1.3" else ssl.TLSVersion.TLSv1_2
    return Certificate(settings.certificate, settings.private_key, oldest)


def _can_bind(address: Address) -> bool:
    """Raises ConfigError when that is not for want of a free port."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        socket.create_server((address.host, address.port), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise ConfigError(f"listen: {address}: {error.strerror or error}") from error
    return True


def _trusting() -> ssl.SSLContext:
    """For a look at ourselves: the certificate is not made for the address we listen on."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _resolver(check: SenderCheck) -> "Resolver":
    """Raises ConfigError."""
    try:
        from dns.asyncresolver import Resolver

        from gateway.mail import verification  # noqa: F401 - only who turns it on needs its libraries, and at once
    except ImportError as error:
        raise ConfigError(f"verify_sender needs the library {error.name}; pip install huiru[verify]") from error
    resolver = Resolver(configure=False)
    resolver.nameservers = [check.resolver.host]
    resolver.port = check.resolver.port
    return resolver


def _is_in(client: str, networks: Iterable[Network]) -> bool:
    address = ip_address(client)
    return any(address in network for network in networks)


def _first(values: Iterable[str | None]) -> str | None:
    return next((value for value in values if value), None)
