"""The parts of a daemon put together for a test, with normalizers of the test's own and a clock it sets."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.acknowledgement import Acknowledgements
from gateway.blobs import Blobs
from gateway.contract import ChannelSettings, RawMessage, Receipt
from gateway.intake import Intake
from gateway.media import Media
from gateway.pipeline import Pipeline
from gateway.publisher import Publisher
from gateway.settings import HttpSettings, MediaSettings, StreamSettings
from gateway.spool import Spool
from gateway.telemetry import Metrics
from gateway.web import Web
from gateway.workers import Workers
from tests.core.kinds import NORMALIZERS, PNG, normalizer
from tests.core.redis_process import RedisProcess
from tests.core.samples import NOW

__all__ = ["NORMALIZERS", "PNG", "Rig"]


class Rig:
    """`now` is everybody's clock."""

    def __init__(self, folder: Path, redis: RedisProcess, *, bookmark: str = "", **options: Any) -> None:
        self.now = NOW.timestamp()
        self.redis = redis
        self.channels = {"shop": ChannelSettings(type="echo")}
        self.metrics = Metrics()
        self.blobs_folder = folder / "blobs"
        public_url = "http://127.0.0.1:8080"
        self.blobs = Blobs(self.blobs_folder, None, public_url=public_url, key=b"k" * 32, url_ttl_hours=1)
        self.spool = Spool(folder / "spool", clock=lambda: self.now)
        self.spool.open()
        self.publisher = Publisher(redis.settings, StreamSettings(), folder, bookmark=bookmark)
        self.intake = Intake(
            self.spool, self.metrics, gateway="acme", max_bytes=1 << 30, min_free_bytes=0, now=self.moment
        )
        self.workers = Workers(
            normalizer,
            size=options.pop("workers", 1),
            timeout_secs=options.pop("timeout_secs", 30),
            memory_bytes=1 << 29,
        )
        self.connectors: dict[str, Any] = {}
        self.media = Media(
            self.spool.media,
            self.blobs,
            self.metrics,
            MediaSettings(**options.pop("media", {})),
            connectors=lambda: self.connectors,
            door=self.intake.door,
            wake=self.intake.arrived.set,
            max_tries=3,
            clock=lambda: self.now,
        )
        self.pipeline = Pipeline(
            self.spool,
            self.publisher,
            self.blobs,
            self.metrics,
            self.workers,
            self.media,
            spool_id=options.pop("spool_id", "s1"),
            source=self.intake.source,
            channels=lambda: self.channels,
            arrived=self.intake.arrived,
            batch=options.pop("batch", 200),
            light_bytes=options.pop("light_bytes", 256 << 10),
            max_tries=options.pop("max_tries", 3),
            acknowledge=Acknowledgements(lambda: self.channels, self.moment),
            clock=lambda: self.now,
        )
        http = HttpSettings(**options)
        self.web = Web(http, self.intake, self.spool, self.blobs, public_url, self.moment)

    def moment(self) -> datetime:
        return datetime.fromtimestamp(self.now, UTC)

    async def close(self) -> None:
        tasks = self.pipeline.in_work() + self.media.in_work()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.workers.close()
        await self.publisher.close()
        await self.spool.close()

    def raw(self, native_id: str, body: bytes = b"hello", *, kind: str = "note", **more: Any) -> RawMessage:
        return RawMessage(kind, body, native_id, **more)

    async def accept(self, native_id: str, body: bytes = b"hello", **more: Any) -> Receipt:
        return await self.intake.accept("shop", self.raw(native_id, body, **more))

    async def publish_all(self) -> None:
        """All that is due and all that was lost, the heavy ones too."""
        while await self.pipeline.step() or self.pipeline.in_work():
            await asyncio.gather(*self.pipeline.in_work(), return_exceptions=True)

    async def events(self) -> list[bytes]:
        """The events in the stream, oldest first."""
        async with self.redis.client() as client:
            return [fields["event"].encode() for _, fields in await client.xrange("tickets")]

    async def tickets(self) -> list[dict[str, Any]]:
        return [json.loads(event) for event in await self.events()]

    def ledger(self) -> dict[str, int]:
        return {entry: n for (_, entry), n in self.spool.ledger.items() if n}
