"""The server of an `imap` channel: a Dovecot, into which messages are put."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from tests.contract.driver import RunningDriver, Verdict
from tests.dovecot import Dovecot, mail

_LATER_SECS = 1.5  # a message that was not taken by then will be later


class Driver(RunningDriver):
    """A message has been acknowledged when it was marked as read."""

    env = {"IMAP_PASSWORD": Dovecot.password}
    waivers = {
        "a_forged_message_is_refused": (
            "a mailbox takes mail from everybody; what is known of its sender is the ticket's `authentication`"
        ),
    }

    @asynccontextmanager
    async def world(self) -> AsyncIterator[None]:
        self.dovecot = await asyncio.to_thread(Dovecot().start)
        try:
            yield
        finally:
            self.dovecot.remove()

    def overrides(self) -> dict[str, Any]:
        return {
            "host": "127.0.0.1",
            "port": self.dovecot.port,
            "tls": "none",
            "username": Dovecot.user,
            "start": "all",
            "after": "seen",
            "idle_secs": 0.5,
            "timeout_secs": 2,
        }

    async def deliver(self, native_id: str) -> Verdict:
        before = len(self._read())
        if native_id not in self._unread():
            self.dovecot.put(mail(native_id))
        with suppress(TimeoutError):
            async with asyncio.timeout(_LATER_SECS):
                while len(self._read()) == before:
                    await asyncio.sleep(0.02)
                return "yes"
        return "later"

    async def deliver_forged(self) -> Verdict:
        return await self.deliver("forged")

    async def babble(self, noise: bytes) -> None:
        """In the place of a mail."""
        self.dovecot.put(noise)

    @asynccontextmanager
    async def dawdling(self) -> AsyncIterator[None]:
        """A server that stands still."""
        with self.dovecot.halted():
            yield

    def _read(self) -> list[str]:
        return [path.name for path in self.dovecot.mails() if path.name.endswith(":2,S")]

    def _unread(self) -> str:
        """The text of the mails that have not been acknowledged."""
        found = ""
        for path in self.dovecot.mails():
            with suppress(OSError):  # it changes its name meanwhile
                if not path.name.endswith(":2,S"):
                    found += path.read_text("utf-8", "replace")
        return found
