"""The only way in (R2): limits, identity, spool, receipt."""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import structlog
from prometheus_client import Histogram

from gateway.contract import Accept, RawMessage, Receipt, body_size
from gateway.errors import HuiruError, Unavailable
from gateway.spool import ROW_BYTES, Spool, entry
from gateway.telemetry import Metrics

log = structlog.get_logger()

_DISK_CHECK_SECS = 1.0


class Intake:
    """Accepts messages as long as there is room. `arrived` is set whenever there is something new in the spool."""

    def __init__(
        self,
        spool: Spool,
        metrics: Metrics,
        *,
        gateway: str,
        max_bytes: int,
        min_free_bytes: int,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.arrived = asyncio.Event()
        self._spool = spool
        self._metrics = metrics
        self._gateway = gateway
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes
        self._now = now
        self._disk_checked = float("-inf")
        self._disk_is_full = False
        self._histograms: dict[str, Histogram] = {}
        self._untold: dict[tuple[str, str], list[str]] = {}

    def source(self, channel: str) -> str:
        """The CloudEvents source of a channel's messages."""
        return f"/{self._gateway}/{channel}"

    def door(self, channel: str) -> Accept:
        """`accept` for one channel that runs on its own; refusals are counted here."""

        async def accept(raw: RawMessage) -> Receipt:
            try:
                return await self.accept(channel, raw)
            except HuiruError as error:
                self.refused(channel, error)
                raise

        return accept

    async def accept(self, channel: str, raw: RawMessage) -> Receipt:
        """The receipt once the message is on disk (R1). Whoever calls it counts what it refuses.

        Raises Unavailable (`spool_full`, `spool_failed`), and Rejected("idempotency_mismatch") where the
        message asks for it.
        """
        started = time.perf_counter()
        self._check_room(body_size(raw.body))
        receipt = await self._spool.put(entry(self.source(channel), channel, raw, self._now()))
        self.arrived.set()
        self._seconds(channel).observe(time.perf_counter() - started)
        self._tell("accepted_again" if receipt.duplicate else "accepted", channel, receipt.id)
        return receipt

    def _seconds(self, channel: str) -> Histogram:
        if channel not in self._histograms:
            self._histograms[channel] = self._metrics.accept_seconds.labels(channel)
        return self._histograms[channel]

    def _tell(self, event: str, channel: str, id_: str) -> None:
        """One log line for all that a commit has made durable: writing lines is dearer than anything else here."""
        if not self._untold:
            asyncio.get_running_loop().call_soon(self._log)
        self._untold.setdefault((event, channel), []).append(id_)

    def _log(self) -> None:
        untold, self._untold = self._untold, {}
        for (event, channel), ids in untold.items():
            log.info(event, channel=channel, ids=ids)

    def refused(self, channel: str, error: HuiruError) -> None:
        """Counts and logs a message that was not accepted."""
        self._metrics.refused.labels(channel, error.code).inc()
        log.info("refused", channel=channel, code=error.code, reason=error.reason)

    def ignored(self, channel: str, codes: Sequence[str]) -> None:
        """Counts what a channel was told, and is no message by its settings."""
        for code in codes:
            self._metrics.ignored.labels(channel, code).inc()
        log.info("ignored", channel=channel, codes=codes)

    def troubles(self) -> list[str]:
        """Why messages cannot be accepted now; empty when they can (R16)."""
        troubles = []
        if not self._spool.healthy:
            troubles.append("the spool's last commit failed")
        if self._spool.bytes >= self._max_bytes:
            troubles.append("the spool is full")
        if self._disk_full():
            troubles.append("the disk is almost full")
        return troubles

    def _check_room(self, size: int) -> None:
        if self._spool.bytes + size + ROW_BYTES > self._max_bytes:
            raise Unavailable("spool_full", reason="spool.max_bytes is reached", retry_after=30)
        if self._disk_full():
            raise Unavailable("spool_full", reason="less than spool.min_free_bytes is free", retry_after=30)

    def _disk_full(self) -> bool:
        if time.monotonic() - self._disk_checked >= _DISK_CHECK_SECS:
            disk = os.statvfs(self._spool.folder)
            self._disk_is_full = disk.f_bavail * disk.f_frsize < self._min_free_bytes
            self._disk_checked = time.monotonic()
        return self._disk_is_full
