"""The clients of an `smtp` channel: a mail server, one that speaks LMTP, and a program that authenticates over TLS."""

import asyncio
import base64
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.password import hashed
from tests.contract.driver import RunningDriver, Verdict
from tests.daemon import free_port
from tests.smtp_talk import Talk, make_certificate, talk

PASSWORD = "the-password-of-the-contract"
OURS, FOREIGN = "support@acme.cn", "someone@elsewhere.example"
MAIL = "From: zhang@example.com\r\nMessage-ID: <{}@example.com>\r\nSubject: hello\r\n\r\nmy printer is broken\r\n"


class Driver(RunningDriver):
    """SMTP in clear. Who cannot prove anything is one who wants his mail relayed."""

    hello = "EHLO client.example"

    def __init__(self, type_: str) -> None:
        super().__init__(type_)
        self.port = free_port()

    def overrides(self) -> dict[str, Any]:
        return {"listen": f"127.0.0.1:{self.port}"}

    async def deliver(self, native_id: str) -> Verdict:
        return await self._deliver(native_id, OURS)

    async def deliver_forged(self) -> Verdict:
        return await self._deliver("forged", FOREIGN)

    async def babble(self, noise: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(noise)
            writer.write_eof()
            await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    @asynccontextmanager
    async def dawdling(self) -> AsyncIterator[None]:
        """One in the middle of a message, and one that says nothing."""
        _, silent = await asyncio.open_connection("127.0.0.1", self.port)
        async with self._talk() as one:
            await one.say("MAIL FROM:<a@example.com>", f"RCPT TO:<{OURS}>", "DATA")
            await one.send(b"Subject: hel")
            yield
        silent.transport.abort()

    @asynccontextmanager
    async def _talk(self) -> AsyncIterator[Talk]:
        async with talk(self.port, hello=self.hello) as one:
            yield one

    async def _deliver(self, native_id: str, to: str) -> Verdict:
        async with self._talk() as one:
            replies = await one.hand_over(MAIL.format(native_id).encode(), [to])
        return _verdict(replies[-1])


class Lmtp(Driver):
    """LMTP."""

    hello = "LHLO client.example"

    def overrides(self) -> dict[str, Any]:
        return {**super().overrides(), "protocol": "lmtp"}


class Submission(Driver):
    """Only with a password, and so with TLS."""

    secrets = (PASSWORD, base64.b64encode(PASSWORD.encode()).decode())

    @asynccontextmanager
    async def world(self) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory() as folder:
            self._certificate, self._key = make_certificate(Path(folder))
            yield

    def overrides(self) -> dict[str, Any]:
        user = {"name": "shop", "password": hashed(PASSWORD.encode(), bytes(16))}
        tls = {"tls": "implicit", "certificate": str(self._certificate), "private_key": str(self._key)}
        return {**super().overrides(), **tls, "users": [user], "require_auth": True}

    async def deliver_forged(self) -> Verdict:
        async with talk(self.port, tls=True) as one:
            return _verdict(await self._log_in(one, "guessed"))

    @asynccontextmanager
    async def _talk(self) -> AsyncIterator[Talk]:
        async with talk(self.port, tls=True) as one:
            await self._log_in(one, PASSWORD)
            yield one

    async def _log_in(self, one: Talk, password: str) -> str:
        return await one.say(b"AUTH PLAIN " + base64.b64encode(b"\0shop\0" + password.encode()))


def _verdict(reply: str) -> Verdict:
    return {"2": "yes", "5": "no"}.get(reply[:1], "later")  # type: ignore[return-value]  # of three
