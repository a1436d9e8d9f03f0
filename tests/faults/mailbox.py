"""A mailbox at a real Dovecot into which mails are put all the time. What lies in it must become a ticket."""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from tests.dovecot import Dovecot
from tests.faults.letters import Letter, Letters
from tests.faults.load import Record

CHANNEL = "mailbox"
_DONE = "Done"
_AFTER: tuple[Any, ...] = ("nothing", "seen", {"move": _DONE}, "delete")
_BURST, _HEAP = 4, 40
_LONGEST_PAUSE_SECS = 1.0  # they come also while no daemon runs, and each is read before the verdict
_UIDVALIDITY_SECS = 1.1  # Dovecot makes it of the time


class Mailbox:
    """`after`: what is done with accepted mails; if it is empty, that is left to chance."""

    def __init__(self, rng: Random, letters: Letters, record: Record, after: str = "") -> None:
        self.dovecot = Dovecot()
        self.after = after or rng.choice(_AFTER)
        self._rng = rng
        self._letters = letters
        self._record = record
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def settings(self, port: int) -> dict[str, Any]:
        """Of the channel. A message that was on a broken connection is tried again soon, and as often as it takes."""
        server = {"host": "127.0.0.1", "port": port, "tls": "none", "timeout_secs": 2, "idle_secs": 1}
        account = {"username": self.dovecot.user, "password": self.dovecot.password, "login_retry_secs": 0.2}
        reading = {"start": "all", "after": self.after, "fetch_tries": 100, "fetch_retry_secs": 0.01}
        return {"type": "imap", **server, **account, **reading}

    async def open(self) -> None:
        self.dovecot.make_folder()
        self.dovecot.make_folder(_DONE)
        await self.start_server()

    def start(self) -> None:
        self._task = asyncio.create_task(self._work())

    async def finish(self) -> None:
        """No new mails."""
        self._stopping.set()
        assert self._task is not None
        await self._task

    async def close(self, folder: Path) -> None:
        """The server is gone; its log is kept in `folder`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with suppress(FileNotFoundError):
            shutil.copy(self.dovecot.folder / "dovecot.log", folder)
        await asyncio.to_thread(self.dovecot.remove)

    async def _work(self) -> None:
        while not self._stopping.is_set():
            self.put_some(_HEAP if self._rng.random() < 0.03 else self._rng.randint(1, _BURST))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._rng.uniform(0, _LONGEST_PAUSE_SECS)):
                    await self._stopping.wait()

    def put_some(self, n: int) -> list[Letter]:
        """Mails that are there from now on. In a Maildir lines end as the delivery agent has it."""
        letters = [self._letters.new(CHANNEL) for _ in range(n)]
        for letter in letters:
            self.dovecot.put(letter.raw if self._rng.random() < 0.5 else letter.raw.replace(b"\r\n", b"\n"))
            self._record.yes[CHANNEL] += 1
            self._record.acknowledge(letter)
        return letters

    # Faults

    async def start_server(self) -> None:
        await asyncio.to_thread(self.dovecot.start)

    async def kill_server(self) -> None:
        await asyncio.to_thread(self.dovecot.kill)

    async def number_anew(self) -> None:
        """The server dies and comes back, and every message has another UID than it had."""
        await self.kill_server()
        for folder in ("", _DONE):
            self.dovecot.forget_uids(folder)
        await asyncio.sleep(_UIDVALIDITY_SECS)
        await self.start_server()

    async def freeze(self, seconds: float) -> None:
        """Whoever is logged in hears nothing more."""
        with self.dovecot.halted():
            await asyncio.sleep(seconds)

    # Afterwards

    def left(self) -> Iterator[str]:
        """What is wrong with the mailbox itself. Only deleted mails may be gone, and only those that were accepted."""
        here, there = len(self.dovecot.mails()), len(self.dovecot.mails(_DONE))
        put = self._record.yes[CHANNEL]
        wanted = {"delete": (0, 0), "nothing": (put, 0), "seen": (put, 0)}
        if (here, there) != wanted.get(str(self.after), (0, put)):
            yield f"after {self.after}: of {put} mails {here} are in the mailbox and {there} moved"
