"""A folder of a mailbox, read message by message: nothing is skipped, nothing is taken twice without being known.

In a look, what is left to be done with accepted messages comes first. Then come the new ones, in small groups by their
sizes. A group on which the connection breaks, or which the server does not give, is asked for message by message; a
message that fails is left for later, behind all others.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from itertools import groupby
from typing import Any, Literal, TypeVar

import structlog

from gateway.contract import Accept, Body, BodyFile, Context, Hold, RawMessage
from gateway.errors import Unavailable
from gateway.mail import addresses, position, replyaddress
from gateway.mail.identity import fingerprint, native_id
from gateway.mail.mailbox import Mailbox, Refused, Selected
from gateway.mail.message import header_block
from gateway.mail.position import Failure, Position

T = TypeVar("T")
log = structlog.get_logger()

PIECE_BYTES = 1 << 20  # of a large message, and of several small ones together
_TOGETHER, _NAMED_TOGETHER = 50, 200  # messages in one FETCH of bodies, of sizes
_BEGINNING_BYTES = 256 << 10  # what is fetched of a message that is too large
_HEAD_BYTES = 64 << 10
_DAY_SECS = 86_400.0
_SETTLED_SECS = 600  # how often it is noted that all has been accepted
_OVERLAP = timedelta(days=2)  # read again when UIDs have lost their meaning; well within the dedup window
_DELIVERED = ("Delivered-To", "X-Original-To", "Envelope-To", "To", "Cc")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True, slots=True)
class Wishes:
    """Of the operator; `target` is the folder of `move`."""

    start: Literal["now", "all"] | date
    after: Literal["nothing", "seen", "move", "delete"]
    target: str
    max_message_bytes: int
    authserv_ids: tuple[str, ...]
    fetch_tries: int
    fetch_retry_secs: float


@dataclass(frozen=True, slots=True)
class Fetched:
    """`size`: what the server says, of a message that was not fetched to its end."""

    uid: int
    body: Body
    size: int | None = None


class Folder:
    """A folder, as one connection reads it."""

    def __init__(
        self,
        channel: str,
        name: str,
        wishes: Wishes,
        context: Context,
        mailbox: Mailbox,
        hold: Hold,
        accept: Accept,
    ) -> None:
        self.name = name
        self._log = log.bind(channel=channel, folder=name)
        self._wishes = wishes
        self._piece_bytes = min(PIECE_BYTES, wishes.max_message_bytes)
        self._context = context
        self._mailbox = mailbox
        self._hold = hold
        self._accept = accept
        self._key = f"position {name}"
        self._at = Position(validity=-1)  # not known yet
        self._taken: set[int] = set()  # in this look: accepted, or gone from the server
        self._refusal: Refused | None = None  # in this look, of what is done after acceptance

    @property
    def missing(self) -> int:
        """How many messages the server holds that could not be accepted yet."""
        return len(self._at.failed)

    def next_due(self) -> float:
        """In how many seconds one of them is to be tried again."""
        dues = [failure.due - time.time() for failure in self._at.failed.values()]
        return max(min(dues, default=_DAY_SECS), 0.01)

    async def read(self) -> None:
        """Accepts all there is. Raises Refused when the server does not let us, or not do with it what is wished."""
        self._taken.clear()
        self._refusal = None
        opened = await self._mailbox.select(self.name, read_only=self._wishes.after == "nothing")
        await self._find_position(opened)
        await self._finish()
        begun = self._at.uid
        for some in _batches(await self._new(), _NAMED_TOGETHER):
            await self._take(some)
        if self._at.uid > begun:
            await self._compare(begun)
        for uid in [uid for uid, failure in self._at.failed.items() if failure.due <= time.time()]:
            await self._take_one(uid)
        await self._settle()
        if self._refusal:
            raise self._refusal

    # Where we are

    async def _find_position(self, opened: Selected) -> None:
        """Ours or that of the gateway which read before us, whichever is further on."""
        if self._at.validity == opened.validity:
            return
        known = [(await self._context.memory.recall()).get(self._key), (await self._hold.recall()).get(self._key)]
        at = position.newest([position.read(text) for text in known], opened.validity)
        if at and at.validity == opened.validity:
            await self._share(at)
            return
        next_uid = opened.next_uid or max(await self._mailbox.search("ALL"), default=0) + 1
        at = self._again(at, next_uid) if at else self._first(next_uid)
        self._log.info("imap.starts", validity=opened.validity, uid=at.uid, since=at.since, next_uid=next_uid)
        await self._remember(at.to(validity=opened.validity))

    def _first(self, next_uid: int) -> Position:
        start = self._wishes.start
        if isinstance(start, date):
            return Position(validity=0, since=_imap_date(start), since_uid=next_uid - 1)
        if start == "now":
            return Position(validity=0, uid=next_uid - 1, settled_at=time.time())
        return Position(validity=0)

    def _again(self, old: Position, next_uid: int) -> Position:
        """The server has numbered its messages anew (RFC 3501, 2.3.1.1): what came since all was accepted is read anew.

        Most of it is known by its content. Dates serve nothing else: the server has forgotten what a UID meant.
        """
        self._log.warning("imap.uidvalidity_changed", old=old.validity)
        if not old.settled_at:  # what `start` asked for was not read to its end yet
            return self._first(next_uid)
        day = datetime.fromtimestamp(old.settled_at, UTC).date() - _OVERLAP
        return Position(validity=0, since=_imap_date(day), since_uid=next_uid - 1, settled_at=old.settled_at)

    async def _remember(self, at: Position) -> None:
        await self._context.memory.memorise({self._key: at.model_dump_json()})
        await self._share(at)

    async def _share(self, at: Position) -> None:
        """With the gateway that takes over. Without Redis we go on as long as the lease lasts; `check` ends it."""
        self._at = at
        with contextlib.suppress(Unavailable):
            await self._hold.memorise({self._key: at.model_dump_json()})
        self._hold.check()

    async def _settle(self) -> None:
        """All there was has been accepted, or is noted as failed."""
        at, now = self._at, time.time()
        if at.since:
            at = at.to(uid=max(at.uid, at.since_uid), since="", since_uid=0)
        if not at.failed and now - at.settled_at > _SETTLED_SECS:
            at = at.to(settled_at=now)
        if at is not self._at:
            await self._remember(at)

    # What is there

    async def _new(self) -> list[int]:
        at = self._at
        found: set[int] = set()
        if at.uid < at.since_uid:
            found.update(await self._mailbox.search(f"UID {at.uid + 1}:{at.since_uid} SINCE {at.since}"))
        # The last message always matches `n:*`, whatever n is (RFC 3501, 6.4.8).
        found.update(await self._mailbox.search(f"UID {max(at.uid, at.since_uid) + 1}:*"))
        return sorted(uid for uid in found if uid > at.uid)

    async def _compare(self, begun: int) -> None:
        """Counts again what the server holds where we have been. What we have not is fetched yet, and is no secret."""
        if begun < self._at.since_uid:
            return
        held = await self._mailbox.search(f"UID {begun + 1}:{self._at.uid}")
        known = self._taken | self._at.failed.keys()
        missing = [uid for uid in held if begun < uid <= self._at.uid and uid not in known]
        if missing:
            self._log.warning("imap.missing", uids=missing[:100], missing=len(missing), held=len(held))
            at = self._at
            for uid in missing[:1000]:
                at = at.with_failed(uid, Failure(tries=0, reason="the server did not name it at first"))
            await self._remember(at)

    # Taking messages

    async def _take(self, uids: Sequence[int]) -> None:
        careful, together = ([uid for uid in uids if (uid <= self._at.careful) is is_so] for is_so in (True, False))
        for uid in careful:
            await self._take_one(uid)
        sizes = await self._in_one(together, self._mailbox.sizes)
        for group in self._groups(together, sizes):
            if sizes.get(group[0], 0) > self._piece_bytes:
                await self._take_one(group[0], sizes[group[0]])
            else:
                await self._take_together(group)

    async def _in_one(
        self, uids: Sequence[int], ask: Callable[[Sequence[int]], Awaitable[dict[int, T]]]
    ) -> dict[int, T]:
        """The answers to one question for several messages; {} when the server refuses it."""
        try:
            return await ask(uids) if uids else {}
        except Refused:
            return {}
        except Unavailable:  # perhaps because of one of them: next time each by itself
            await self._remember(self._at.to(careful=uids[-1]))
            raise

    def _groups(self, uids: Sequence[int], sizes: dict[int, int]) -> Iterator[list[int]]:
        group: list[int] = []
        for uid in uids:
            if len(group) == _TOGETHER or sum(sizes.get(one, 0) for one in [*group, uid]) > self._piece_bytes:
                if group:
                    yield group
                group = []
            group.append(uid)
        if group:
            yield group

    async def _take_together(self, uids: list[int]) -> None:
        """Small messages in one answer; those that are not in it are asked for by themselves."""
        bodies = await self._in_one(uids, self._mailbox.bodies)
        for are_there, some in groupby(uids, bodies.__contains__):
            if are_there:
                await self._accept_all([Fetched(uid, bodies[uid]) for uid in some])
            else:
                for uid in some:
                    await self._take_one(uid)

    async def _take_one(self, uid: int, size: int | None = None) -> None:
        """A message that may be a trouble: that it was begun is on disk before. If it fails, it is left for later."""
        failure = self._at.failed.get(uid, Failure())
        if failure.tries >= self._wishes.fetch_tries:
            await self._give_up(uid, failure.reason)
            return
        if self._at.is_overwhelmed:
            raise Unavailable(reason=f"folder {self.name}: too many messages cannot be fetched")
        begun = failure.again(self._wishes.fetch_retry_secs, time.time())
        await self._remember(self._at.with_failed(uid, begun))
        try:
            fetched = await self._fetch(uid, size)
        except Refused as refusal:
            await self._remember(self._at.with_failed(uid, begun.because(str(refusal))))
            if begun.tries >= self._wishes.fetch_tries:
                await self._give_up(uid, str(refusal))
            return
        if fetched is None:
            self._taken.add(uid)
            await self._remember(self._at.without(uid))
            return
        try:
            await self._accept_all([fetched])
        except Unavailable:  # not its fault
            if uid in self._at.failed:
                with contextlib.suppress(Unavailable):
                    await self._remember(self._at.with_failed(uid, failure))
            raise

    async def _fetch(self, uid: int, size: int | None) -> Fetched | None:
        """None: the message is gone. Raises Refused when the server has it and does not give it."""
        if size is None:
            size = (await self._mailbox.sizes([uid])).get(uid)
        too_large = size is not None and size > self._wishes.max_message_bytes
        first = await self._mailbox.part(uid, 0, _BEGINNING_BYTES if too_large else self._piece_bytes)
        fetched = None
        if first is not None and too_large:
            fetched = Fetched(uid, first, size)
        elif first is not None:
            fetched = Fetched(uid, first) if len(first) < self._piece_bytes else await self._fetch_to_file(uid, first)
        if fetched is None and uid in await self._mailbox.search(f"UID {uid}"):
            raise Refused("the server has the message and does not give it")
        return fetched

    async def _fetch_to_file(self, uid: int, piece: bytes | None) -> Fetched | None:
        path, digest, size, limit = self._context.scratch(), sha256(), 0, self._wishes.max_message_bytes
        try:
            with path.open("wb") as file:
                while piece:
                    kept = piece[: limit - size]
                    await asyncio.to_thread(file.write, kept)
                    digest.update(kept)
                    size += len(kept)
                    # RFC822.SIZE is an estimate at some servers: the end is where a piece is short.
                    if len(kept) < self._piece_bytes:
                        break
                    piece = await self._mailbox.part(uid, size, self._piece_bytes)
            if piece is None:
                path.unlink()
                return None
            return Fetched(uid, BodyFile(path, size, digest.digest()), size if piece and size == limit else None)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    # Accepting them

    async def _accept_all(self, fetched: list[Fetched]) -> None:
        """All at once, the last one after the others: with it the position goes on disk."""
        raws = [await self._raw(one) for one in fetched]
        whole = [one.uid for one in fetched if one.size is None] if self._wishes.after != "nothing" else []
        at = self._at.with_accepted([one.uid for one in fetched], whole)
        try:
            self._hold.check()
            results = await asyncio.gather(*(self._accept(raw) for raw in raws[:-1]), return_exceptions=True)
            for error in results:
                if isinstance(error, BaseException):
                    raise error
            await self._accept(replace(raws[-1], memo={self._key: at.model_dump_json()}))
        except BaseException:
            for one in fetched:
                if isinstance(one.body, BodyFile):
                    one.body.path.unlink(missing_ok=True)
            raise
        self._taken.update(one.uid for one in fetched)
        await self._share(at)
        await self._finish()

    async def _raw(self, fetched: Fetched) -> RawMessage:
        body = fetched.body
        large = isinstance(body, BodyFile) or len(body) > 1 << 16
        native = await asyncio.to_thread(native_id, body) if large else native_id(body)
        facts = self._facts(fetched.uid)
        if self._wishes.authserv_ids:
            facts["authserv_ids"] = list(self._wishes.authserv_ids)
        if reference := self._reference(body):
            facts["reference"] = reference
        if fetched.size is not None:
            facts |= {"size": fetched.size, "truncated": True}
        return RawMessage("rfc5322", body, native, "message/rfc822", facts, fingerprint(native))

    def _facts(self, uid: int) -> dict[str, Any]:
        return {"mailbox": self.name, "uid": uid, "uidvalidity": self._at.validity}

    def _reference(self, body: Body) -> str | None:
        """Of the signed address that we were answered to, if it was one."""
        headers, _ = header_block(_head(body))
        key = self._context.secret("reply-address")
        found = (
            replyaddress.verify(address.address, key)
            for name in _DELIVERED
            for value in headers.all(name)[:5]
            for address in addresses.parse(value, limit=50)
        )
        return next(filter(None, found), None)

    async def _give_up(self, uid: int, reason: str) -> None:
        """An empty message that goes to quarantine in its place; the mail stays where it is."""
        self._log.error("imap.unreadable", uid=uid, reason=reason)
        native = f"unreadable {self.name} {self._at.validity} {uid}"
        facts = self._facts(uid) | {"unreadable": f"UID {uid} of {self.name} cannot be fetched: {reason}"}
        at = self._at.with_accepted([uid], [])
        self._hold.check()
        raw = RawMessage("rfc5322", b"", native, "message/rfc822", facts, native.encode())
        await self._accept(replace(raw, memo={self._key: at.model_dump_json()}))
        self._taken.add(uid)
        await self._share(at)

    # What is done with accepted ones

    async def _finish(self) -> None:
        """Again after a crash: what was done already does no harm, but for a copy that was not noted, of one batch."""
        for uids in _batches(self._at.todo, _TOGETHER) if not self._refusal else ():
            self._hold.check()
            try:
                await self._finish_some(uids)
            except Refused as refusal:  # reading goes on, and this is tried again with the next look
                self._refusal = refusal
                return
            done = set(uids)
            todo, copied = ([uid for uid in some if uid not in done] for some in (self._at.todo, self._at.copied))
            await self._remember(self._at.to(todo=tuple(todo), copied=tuple(copied)))

    async def _finish_some(self, uids: Sequence[int]) -> None:
        wishes, mailbox = self._wishes, self._mailbox
        if wishes.after == "seen":
            await mailbox.mark_seen(uids)
        elif wishes.after == "delete":
            await mailbox.delete(uids)
        elif wishes.after == "move" and mailbox.offers("MOVE"):
            await mailbox.move(uids, wishes.target)
        elif wishes.after == "move":
            if fresh := [uid for uid in uids if uid not in self._at.copied]:
                await mailbox.copy(fresh, wishes.target)
                await self._remember(self._at.to(copied=(*self._at.copied, *fresh)))
            await mailbox.delete(uids)


def _batches(items: Sequence[int], n: int) -> Iterator[Sequence[int]]:
    return (items[start : start + n] for start in range(0, len(items), n))


def _head(body: Body) -> bytes:
    if isinstance(body, BodyFile):
        with body.path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    return body[:_HEAD_BYTES]


def _imap_date(day: date) -> str:
    """RFC 3501, 9: months are English whatever the locale."""
    return f"{day.day}-{_MONTHS[day.month - 1]}-{day.year}"
