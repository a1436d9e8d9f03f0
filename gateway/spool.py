"""The durable journal: every accepted message, its state, and the quarantine.

    waiting ──> published | duplicate      kept for the grace window, then purged
       └──────> quarantined ──> waiting (retried by an operator) | discarded

Bodies above a threshold are files in `raw/`, synced with their folder before their row commits. The ledger counts every
message by channel and outcome in the same transaction (R6): accepted = published + duplicate + quarantined + waiting
+ discarded.
"""

import asyncio
import contextlib
import os
import sqlite3
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import orjson
import structlog

from gateway.contract import BodyFile, Memory, RawMessage, Receipt, StoredMessage, body_digest, body_size
from gateway.errors import HuiruError, Rejected, Unavailable
from gateway.identity import conflict_id, id_prefix, message_id, reference
from gateway.journal import Damaged, Journal
from gateway.letter import Letter, Suppressed
from gateway.letterbox import SCHEMA as LETTERS
from gateway.letterbox import Letterbox
from gateway.mediabox import SCHEMA as MEDIA
from gateway.mediabox import Mediabox
from gateway.salvage import salvage

log = structlog.get_logger()

WAITING, PUBLISHED, DUPLICATE, QUARANTINED = range(4)
HEAVIER_THAN = 64 << 10  # bytes: a heavy message has more, so that an index can hold the few there are
ROW_BYTES = 512  # what a message costs in the database beside its body, about

_SCHEMA = f"""{LETTERS}{MEDIA}
CREATE TABLE IF NOT EXISTS message (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, fingerprint BLOB NOT NULL, state INTEGER NOT NULL,
  channel TEXT NOT NULL, kind TEXT NOT NULL, native_id TEXT, content_type TEXT NOT NULL, facts BLOB NOT NULL,
  received_at INTEGER NOT NULL, size INTEGER NOT NULL, sha256 BLOB NOT NULL, conflict_with TEXT,
  tries INTEGER NOT NULL DEFAULT 0, not_before REAL NOT NULL DEFAULT 0, settled_at REAL, code TEXT, reason TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS waiting ON message (seq) WHERE state = 0;
CREATE INDEX IF NOT EXISTS heavy ON message (seq) WHERE state = 0 AND size > {HEAVIER_THAN};
CREATE INDEX IF NOT EXISTS quarantined ON message (seq) WHERE state = 3;
CREATE TABLE IF NOT EXISTS body (seq INTEGER PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS ledger (
  channel TEXT NOT NULL, entry TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (channel, entry)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS memo (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS memory (
  channel TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (channel, key)
) STRICT, WITHOUT ROWID;
"""
_FIELDS = (
    "seq, id, channel, kind, content_type, native_id, facts, received_at, size, sha256, fingerprint, conflict_with,"
    " tries, code, reason"
)
_COLUMNS = f"{_FIELDS} FROM message"
_COLUMNS_AND_BODY = f"{_FIELDS}, bytes FROM message LEFT JOIN body USING (seq)"
_MEMORISE = "INSERT INTO memo VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
_REMEMBER = "INSERT INTO memory VALUES (?, ?, ?) ON CONFLICT (channel, key) DO UPDATE SET value = excluded.value"
_FORGET = "DELETE FROM memory WHERE channel = ? AND key = ?"
_KNOWN = "SELECT id FROM message WHERE id IN (SELECT value FROM json_each(?))"
_INSERT_MESSAGES = (
    "INSERT INTO message (seq, id, fingerprint, state, channel, kind, native_id, content_type, facts, received_at,"
    " size, sha256, conflict_with) VALUES"
)
_INSERT_BODIES = "INSERT INTO body (seq, bytes) VALUES"
_MOST_ROWS = 256  # in one INSERT: SQLite takes 32,766 values (sqlite.org/limits.html)
_UNKNOWN = "no message has this id or reference"
NEWEST = "newest"  # memo: id of the newest stream entry that Redis acknowledged


@dataclass(frozen=True, slots=True)
class Entry:
    """A message on its way into the spool."""

    id: str
    fingerprint: bytes
    channel: str
    raw: RawMessage
    facts: bytes
    received_at: datetime
    sha256: bytes
    conflict_with: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A message as the spool holds it. `message.body` is empty unless the body was asked for."""

    seq: int
    message: StoredMessage
    size: int
    sha256: bytes
    fingerprint: bytes
    conflict_with: str | None
    tries: int
    code: str | None
    reason: str | None
    fault: str | None = None  # why the body cannot be read
    file: Path | None = None  # where the body lies, of a heavy message; then `message.body` is empty


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a row. `settled` in PUBLISHED, DUPLICATE or QUARANTINED; or WAITING, to be tried again later."""

    seq: int
    channel: str
    state: int
    code: str = ""
    reason: str = ""
    not_before: float = 0
    counts_as_try: bool = False


def entry(source: str, channel: str, raw: RawMessage, received_at: datetime) -> Entry:
    """The message with its identity (R3). `source` is the channel's CloudEvents source."""
    digest = body_digest(raw.body)
    fingerprint = raw.fingerprint or digest
    id_ = message_id(source, raw.native_id, fingerprint)
    return Entry(id_, fingerprint, channel, raw, orjson.dumps(raw.facts), received_at, digest)


class Spool:
    """All methods but `open` are for the event loop's thread. Times are seconds since the epoch."""

    def __init__(self, folder: Path, *, inline_bytes: int = 64 << 10, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self.incoming = folder / "incoming"
        self._raw = folder / "raw"
        self._path = folder / "spool.db"
        self._draft = folder / "salvaged.db"  # of a new database, in the place of a damaged one
        self._inline_bytes = inline_bytes
        self._clock = clock
        self.ledger: Counter[tuple[str, str]] = Counter()
        self._changes: Counter[tuple[str, str]] = Counter()
        self._last_seq = 0
        self.bytes = 0
        self._bytes_change = 0
        self._raw_changed = False  # a file was moved into it since its last sync
        self._linked: list[Path] = []  # files no row refers to if the transaction is rolled back
        self._obsolete: list[Path] = []  # files no row refers to once it commits
        self.last_message: dict[str, float] = {}  # channel -> when its newest message came
        self.damaged: Path | None = None
        self._journal = Journal(
            self._path,
            _SCHEMA,
            put_all=self._put_all,
            before_commit=self._write_ledger,
            sync=self._sync_files,
            settled=self._settle_ledger,
            opened=self._opened,
            replace=self._replace_damaged,
        )
        self.letters = Letterbox(
            self._journal,
            ledger=lambda: self.ledger,
            count=lambda channel, name, n: self._count(channel, **{name: n}),
            clock=clock,
        )
        self.media = Mediabox(self._journal, clock)

    # Life

    def open(self) -> None:
        """Makes the folder, opens the database; a damaged one is set aside, its bytes kept.

        Raises Unavailable when another process holds the spool.
        """
        for folder in (self.incoming, self._raw):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            self._open_journal()
        except sqlite3.OperationalError as error:
            raise Unavailable(reason=f"the spool {self._path} cannot be opened: {error}") from error
        for orphan in self.incoming.iterdir():  # requests that were never accepted
            orphan.unlink()
        self._remove_raw_orphans()

    def _remove_raw_orphans(self) -> None:
        """Files whose row was never committed, or is gone. Beside a damaged database they may be all there is."""
        if any(self.folder.glob("damaged-*")):
            return
        db = self._journal.connection
        for path in self._raw.iterdir():
            if not db.execute("SELECT 1 FROM message WHERE id = ?", (path.name,)).fetchone():
                path.unlink()

    def _open_journal(self) -> None:
        if self._draft.exists() and not self._path.exists():  # a crash at the end of _replace_damaged
            self._draft.rename(self._path)
        try:
            self._journal.open()
        except Damaged as error:
            log.critical("spool.damaged", path=str(self._path), error=str(error))
            self._journal.reopen()

    async def close(self) -> None:
        await self._journal.close()

    @property
    def healthy(self) -> bool:
        """Whether the last commit went well."""
        return self._journal.healthy

    # In

    async def put(self, entry: Entry) -> Receipt:
        """The receipt, once the message is on disk.

        Raises Unavailable("spool_failed"), and Rejected("idempotency_mismatch") for a message with `on_conflict`
        "refuse" whose native id is known with other content.
        """
        body = entry.raw.body
        receipt: Receipt
        try:
            if isinstance(body, BodyFile):
                await asyncio.to_thread(_sync, body.path)
                receipt = await self._journal.put(entry)
                body.path.unlink(missing_ok=True)
            elif len(body) > self._inline_bytes:
                receipt = await self._put_as_file(entry, body)
            else:
                receipt = await self._journal.put(entry)
        except OSError as error:
            raise Unavailable("spool_failed", reason=str(error)) from error
        return receipt

    async def _put_as_file(self, entry: Entry, body: bytes) -> Receipt:
        file = BodyFile(self.incoming / uuid.uuid4().hex, len(body), entry.sha256)
        try:
            await asyncio.to_thread(_write, file.path, body)
            receipt: Receipt = await self._journal.put(replace(entry, raw=replace(entry.raw, body=file)))
        finally:
            file.path.unlink(missing_ok=True)
        return receipt

    def _put_all(self, db: sqlite3.Connection, entries: list[Entry]) -> list[Receipt | HuiruError]:
        known = {row[0] for row in db.execute(_KNOWN, (_json([entry.id for entry in entries]),))}
        new: dict[str, Entry] = {}
        for entry in entries:
            if entry.id not in known:
                new.setdefault(entry.id, entry)
        self._insert(db, list(new.values()))
        results = [
            Receipt(entry.id, reference(entry.id)) if new.get(entry.id) is entry else self._put_known(db, entry)
            for entry in entries
        ]
        for entry, result in zip(entries, results, strict=True):
            if entry.raw.memo and isinstance(result, Receipt):
                _remember(db, entry.channel, entry.raw.memo)
        return results

    def _put_known(self, db: sqlite3.Connection, entry: Entry) -> Receipt | HuiruError:
        """An entry whose id is in the spool: the same message again, or another under its native id."""
        fingerprint = db.execute("SELECT fingerprint FROM message WHERE id = ?", (entry.id,)).fetchone()[0]
        if fingerprint == entry.fingerprint:
            return self._again(entry)
        if entry.raw.on_conflict == "refuse":
            return Rejected("idempotency_mismatch")
        other = replace(entry, id=conflict_id(entry.id, entry.fingerprint), conflict_with=entry.id)
        if db.execute("SELECT 1 FROM message WHERE id = ?", (other.id,)).fetchone():
            return self._again(other)
        self._insert(db, [other])
        return Receipt(other.id, reference(other.id))

    def _again(self, entry: Entry) -> Receipt:
        self._count(entry.channel, accepted=1, duplicate=1)
        return Receipt(entry.id, reference(entry.id), duplicate=True)

    def _insert(self, db: sqlite3.Connection, entries: list[Entry]) -> None:
        rows: list[tuple[Any, ...]] = []
        bodies: list[tuple[int, bytes]] = []
        for entry in entries:
            self._last_seq += 1
            rows.append(_values(self._last_seq, entry))
            body = entry.raw.body
            if isinstance(body, BodyFile):
                self._take_over(body, entry.id)
            else:
                bodies.append((self._last_seq, body))
            self._count(entry.channel, accepted=1)
            self.last_message[entry.channel] = entry.received_at.timestamp()
            self._bytes_change += body_size(body) + ROW_BYTES
        _insert_all(db, _INSERT_MESSAGES, rows)
        _insert_all(db, _INSERT_BODIES, bodies)

    def _take_over(self, body: BodyFile, id_: str) -> None:
        self._link(body.path, self._raw / id_)
        self._raw_changed = True

    def _link(self, source: Path, target: Path) -> None:
        # Not moved: if this is rolled back, the next try needs it where it was.
        target.unlink(missing_ok=True)
        target.hardlink_to(source)
        self._linked.append(target)

    # Out

    async def claim(self, limit: int, max_bytes: int, largest: int = sys.maxsize) -> list[Row]:
        """The oldest waiting rows whose time has come, with their bodies.

        At most `limit`, and at most `max_bytes` of bodies unless the first alone is larger; none above `largest`.
        """
        where = "state = 0 AND size <= ? AND not_before <= ? ORDER BY seq LIMIT ?"
        return await self._journal.run(lambda db: self._rows(db, where, (largest, self._clock(), limit), max_bytes))

    async def claim_heavy(self, limit: int, above: int, busy: Mapping[int, str]) -> list[Row]:
        """Waiting rows larger than that (and than HEAVIER_THAN) whose time has come; each says where its body lies.

        `busy` are those in work, seq -> channel: they are left out, and their channels come after all others.
        """
        where = (
            f"state = 0 AND size > {HEAVIER_THAN} AND size > ? AND not_before <= ?"  # noqa: S608 - our own number
            " AND seq NOT IN (SELECT value FROM json_each(?))"
            " ORDER BY channel IN (SELECT value FROM json_each(?)), seq LIMIT ?"
        )
        values = (above, self._clock(), _json(list(busy)), _json(list(busy.values())), limit)
        return await self._journal.run(lambda db: [self._located(db, row) for row in self._rows(db, where, values)])

    async def published_since(self, moment: float, after: int, limit: int, max_bytes: int) -> list[Row]:
        """Rows published at or after `moment`, in order from `after`, with their bodies, to be published again."""
        where = "seq > ? AND state = 1 AND settled_at >= ? ORDER BY seq LIMIT ?"
        return await self._journal.run(lambda db: self._rows(db, where, (after, moment, limit), max_bytes))

    async def settle(
        self, outcomes: Sequence[Outcome], *, newest: str = "", letters: Sequence[Letter | Suppressed] = ()
    ) -> None:
        """Records what became of rows that were waiting, and the newest entry that Redis acknowledged.

        `letters` are those about rows that are published now; a row that was settled before gets none.
        """

        def job(db: sqlite3.Connection) -> None:
            if letters:
                self.letters.put(db, self._of_waiting(db, letters))
            for state in (PUBLISHED, DUPLICATE):
                self._settle_all(db, state, [outcome.seq for outcome in outcomes if outcome.state == state])
            for outcome in outcomes:
                if outcome.state in (WAITING, QUARANTINED):
                    self._settle(db, outcome)
            if newest:
                db.execute(_MEMORISE, (NEWEST, newest))

        await self._journal.run(job)
        if letters:
            self.letters.arrived.set()

    def _of_waiting(self, db: sqlite3.Connection, letters: Sequence[Letter | Suppressed]) -> list[Letter | Suppressed]:
        sql = "SELECT seq FROM message WHERE state = 0 AND seq IN (SELECT value FROM json_each(?))"
        waiting = {seq for (seq,) in db.execute(sql, (_json([letter.seq for letter in letters]),))}
        return [letter for letter in letters if letter.seq in waiting]

    def _settle_all(self, db: sqlite3.Connection, state: int, seqs: list[int]) -> None:
        if not seqs:
            return
        those = "seq IN (SELECT value FROM json_each(?)) AND state = 0"
        counts = db.execute(f"SELECT channel, count(*) FROM message WHERE {those} GROUP BY channel", (_json(seqs),))  # noqa: S608
        for channel, n in counts.fetchall():
            self._count(channel, **{"published" if state == PUBLISHED else "duplicate": n})
        db.execute(
            f"UPDATE message SET state = ?, settled_at = ?, code = NULL, reason = NULL WHERE {those}",  # noqa: S608
            (state, self._clock(), _json(seqs)),
        )

    def _settle(self, db: sqlite3.Connection, outcome: Outcome) -> None:
        """Back to waiting, or into quarantine."""
        settled_at = None if outcome.state == WAITING else self._clock()
        done = db.execute(
            "UPDATE message SET state = ?, code = ?, reason = ?, not_before = ?, tries = tries + ?, settled_at = ?"
            " WHERE seq = ? AND state = 0",
            (
                outcome.state,
                outcome.code or None,
                outcome.reason or None,
                outcome.not_before,
                outcome.counts_as_try,
                settled_at,
                outcome.seq,
            ),
        ).rowcount
        if done and outcome.state == QUARANTINED:
            self._count(outcome.channel, **{"quarantined": 1, f"quarantined_total:{outcome.code}": 1})

    async def mark_conflict(self, row: Row) -> None:
        """Gives a waiting row whose id the stream knows with other content an id of its own (R5).

        If that id is in the spool already, the row is a duplicate.
        """

        def job(db: sqlite3.Connection) -> None:
            old, new = row.message.id, conflict_id(row.message.id, row.fingerprint)
            if db.execute("SELECT 1 FROM message WHERE id = ?", (new,)).fetchone():
                self._settle_all(db, DUPLICATE, [row.seq])
                return
            if (self._raw / old).exists():
                self._link(self._raw / old, self._raw / new)
                self._obsolete.append(self._raw / old)
            db.execute("UPDATE message SET id = ?, conflict_with = ? WHERE seq = ?", (new, old, row.seq))

        await self._journal.run(job)

    def _rows(
        self, db: sqlite3.Connection, where: str, values: tuple[Any, ...], max_body_bytes: int | None = None
    ) -> list[Row]:
        rows: list[Row] = []
        total = 0
        what = _COLUMNS if max_body_bytes is None else _COLUMNS_AND_BODY
        for found in db.execute(f"SELECT {what} WHERE {where}", values):
            total += found[8]
            if max_body_bytes is not None and rows and total > max_body_bytes:
                break
            rows.append(self._row(*found))
        return rows

    def _row(  # in the order of _FIELDS
        self,
        seq: int,
        id_: str,
        channel: str,
        kind: str,
        content_type: str,
        native_id: str | None,
        facts: bytes,
        received_at: int,
        size: int,
        sha256: bytes,
        fingerprint: bytes,
        conflict_with: str | None,
        tries: int,
        code: str | None,
        reason: str | None,
        body: bytes | None = b"",
    ) -> Row:
        fault = None
        if body is None:
            body, fault = self._body_file(id_)
        moment = datetime.fromtimestamp(received_at / 1000, UTC)
        message = StoredMessage(id_, channel, kind, body, content_type, native_id, orjson.loads(facts), moment)
        return Row(seq, message, size, sha256, fingerprint, conflict_with, tries, code, reason, fault)

    def _located(self, db: sqlite3.Connection, row: Row) -> Row:
        inline = db.execute("SELECT bytes FROM body WHERE seq = ?", (row.seq,)).fetchone()
        if inline:
            return replace(row, message=replace(row.message, body=inline[0]))
        return replace(row, file=self._raw / row.message.id)

    def _body_file(self, id_: str) -> tuple[bytes, str | None]:
        try:
            return (self._raw / id_).read_bytes(), None
        except OSError as error:
            return b"", str(error)

    # For operators

    async def find(self, text: str, *, state: int | None = None, with_body: bool = False) -> Row:
        """The message with this id, reference, or unique beginning of either, in any state or in this one.

        Raises Rejected: `not_found`, or `conflict` when there are several.
        """
        prefix = id_prefix(text)
        if not prefix or not prefix.isascii():
            raise Rejected("not_found", _UNKNOWN)

        def job(db: sqlite3.Connection) -> Row:
            # In the order of the index: "~" comes after every character of an id.
            where = "id >= ? AND id < ? AND state = coalesce(?, state) LIMIT 2"
            rows = self._rows(db, where, (prefix, prefix + "~", state), sys.maxsize if with_body else None)
            if not rows:
                raise Rejected("not_found", _UNKNOWN)
            if len(rows) > 1:
                raise Rejected("conflict", "more than one message begins like this")
            return rows[0]

        return await self._journal.run(job)

    async def count_published_since(self, moment: float) -> int:
        """How many messages were published at or after that moment and are still kept."""
        sql = "SELECT count(*) FROM message WHERE state = 1 AND settled_at >= ?"
        return await self._journal.run(lambda db: int(db.execute(sql, (moment,)).fetchone()[0]), slow=True)

    async def quarantined(self, channel: str | None, limit: int, offset: int) -> list[Row]:
        """The quarantine, oldest first, without bodies."""
        where = "state = 3 AND (? IS NULL OR channel = ?) ORDER BY seq LIMIT ? OFFSET ?"
        return await self._journal.run(lambda db: self._rows(db, where, (channel, channel, limit, offset)), slow=True)

    async def retry(self, seq: int | None) -> int:
        """Puts one quarantined message, or all of them, back to waiting. Returns how many."""

        def job(db: sqlite3.Connection) -> int:
            counts = db.execute(
                "SELECT channel, count(*) FROM message WHERE state = 3 AND (? IS NULL OR seq = ?) GROUP BY channel",
                (seq, seq),
            ).fetchall()
            db.execute(
                "UPDATE message SET state = 0, tries = 0, not_before = 0, settled_at = NULL, code = NULL, reason = NULL"
                " WHERE state = 3 AND (? IS NULL OR seq = ?)",
                (seq, seq),
            )
            for channel, n in counts:
                self._count(channel, quarantined=-n)
            return sum(n for _, n in counts)

        return await self._journal.run(job, slow=True)

    async def discard(self, row: Row) -> None:
        """Forgets a quarantined message and its bytes, for good. Raises Rejected("conflict") if it is not there."""

        def job(db: sqlite3.Connection) -> None:
            if not db.execute("SELECT 1 FROM message WHERE seq = ? AND state = 3", (row.seq,)).fetchone():
                raise Rejected("conflict", "this message is not in quarantine")
            self._count(row.message.channel, quarantined=-1, discarded=1)
            self._delete(db, row.seq, row.message.id, row.size)

        await self._journal.run(job)

    # Memory of the channels

    def memory(self, channel: str) -> Memory:
        """What a channel is lent of it."""
        return _ChannelMemory(self, channel)

    def scratch(self) -> Path:
        """A path for the file of a body that is to be put; what lies there is deleted at the next start."""
        return self.incoming / uuid.uuid4().hex

    async def recall_for(self, channel: str) -> dict[str, str]:
        """What a channel memorised, by itself or with its messages."""
        sql = "SELECT key, value FROM memory WHERE channel = ?"
        return await self._journal.run(lambda db: dict(db.execute(sql, (channel,)).fetchall()))

    async def memorise_for(self, channel: str, values: Mapping[str, str | None]) -> None:
        """None deletes."""
        await self._journal.run(lambda db: _remember(db, channel, values))

    # Memory of the publisher, and care

    async def recall(self) -> dict[str, str]:
        """What was memorised."""
        return await self._journal.run(lambda db: dict(db.execute("SELECT key, value FROM memo").fetchall()))

    async def memorise(self, values: Mapping[str, str]) -> None:
        await self._journal.run(lambda db: db.executemany(_MEMORISE, list(values.items())))

    async def purge(self, settled_before: float, after: int = 0, limit: int = 500) -> int | None:
        """Deletes settled rows older than that among the next `limit`; returns where to go on, or None at the end."""

        def job(db: sqlite3.Connection) -> int | None:
            rows = db.execute(
                "SELECT seq, id, size, state, settled_at FROM message WHERE seq > ? ORDER BY seq LIMIT ?",
                (after, limit),
            ).fetchall()
            for seq, id_, size, state, settled_at in rows:
                if state in (PUBLISHED, DUPLICATE) and settled_at < settled_before:
                    self._delete(db, seq, id_, size)
            db.execute(f"PRAGMA incremental_vacuum({limit})").fetchall()
            return rows[-1][0] if len(rows) == limit else None

        return await self._journal.run(job, slow=True)

    def _delete(self, db: sqlite3.Connection, seq: int, id_: str, size: int) -> None:
        db.execute("DELETE FROM message WHERE seq = ?", (seq,))
        db.execute("DELETE FROM media WHERE seq = ?", (seq,))
        if not db.execute("DELETE FROM body WHERE seq = ?", (seq,)).rowcount:
            self._obsolete.append(self._raw / id_)
        self._bytes_change -= size + ROW_BYTES

    # The ledger

    def waiting(self, channel: str) -> int:
        """How many messages of a channel are neither published nor otherwise settled."""
        counts = self.ledger
        settled = sum(counts[channel, name] for name in ("published", "duplicate", "quarantined", "discarded"))
        return counts[channel, "accepted"] - settled

    def _count(self, channel: str, **entries: int) -> None:
        for name, n in entries.items():
            self._changes[channel, name] += n

    def _opened(self, db: sqlite3.Connection) -> None:
        self._read_ledger(db)
        for path in self._raw.iterdir():
            if db.execute("SELECT 1 FROM message WHERE id = ?", (path.name,)).fetchone():
                continue
            if self.damaged:  # its row may have been lost with the damaged database: all that is left of a message
                path.rename(self.damaged / path.name)
            else:  # of a commit that did not come to its end
                path.unlink()

    def _read_ledger(self, db: sqlite3.Connection) -> None:
        self.ledger = Counter({(channel, name): n for channel, name, n in db.execute("SELECT * FROM ledger")})
        # Numbers are not used twice: a row's mark in Redis outlives the row.
        self._last_seq = db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").fetchone()[0]
        newest = db.execute("SELECT channel, max(received_at) / 1000.0 FROM message GROUP BY channel")
        self.last_message.update(newest.fetchall())
        self.bytes = db.execute("SELECT coalesce(sum(size + ?), 0) FROM message", (ROW_BYTES,)).fetchone()[0]

    def _sync_files(self) -> None:
        if self._raw_changed:
            _sync(self._raw)
            self._raw_changed = False

    def _write_ledger(self, db: sqlite3.Connection) -> None:
        db.executemany(
            "INSERT INTO ledger VALUES (?, ?, ?) ON CONFLICT (channel, entry) DO UPDATE SET n = n + excluded.n",
            [(channel, name, n) for (channel, name), n in self._changes.items()],
        )

    def _settle_ledger(self, committed: bool) -> None:
        if committed:
            for key, n in self._changes.items():
                self.ledger[key] += n
            self.bytes += self._bytes_change
        for path in self._obsolete if committed else self._linked:
            with contextlib.suppress(OSError):  # the next start tries again
                path.unlink()
        self._changes.clear()
        self._linked.clear()
        self._obsolete.clear()
        self._bytes_change = 0

    # Damage

    def _replace_damaged(self) -> None:
        """Moves the database aside, its bytes kept, and starts a new one with what can be read of the old.

        Nothing has been moved when it fails; so it can be tried again.
        """
        stamp = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y%m%dT%H%M%S%f")
        aside = self.folder / f"damaged-{stamp}"
        saved = salvage(self._path, self._draft, _SCHEMA)
        _sync(self._draft)
        aside.mkdir()
        for path in self.folder.glob("spool.db*"):
            path.rename(aside / path.name)
        self._draft.rename(self._path)
        _sync(self.folder)
        self.damaged = aside
        log.critical("spool.replaced", aside=str(aside), saved=saved)


class _ChannelMemory(Memory):
    def __init__(self, spool: Spool, channel: str) -> None:
        self._spool = spool
        self._channel = channel

    async def recall(self) -> Mapping[str, str]:
        return await self._spool.recall_for(self._channel)

    async def memorise(self, values: Mapping[str, str | None], /) -> None:
        await self._spool.memorise_for(self._channel, values)


def _remember(db: sqlite3.Connection, channel: str, values: Mapping[str, str | None]) -> None:
    kept = [(channel, key, value) for key, value in values.items() if value is not None]
    db.executemany(_REMEMBER, kept)
    db.executemany(_FORGET, [(channel, key) for key, value in values.items() if value is None])


def _values(seq: int, entry: Entry) -> tuple[Any, ...]:
    raw = entry.raw
    return (
        seq,
        entry.id,
        entry.fingerprint,
        WAITING,
        entry.channel,
        raw.kind,
        raw.native_id,
        raw.content_type,
        entry.facts,
        int(entry.received_at.timestamp() * 1000),
        body_size(raw.body),
        entry.sha256,
        entry.conflict_with,
    )


def _insert_all(db: sqlite3.Connection, insert: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """By statements of 256, 128, 64 … rows: few of them, and few different ones to prepare."""
    size, at = _MOST_ROWS, 0
    while at < len(rows):
        while size > len(rows) - at:
            size //= 2
        places = f"({', '.join('?' * len(rows[0]))})"
        db.execute(f"{insert} {', '.join([places] * size)}", list(chain.from_iterable(rows[at : at + size])))
        at += size


def _json(values: Sequence[Any]) -> str:
    return orjson.dumps(values).decode()


def _write(path: Path, body: bytes) -> None:
    path.write_bytes(body)
    _sync(path)


def _sync(path: Path) -> None:
    """fsync of a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
