"""A mail server that takes letters for a test (aiosmtpd), and the certificates for one that speaks TLS."""

import asyncio
import ssl
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Self

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


@dataclass(frozen=True)
class Taken:
    """A letter that the server said yes to."""

    mail_from: str
    rcpt_to: list[str]
    raw: bytes
    user: str = ""

    @property
    def mail(self) -> EmailMessage:
        return message_from_bytes(self.raw, policy=policy.default)

    def part(self, subtype: str) -> str:
        body = self.mail.get_body((subtype,))
        assert body is not None
        return str(body.get_content())


class MailServer:
    """`answers` maps a command to what is said to it: "RCPT" to "550 no", or to a function of its argument."""

    def __init__(self, port: int = 0, *, user: str = "", password: str = "", **options: Any) -> None:
        self.port = port
        self.taken: list[Taken] = []
        self.answers: dict[str, str | Callable[[str], str]] = {}
        self.arrived = asyncio.Event()
        self._login = (user, password)
        self._implicit: ssl.SSLContext | None = options.pop("implicit", None)
        self._options = {"auth_required": bool(user), "authenticator": self._authenticate, **options}
        self._transports: set[asyncio.BaseTransport] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._session, "127.0.0.1", self.port, ssl=self._implicit)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for transport in self._transports:
            transport.close()
        await self._server.wait_closed()

    def _session(self) -> SMTP:
        with warnings.catch_warnings(action="ignore"):  # it would have a login nowhere but behind STARTTLS
            return SMTP(self, hostname="mx.test", loop=asyncio.get_running_loop(), **self._options)

    async def until(self, n: int, seconds: float = 20) -> list[Taken]:
        """What was taken, once it is `n` letters."""
        async with asyncio.timeout(seconds):
            while len(self.taken) < n:
                self.arrived.clear()
                await self.arrived.wait()
        return self.taken

    # What aiosmtpd calls

    async def handle_EHLO(
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        if server.transport is not None:
            self._transports.add(server.transport)
        session.host_name = hostname
        return responses

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        envelope.mail_from = address  # `<>` for none
        return self._answer("MAIL", address.strip("<>")) or "250 OK"

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if refusal := self._answer("RCPT", address):
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        refusal = self._answer("DATA", envelope.rcpt_tos[0])
        if refusal == "hang up" and server.transport is not None:
            server.transport.close()
        if refusal == "hang":
            await asyncio.sleep(60)
        if refusal:
            return refusal
        content = envelope.original_content or b""
        sender = (envelope.mail_from or "").strip("<>")
        self.taken.append(Taken(sender, list(envelope.rcpt_tos), content, session.auth_data or ""))
        self.arrived.set()
        return "250 OK"

    def _answer(self, command: str, argument: str) -> str:
        answer = self.answers.get(command, "")
        return answer if isinstance(answer, str) else answer(argument)

    def _authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: LoginPassword
    ) -> AuthResult:
        given = (data.login.decode(), data.password.decode())
        return AuthResult(success=given == self._login, auth_data=given[0], handled=False)


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that signs itself, and a server's context with it."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=mx.test"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context
