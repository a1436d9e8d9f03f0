"""Spool -> normalizer -> blobs -> publisher -> spool: the way of every accepted message to the stream.

One batch at a time, oldest first. A message that cannot be normalised goes to quarantine and its neighbours go on (R7).
What Redis has lost is published again (R14), a batch in turn with a batch of what is new, so that neither starves.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from gateway import registry
from gateway.blobs import Blobs
from gateway.contract import ChannelSettings, Draft, Normalizer, Part, StoredMessage
from gateway.envelope import TYPE, Attachment, Message, event
from gateway.errors import Rejected, Unavailable
from gateway.identity import reference
from gateway.letter import Letter, Suppressed
from gateway.mediatype import sniff
from gateway.publisher import Item, Publisher, Result, mark_of
from gateway.spool import DUPLICATE, PUBLISHED, QUARANTINED, WAITING, Outcome, Row, Spool
from gateway.telemetry import Metrics

log = structlog.get_logger()

MAX_BATCH_BYTES = 8 << 20
_IDLE_SECS = 1.0
_DRAIN_LOOK_SECS = 0.05
_LONGEST_WAIT_SECS = 300.0  # between two tries of one message
_SLICE_SECS = 0.001  # of normalising, before whoever wants to be accepted gets a turn
_BUSY_TURN_SECS = 0.002  # a turn of the event loop that took longer had much to accept
_IN_THREAD_BYTES = 256 << 10  # larger bodies are normalised off the event loop
_HEAD_BYTES = 4096

Acknowledge = Callable[[int, StoredMessage, Message], Letter | Suppressed | None]
Ready = tuple[Row, Item, Letter | Suppressed | None]  # a message that can be published, and its acknowledgement


@dataclass(slots=True)
class _Replay:
    since: float
    after: int = 0


class Pipeline:
    """`channels` is asked for each message: a reload may change it. Times are seconds since the epoch."""

    def __init__(
        self,
        spool: Spool,
        publisher: Publisher,
        blobs: Blobs,
        metrics: Metrics,
        *,
        spool_id: str,
        source: Callable[[str], str],
        channels: Callable[[], Mapping[str, ChannelSettings]],
        arrived: asyncio.Event,
        batch: int,
        max_tries: int,
        acknowledge: Acknowledge = lambda seq, raw, message: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._spool = spool
        self._publisher = publisher
        self._blobs = blobs
        self._metrics = metrics
        self._spool_id = spool_id
        self._source = source
        self._channels = channels
        self._arrived = arrived
        self._batch = batch
        self._max_tries = max_tries
        self._acknowledge = acknowledge
        self._clock = clock
        self._stepping = asyncio.Lock()
        self._normalizers: dict[str, Normalizer] = {}
        self._replay: _Replay | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._arrived.clear()
            try:
                busy = await self.step()
            except Unavailable as error:  # the spool: it may come back
                log.error("pipeline.held_up", reason=error.reason)
                busy = False
            if not busy:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._arrived.wait(), _IDLE_SECS)

    async def step(self) -> bool:
        """Publishes a batch of what waits and one of what was lost; False when there was nothing to do."""
        async with self._stepping:
            rows = await self._spool.claim(self._batch, MAX_BATCH_BYTES)
            if rows:
                await self._publish_waiting(rows)
            return await self._publish_again() or bool(rows)

    def replay(self, since: float) -> None:
        """Publishes everything again that was published at or after `since` and is still kept."""
        if self._replay is not None:
            since = min(since, self._replay.since)
        self._replay = _Replay(since)
        self.wake()

    def wake(self) -> None:
        """Something may be waiting."""
        self._arrived.set()

    async def drained(self) -> None:
        """Returns when no message whose time has come is waiting and none is in work."""
        while True:
            async with self._stepping:
                if not await self._spool.claim(1, MAX_BATCH_BYTES):
                    return
            await asyncio.sleep(_DRAIN_LOOK_SECS)

    # Waiting messages

    async def _publish_waiting(self, rows: list[Row]) -> None:
        items, outcomes = await self._items(rows)
        letters: list[Letter | Suppressed] = []
        results = await self._publisher.publish([item for _, item, _ in items]) if items else []
        for (row, _, letter), result in zip(items, results, strict=True):
            if result is Result.CONFLICT:
                await self._spool.mark_conflict(row)
                continue
            state = DUPLICATE if result is Result.DUPLICATE else PUBLISHED
            outcomes.append(Outcome(row.seq, row.message.channel, state))
            if letter is not None and state == PUBLISHED:
                letters.append(letter)
        await self._settle(outcomes, letters)
        self._tell(rows, outcomes)

    async def _settle(self, outcomes: list[Outcome], letters: Sequence[Letter | Suppressed] = ()) -> None:
        """Until the spool has it: what is in the stream must not stay waiting for want of disk space."""
        while True:
            try:
                return await self._spool.settle(outcomes, newest=self._bookmark(), letters=letters)
            except Unavailable as error:
                if error.code == "stopping":
                    raise
                await asyncio.sleep(_IDLE_SECS)

    def _bookmark(self) -> str:
        """None while something is to be published again: a restart in the midst of it has to begin anew."""
        return "" if self._publisher.lost_data or self._replay else self._publisher.bookmark

    async def _items(self, rows: list[Row]) -> tuple[list[Ready], list[Outcome]]:
        items: list[Ready] = []
        outcomes: list[Outcome] = []
        until = time.perf_counter() + _SLICE_SECS
        for row in rows:
            try:
                items.append(await self._item(row))
            except Exception as error:
                outcomes.append(self._failed(row, error))
            if time.perf_counter() > until:
                await _give_way()
                until = time.perf_counter() + _SLICE_SECS
        return items, outcomes

    def _failed(self, row: Row, error: Exception) -> Outcome:
        seq, channel = row.seq, row.message.channel
        if isinstance(error, Rejected):
            return Outcome(seq, channel, QUARANTINED, error.code, error.reason)
        if isinstance(error, Unavailable):
            log.warning("held_up", id=row.message.id, channel=channel, reason=error.reason)
            return Outcome(seq, channel, WAITING, not_before=self._clock() + error.retry_after)
        reason = f"{type(error).__name__}: {error}"
        log.error("failed", id=row.message.id, channel=channel, tries=row.tries + 1, exc_info=error)
        if row.tries + 1 >= self._max_tries:
            return Outcome(seq, channel, QUARANTINED, "internal", reason, counts_as_try=True)
        wait = min(2.0**row.tries, _LONGEST_WAIT_SECS)
        return Outcome(seq, channel, WAITING, "internal", reason, self._clock() + wait, counts_as_try=True)

    def _tell(self, rows: list[Row], outcomes: list[Outcome]) -> None:
        now = self._clock()
        messages = {row.seq: row.message for row in rows}
        done: dict[tuple[str, str], list[str]] = {}
        for outcome in outcomes:
            message = messages[outcome.seq]
            if outcome.state == QUARANTINED:
                cause = {"code": outcome.code, "reason": outcome.reason}
                log.warning("quarantined", id=message.id, channel=message.channel, **cause)
            elif outcome.state != WAITING:
                name = "published" if outcome.state == PUBLISHED else "duplicate"
                done.setdefault((name, message.channel), []).append(message.id)
                lag = max(now - message.received_at.timestamp(), 0)
                self._metrics.publish_lag_seconds.labels(message.channel).observe(lag)
        for (name, channel), ids in done.items():
            log.info(name, channel=channel, ids=ids)

    # Published messages that Redis may have lost

    async def _publish_again(self) -> bool:
        if self._publisher.lost_data:
            self._publisher.lost_data = False
            self.replay(0)
        replay = self._replay
        if replay is None:
            return False
        rows = await self._spool.published_since(replay.since, replay.after, self._batch, MAX_BATCH_BYTES)
        if not rows:
            await self._end(replay)
            return False
        items, outcomes = await self._items(rows)
        results = await self._publisher.publish([item for _, item, _ in items]) if items else []
        added = results.count(Result.ADDED)
        self._metrics.republished.inc(added)
        log.info("replay", looked_at=len(rows), published=added)
        if any(outcome.state == WAITING and not outcome.counts_as_try for outcome in outcomes):
            return False  # the blob store refused: this batch again, later
        replay.after = rows[-1].seq
        return True

    async def _end(self, replay: _Replay) -> None:
        if self._replay is replay:
            self._replay = None
        log.info("replay.done")
        await self._settle([])

    # A message's envelope

    async def _item(self, row: Row) -> Ready:
        if row.fault:
            raise Rejected("unreadable", reason=row.fault)
        raw = row.message
        normalize = self._normalizer(raw.kind)
        in_thread = len(raw.body) > _IN_THREAD_BYTES
        draft = await asyncio.to_thread(normalize, raw) if in_thread else normalize(raw)
        attachments = await self._attachments(draft, raw.received_at)
        conversation = draft.message.conversation or raw.id
        event = self._event(row, draft.message, conversation, attachments)
        mark = mark_of(row.fingerprint, self._spool_id, row.seq)
        item = Item(raw.id, mark, TYPE, raw.channel, conversation, event)
        return row, item, self._acknowledge(row.seq, raw, draft.message)

    def _normalizer(self, kind: str) -> Normalizer:
        if kind not in self._normalizers:
            self._normalizers[kind] = registry.normalizer(kind)
        return self._normalizers[kind]

    async def _attachments(self, draft: Draft, since: datetime) -> list[dict[str, Any]]:
        return [(await self._attachment(n, part, since)).model_dump() for n, part in enumerate(draft.parts, 1)]

    async def _attachment(self, n: int, part: Part, since: datetime) -> Attachment:
        digest = await self._blobs.put(part.content)
        content_type = sniff(part.content[:_HEAD_BYTES], part.filename, part.content_type)
        filename = part.filename or f"attachment-{n}"
        return Attachment(
            id=str(n),
            filename=filename,
            content_type=content_type,
            size=len(part.content),
            sha256=digest,
            inline=part.inline,
            content_id=part.content_id,
            url=self._blobs.url(digest, filename, content_type, since),
        )

    def _event(self, row: Row, message: Message, conversation: str, attachments: list[dict[str, Any]]) -> bytes:
        raw = row.message
        channel = self._channels().get(raw.channel)
        return event(
            raw.id,
            self._source(raw.channel),
            message,
            conversation=conversation,
            received_at=raw.received_at,
            reference=reference(raw.id),
            channel={"name": raw.channel, "type": channel.type if channel else raw.kind},
            native_id=raw.native_id,
            attachments=attachments,
            conflict_with=row.conflict_with,
            raw={
                "sha256": row.sha256.hex(),
                "size": row.size,
                "url": self._blobs.raw_url(raw.id, raw.received_at),
            },
            **_routing(message, channel),
        )


async def _give_way() -> None:
    """Lets others have their turn; when that is a long one, ten more: customers wait, tickets are safe on disk."""
    since = time.perf_counter()
    await asyncio.sleep(0)
    turn = time.perf_counter() - since
    if turn > _BUSY_TURN_SECS:
        await asyncio.sleep(10 * turn)


def _routing(message: Message, channel: ChannelSettings | None) -> dict[str, Any]:
    """What the channel's settings add to its tickets, where the message says nothing itself."""
    if channel is None:
        return {}
    return {
        "queue": message.queue or channel.queue,
        "tags": (*channel.tags, *(tag for tag in message.tags if tag not in channel.tags)),
        "priority": message.priority or channel.priority,
    }
