"""A TCP proxy that treats what passes as a bad network does: it delays, cuts, and eats answers."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from random import Random

_PIECE_BYTES = 64 << 10
_LONGEST_DELAY_SECS = 0.3
# What may happen to a piece of data. "lose": the piece is gone and the connection with it, so that a command was
# obeyed and its answer never came; "halve": the first half still arrives; "mute": nothing passes any more, and the
# connection stays open.
_MISHAPS = ("delay", "delay", "lose", "lose", "lose", "halve", "mute")


class Proxy:
    """Stands before `port_behind` of loopback.

    `trouble` is the chance of a mishap for each piece of data. `appetite` is the chance, for each request that contains
    `prey`, a regular expression, that it is obeyed and its answer eaten.
    """

    def __init__(self, port_behind: int, rng: Random, prey: bytes) -> None:
        self.port = 0
        self.trouble = 0.0
        self.appetite = 0.0
        self.mishaps: Counter[str] = Counter()
        self.passed = asyncio.Event()  # set whenever a request with `prey` goes through
        self._port_behind = port_behind
        self._rng = rng
        self._prey = re.compile(prey)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self.cut()
        await self._server.wait_closed()

    async def cut(self) -> None:
        """Ends every connection."""
        for connection in tuple(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers, doomed = [writer], asyncio.Event()
        try:
            with suppress(OSError):
                back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self._port_behind)
                writers.append(back_writer)
                await self._join(
                    self._pump(reader, back_writer, lambda data: self._fate_of_request(data, doomed)),
                    self._pump(back_reader, writer, lambda data: "lose" if doomed.is_set() else self._mishap()),
                )
        finally:
            for one in writers:
                one.transport.abort()

    async def _join(self, *pumps: Coroutine[None, None, None]) -> None:
        """Until one direction has ended."""
        tasks = [asyncio.create_task(pump) for pump in pumps]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fate: Callable[[bytes], str]
    ) -> None:
        mute = False
        while data := await reader.read(_PIECE_BYTES):
            mishap = fate(data)
            mute = mute or mishap == "mute"
            if mute:
                continue
            if mishap == "delay":
                await asyncio.sleep(self._rng.uniform(0, _LONGEST_DELAY_SECS))
            if mishap != "lose":
                writer.write(data[: len(data) // 2] if mishap == "halve" else data)
                await writer.drain()
            if mishap in ("lose", "halve"):
                return

    def _fate_of_request(self, data: bytes, doomed: asyncio.Event) -> str:
        if not self._prey.search(data):
            return self._mishap()
        self.passed.set()
        if self._rng.random() >= self.appetite:
            return self._mishap()
        doomed.set()
        self.mishaps["eat"] += 1
        return ""

    def _mishap(self) -> str:
        if self._rng.random() >= self.trouble:
            return ""
        mishap = self._rng.choice(_MISHAPS)
        self.mishaps[mishap] += 1
        return mishap
