"""The parts of a gateway that read a mailbox, for the tests of the `imap` channel: everything real but the pipeline."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from connectors.imap import Connector, ImapSettings
from gateway.contract import Context, StoredMessage
from gateway.errors import Unavailable
from gateway.intake import Intake
from gateway.lease import Leases
from gateway.mail import position, replyaddress
from gateway.mail.position import Position
from gateway.spool import Spool
from gateway.supervisor import Supervisor
from gateway.telemetry import Metrics
from tests.core.redis_process import RedisProcess
from tests.dovecot import Dovecot

KEY = b"k" * 32
QUICK = {"poll_secs": 0.2, "idle_secs": 5, "timeout_secs": 2, "login_retry_secs": 0.2, "fetch_retry_secs": 0.1}


class Station:
    """One gateway. `state` is its folder; two at one mailbox have the Redis in common."""

    def __init__(self, state: Path, redis: RedisProcess, port: int, *, life_secs: float = 3, **channel: Any) -> None:
        credential = {} if "oauth" in channel else {"password": Dovecot.password}
        given = {"type": "imap", "host": "127.0.0.1", "port": port, "tls": "none", "username": Dovecot.user}
        self.settings = ImapSettings.model_validate(given | credential | {"start": "all"} | QUICK | channel)
        self.metrics = Metrics()
        self.spool = Spool(state / "spool")
        self.spool.open()
        self.intake = Intake(self.spool, self.metrics, gateway="acme", max_bytes=1 << 40, min_free_bytes=0)
        self.leases = Leases(redis.settings, "tickets", state, spool=state.name, life_secs=life_secs)
        self.supervisor = Supervisor(self.intake.door, self.metrics)
        self.connector = self._connector()

    def _connector(self) -> Connector:
        memory, lease = self.spool.memory("mailbox"), self.leases.of("mailbox")
        now: Callable[[], datetime] = lambda: datetime.now(UTC)  # noqa: E731
        context = Context("acme", "", lambda purpose: KEY, now, memory, lease, self.spool.scratch)
        return Connector("mailbox", self.settings, context)

    def start(self, **changes: Any) -> "Station":
        """Also again, with settings that differ."""
        self.settings = ImapSettings.model_validate(self.settings.model_dump(exclude_none=True) | changes)
        self.connector = self._connector()
        self.supervisor.start(self.connector)
        return self

    async def stop(self) -> None:
        await self.supervisor.stop()

    async def close(self) -> None:
        await self.stop()
        await self.leases.close()
        await self.spool.close()

    @property
    def is_up(self) -> bool:
        return self.supervisor.up.get("mailbox", False)

    async def until_up(self) -> "Station":
        await until(lambda: self.is_up)
        return self

    def count(self, entry: str = "accepted") -> int:
        return self.spool.ledger["mailbox", entry]

    @property
    def new(self) -> int:
        """Messages that were accepted once."""
        return self.count() - self.count("duplicate")

    async def until_new(self, n: int, seconds: float = 20) -> None:
        try:
            await until(lambda: self.new >= n, seconds)
        except TimeoutError:
            raise AssertionError(f"{self.new} of {n} messages came; {self.trouble}") from None

    @property
    def trouble(self) -> str:
        return self.connector.trouble or self.supervisor.troubles.get("mailbox", "")

    async def shared_position(self) -> Position:
        """Of INBOX, as another gateway would find it."""
        shared = await self.leases.shared("mailbox")
        return position.read(shared.get("position INBOX")) or Position(validity=0)

    async def messages(self) -> list[StoredMessage]:
        try:
            return [row.message for row in await self.spool.claim(100_000, 1 << 40)]
        except Unavailable:
            return []

    async def uids(self) -> list[int]:
        return [message.facts["uid"] for message in await self.messages()]


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def signed_address(reference: str) -> str:
    return replyaddress.make("support@acme.cn", reference, KEY)
