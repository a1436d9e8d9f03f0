"""The client of a `lines` channel."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.contract.driver import RunningDriver, Verdict
from tests.daemon import free_port

SECRET = "the-secret-of-the-lines"
_VERDICTS: dict[bytes, Verdict] = {b"OK": "yes", b"NO": "no", b"AGAIN": "later", b"": "later"}


class Driver(RunningDriver):
    """A new connection for every line."""

    env = {"LINES_SECRET": SECRET}

    def __init__(self, type_: str) -> None:
        super().__init__(type_)
        self.port = free_port()

    @property
    def example(self) -> Path:
        return Path(__file__).with_name("lines.example.yaml")

    def overrides(self) -> dict[str, Any]:
        return {"listen": f"127.0.0.1:{self.port}"}

    async def deliver(self, native_id: str) -> Verdict:
        return _VERDICTS[(await self._say(f"{SECRET} {native_id} 你好\n".encode())).partition(b" ")[0].strip()]

    async def deliver_forged(self) -> Verdict:
        return _VERDICTS[(await self._say(b"guessed m1 hello\n")).strip()]

    async def babble(self, noise: bytes) -> None:
        await self._say(noise)

    @asynccontextmanager
    async def dawdling(self) -> AsyncIterator[None]:
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(SECRET.encode())
            await writer.drain()
            yield
        finally:
            writer.transport.abort()

    async def _say(self, text: bytes) -> bytes:
        """The answer to it, and to whatever else was in it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(text)
            writer.write_eof()
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.transport.abort()
