"""The letters that wait to be sent, and for a day those that were: a table of the spool's database.

A letter is written in the transaction in which its message is settled as published for the first time. So there is one
for every such message, whatever happens in between, and none for a message that is published again. What was written
within the last hour is also what the brakes count: they hold over a restart.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import orjson

from gateway.journal import Journal
from gateway.letter import Letter, Suppressed, without_detail

SCHEMA = """
CREATE TABLE IF NOT EXISTS letter (
  seq INTEGER PRIMARY KEY, channel TEXT NOT NULL, sender TEXT NOT NULL, domain TEXT NOT NULL, digest BLOB NOT NULL,
  written_at REAL NOT NULL, tries INTEGER NOT NULL DEFAULT 0, not_before REAL NOT NULL DEFAULT 0, content BLOB
) STRICT;
CREATE INDEX IF NOT EXISTS letter_sender ON letter (sender, written_at);
CREATE INDEX IF NOT EXISTS letter_domain ON letter (domain, written_at);
CREATE INDEX IF NOT EXISTS letter_due ON letter (not_before) WHERE content IS NOT NULL;
"""
# Entries of the ledger; the last two with `:` and a code behind them.
WAITING, SENT = "acknowledgement_waiting", "acknowledgement_sent"
FAILED, SUPPRESSED = "acknowledgement_failed", "acknowledgement_suppressed"
MOST_WAITING = 20_000
_INSERT = (
    "INSERT OR IGNORE INTO letter (seq, channel, sender, domain, digest, written_at, content)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_HOUR, _DAY = 3600.0, 86400.0
Ledger = Callable[[], Mapping[tuple[str, str], int]]
Count = Callable[[str, str, int], None]  # adds to an entry of the ledger: channel, entry, how many


@dataclass(frozen=True, slots=True)
class Waiting:
    """A letter that waits. Times are seconds since the epoch."""

    letter: Letter
    written_at: float
    tries: int


class Letterbox:
    """Part of the spool; `count` adds to its ledger, in the same transaction."""

    def __init__(self, journal: Journal, ledger: Ledger, count: Count, clock: Callable[[], float]) -> None:
        self.arrived = asyncio.Event()
        self._journal = journal
        self._ledger = ledger
        self._count = count
        self._clock = clock

    @property
    def waiting(self) -> int:
        """How many letters are not sent yet, by the last commit."""
        ledger = dict(self._ledger())  # a copy: a commit in its thread may add to it
        return sum(n for (_, entry), n in ledger.items() if entry == WAITING)

    # In: part of a transaction of the spool's

    def put(self, db: sqlite3.Connection, letters: Sequence[Letter | Suppressed]) -> None:
        """Keeps the letters that the brakes let pass, and counts the others."""
        for letter in letters:
            code = letter.code if isinstance(letter, Suppressed) else self._objection(db, letter)
            if code:
                self._count(letter.channel, f"{SUPPRESSED}:{code}", 1)
            elif isinstance(letter, Letter):
                self._insert(db, letter)

    def _objection(self, db: sqlite3.Connection, letter: Letter) -> str:
        sender, domain = _keys(letter)
        now = self._clock()
        same = "SELECT 1 FROM letter WHERE sender = ? AND written_at > ? AND digest = ?"
        if db.execute(same, (sender, now - _DAY, letter.text_digest)).fetchone():
            return "repeated"
        if _written(db, "sender", sender, now - _HOUR) >= letter.max_per_sender:
            return "sender_rate"
        if _written(db, "domain", domain, now - _HOUR) >= letter.max_per_domain:
            return "domain_rate"
        return "full" if self.waiting >= MOST_WAITING else ""

    def _insert(self, db: sqlite3.Connection, letter: Letter) -> None:
        fields = asdict(letter)
        digest = fields.pop("text_digest")
        values = (letter.seq, letter.channel, *_keys(letter), digest, self._clock(), orjson.dumps(fields))
        if db.execute(_INSERT, values).rowcount:
            self._count(letter.channel, WAITING, 1)

    # Out

    async def due(self, limit: int) -> list[Waiting]:
        """Those whose time has come, the oldest first."""
        sql = (
            "SELECT content, written_at, tries FROM letter WHERE content IS NOT NULL AND not_before <= ?"
            " ORDER BY not_before, seq LIMIT ?"
        )
        rows = await self._journal.run(lambda db: db.execute(sql, (self._clock(), limit)).fetchall())
        return [Waiting(_letter(content), written_at, tries) for content, written_at, tries in rows]

    async def next_due(self) -> float | None:
        """When the next letter's time comes; None when none is waiting."""
        sql = "SELECT min(not_before) FROM letter WHERE content IS NOT NULL"
        moment: float | None = await self._journal.run(lambda db: db.execute(sql).fetchone()[0])
        return moment

    async def sent(self, letter: Letter) -> None:
        await self._journal.run(lambda db: self._end(db, letter, SENT))

    async def drop(self, letter: Letter, code: str) -> None:
        """It will never be sent."""
        await self._journal.run(lambda db: self._end(db, letter, f"{FAILED}:{code}"))

    async def postpone(self, letter: Letter, not_before: float) -> None:
        sql = "UPDATE letter SET tries = tries + 1, not_before = ? WHERE seq = ? AND content IS NOT NULL"
        await self._journal.run(lambda db: db.execute(sql, (not_before, letter.seq)))

    async def forget(self) -> None:
        """Deletes what neither waits nor counts any more."""
        sql = "DELETE FROM letter WHERE content IS NULL AND written_at < ?"
        await self._journal.run(lambda db: db.execute(sql, (self._clock() - _DAY,)), slow=True)

    def _end(self, db: sqlite3.Connection, letter: Letter, entry: str) -> None:
        sql = "UPDATE letter SET content = NULL WHERE seq = ? AND content IS NOT NULL"
        if db.execute(sql, (letter.seq,)).rowcount:
            self._count(letter.channel, WAITING, -1)
            self._count(letter.channel, entry, 1)


def _written(db: sqlite3.Connection, column: str, value: str, since: float) -> int:
    sql = f"SELECT count(*) FROM letter WHERE {column} = ? AND written_at > ?"  # noqa: S608 - a name of ours
    return int(db.execute(sql, (value, since)).fetchone()[0])


def _keys(letter: Letter) -> tuple[str, str]:
    """What the brakes count by: the sender and the domain."""
    sender = without_detail(letter.recipient)
    return sender, sender.rpartition("@")[2]


def _letter(content: bytes) -> Letter:
    fields = orjson.loads(content)
    return Letter(**fields | {"references": tuple(fields["references"])})
