"""One daemon with everything that can go wrong around it: clients before it, a Redis behind it, bad wires between."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import aiohttp

from tests.daemon import Daemon
from tests.faults import oracle
from tests.faults.disk import Disk
from tests.faults.load import CHANNELS, Load
from tests.faults.proxy import Proxy
from tests.faults.redis_process import RedisProcess

_SETTLE_SECS = 60
_STOP_SECS = 8
_LEAVE_SECS = 2  # beyond shutdown_secs
_FRESH_SECS = 5
_FRESH = 20
_SHOWN = 25


class Rig:
    """`seed` decides everything that is left to chance, though not how long each process takes for it."""

    redis: RedisProcess
    redis_wire: Proxy  # between the daemon and Redis
    daemon: Daemon
    wire: Proxy  # between the clients and the daemon
    load: Load

    def __init__(self, folder: Path, seed: int, disk: Disk | None = None) -> None:
        self.folder = folder
        self.seed = seed
        self.rng = Random(seed)
        self.disk = disk
        self.kills = 0
        self._stack = AsyncExitStack()

    async def start(self, **sections: Any) -> None:
        """Everything runs, and the clients post. `sections` are of the daemon's configuration."""
        self.redis = RedisProcess(self.folder / "redis")
        self._stack.push_async_callback(self.redis.kill)
        await self.redis.start()
        self.redis_wire = await self._wire_to(self.redis.port, prey=b"EVALSHA")
        url = f"redis://127.0.0.1:{self.redis_wire.port}/0"
        redis = {"url": url, "timeout_secs": 1, "connect_timeout_secs": 1}
        settings = {"redis": redis, "shutdown_secs": _STOP_SECS, "spool": {"min_free_bytes": 0}, **sections}
        self.daemon = Daemon(self.folder, CHANNELS, **settings)
        self._stack.push_async_callback(self._end_daemon)
        await self.start_daemon()
        self.wire = await self._wire_to(int(self.daemon.url.rpartition(":")[2]), prey=b"POST /c/")
        self.load = Load(f"http://127.0.0.1:{self.wire.port}", Random(self.rng.getrandbits(64)))
        self._stack.push_async_callback(self.load.stop)
        self.load.start()

    async def close(self) -> None:
        """Nothing runs on, whatever happened."""
        await self._stack.aclose()

    async def _wire_to(self, port: int, prey: bytes) -> Proxy:
        wire = Proxy(port, Random(self.rng.getrandbits(64)), prey)
        self._stack.push_async_callback(wire.stop)
        await wire.start()
        return wire

    async def _end_daemon(self) -> None:
        if self.daemon.process is not None and self.daemon.process.returncode is None:
            await self.daemon.kill()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(_SETTLE_SECS):
            while not condition():
                await asyncio.sleep(0.02)

    # Faults

    def spoil_wires(self, trouble: float, appetite: float) -> None:
        """See `Proxy`."""
        for wire in (self.wire, self.redis_wire):
            wire.trouble, wire.appetite = trouble, appetite

    async def pause(self, least: float, most: float) -> None:
        """Lets everything run on for a random time, so that the next fault comes at any moment."""
        await asyncio.sleep(self.rng.uniform(least, most))

    async def start_daemon(self, *, ready: bool = True) -> None:
        await self.daemon.start(ready=ready, preexec=self.disk.preexec if self.disk else None)

    async def kill_daemon(self) -> None:
        assert await self.daemon.kill() == -signal.SIGKILL, self.daemon.log()[-2000:]
        self.kills += 1

    async def stop_daemon(self) -> None:
        """SIGTERM: it has to leave well and in time."""
        async with asyncio.timeout(self.daemon.config["shutdown_secs"] + _LEAVE_SECS):
            status = await self.daemon.stop()
        assert status == 0, f"exit status {status}:\n{self.daemon.log()[-2000:]}"

    async def wipe_redis(self) -> None:
        await self.redis.kill()
        self.redis.forget()
        await self.redis.start()

    async def cut_redis(self, size: int = 0) -> None:
        """It dies, and comes back without its newest writes: about `size` bytes of them, or a random part."""
        await self.redis.kill()
        self.redis.forget_newest(size or int(10 ** self.rng.uniform(0, 5)))
        await self.redis.start()

    async def fill_disk(self) -> None:
        """Returns when clients have been refused because of it."""
        assert self.disk is not None
        self.disk.fill(self._pid())
        await self.until(lambda: self.load.record.refused[503] > 0)

    def free_disk(self) -> None:
        assert self.disk is not None
        self.disk.free(self._pid())

    def _pid(self) -> int:
        assert self.daemon.process is not None
        return self.daemon.process.pid

    # The end

    async def verdict(self) -> None:
        """Faults have ended: the clients get their answers, everything arrives, and the oracle finds nothing wrong."""
        self.spoil_wires(0, 0)
        faults: list[str] = []
        try:
            await self.load.finish(_SETTLE_SECS)
            faults += await self._until_settled()
            faults += await self._fresh_messages()
            faults += await self._examine()
            await self.stop_daemon()
            faults += oracle.left_behind(self.daemon.state_dir)
        except (AssertionError, TimeoutError) as error:
            faults.append(f"{type(error).__name__}: {error}")
        faults += oracle.complaints(self.daemon.log())
        assert not faults, self._report(faults)

    async def _until_settled(self) -> list[str]:
        """Until nothing waits, and as many messages as were acknowledged have arrived."""
        try:
            async with asyncio.timeout(_SETTLE_SECS):
                await self.daemon.until_status(_is_settled, _SETTLE_SECS)
                while await self._missing():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            return [f"not settled after {_SETTLE_SECS} s: {await self.daemon.status()}"]
        return []

    async def _missing(self) -> bool:
        async with self.redis.client() as redis:
            published = await redis.xlen("tickets")
        held = await self.daemon.admin("GET", "/api/quarantine?limit=1")
        return bool(published + held["total"] < len(self.load.record.acknowledged))

    async def _fresh_messages(self) -> list[str]:
        """They have to flow within seconds, and the daemon has to say that it is ready."""
        wanted = {message.id for message in await self.load.post_some(_FRESH)}
        try:
            async with asyncio.timeout(_FRESH_SECS), self.redis.client() as redis:
                while wanted:
                    newest: Any = await redis.xrevrange("tickets", count=2 * _FRESH)
                    wanted -= {fields["id"] for _, fields in newest}
        except TimeoutError:
            return [f"{len(wanted)} fresh messages are not in the stream after {_FRESH_SECS} s"]
        async with aiohttp.ClientSession() as http, http.get(f"{self.daemon.admin_url}/readyz") as response:
            return [] if response.status == 200 else [f"not ready: {await response.text()}"]

    async def _examine(self) -> list[str]:
        async with self.redis.client() as redis:
            found, faults = await oracle.outcome(self.daemon, redis)
        faults += oracle.compare(self.load.record, found)
        faults += oracle.ledger(self.load.record, await self.daemon.status(), found)
        return faults + await oracle.fetch(found.events)

    def _report(self, faults: list[str]) -> str:
        shown = "\n  ".join(faults[:_SHOWN])
        more = f"\n  … and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        return f"{self.summary()}\nfolder {self.folder}\n  {shown}{more}"

    def summary(self) -> str:
        """What the run consisted of, in a line."""
        record, mishaps = self.load.record, self.wire.mishaps + self.redis_wire.mishaps
        counts = {
            "kills": self.kills,
            "messages": len(record.sent),
            "yes": record.yes.total(),
            "unanswered": record.unanswered.total(),
            "refused": record.refused.total(),
            "mishaps": mishaps.total(),
        }
        return f"seed {self.seed}: " + ", ".join(f"{n} {name}" for name, n in counts.items())


def _is_settled(status: dict[str, Any]) -> bool:
    waiting = sum(channel["waiting"] for channel in status["channels"])
    return bool(status["ready"] and status["redis"]["up"] and not waiting)
