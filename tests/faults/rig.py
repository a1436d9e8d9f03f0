"""One daemon with everything that can go wrong around it: clients, mail servers and a mailbox before it, a Redis
behind it, bad wires between."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import psutil

from tests.daemon import Daemon, free_port
from tests.faults import load, mail, mailbox, oracle
from tests.faults.disk import Disk
from tests.faults.letters import Letters
from tests.faults.load import Load, Record
from tests.faults.mail import Mail
from tests.faults.mailbox import Mailbox
from tests.faults.proxy import Proxy
from tests.faults.redis_process import RedisProcess

_SETTLE_SECS = 60
_STOP_SECS = 8
_LEAVE_SECS = 2  # beyond shutdown_secs
_FRESH_SECS = 5
_FRESH = 20
_FRESH_MAILS = 5  # by each way
_MOMENT_SECS = 0.02
_HEAVY_BYTES = 64 << 10  # beyond it a worker process normalises: as few as the gateway lets one say
_ORPHAN_SECS = 5
_SHOWN = 25


class Rig:
    """`seed` decides everything that is left to chance, though not how long each process takes for it."""

    redis: RedisProcess
    daemon: Daemon
    load: Load
    mail: Mail
    mailbox: Mailbox

    def __init__(self, folder: Path, seed: int, disk: Disk | None = None, after: str = "") -> None:
        """`after`: what is done with mails that were read, if that is not left to chance."""
        self.folder = folder
        self.seed = seed
        self.rng = Random(seed)
        self.disk = disk
        self.after = after
        self.kills = 0
        self.kills_at_work = 0  # of a daemon whose worker process was normalising
        self.kills_in_data = 0  # while a mail server of ours was in the midst of a mail
        self.record = Record()
        self.wires: dict[str, Proxy] = {}  # between the daemon and redis, the clients (http, mx, lmtp), the mailbox
        self._stack = AsyncExitStack()

    async def start(self, **sections: Any) -> None:
        """Everything runs, and the clients post. `sections` are of the daemon's configuration."""
        self.redis = RedisProcess(self.folder / "redis")
        self._stack.push_async_callback(self.redis.kill)
        await self.redis.start()
        letters = Letters(self._rng_of_its_own(), self.record)
        self.mailbox = Mailbox(self._rng_of_its_own(), letters, self.record, self.after)
        self._stack.push_async_callback(self.mailbox.close, self.folder)
        await self.mailbox.open()
        await self._start_daemon_first(**sections)
        url = f"http://127.0.0.1:{self.wires['http'].port}"
        self.load = Load(url, self._rng_of_its_own(), self.record)
        self._stack.push_async_callback(self.load.stop)
        ports = {channel: self.wires[channel].port for channel in mail.CHANNELS}
        self.mail = Mail(ports, self._rng_of_its_own(), letters, self.record, self.folder)
        self._stack.push_async_callback(self.mail.stop)
        for source in (self.load, self.mail, self.mailbox):
            source.start()

    async def _start_daemon_first(self, **sections: Any) -> None:
        redis_wire = await self._wire("redis", self.redis.port, prey=b"EVALSHA")
        url = f"redis://127.0.0.1:{redis_wire.port}/0"
        settings = {
            "redis": {"url": url, "timeout_secs": 1, "connect_timeout_secs": 1},
            "shutdown_secs": _STOP_SECS,
            "spool": {"min_free_bytes": 0},
            "normalize": {"in_process_bytes": _HEAVY_BYTES},
            **sections,
        }
        self.daemon = Daemon(self.folder, await self._channels(), **settings)
        self._stack.push_async_callback(self._end_daemon)
        await self.start_daemon()
        await self._wire("http", int(self.daemon.url.rpartition(":")[2]), prey=b"POST /c/")

    async def _channels(self) -> dict[str, Any]:
        mailbox_wire = await self._wire(
            "mailbox", self.mailbox.dovecot.port, prey=rb"BODY\.PEEK|UID (?:STORE|MOVE|EXPUNGE)"
        )
        channels = {**load.CHANNELS, mailbox.CHANNEL: self.mailbox.settings(mailbox_wire.port)}
        for name, channel in mail.CHANNELS.items():
            port = free_port()
            channels[name] = {**channel, "listen": f"127.0.0.1:{port}"}
            await self._wire(name, port, prey=rb"\r\n\.\r\n")
        return channels

    def _rng_of_its_own(self) -> Random:
        return Random(self.rng.getrandbits(64))

    async def close(self) -> None:
        """Nothing runs on, whatever happened."""
        await self._stack.aclose()

    async def _wire(self, name: str, port: int, prey: bytes) -> Proxy:
        wire = self.wires[name] = Proxy(port, self._rng_of_its_own(), prey)
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

    async def until_more_is_read(self) -> None:
        """Of the mailbox, than has been by now."""
        before = _accepted(await self.daemon.status())
        await self.daemon.until_status(lambda status: _accepted(status) > before, _SETTLE_SECS)

    # Faults

    def spoil_wires(self, trouble: float, appetite: float) -> None:
        """See `Proxy`."""
        for wire in self.wires.values():
            wire.trouble, wire.appetite = trouble, appetite

    async def pause(self, least: float, most: float) -> None:
        """Lets everything run on for a random time, so that the next fault comes at any moment."""
        await asyncio.sleep(self.rng.uniform(least, most))

    async def pause_until_work(self) -> None:
        """Until a message is on one of the wires, or a moment later; or until a second has passed without one."""
        wire = self.rng.choice(list(self.wires.values()))
        wire.passed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await wire.passed.wait()
        await self.pause(0, _MOMENT_SECS)

    async def start_daemon(self, *, ready: bool = True) -> None:
        await self.daemon.start(ready=ready, preexec=self.disk.preexec if self.disk else None)

    async def kill_daemon(self) -> None:
        children = self._children()
        at_work = any(child.status() == psutil.STATUS_RUNNING for child in children)
        assert await self.daemon.kill() == -signal.SIGKILL, self.daemon.log()[-2000:]
        self.kills += 1
        self.kills_at_work += at_work
        self.kills_in_data += self.mail.in_data > 0
        await self._until_gone(children)

    def _children(self) -> list[psutil.Process]:
        """The daemon's. It stands still meanwhile, and on: it makes no new ones before it is killed."""
        self.daemon.signal(signal.SIGSTOP)
        return list(psutil.Process(self._pid()).children(recursive=True))

    async def _until_gone(self, children: list[psutil.Process]) -> None:
        """Whoever works for a daemon ends with it."""
        async with asyncio.timeout(_ORPHAN_SECS):
            while any(map(_lives, children)):
                await asyncio.sleep(0.01)

    async def stop_daemon(self) -> None:
        """SIGTERM: it has to leave well and in time."""
        children = psutil.Process(self._pid()).children(recursive=True)
        async with asyncio.timeout(self.daemon.config["shutdown_secs"] + _LEAVE_SECS):
            status = await self.daemon.stop()
        await self._until_gone(children)
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
        """Returns when clients and mail servers have been refused because of it."""
        assert self.disk is not None
        self.disk.fill(self._pid())
        refused = self.record.refused
        await self.until(lambda: refused[503] > 0 and refused[451] + refused[452] > 0)

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
            async with asyncio.timeout(_SETTLE_SECS):
                await asyncio.gather(self.load.finish(), self.mail.finish(), self.mailbox.finish())
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
        """Until nothing waits, the mailbox has been read, and the stream holds what the daemon has published."""
        status: dict[str, Any] = {}
        try:
            async with asyncio.timeout(_SETTLE_SECS):
                while not self._is_settled(status) or await self._missing(status):
                    await asyncio.sleep(0.05)
                    status = await self.daemon.status()
        except TimeoutError:
            return [f"not settled after {_SETTLE_SECS} s: {status}"]
        return []

    def _is_settled(self, status: dict[str, Any]) -> bool:
        if not status or not status["ready"] or not status["redis"]["up"] or status["stream"]["replaying"]:
            return False
        channels = {channel["name"]: channel for channel in status["channels"]}
        read = channels[mailbox.CHANNEL]["published"] + channels[mailbox.CHANNEL]["quarantined"]
        waiting = sum(channel["waiting"] for channel in channels.values())
        return not waiting and bool(read >= self.record.yes[mailbox.CHANNEL])

    async def _missing(self, status: dict[str, Any]) -> bool:
        async with self.redis.client() as redis:
            there = await redis.xlen("tickets")
        return bool(there < sum(channel["published"] for channel in status["channels"]))

    async def _fresh_messages(self) -> list[str]:
        """They have to flow within seconds, and the daemon has to say that it is ready."""
        messages = [*await self.load.post_some(_FRESH), *await self.mail.send_some(_FRESH_MAILS)]
        messages += self.mailbox.put_some(_FRESH_MAILS)
        wanted = {message.token: message for message in messages}
        try:
            async with asyncio.timeout(_FRESH_SECS), self.redis.client() as redis:
                while wanted:
                    newest: Any = await redis.xrevrange("tickets", count=2 * len(messages))
                    for _, fields in newest:
                        wanted.pop(oracle.token(json.loads(fields["event"])), None)
        except TimeoutError:
            missing = Counter(message.channel for message in wanted.values())
            return [f"fresh messages that are not in the stream after {_FRESH_SECS} s: {dict(missing)}"]
        async with aiohttp.ClientSession() as http, http.get(f"{self.daemon.admin_url}/readyz") as response:
            return [] if response.status == 200 else [f"not ready: {await response.text()}"]

    async def _examine(self) -> list[str]:
        async with self.redis.client() as redis:
            found, faults = await oracle.outcome(self.daemon, redis)
        faults += oracle.compare(self.record, found)
        faults += oracle.ledger(self.record, await self.daemon.status(), found, read={mailbox.CHANNEL})
        faults += await self._left_in_the_mailbox()
        return faults + await oracle.fetch(found.events)

    async def _left_in_the_mailbox(self) -> list[str]:
        """What is done with accepted mails may take a moment."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FRESH_SECS):
                while [*self.mailbox.left()]:
                    await asyncio.sleep(0.05)
        return [*self.mailbox.left()]

    def _report(self, faults: list[str]) -> str:
        shown = "\n  ".join(faults[:_SHOWN])
        more = f"\n  … and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        return f"{self.summary()}\nfolder {self.folder}\n  {shown}{more}"

    def summary(self) -> str:
        """What the run consisted of, in a line."""
        record = self.record
        counts = {
            "kills": self.kills,
            "with a worker at work": self.kills_at_work,
            "during DATA": self.kills_in_data,
            "messages": len(record.sent),
            **{f"on {channel}": n for channel, n in Counter(message.channel for message in record.sent).items()},
            "yes": record.yes.total(),
            "unanswered": record.unanswered.total(),
            "refused": record.refused.total(),
            "mishaps": sum(wire.mishaps.total() for wire in self.wires.values()),
        }
        return f"seed {self.seed}: " + ", ".join(f"{n} {name}" for name, n in counts.items())


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _accepted(status: dict[str, Any]) -> int:
    """From the mailbox."""
    return next(int(channel["accepted"]) for channel in status["channels"] if channel["name"] == mailbox.CHANNEL)
