"""A real daemon process for tests: its configuration, its life, and what it left in the stream."""

import asyncio
import json
import os
import shutil
import signal as signals
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

ROOT = Path(__file__).parents[1]
_START_SECS = 30


_given: set[int] = set()  # the kernel may offer a port twice, before anybody listens on it


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now, and that nobody was given before."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _given:
            _given.add(port)
            return port


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for a unix socket's name. It is gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="huiru-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Daemon:
    """`huiru run` on a configuration of its own, with an embedded Redis unless `redis` says otherwise."""

    def __init__(self, folder: Path, channels: Mapping[str, Any], **sections: Any) -> None:
        self.state_dir = folder / "state"
        self.config_path = folder / "gateway.yaml"
        self.log_path = folder / "daemon.log"
        self.env: dict[str, str] = {}
        self.config: dict[str, Any] = {
            "name": "test",
            "state_dir": str(self.state_dir),
            "http": {"listen": f"127.0.0.1:{free_port()}"},
            "admin": {"listen": f"127.0.0.1:{free_port()}"},
            "redis": {"embedded_port": free_port()},
            "log": {"format": "json"},
            "channels": dict(channels),
        }
        for name, section in sections.items():
            mergeable = isinstance(section, Mapping) and name in self.config and name != "redis"
            self.config[name] = {**self.config[name], **section} if mergeable else section
        self.process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://{self.config['http']['listen']}"

    @property
    def admin_url(self) -> str:
        return f"http://{self.config['admin']['listen']}"

    # Life

    def write_config(self) -> None:
        self.config_path.parent.mkdir(parents=True, exist_ok=True)
        self.config_path.write_text(json.dumps(self.config, ensure_ascii=False, indent=1))  # JSON is YAML

    async def start(self, *, ready: bool = True, preexec: Callable[[], None] | None = None) -> "Daemon":
        self.write_config()
        with self.log_path.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway", "run", "--config", str(self.config_path)),
                cwd=ROOT,
                env={**os.environ, **self.env},
                stdout=log,
                stderr=log,
                preexec_fn=preexec,
            )
        if ready:
            await self.until_ready()
        return self

    async def until_ready(self) -> None:
        async with asyncio.timeout(_START_SECS), aiohttp.ClientSession() as http:
            while True:
                if self.process is None or self.process.returncode is not None:
                    raise AssertionError(f"the daemon ended at its start:\n{self.log()}")
                with suppress(aiohttp.ClientError):
                    async with http.get(f"{self.admin_url}/healthz"):
                        pass
                    async with http.get(f"{self.url}/"):
                        return
                await asyncio.sleep(0.02)

    def signal(self, number: signals.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def stop(self) -> int:
        """SIGTERM; the exit status."""
        return await self.end(signals.SIGTERM)

    async def kill(self) -> int:
        """SIGKILL; the embedded Redis goes on."""
        return await self.end(signals.SIGKILL)

    async def end(self, number: signals.Signals) -> int:
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        return await self.process.wait()

    async def clean_up(self) -> None:
        """Nothing of it runs on, whatever the test did."""
        if self.process is not None and self.process.returncode is None:
            await self.kill()
        with suppress(Exception):
            async with self.redis() as redis:
                await redis.shutdown(nosave=True)

    # What it shows

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of one event."""
        lines = (json.loads(line) for line in self.log().splitlines() if line.startswith("{"))
        return [line for line in lines if line.get("event") == name]

    def redis(self) -> Redis:
        url = self.config["redis"].get("url", "embedded")
        if url == "embedded":
            url = f"unix://{self.state_dir}/redis/redis.sock"
        return Redis.from_url(url, decode_responses=True, retry=Retry(NoBackoff(), 0))

    async def tickets(self) -> list[dict[str, Any]]:
        """Every event in the stream, oldest first."""
        async with self.redis() as redis:
            entries = await redis.xrange(self.config.get("stream", {}).get("name", "tickets"))
        return [json.loads(fields["event"]) for _, fields in entries]

    async def until_tickets(self, n: int, seconds: float = 20) -> list[dict[str, Any]]:
        """The stream once it holds `n` events."""
        async with asyncio.timeout(seconds):
            while len(tickets := await self.tickets()) < n:
                await asyncio.sleep(0.02)
        return tickets

    async def admin(self, method: str, path: str, body: Any = None) -> Any:
        """An answer of the admin API, as JSON."""
        connector = aiohttp.UnixConnector(str(self.state_dir / "admin.sock"))
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.request(method, f"http://admin{path}", json=body) as response,
        ):
            return await response.json(content_type=None)

    async def status(self) -> dict[str, Any]:
        status: dict[str, Any] = await self.admin("GET", "/api/status")
        return status

    async def until_status(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = 20) -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            while not wanted(status := await self.status()):
                await asyncio.sleep(0.05)
        return status

    async def metrics(self) -> dict[str, float]:
        """`name{labels}` -> value."""
        async with aiohttp.ClientSession() as http, http.get(f"{self.admin_url}/metrics") as response:
            lines = (await response.text()).splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


@asynccontextmanager
async def lasting_daemon(
    channels: Mapping[str, Any], *, env: Mapping[str, str] | None = None, **sections: Any
) -> AsyncIterator[Daemon]:
    """A running daemon for all tests of a module that mind their own messages only: each start costs a second."""
    with short_folder() as folder:
        daemon = Daemon(folder, channels, **sections)
        daemon.env.update(env or {})
        try:
            yield await daemon.start()
        finally:
            await daemon.clean_up()
