"""`huiru import`: old mail into the stream, through the running daemon or, where none runs, in its place.

There is no position to lose: what is there already is told by its identity (R3) and counted as a duplicate, so an
interrupted import is simply run again. A full spool, or a busy daemon, is waited for.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from gateway import console
from gateway.adminclient import Line, NotRunning
from gateway.app import Gateway
from gateway.errors import HuiruError, Rejected, Unavailable
from gateway.mail.archive import Found, Mail, Unreadable, read, sources
from gateway.settings import Whereabouts, load
from gateway.telemetry import Redactor, set_up_logging

_IN_FLIGHT, _IN_FLIGHT_BYTES = 64, 64 << 20  # messages on their way: they share commits
_HANDFUL, _HANDFUL_BYTES = 64, 1 << 20  # read at a time
_LISTED = 1000  # of what is unreadable; the rest is only counted
_LONGEST_WAIT_SECS = 5.0  # for a full spool, before it is asked again


@dataclass(slots=True)
class Tally:
    """What became of it. `stopped`: why the import ended before its time."""

    channel: str
    imported: int = 0
    duplicates: int = 0
    unreadable: int = 0
    left_out: list[dict[str, str]] = field(default_factory=list)
    stopped: str = ""

    @property
    def well(self) -> bool:
        return not self.unreadable and not self.stopped

    def leave_out(self, found: Unreadable) -> None:
        self.unreadable += 1
        if len(self.left_out) < _LISTED:
            self.left_out.append({"file": found.name, "why": found.why})


class Door(Protocol):
    """The way into a channel. Both methods raise HuiruError."""

    async def largest_mail(self, channel: str) -> int: ...

    async def take_mail(self, channel: str, content: bytes, received_at: datetime | None) -> bool:
        """Whether it was there already, once it is durable."""

    async def drained(self) -> None:
        """Returns when nothing is left that nobody else would publish."""


def bring(config: Path, where: Whereabouts, channel: str, paths: Sequence[Path]) -> Tally:
    """Imports all mail at these places. Raises HuiruError when it cannot begin."""
    with contextlib.suppress(NotRunning):
        return asyncio.run(_through(_daemon(where), channel, paths))
    return asyncio.run(_through(_in_its_place(config), channel, paths))


@asynccontextmanager
async def _daemon(where: Whereabouts) -> AsyncIterator[Door]:
    async with Line(where.state_dir, _IN_FLIGHT) as line:
        yield _Remote(line)


@asynccontextmanager
async def _in_its_place(config: Path) -> AsyncIterator[Door]:
    settings, redactor = load(config, os.environ), Redactor()
    set_up_logging(settings.log.format, "critical", redactor)  # what becomes of a message, the quarantine tells
    gateway = Gateway(config, settings, redactor)
    async with gateway.at_work():
        yield _Own(gateway)


@dataclass(slots=True)
class _Remote:
    line: Line

    async def largest_mail(self, channel: str) -> int:
        return int((await self.line.ask("GET", f"/api/import/{channel}"))["max_message_bytes"])

    async def take_mail(self, channel: str, content: bytes, received_at: datetime | None) -> bool:
        query = {"received_at": received_at.isoformat()} if received_at else {}
        return bool((await self.line.ask("POST", f"/api/import/{channel}", query, content))["duplicate"])

    async def drained(self) -> None:
        """The daemon goes on by itself."""


@dataclass(slots=True)
class _Own:
    gateway: Gateway

    async def largest_mail(self, channel: str) -> int:
        return self.gateway.largest_mail(channel)

    async def take_mail(self, channel: str, content: bytes, received_at: datetime | None) -> bool:
        return (await self.gateway.take_mail(channel, content, received_at)).duplicate

    async def drained(self) -> None:
        await self.gateway.drained()


async def _through(way: AbstractAsyncContextManager[Door], channel: str, paths: Sequence[Path]) -> Tally:
    tally, stop = Tally(channel), asyncio.Event()
    _stop_on_signal(stop)
    async with way as door:
        limit = await door.largest_mail(channel)
        with _view() as progress:
            work = asyncio.create_task(_Import(door, tally, progress).run(paths, limit))
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in (work, stopping):
                task.cancel()
            await asyncio.gather(stopping, return_exceptions=True)
            try:
                await work
            except asyncio.CancelledError:
                tally.stopped = "interrupted"
            except HuiruError as error:
                tally.stopped = error.reason
    return tally


def _stop_on_signal(stop: asyncio.Event) -> None:
    """The first one ends the import; a second one does what it does by itself."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)


def _view() -> Progress:
    """On standard error, and on a terminal only."""
    screen = console.screen(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[counts]}", style="dim"),
    )
    return Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal)


class _Import:
    """Cancelled, it gives up what is on its way; some of that may be accepted all the same."""

    def __init__(self, door: Door, tally: Tally, progress: Progress) -> None:
        self._door = door
        self._tally = tally
        self._progress = progress
        self._task = progress.add_task("looking", total=None, counts="")
        self._under_way: dict[asyncio.Task[None], int] = {}

    async def run(self, paths: Sequence[Path], limit: int) -> None:
        try:
            total = await asyncio.to_thread(lambda: sum(source.size for source in sources(paths)))
            self._progress.update(self._task, description="importing", total=total)
            handfuls = _handfuls(found for source in sources(paths) for found in read(source, limit))
            while handful := await asyncio.to_thread(next, handfuls, None):
                for found in handful:
                    await self._take_up(found)
            await self._until(lambda: not self._under_way)
            self._progress.update(self._task, description="publishing")
            await self._door.drained()
        finally:
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _take_up(self, found: Found) -> None:
        if isinstance(found, Unreadable):
            self._tally.leave_out(found)
            self._show(found)
            return
        await self._until(
            lambda: len(self._under_way) < _IN_FLIGHT and sum(self._under_way.values()) < _IN_FLIGHT_BYTES
        )
        self._under_way[asyncio.create_task(self._take(found))] = len(found.content)

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Raises what ended one of those under way: that ends them all."""
        while not condition():
            done, _ = await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                del self._under_way[task]
                task.result()

    async def _take(self, mail: Mail) -> None:
        try:
            duplicate = await self._patiently(mail)
        except Rejected as error:
            self._tally.leave_out(Unreadable(mail.name, error.public))
        else:
            self._tally.duplicates += duplicate
            self._tally.imported += not duplicate
        self._show(mail)

    async def _patiently(self, mail: Mail) -> bool:
        while True:
            try:
                return await self._door.take_mail(self._tally.channel, mail.content, mail.received_at)
            except Unavailable as error:
                if error.code not in ("spool_full", "spool_failed", "busy"):
                    raise
                self._progress.update(self._task, description="waiting: the spool is full")
                await asyncio.sleep(min(error.retry_after, _LONGEST_WAIT_SECS))
            self._progress.update(self._task, description="importing")

    def _show(self, found: Found) -> None:
        tally = self._tally
        counts = f"{tally.imported:,} imported  {tally.duplicates:,} duplicates  {tally.unreadable:,} unreadable"
        self._progress.update(self._task, advance=found.length, counts=counts)


def _handfuls(found: Iterator[Found]) -> Iterator[list[Found]]:
    """Some at a time: a thread is asked for each."""
    handful: list[Found] = []
    size = 0
    for one in found:
        handful.append(one)
        size += len(one.content) if isinstance(one, Mail) else 0
        if len(handful) >= _HANDFUL or size >= _HANDFUL_BYTES:
            yield handful
            handful, size = [], 0
    if handful:
        yield handful
