"""Duties that recur: looking at Redis, ending the retention of messages and attachments."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from gateway.blobs import Blobs
from gateway.errors import HuiruError
from gateway.publisher import Publisher
from gateway.settings import GatewaySettings
from gateway.spool import Spool

log = structlog.get_logger()

_LOOK_SECS = 5.0
_TRY_SECS = 2.0
_PURGE_SECS = 60.0
_BLOBS_SECS = 3600.0
_FULL, _RELIEVED = 0.9, 0.8  # of spool.max_bytes: where kept copies begin to give way, and where they stop


class Upkeep:
    """`wake` is called when the pipeline has something to publish again."""

    def __init__(
        self, spool: Spool, blobs: Blobs, publisher: Publisher, settings: GatewaySettings, wake: Callable[[], None]
    ) -> None:
        self._spool = spool
        self._blobs = blobs
        self._publisher = publisher
        self._wake = wake
        self._max_bytes = settings.spool.max_bytes
        self._keep_secs = settings.spool.keep_published_hours * 3600
        self._keep_blobs = timedelta(days=settings.blobs.keep_days)

    def duties(self) -> list[Coroutine[Any, Any, None]]:
        """To be run until they are cancelled."""
        return [
            self._every(_LOOK_SECS, self.look_at_redis),
            self._every(_TRY_SECS, self.try_spool),
            self._every(_PURGE_SECS, self.purge_spool),
            self._every(_BLOBS_SECS, self.purge_blobs),
        ]

    async def look_at_redis(self) -> None:
        await self._publisher.look()
        if self._publisher.lost_data:
            self._wake()

    async def try_spool(self) -> None:
        """After a failed commit: nobody may send us messages before we are ready again, so we have to try ourselves."""
        if not self._spool.healthy:
            await self._spool.memorise({"tried": str(time.time())})

    async def purge_spool(self) -> None:
        """Deletes what is older than its time; and when the spool is nearly full, the oldest kept copies before it."""
        await self._purge(time.time() - self._keep_secs, until_bytes=0)
        if self._spool.bytes > _FULL * self._max_bytes:
            log.warning("spool.nearly_full", bytes=self._spool.bytes, remedy="raise spool.max_bytes")
            await self._purge(time.time(), until_bytes=int(_RELIEVED * self._max_bytes))

    async def purge_blobs(self) -> None:
        deleted = await self._blobs.purge(datetime.now(UTC) - self._keep_blobs)
        if deleted:
            log.info("blobs.purged", objects=deleted)

    async def _purge(self, settled_before: float, *, until_bytes: int) -> None:
        after: int | None = 0
        while after is not None and self._spool.bytes > until_bytes:
            after = await self._spool.purge(settled_before, after)

    async def _every(self, seconds: float, duty: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await duty()
            except (HuiruError, OSError) as error:  # the disk or the store: another time
                log.warning("upkeep.failed", duty=duty.__name__, error=str(error))
            await asyncio.sleep(seconds)
