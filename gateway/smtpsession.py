"""An SMTP or LMTP connection on aiosmtpd, with what that library leaves open. It knows commands, not messages.

Ours, each with a test: any exception is a temporary answer (the library's is a permanent 500 with our text in it); a
reply per recipient in LMTP (RFC 2033 section 4.2); time limits for silence, not for a slow large message; limits of
commands, errors, recipients and bytes; addresses are parsed without the e-mail package, which recurses; a body is read
in large pieces and ended by CRLF . CRLF alone (CVE-2024-27305: it was also ended otherwise); a connection is counted
before its TLS handshake; 421 at a stop.

A room of its own beside `connectors/smtp.py`, because it is as long again, and a channel should be read in one sitting.
"""

import asyncio
import logging
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from copy import copy
from functools import partial
from ipaddress import IPv6Address, ip_address
from typing import Any, cast

import structlog
from aiosmtpd.lmtp import LMTP
from aiosmtpd.proxy_protocol import ProxyData
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, TLSSetupException
from aiosmtpd.smtp import Session as State

from gateway.errors import ANSWERS, HuiruError, Rejected, Unavailable
from gateway.smtpserver import Delivery, Server, answer

log = structlog.get_logger()
# The library's own: a line for each mistake of a stranger, and warnings of its own deprecations.
logging.getLogger("mail.log").setLevel(logging.CRITICAL)

_END = b"\r\n.\r\n"
_BUFFER_BYTES = 64 << 10  # of a connection; twice that before reading pauses
_COMMAND_BYTES = 4096  # RFC 5321 asks for 512, long paths and AUTH want more
_HANDSHAKE_SECS, _PROXY_SECS = 30.0, 5.0
_LAST_WORDS_SECS = 2  # for a client to take our last reply
# A browser made to speak to us, by a page that hopes to get its text obeyed as commands.
_NOT_SMTP = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "PATCH")
# A path in angle brackets or, as some programs send it, bare. Possessive, so that no input makes it slow.
_PATH = re.compile(r'\s*+(?:<((?:[^"<>\\]|"(?:[^"\\]|\\.)*+"|\\.)*+)>|([^\s<>"]++))(.*)', re.DOTALL)


def sessions(server: Server) -> Callable[[], asyncio.Protocol]:
    """What makes a connection of this server."""
    return (_Lmtp if server.service.lmtp else Session)(server).another


class _Body:
    """A message being received: kept as long as it is within the limits, read to its end in any case."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._kept = bytearray()
        self._size = 0
        self.fault: HuiruError | None = None

    def add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self.fault is not None:
            return
        limit = self._server.service.limits.max_message_bytes
        if self._size > limit + len(_END):
            self._refuse(Rejected("too_large", f"More than {limit} bytes"))
        elif not self._server.reserve(len(piece)):
            self._refuse(Unavailable("spool_full", reason="max_inflight_bytes is reached"))
        else:
            self._kept += piece

    def _refuse(self, fault: HuiruError) -> None:
        self.fault = fault
        self.release()

    def release(self) -> None:
        self._server.release(len(self._kept))
        self._kept = bytearray()

    def content(self) -> bytes:
        """Without its end and the dots doubled on the way (RFC 5321 section 4.5.2). Raises HuiruError."""
        if self.fault is not None:
            raise self.fault
        whole = self._kept[: 2 - len(_END)]  # with a CRLF before it, and that of its last line
        if b"\r\n." in whole:
            whole = whole.replace(b"\r\n.", b"\r\n")
        limit = self._server.service.limits.max_line_bytes
        if _has_line_beyond(whole, limit):
            raise Rejected("too_large", f"A line is longer than {limit} bytes")
        return bytes(memoryview(whole)[2:])


def _has_line_beyond(content: bytearray, limit: int) -> bool:
    """In steps of `limit`, not of a line."""
    start = 0
    while len(content) - start > limit:
        end = content.rfind(b"\n", start, start + limit)
        if end < 0:
            return True
        start = end + 1
    return False


class Session(SMTP):
    """One connection."""

    line_length_limit = _BUFFER_BYTES  # sizes the reader's buffer; lines of a body have their own limit
    command_size_limit = _COMMAND_BYTES
    AuthLoginUsernameChallenge = "Username:"
    AuthLoginPasswordChallenge = "Password:"

    def __init__(self, server: Server) -> None:
        service = server.service
        super().__init__(
            _HOOKS,
            data_size_limit=int(service.limits.max_message_bytes),
            enable_SMTPUTF8=True,
            hostname=service.hostname,
            ident=f"{'LMTP' if service.lmtp else 'ESMTP'} huiru",
            timeout=service.limits.idle_timeout_secs,
            auth_required=service.require_auth,
            auth_exclude_mechanism=() if service.authenticate else ("PLAIN", "LOGIN"),
            authenticator=_take,
            loop=asyncio.get_running_loop(),
        )
        self.service = service
        self._server = server
        found = {name: f"smtp_{name}" for name in self._smtp_methods}
        self._command_names = {**found, **dict.fromkeys(_NOT_SMTP, "_refuse")}
        self.begin()

    def another(self) -> "Session":
        """One more of its kind. The library looks through its own class for every one it makes, which takes as long as
        to receive a message; a copy of one that has not been connected does not."""
        new = copy(self)
        new.begin()
        return new

    def begin(self) -> None:
        """What every connection has for itself."""
        reader = asyncio.StreamReader(_BUFFER_BYTES, self.loop)
        asyncio.StreamReaderProtocol.__init__(self, reader, self._cb_client_connected, self.loop)
        self.command_size_limits = defaultdict(lambda: _COMMAND_BYTES)  # the library's is one for all, and grows
        self.tls_context = self.service.tls() if self.service.tls else None
        self._smtp_methods = {name: partial(self._obey, method) for name, method in self._command_names.items()}
        if self.service.authenticate:
            own = {name: getattr(self, f"auth_{name}") for name in self._auth_methods}
            self._auth_methods = {name: one._replace(method=own[name]) for name, one in self._auth_methods.items()}
        self.client = ""
        self.admitted = False
        self._commands = self._errors = self._auth_failures = 0
        self._muted = False
        self._in_body = False
        self._busy = False  # the wait is ours, not the client's
        self._heard = 0.0
        self._end: asyncio.TimerHandle | None = None

    # Beginning and end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._original_transport is None:
            self.client = _client(transport.get_extra_info("peername"))
            self._server.enter(self)
            if self.service.tls_first:
                cast(asyncio.Transport, transport).pause_reading()  # what comes is for TLS, see _start_tls
            if self.client and self.service.is_proxy(self.client):
                self._proxy_timeout = _PROXY_SECS
        super().connection_made(transport)

    async def _handle_client(self) -> None:
        try:
            if self.service.tls_first:
                await self._start_tls()
            if self._proxy_timeout is not None or self.admit():
                await super()._handle_client()
        except (OSError, EOFError, TLSSetupException):  # they have gone, or speak no TLS
            self.cut_off("")
        except Exception as error:
            log.error("smtp.session_failed", client=self.client, exc_info=error)
            self.cut_off("")

    def admit(self) -> bool:
        """Whether this client may stay; else it has been told why not, in the place of a greeting."""
        try:
            self._server.admit(self.client)
        except HuiruError as error:
            log.info("smtp.refused", client=self.client, code=error.code, reason=error.reason)
            # In the place of a greeting there are two codes: RFC 5321 sections 3.1 and 4.2.3.
            code = "421" if isinstance(error, Unavailable) else "554"
            self.hang_up(code + answer(error)[3:])
            return False
        self.admitted = True
        return True

    async def _start_tls(self) -> None:
        """Implicit TLS is STARTTLS without its words: so a connection counts before its handshake."""
        self._muted = True
        self.loop.call_soon(cast(asyncio.Transport, self.transport).resume_reading)
        try:
            await self.smtp_STARTTLS("")
        except TLSSetupException:
            self._lose()
            raise
        self._muted = False

    def _lose(self) -> None:
        """The end of a connection within its handshake, of which nobody tells us."""
        self.cut_off()
        self.connection_lost(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.leave(self)
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(error)

    def hang_up(self, words: str) -> None:
        """Says the last words, if any, and closes; what the client has sent ahead is not read."""
        transport = cast(asyncio.Transport | None, self.transport)
        if transport is None or transport.is_closing():
            return
        if words:
            self._writer.write(words.encode("utf-8", "backslashreplace") + b"\r\n")
        transport.close()
        self._end = self.loop.call_later(_LAST_WORDS_SECS, transport.abort)  # it may never read them
        cast("asyncio.Task[None]", self._handler_coroutine).cancel()

    def wind_up(self) -> None:
        """At a stop: who is in the middle of a message may end it."""
        if not self._in_body and not self._busy:
            self.hang_up(answer(Unavailable("stopping")))

    def cut_off(self, words: str = "") -> None:
        if words:
            self.hang_up(words)
        for transport in (self.transport, self._original_transport):
            if transport is not None:
                cast(asyncio.Transport, transport).abort()

    # Time

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        super().data_received(data)

    def _timeout_cb(self) -> None:
        """The library's limit is for a whole command, which is wrong for a large body on a slow line."""
        silent = self.loop.time() - self._heard
        if self._busy or (self._in_body and silent < self._timeout_duration):
            self._reset_timeout(max(self._timeout_duration - silent, 0.001) if self._in_body else None)
        elif self._writer.transport.get_write_buffer_size():
            self.cut_off()  # it does not read either
        else:
            self.hang_up(f"{ANSWERS['timeout'].smtp.replace('451', '421')} Nothing came for too long")

    # Commands

    async def push(self, status: str | bytes) -> None:
        """Every reply goes through here."""
        if self._muted:
            return
        reply = status if isinstance(status, bytes) else status.encode("utf-8", "backslashreplace")
        self._writer.write(reply + b"\r\n")
        await self._writer.drain()
        if reply[:3] == b"421":
            self.hang_up("")
        elif reply[:1] in b"45":
            self._errors += 1
            if self._errors >= self.service.limits.max_errors:
                self.hang_up("421 4.7.0 Too many errors")

    async def _obey(self, method: str, argument: str) -> None:
        self._commands += 1
        if self._commands > self.service.limits.max_commands:
            self.hang_up("421 4.7.0 Too many commands")
        elif self._server.stopping:
            self.hang_up(answer(Unavailable("stopping")))
        else:
            await getattr(self, method)(argument)

    async def _refuse(self, _: str) -> None:
        self.hang_up("421 4.7.0 This is SMTP")

    async def handle_exception(self, error: Exception) -> str:
        if not isinstance(error, OSError | EOFError | TLSSetupException):
            log.error("smtp.failed", client=self.client, exc_info=error)
        return answer(error)

    async def smtp_AUTH(self, arg: str) -> None:
        mechanism, space, rest = (arg or "").partition(" ")
        await super().smtp_AUTH(mechanism.upper() + space + rest)  # RFC 4422: names are in any case

    async def smtp_STARTTLS(self, arg: str) -> None:
        if self._tls_protocol is not None:
            await self.push("503 5.5.1 TLS is on already")
            return
        try:
            async with asyncio.timeout(_HANDSHAKE_SECS):
                await super().smtp_STARTTLS(arg)
        except TimeoutError as error:
            raise TLSSetupException from error
        except asyncio.CancelledError:
            self._lose()
            raise

    async def smtp_VRFY(self, _: str) -> None:
        await self.push("252 2.5.2 Send some mail, and see")

    async def smtp_EXPN(self, _: str) -> None:
        await self.push("502 5.5.1 Not implemented")

    async def smtp_HELP(self, _: str) -> None:
        await self.push("214 2.0.0 RFC 5321 tells it all")

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        """The path without brackets and source route (RFC 5321 section 4.1.2: ignore it), and what follows.

        `<>` stands for the null path, because the library takes an empty one for a fault.
        """
        match = _PATH.fullmatch(arg)
        if match is None:
            return None, None
        path = match[1] if match[1] is not None else match[2]
        if path.startswith("@"):
            path = path.partition(":")[2]
            if not path:
                return None, None
        return path or "<>", match[3].strip()

    def _getparams(self, params: list[str]) -> dict[str, str | bool] | None:  # type: ignore[override]  # a list it is
        found = super()._getparams(params)
        if found is not None:
            found.pop("AUTH", None)  # RFC 4954 section 5: may come, and we trust nobody with it
        return found

    # Authentication: the library reads the credentials, we judge them in our own time

    async def auth_PLAIN(self, _: Any, args: list[str]) -> AuthResult:
        return await self._judged(super().auth_PLAIN(_, args))

    async def auth_LOGIN(self, _: Any, args: list[str]) -> AuthResult:
        return await self._judged(super().auth_LOGIN(_, args))

    async def _judged(self, reading: Awaitable[AuthResult]) -> AuthResult:
        try:
            given = await reading
        except ValueError:  # a line beyond the buffer
            self.hang_up("421 4.7.0 Too long")
            return AuthResult(success=False)
        if not given.success:
            return given  # it has been told why
        login, password = cast(LoginPassword, given.auth_data)
        self._busy = True
        try:
            if await self._server.authenticate(self.client, _text(login), password):
                return AuthResult(success=True, auth_data=LoginPassword(login, b""))
            refusal: HuiruError = Rejected("unauthenticated")
        except Unavailable as error:
            refusal = error
        finally:
            self._busy = False
        log.info("smtp.refused", client=self.client, code=refusal.code, reason=refusal.reason)
        self._auth_failures += 1
        await self.push(answer(refusal))
        if self._auth_failures >= self.service.limits.max_auth_failures:
            self.hang_up("421 4.7.0 Too many failures")
        return AuthResult(success=False)

    # The message

    async def smtp_DATA(self, arg: str) -> None:
        refusal = self._refusal_of_data(arg)
        if refusal:
            await self.push(refusal)
            if self._reader._buffer:  # type: ignore[attr-defined]  # noqa: SLF001 - no other way to see what is there
                self.hang_up("421 4.5.0 Wait for the answers")  # a body sent ahead must not be read as commands
            return
        body = _Body(self._server)
        try:
            self._in_body = True
            await self.push("354 End data with <CR><LF>.<CR><LF>")
            async with asyncio.timeout(self.service.limits.data_timeout_secs):
                await self._read(body)
            self._in_body = False
            reply = await self._deliver(body)
        except TimeoutError:
            self.hang_up("421 4.4.2 The message took too long")
            return
        finally:
            self._in_body = False
            body.release()
        replies = len(self._envelope.rcpt_tos) if self.service.lmtp else 1
        self._set_rset_state()  # type: ignore[no-untyped-call]  # the library's gap
        await self.push("\r\n".join([reply] * replies))
        if self._server.stopping:
            self.hang_up(answer(Unavailable("stopping")))

    def _refusal_of_data(self, arg: str) -> str:
        if not self._state.host_name:
            return "503 5.5.1 Say hello first"
        if self.service.require_auth and not self._state.authenticated:
            return "530 5.7.0 Authentication required"
        if not self._envelope.rcpt_tos:
            return "503 5.5.1 No recipient was accepted"
        return "501 5.5.4 DATA has no argument" if arg else ""

    async def _read(self, body: _Body) -> None:
        # The CRLF of the DATA line may be the first half of the end.
        self._reader._buffer[:0] = b"\r\n"  # type: ignore[attr-defined]  # noqa: SLF001 - StreamReader cannot unread
        while True:
            try:
                piece = await self._reader.readuntil(_END)
            except asyncio.LimitOverrunError as error:
                body.add(await self._reader.readexactly(error.consumed))
            else:
                return body.add(piece)

    async def _deliver(self, body: _Body) -> str:
        """The reply. What fails here is our own fault, and temporary (R8)."""
        self._busy = True
        try:
            reference = await self.service.deliver(self._delivery(body.content()))
        except HuiruError as error:
            log.info("smtp.refused", client=self.client, code=error.code, reason=error.reason)
            return answer(error)
        except Exception as error:
            log.error("smtp.failed", client=self.client, exc_info=error)
            return answer(error)
        finally:
            self._busy = False
        self._commands = self._errors = 0
        return f"250 2.0.0 Accepted as {reference}"

    def _delivery(self, content: bytes) -> Delivery:
        envelope, state = self._envelope, self._state
        cipher = self._writer.get_extra_info("cipher") if self._tls_protocol else None
        user = _text(state.auth_data.login) if state.authenticated and state.auth_data else ""
        mail_from = "" if envelope.mail_from in (None, "<>") else _text(envelope.mail_from)
        tls = f"{cipher[1]} {cipher[0]}" if cipher else ""
        helo = _text(state.host_name)
        return Delivery(self.client, helo, tls, user, mail_from, tuple(dict.fromkeys(envelope.rcpt_tos)), content)

    @property
    def _envelope(self) -> Envelope:
        return cast(Envelope, self.envelope)

    @property
    def _state(self) -> State:
        return cast(State, self.session)


class _Lmtp(Session, LMTP):
    """LHLO in the place of EHLO; RFC 2033."""


class _Hooks:
    """Where the library asks."""

    async def handle_EHLO(
        self, session: Session, state: State, _: Envelope, name: str, replies: list[str]
    ) -> list[str]:
        state.host_name = name
        with_auth = session.service.authenticate is not None
        # As one, for it is sent as one.
        return ["\r\n".join(reply for reply in replies if with_auth or not reply.startswith("250-AUTH"))]

    async def handle_MAIL(self, session: Session, _: State, envelope: Envelope, path: str, options: list[str]) -> str:
        if session.service.require_tls and session._tls_protocol is None:  # noqa: SLF001 - our own session
            return "530 5.7.0 Must issue a STARTTLS command first"
        envelope.mail_from = path
        envelope.mail_options.extend(options)
        return "250 2.1.0 OK"

    async def handle_RCPT(self, session: Session, _: State, envelope: Envelope, path: str, options: list[str]) -> str:
        if len(envelope.rcpt_tos) >= session.service.limits.max_recipients:
            return "452 4.5.3 Too many recipients, send the message to the others again"
        try:
            envelope.rcpt_tos.append(session.service.recipient(path))
        except HuiruError as error:
            log.info("smtp.refused", client=session.client, code=error.code, reason=error.reason)
            return answer(error)
        return "250 2.1.5 OK"

    async def handle_PROXY(self, session: Session, _: State, envelope: Envelope, data: ProxyData) -> bool:
        """The client behind a proxy, which is the proxy itself when it asks how we are (UNKNOWN, LOCAL)."""
        with suppress(ValueError):
            session.client = str(ip_address(str(data.src_addr)))
        return session.admit()


_HOOKS = _Hooks()


def _take(*given: Any) -> AuthResult:
    """Any credentials, for `_judged`: the library's authenticators cannot wait for a thread."""
    return AuthResult(success=True, auth_data=given[-1])


def _text(raw: str | bytes | None) -> str:
    """What is stored must be text: half a character of a client becomes U+FFFD."""
    known = raw if isinstance(raw, bytes) else (raw or "").encode("utf-8", "surrogateescape")
    return known.decode("utf-8", "replace")


def _client(peer: object) -> str:
    """The address, an IPv4 one as such; "" over a unix socket."""
    if not isinstance(peer, tuple):
        return ""
    if ":" not in peer[0]:
        return str(peer[0])
    address = ip_address(peer[0].partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
