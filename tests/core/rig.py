"""The parts of a daemon put together for a test, with normalizers of the test's own and a clock it sets."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.acknowledgement import Acknowledgements
from gateway.blobs import Blobs
from gateway.contract import ChannelSettings, Draft, Part, RawMessage, Receipt, StoredMessage
from gateway.envelope import Identity, Message, Sender, Thread
from gateway.errors import Rejected
from gateway.intake import Intake
from gateway.pipeline import Pipeline
from gateway.publisher import Publisher
from gateway.settings import HttpSettings, StreamSettings
from gateway.spool import Spool
from gateway.telemetry import Metrics
from gateway.web import Web
from tests.core.redis_process import RedisProcess
from tests.core.samples import NOW

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0" * 40


def note(raw: StoredMessage) -> Draft:
    """Text that says what it is."""
    sender = Sender(name="张三", identities=(Identity(kind="user_id", value="u1", verified=True),))
    return Draft(Message(sender=sender, conversation=raw.facts.get("with"), text=raw.body.decode()))


def album(raw: StoredMessage) -> Draft:
    """A message with files."""
    parts = (Part(PNG, "打印机.txt", "text/plain"), Part(b"some words", content_type="text/plain"))
    return Draft(Message(text="see the files"), parts)


def tagged(raw: StoredMessage) -> Draft:
    return Draft(Message(tags=("vip", "shop"), queue="own queue", priority="high"))


def rejected(raw: StoredMessage) -> Draft:
    raise Rejected("malformed", "the bytes are no message", reason="byte 7")


def defective(raw: StoredMessage) -> Draft:
    raise ZeroDivisionError("a defect of ours")


def which_thread(raw: StoredMessage) -> Draft:
    return Draft(Message(text=threading.current_thread().name))


def mail(raw: StoredMessage) -> Draft:
    """What its facts say: `from`, and what else of a message."""
    facts = {**raw.facts}
    sender = Sender(name=facts.pop("name", None), identities=(Identity(kind="email", value=facts.pop("from")),))
    thread = Thread(message_id=f"{raw.native_id}@customer.example", **facts.pop("thread", {}))
    more = {key: facts[key] for key in ("subject", "language", "auto") if key in facts}
    return Draft(Message(sender=sender, text=raw.body.decode(), thread=thread, **more))


NORMALIZERS: dict[str, Callable[[StoredMessage], Draft]] = {
    "note": note,
    "album": album,
    "tagged": tagged,
    "rejected": rejected,
    "defective": defective,
    "thread": which_thread,
    "mail": mail,
}


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
        self.pipeline = Pipeline(
            self.spool,
            self.publisher,
            self.blobs,
            self.metrics,
            spool_id=options.pop("spool_id", "s1"),
            source=self.intake.source,
            channels=lambda: self.channels,
            arrived=self.intake.arrived,
            batch=options.pop("batch", 200),
            max_tries=options.pop("max_tries", 3),
            acknowledge=Acknowledgements(lambda: self.channels, self.moment),
            clock=lambda: self.now,
        )
        http = HttpSettings(**options)
        self.web = Web(http, self.intake, self.spool, self.blobs, public_url, self.moment)

    def moment(self) -> datetime:
        return datetime.fromtimestamp(self.now, UTC)

    async def close(self) -> None:
        await self.publisher.close()
        await self.spool.close()

    async def accept(self, native_id: str, body: bytes = b"hello", *, kind: str = "note", **more: Any) -> Receipt:
        return await self.intake.accept("shop", RawMessage(kind, body, native_id, **more))

    async def publish_all(self) -> None:
        while await self.pipeline.step():
            pass

    async def events(self) -> list[bytes]:
        """The events in the stream, oldest first."""
        async with self.redis.client() as client:
            return [fields["event"].encode() for _, fields in await client.xrange("tickets")]

    async def tickets(self) -> list[dict[str, Any]]:
        return [json.loads(event) for event in await self.events()]

    def ledger(self) -> dict[str, int]:
        return {entry: n for (_, entry), n in self.spool.ledger.items() if n}
