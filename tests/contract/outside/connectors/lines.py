"""A small channel that runs on its own, to prove the suite's part for such channels: a listener for lines.

Protocol: a client sends `SECRET ID TEXT`, and gets `OK REFERENCE`, `AGAIN` or `NO`.
Authentication: the secret in each line.
Redelivery: the client sends a line again until it gets `OK` or `NO`.
Limits: 1,000 bytes a line.
Source: this file.
"""

import asyncio
import hmac
from collections.abc import Callable
from typing import Literal

from pydantic import Field, SecretStr

from gateway.address import Address, Listen
from gateway.contract import Accept, ChannelSettings, RawMessage, RunningConnector
from gateway.errors import HuiruError, Rejected, wire_error

MAX_BYTES = 1000


class LinesSettings(ChannelSettings):
    """The keys of a `lines` channel."""

    type: Literal["lines"]
    listen: Listen = Field(default=Address("127.0.0.1", 2500), description="host:port")
    secret: SecretStr = Field(description="shared with the clients")


class Connector(RunningConnector):
    """`lines`: see the module."""

    Settings = LinesSettings
    redelivers = True
    settings: LinesSettings

    async def run(self, accept: Accept, up: Callable[[bool], None]) -> None:
        clients: set[asyncio.Task[None]] = set()

        def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._serve(reader, writer, accept))
            clients.add(task)
            task.add_done_callback(clients.discard)

        address = self.settings.listen
        server = await asyncio.start_server(serve, address.host, address.port, limit=MAX_BYTES)
        try:
            up(True)
            await asyncio.Event().wait()
        finally:
            server.close()
            for task in clients:
                task.cancel()
            await asyncio.gather(*clients, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, accept: Accept) -> None:
        try:
            while line := await reader.readline():
                writer.write(await self._answer(line, accept))
                await writer.drain()
        except (ValueError, ConnectionError):  # a line that is too long, or a client that has gone
            pass
        finally:
            writer.transport.abort()

    async def _answer(self, line: bytes, accept: Accept) -> bytes:
        try:
            receipt = await accept(self._message(line))
        except HuiruError as error:
            return b"NO\n" if isinstance(wire_error(error), Rejected) else b"AGAIN\n"
        return f"OK {receipt.reference}\n".encode()

    def _message(self, line: bytes) -> RawMessage:
        secret, _, body = line.partition(b" ")
        if not hmac.compare_digest(secret, self.settings.secret.get_secret_value().encode()):
            raise Rejected("unauthenticated")
        id_, space, text = body.partition(b" ")
        if not space or not id_.isalnum() or not text.endswith(b"\n"):
            raise Rejected("malformed")
        return RawMessage("lines", text, id_.decode("latin-1"))
