"""Spool -> normalizer -> blobs -> publisher -> spool: the way of every accepted message to the stream.

One batch at a time, oldest first. A message that cannot be normalised goes to quarantine and its neighbours go on (R7).
A heavy one, whose body is large, is left out of the batches: a worker process normalises it, and it is published when
it is ready. So messages keep the order in which they were accepted, but light ones may overtake a heavy one, also of
the same conversation; a heavy one overtakes another when its channel's turn has come.
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
from gateway.envelope import TYPE, UPDATE_TYPE, Attachment, Identity, Message, Omission, event
from gateway.errors import Rejected, Unavailable
from gateway.identity import message_id, reference
from gateway.letter import Letter, Suppressed
from gateway.media import Media, NotYet, described
from gateway.mediabox import Found
from gateway.publisher import Item, Publisher, Result, mark_of
from gateway.spool import DUPLICATE, PUBLISHED, QUARANTINED, WAITING, Outcome, Row, Spool
from gateway.telemetry import Metrics
from gateway.workers import Workers

log = structlog.get_logger()

MAX_BATCH_BYTES = 8 << 20
_IDLE_SECS = 1.0
_DRAIN_LOOK_SECS = 0.05
_LONGEST_WAIT_SECS = 300.0  # between two tries of one message
_SLICE_SECS = 0.0005  # of normalising, before whoever wants to be accepted gets a turn
_IDLE_TURN_SECS = 0.0001  # a turn of the event loop that took longer had something else to do
_IDLE_TURNS = 6  # one alone may be the gap between two customers
_PATIENCE_SECS = 0.01  # with them, after each slice: a twentieth of the time is the pipeline's at least
_HEAVY_PER_WORKER = 2  # in work: one is published while the next is normalised

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
        workers: Workers,
        media: Media,
        *,
        spool_id: str,
        source: Callable[[str], str],
        channels: Callable[[], Mapping[str, ChannelSettings]],
        arrived: asyncio.Event,
        batch: int,
        light_bytes: int,
        max_tries: int,
        acknowledge: Acknowledge = lambda seq, raw, message: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._spool = spool
        self._publisher = publisher
        self._blobs = blobs
        self._metrics = metrics
        self._workers = workers
        self._media = media
        self._spool_id = spool_id
        self._source = source
        self._channels = channels
        self._arrived = arrived
        self._batch = batch
        self._light_bytes = light_bytes
        self._max_tries = max_tries
        self._acknowledge = acknowledge
        self._clock = clock
        self._stepping = asyncio.Lock()
        self._normalizers: dict[str, Normalizer] = {}
        self._replay: _Replay | None = None
        self._heavy: dict[int, tuple[str, asyncio.Task[None]]] = {}  # in work: seq -> channel and task
        self._heavy_again: asyncio.Task[None] | None = None  # of what was lost

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
                with contextlib.suppress(TimeoutError):  # not wait_for: that of Python 3.11 can lose a cancellation
                    async with asyncio.timeout(_IDLE_SECS):
                        await self._arrived.wait()

    async def step(self) -> bool:
        """Publishes a batch of what waits and one of what was lost; False when there was nothing to do."""
        async with self._stepping:
            rows, heavy = await self._claim(self._batch)
            for row in heavy:
                self._begin(row)
            if rows:
                await self._publish_waiting(rows)
            return await self._publish_again() or bool(rows or heavy)

    def replay(self, since: float) -> None:
        """Publishes everything again that was published at or after `since` and is still kept."""
        if self._replay is not None:
            since = min(since, self._replay.since)
        self._replay = _Replay(since)
        self.wake()

    @property
    def replaying(self) -> bool:
        """Whether something that was published is to be published again."""
        return self._publisher.lost_data or self._replay is not None

    def wake(self) -> None:
        """Something may be waiting."""
        self._arrived.set()

    async def drained(self) -> None:
        """Returns when no message whose time has come is waiting and none is in work."""
        while True:
            async with self._stepping:
                if not self._heavy and not any(await self._claim(1)):
                    return
            await asyncio.sleep(_DRAIN_LOOK_SECS)

    def in_work(self) -> list[asyncio.Task[None]]:
        """Tasks of heavy messages. Cancelled, they leave theirs in the spool."""
        return [task for _, task in self._heavy.values()] + [task for task in [self._heavy_again] if task]

    # Waiting messages

    async def _claim(self, limit: int) -> tuple[list[Row], list[Row]]:
        """Light ones for a batch; and heavy ones, as many as there is room for."""
        light = self._spool.claim(limit, MAX_BATCH_BYTES, self._light_bytes)
        room = _HEAVY_PER_WORKER * self._workers.size - len(self._heavy)
        if room <= 0:
            return await light, []
        busy = {seq: channel for seq, (channel, _) in self._heavy.items()}
        return await asyncio.gather(light, self._spool.claim_heavy(room, self._light_bytes, busy))

    def _begin(self, row: Row) -> None:
        task = asyncio.create_task(self._publish_waiting([row]), name="heavy")
        self._heavy[row.seq] = (row.message.channel, task)
        task.add_done_callback(lambda done: self._ended(row, done))

    def _ended(self, row: Row, task: asyncio.Task[None]) -> None:
        del self._heavy[row.seq]
        if task.cancelled():
            return
        if error := task.exception():  # the spool's: the message is waiting still, and is looked at again
            log.error("pipeline.held_up", id=row.message.id, reason=str(error))
        else:
            self.wake()

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
        return "" if self.replaying else self._publisher.bookmark

    async def _items(self, rows: list[Row], *, again: bool = False) -> tuple[list[Ready], list[Outcome]]:
        items: list[Ready] = []
        outcomes: list[Outcome] = []
        until = time.perf_counter() + _SLICE_SECS
        for row in rows:
            try:
                items.append(await self._item(row, again=again))
            except NotYet as wait:
                outcomes.append(Outcome(row.seq, row.message.channel, WAITING, not_before=wait.until))
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
        if self._heavy_again:  # the batch before is not done yet
            return False
        rows = await self._spool.published_since(replay.since, replay.after, self._batch, MAX_BATCH_BYTES)
        if not rows:
            await self._end(replay)
            return False
        heavy = [row for row in rows if row.size > self._light_bytes]
        if not await self._once_more([row for row in rows if row.size <= self._light_bytes]):
            return False  # this batch again, later
        if heavy:
            self._heavy_again = asyncio.create_task(self._heavy_once_more(heavy, replay, rows[-1].seq))
            return False
        replay.after = rows[-1].seq
        return True

    async def _heavy_once_more(self, rows: list[Row], replay: _Replay, last: int) -> None:
        try:
            if await self._once_more(rows):
                replay.after = last
                self.wake()
        finally:
            self._heavy_again = None

    async def _once_more(self, rows: list[Row]) -> bool:
        """False when the blob store refused."""
        items, outcomes = await self._items(rows, again=True)
        results = await self._publisher.publish([item for _, item, _ in items]) if items else []
        added = results.count(Result.ADDED)
        self._metrics.republished.inc(added)
        log.info("replay", looked_at=len(rows), published=added)
        return not any(outcome.state == WAITING and not outcome.counts_as_try for outcome in outcomes)

    async def _end(self, replay: _Replay) -> None:
        if self._replay is replay:
            self._replay = None
        log.info("replay.done")
        await self._settle([])

    # A message's envelope

    async def _item(self, row: Row, *, again: bool) -> Ready:
        if row.fault:
            raise Rejected("unreadable", reason=row.fault)
        raw = row.message
        draft = await self._draft(row)
        conversation = draft.message.conversation or raw.id
        found = await self._media.of(row, draft, conversation, now=again) if draft.wanted else []
        attachments = await self._attachments(draft, found, raw.received_at)
        message = _completed(draft.message, found) if found else draft.message
        type_ = TYPE if draft.updates is None else UPDATE_TYPE
        event = self._event(row, type_, message, conversation, attachments, self._updated(raw.channel, draft.updates))
        mark = mark_of(row.fingerprint, self._spool_id, row.seq)
        item = Item(raw.id, mark, type_, raw.channel, conversation, event)
        return row, item, None if draft.updates else self._acknowledge(row.seq, raw, message)

    async def _draft(self, row: Row) -> Draft:
        if row.size > self._light_bytes:
            return await self._workers.normalize(row.message, row.file)
        return self._normalizer(row.message.kind)(row.message)

    def _normalizer(self, kind: str) -> Normalizer:
        if kind not in self._normalizers:
            self._normalizers[kind] = registry.normalizer(kind)
        return self._normalizers[kind]

    async def _attachments(self, draft: Draft, found: list[Found], since: datetime) -> list[dict[str, Any]]:
        files = [await self._kept(part) for part in draft.parts] + [one["file"] for one in found if "file" in one]
        return [self._attachment(n, file, since) for n, file in enumerate(files, 1)]

    async def _kept(self, part: Part) -> dict[str, Any]:
        """The part in the blob store, as an attachment that has no address yet."""
        return described(part, await self._blobs.put(part.content))

    def _attachment(self, n: int, file: dict[str, Any], since: datetime) -> dict[str, Any]:
        named = file | {"filename": file["filename"] or f"attachment-{n}"}
        url = self._blobs.url(named["sha256"], named["filename"], named["content_type"], since)
        return Attachment(id=str(n), url=url, **named).model_dump()

    def _updated(self, channel: str, native_id: str | None) -> dict[str, str] | None:
        """The ticket that an update belongs to."""
        if native_id is None:
            return None
        id_ = message_id(self._source(channel), native_id, b"")
        return {"id": id_, "reference": reference(id_)}

    def _event(
        self,
        row: Row,
        type_: str,
        message: Message,
        conversation: str,
        attachments: list[dict[str, Any]],
        updates: dict[str, str] | None,
    ) -> bytes:
        raw = row.message
        channel = self._channels().get(raw.channel)
        return event(
            raw.id,
            self._source(raw.channel),
            message,
            type_=type_,
            conversation=conversation,
            received_at=raw.received_at,
            delivered_at=_delivered(raw),
            reference=reference(raw.id),
            channel={"name": raw.channel, "type": channel.type if channel else raw.kind},
            native_id=raw.native_id,
            attachments=attachments,
            conflict_with=row.conflict_with,
            updates=updates,
            raw={
                "sha256": row.sha256.hex(),
                "size": row.size,
                "url": self._blobs.raw_url(raw.id, raw.received_at),
            },
            **_routing(message, channel),
        )


def _completed(message: Message, found: list[Found]) -> Message:
    """With what was found of its sender, and what was left out."""
    left_out = [Omission(**one["omission"]) for one in found if "omission" in one]
    changes: dict[str, Any] = {"omissions": (*message.omissions, *left_out)}
    for one in found:
        if profile := one.get("profile"):
            sender = message.sender
            known = {(identity.kind, identity.value) for identity in sender.identities}
            new = [Identity(**its) for its in profile["identities"] if (its["kind"], its["value"]) not in known]
            given = {"name": sender.name or profile["name"], "identities": (*sender.identities, *new)}
            changes |= {"sender": sender.model_copy(update=given)}
            changes |= {"language": message.language or profile["language"]}
    return message.model_copy(update=changes)


async def _give_way() -> None:
    """Until nobody else has anything to do, but not for long: customers wait, and tickets are safe on disk."""
    turn = time.perf_counter()
    until, idle = turn + _PATIENCE_SECS, 0
    while turn < until and idle < _IDLE_TURNS:
        began = turn
        await asyncio.sleep(0)
        turn = time.perf_counter()
        idle = idle + 1 if turn - began < _IDLE_TURN_SECS else 0


def _delivered(raw: StoredMessage) -> datetime | None:
    """When imported mail was delivered, if that is known and can be."""
    then = raw.facts.get("received_at") if raw.facts.get("imported") else None
    return min(datetime.fromisoformat(then), raw.received_at) if then else None


def _routing(message: Message, channel: ChannelSettings | None) -> dict[str, Any]:
    """What the channel's settings add to its tickets, where the message says nothing itself."""
    if channel is None:
        return {}
    return {
        "queue": message.queue or channel.queue,
        "tags": (*channel.tags, *(tag for tag in message.tags if tag not in channel.tags)),
        "priority": message.priority or channel.priority,
    }
