"""Fetches what messages refer to, after they were accepted and before they are published.

A ticket waits for its files, but not for ever: what was not had in that time is an omission, tried for still, and
follows as an update. Nobody else waits: tries run beside the pipeline, few at a time, and channels take turns.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from gateway.blobs import Blobs
from gateway.contract import Accept, Connector, Draft, Part, Profile, RawMessage, Wanted
from gateway.errors import HuiruError, Rejected, Unavailable
from gateway.mediabox import Due, Found, Mediabox
from gateway.mediatype import sniff
from gateway.settings import MediaSettings
from gateway.spool import Row
from gateway.telemetry import Metrics

log = structlog.get_logger()

PROFILE = "profile"
_PROFILE_SECS = 10.0  # a ticket waits for its sender's name
_FIRST_WAIT, _LONGEST_WAIT = 2.0, 1800.0
_LOOK_SECS = 60.0
_HEAD_BYTES = 4096
_LATE = "attachment"  # kind of the message that brings what was late
_DELAYED = "it could not be fetched in time, and follows as an update when it can"


class NotYet(Exception):
    """The message waits for what it refers to, until that time at most: seconds since the epoch."""

    def __init__(self, until: float) -> None:
        super().__init__(until)
        self.until = until


class Media:
    """`connectors` is asked for every try: a reload may change them. `wake`: a ticket need wait no more."""

    def __init__(
        self,
        box: Mediabox,
        blobs: Blobs,
        metrics: Metrics,
        settings: MediaSettings,
        *,
        connectors: Callable[[], Mapping[str, Connector]],
        door: Callable[[str], Accept],
        wake: Callable[[], None],
        max_tries: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._box = box
        self._blobs = blobs
        self._metrics = metrics
        self._settings = settings
        self._connectors = connectors
        self._door = door
        self._wake = wake
        self._max_tries = max_tries
        self._clock = clock
        self._nudged = asyncio.Event()
        self._working: dict[str, tuple[str, asyncio.Task[None]]] = {}  # a thing's key -> channel and task

    # For the pipeline

    async def of(self, row: Row, draft: Draft, conversation: str, *, now: bool) -> list[Found]:
        """What was found of each thing, or why it is left out: see `found_file`, `found_profile` and `left_out`.

        Raises NotYet while the message is to wait, which it does not when it has to go `now`.
        """
        wanted, raw = draft.wanted, row.message
        ticket = None if row.conflict_with else draft.updates or raw.native_id
        found = await self._box.of(row.seq, wanted, ticket, conversation)
        if None not in found:
            return [one for one in found if one is not None]
        missing = [one.what for one, its in zip(wanted, found, strict=True) if its is None]
        patience = _PROFILE_SECS if set(missing) == {PROFILE} else self._settings.wait_secs
        until = raw.received_at.timestamp() + min(patience, self._settings.wait_secs)
        self._nudged.set()
        if self._clock() < until and not now:
            raise NotYet(until)
        decided = [_delayed(one) if its is None else its for one, its in zip(wanted, found, strict=True)]
        await self._box.let_go(row.seq, decided)
        return decided

    # The tries

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self._nudged.clear()
                try:
                    wait = await self.step()
                except Unavailable as error:  # the spool: it may come back
                    log.warning("media.held_up", reason=error.reason)
                    wait = _LOOK_SECS
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._nudged.wait()
        finally:
            for task in self.in_work():
                task.cancel()

    async def step(self) -> float:
        """Begins the tries that are due, as many as there is room for; the seconds until it is worth while again."""
        room = self._settings.concurrency - len(self._working)
        if room <= 0:
            return _LOOK_SECS  # the end of one is a nudge
        channels = {channel for channel, _ in self._working.values()}
        for thing in await self._box.due(room, self._working, channels):
            task = asyncio.create_task(self._work(thing), name="media")
            self._working[thing.key] = (thing.channel, task)
            task.add_done_callback(partial(self._ended, thing.key))
        next_ = await self._box.next_due()
        return _LOOK_SECS if next_ is None else min(max(next_ - self._clock(), 0.1), _LOOK_SECS)

    def in_work(self) -> list[asyncio.Task[None]]:
        """Tasks of tries. Cancelled, they leave theirs to be tried again."""
        return [task for _, task in self._working.values()]

    def _ended(self, key: str, task: asyncio.Task[None]) -> None:
        del self._working[key]
        self._nudged.set()
        if not task.cancelled() and (error := task.exception()):  # the spool's: it is due still
            log.warning("media.held_up", reason=str(error))

    async def _work(self, thing: Due) -> None:
        try:
            found = await self._try(thing)
        except Exception as error:
            await self._failed(thing, error)
            return
        self._metrics.media_fetched.labels(thing.channel, "fetched").inc()
        await self._decide(thing, found)

    async def _try(self, thing: Due) -> Found:
        connector = self._connectors().get(thing.channel)
        if connector is None:
            raise Unavailable(reason="the channel is not in the configuration", retry_after=600)
        found = await connector.fetch(thing.wanted)
        if isinstance(found, Profile):
            return found_profile(found)
        if len(found.content) > self._settings.max_bytes:
            raise Rejected(
                "too_large", f"the file has {len(found.content)} bytes, {self._settings.max_bytes} are allowed"
            )
        return found_file(thing.wanted, found, await self._blobs.put(found.content))

    async def _failed(self, thing: Due, error: Exception) -> None:
        reason = error.reason if isinstance(error, HuiruError) else f"{type(error).__name__}: {error}"
        told = {"id": thing.id, "channel": thing.channel, "what": thing.wanted.what, "reason": reason}
        unknown = not isinstance(error, HuiruError)
        if isinstance(error, Rejected) or self._is_hopeless(thing, unknown=unknown):
            log.warning("media.given_up", tries=thing.tries + 1, **told)
            self._metrics.media_fetched.labels(thing.channel, "given_up").inc()
            public = error.public if isinstance(error, Rejected) else "it could not be fetched"
            await self._decide(thing, left_out(thing.wanted, public))
            return
        log.info("media.failed", tries=thing.tries + 1, exc_info=error if unknown else None, **told)
        self._metrics.media_fetched.labels(thing.channel, "failed").inc()
        wait = min(_FIRST_WAIT * 2.0 ** min(thing.tries, 20), _LONGEST_WAIT) * random.uniform(0.75, 1)  # noqa: S311 - jitter
        least = error.retry_after if isinstance(error, Unavailable) and error.retry_after > wait else 0
        await self._box.again(thing, self._clock() + max(wait, least))

    def _is_hopeless(self, thing: Due, *, unknown: bool) -> bool:
        too_often = unknown and thing.tries + 1 >= self._max_tries
        return too_often or self._clock() > thing.since + self._settings.give_up_hours * 3600

    async def _decide(self, thing: Due, found: Found) -> None:
        if not thing.late and await self._box.decide(thing, found):
            self._wake()
            return
        if "file" in found and thing.ticket is not None:
            await self._follow_up(thing, thing.ticket, found["file"])
        await self._box.done(thing)

    async def _follow_up(self, thing: Due, ticket: str, file: dict[str, Any]) -> None:
        """What came too late for its ticket, as a message of its own: it goes the way of every message."""
        facts = {"updates": ticket, "conversation": thing.conversation, "filename": file["filename"]}
        content = await self._blobs.get(file["sha256"])
        raw = RawMessage(_LATE, content, f"{thing.id}#{thing.n}", file["content_type"], facts)
        await self._door(thing.channel)(raw)


def described(part: Part, digest: str) -> dict[str, Any]:
    """What an Attachment needs beside its number and its address. The type is told by the content, where that tells."""
    return {
        "filename": part.filename,
        "content_type": sniff(part.content[:_HEAD_BYTES], part.filename, part.content_type),
        "size": len(part.content),
        "sha256": digest,
        "inline": part.inline,
        "content_id": part.content_id,
    }


def found_file(wanted: Wanted, part: Part, digest: str) -> Found:
    """`{"file": …}`: what the server does not say of it, the message may."""
    filename, declared = part.filename or wanted.filename, part.content_type or wanted.content_type
    return {"file": described(replace(part, filename=filename, content_type=declared), digest)}


def found_profile(profile: Profile) -> Found:
    """`{"profile": …}`"""
    identities = [identity.model_dump() for identity in profile.identities]
    return {"profile": {"name": profile.name, "identities": identities, "language": profile.language}}


def left_out(wanted: Wanted, reason: str) -> Found:
    """`{"omission": …}`; of a profile nothing is said."""
    if wanted.what == PROFILE:
        return {}
    return {"omission": {"what": wanted.what, "reason": reason, "filename": wanted.filename or None}}


def _delayed(wanted: Wanted) -> Found:
    return left_out(wanted, _DELAYED)
