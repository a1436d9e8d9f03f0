"""What messages refer to and what was found of it: a table of the spool's database.

A thing wanted is found, or left out of the ticket for a reason; that is decided once, so that a message gives the same
envelope whenever it is published. What was left out only because the ticket could wait no longer is tried for still.
"""

import sqlite3
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from gateway.contract import Wanted
from gateway.journal import Journal

SCHEMA = """
CREATE TABLE IF NOT EXISTS media (
  seq INTEGER NOT NULL, n INTEGER NOT NULL, wanted BLOB NOT NULL, ticket TEXT, conversation TEXT NOT NULL,
  tries INTEGER NOT NULL DEFAULT 0, due REAL, found BLOB, PRIMARY KEY (seq, n)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS media_due ON media (due) WHERE due IS NOT NULL;
"""
_DUE = (
    "SELECT seq, n, wanted, ticket, conversation, media.tries, found IS NOT NULL, id, channel, received_at"
    " FROM media JOIN message USING (seq) WHERE due <= ? AND NOT EXISTS"
    " (SELECT 1 FROM json_each(?) WHERE value = seq || '.' || n)"
    " ORDER BY channel IN (SELECT value FROM json_each(?)), due LIMIT ?"
)
Found = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Due:
    """A thing whose next try has come. `late`: its message went out without it. `since`: when that came.

    `ticket` is the native id of the ticket that an update would belong to; None: there can be none.
    """

    seq: int
    n: int
    wanted: Wanted
    ticket: str | None
    conversation: str
    tries: int
    late: bool
    id: str
    channel: str
    since: float

    @property
    def key(self) -> str:
        """One for each thing."""
        return f"{self.seq}.{self.n}"


class Mediabox:
    """Part of the spool. All methods raise Unavailable. Times are seconds since the epoch."""

    def __init__(self, journal: Journal, clock: Callable[[], float]) -> None:
        self._journal = journal
        self._clock = clock

    async def of(self, seq: int, wanted: Sequence[Wanted], ticket: str | None, conversation: str) -> list[Found | None]:
        """What was found of each thing that a message wants; None is not decided yet. What is new is due now."""

        def job(db: sqlite3.Connection) -> list[Found | None]:
            rows = dict(db.execute("SELECT n, found FROM media WHERE seq = ? ORDER BY n", (seq,)).fetchall())
            now = self._clock()
            new = [
                (seq, n, orjson.dumps(asdict(one)), ticket, conversation, now)
                for n, one in enumerate(wanted)
                if n not in rows
            ]
            columns = "seq, n, wanted, ticket, conversation, due"
            db.executemany(f"INSERT INTO media ({columns}) VALUES (?, ?, ?, ?, ?, ?)", new)  # noqa: S608 - our own
            return [orjson.loads(rows[n]) if rows.get(n) is not None else None for n in range(len(wanted))]

        return await self._journal.run(job)

    async def let_go(self, seq: int, found: Sequence[Found | None]) -> None:
        """Decides what is not decided yet: the ticket waits no longer. The tries go on."""

        def job(db: sqlite3.Connection) -> None:
            for n, one in enumerate(found):
                sql = "UPDATE media SET found = ? WHERE seq = ? AND n = ? AND found IS NULL"
                db.execute(sql, (orjson.dumps(one), seq, n))

        await self._journal.run(job)

    async def due(self, limit: int, busy: Collection[str], channels: Collection[str]) -> list[Due]:
        """Things to be tried for now; `busy` are keys of those in work, whose `channels` come last."""
        values = (self._clock(), _json(busy), _json(channels), limit)
        rows = await self._journal.run(lambda db: db.execute(_DUE, values).fetchall())
        return [
            Due(
                seq, n, Wanted(**orjson.loads(wanted)), ticket, conversation, tries, bool(late), id_, channel, at / 1000
            )
            for seq, n, wanted, ticket, conversation, tries, late, id_, channel, at in rows
        ]

    async def next_due(self) -> float | None:
        """When the next try is due."""
        sql = "SELECT min(due) FROM media WHERE due IS NOT NULL"
        return await self._journal.run(lambda db: db.execute(sql).fetchone()[0])

    async def again(self, thing: Due, due: float) -> None:
        """Another try at that time."""
        sql = "UPDATE media SET tries = tries + 1, due = ? WHERE seq = ? AND n = ?"
        await self._journal.run(lambda db: db.execute(sql, (due, thing.seq, thing.n)))

    async def decide(self, thing: Due, found: Found) -> bool:
        """Ends the tries. A message that waits for nothing else is due; whether it is still to be published.

        False means that the ticket had gone out meanwhile.
        """

        def job(db: sqlite3.Connection) -> bool:
            decided = db.execute(
                "UPDATE media SET found = ?, due = NULL WHERE seq = ? AND n = ? AND found IS NULL",
                (orjson.dumps(found), thing.seq, thing.n),
            ).rowcount
            if decided:
                db.execute(
                    "UPDATE message SET not_before = 0 WHERE seq = ? AND state = 0 AND NOT EXISTS"
                    " (SELECT 1 FROM media WHERE seq = ? AND found IS NULL)",
                    (thing.seq, thing.seq),
                )
            return bool(decided)

        return await self._journal.run(job)

    async def done(self, thing: Due) -> None:
        """Ends the tries for a late one."""
        sql = "UPDATE media SET due = NULL WHERE seq = ? AND n = ?"
        await self._journal.run(lambda db: db.execute(sql, (thing.seq, thing.n)))


def _json(values: Collection[str]) -> str:
    return orjson.dumps(list(values)).decode()
