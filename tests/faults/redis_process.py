"""A redis-server of the harness's own, that can be killed, emptied and frozen."""

import asyncio
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.redis_server import find_server
from tests.daemon import free_port

_START_SECS = 20
_EXEC = b"$4\r\nEXEC\r\n"


class RedisProcess:
    """Every write is on disk before it is acknowledged, so that a kill forgets nothing and a wipe forgets all."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    def client(self) -> Redis:
        return Redis(port=self.port, decode_responses=True)

    async def start(self) -> None:
        server = find_server()
        assert server is not None, "a Redis server is needed"
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder.parent / "redis.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(server, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self._folder, "--save", ""),
                *("--appendonly", "yes", "--appendfsync", "always"),
                stdout=log,
                stderr=log,
            )
        await self._until_loaded()

    async def _until_loaded(self) -> None:
        async with asyncio.timeout(_START_SECS), self.client() as client:
            while True:
                with suppress(RedisError):
                    await client.ping()
                    return
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    def forget(self) -> None:
        """Removes the files of a server that was killed."""
        shutil.rmtree(self._folder)

    def forget_newest(self, size: int) -> None:
        """Cuts the end off the log of a server that was killed, as a power loss does.

        Whole transactions go: Redis 7.0 truncates a torn one in its midst, and obeys what is left of it at the load
        after the next.
        """
        logs = [path for path in self._folder.rglob("*.aof") if ".base." not in path.name]
        newest = max(logs, key=lambda path: path.stat().st_mtime)
        kept = newest.read_bytes()[:-size]
        os.truncate(newest, kept.rfind(_EXEC) + len(_EXEC) if _EXEC in kept else 0)

    async def flush(self) -> None:
        """Forgets everything, and goes on as if nothing had happened."""
        async with self.client() as client:
            await client.flushall()

    async def freeze(self, seconds: float) -> None:
        """It neither answers nor hangs up."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._process.send_signal(signal.SIGCONT)
