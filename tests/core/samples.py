"""Messages for the tests of the core, and the audit that every spool has to pass."""

import sqlite3
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from gateway.contract import Body, BodyFile, RawMessage
from gateway.spool import PUBLISHED, ROW_BYTES, Entry, Outcome, Row, Spool, entry

NOW = datetime(2026, 11, 23, 9, tzinfo=UTC)
MIB = 1 << 20
EVERYTHING = 1 << 40


def sample(native_id: str | None = "n1", body: Body = b"hello", *, channel: str = "shop", **more: Any) -> Entry:
    """A message as the intake hands it to the spool."""
    raw = RawMessage(more.pop("kind", "note"), body, native_id, **more)
    return entry(f"/acme/{channel}", channel, raw, NOW)


def body_file(spool: Spool, content: bytes) -> BodyFile:
    """A body that came as a file, as the web listener leaves it."""
    path = spool.incoming / uuid.uuid4().hex
    path.write_bytes(content)
    return BodyFile(path, len(content), sha256(content).digest())


async def waiting(spool: Spool, limit: int = 1000) -> list[Row]:
    return await spool.claim(limit, EVERYTHING)


async def publish(spool: Spool, *rows: Row) -> None:
    await spool.settle([Outcome(row.seq, row.message.channel, PUBLISHED) for row in rows])


async def query(spool: Spool, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """What the database itself says, by the connection that owns it."""
    job: Callable[[sqlite3.Connection], list[tuple[Any, ...]]] = lambda db: db.execute(sql, values).fetchall()  # noqa: E731
    return await spool._journal.run(job)


async def audit(spool: Spool) -> None:
    """The books of a spool agree with what lies in it (R6)."""
    rows = await query(
        spool, "SELECT m.id, channel, state, size, bytes IS NOT NULL FROM message m LEFT JOIN body USING (seq)"
    )
    stored = {(channel, name): n for channel, name, n in await query(spool, "SELECT * FROM ledger") if n}
    assert {key: n for key, n in spool.ledger.items() if n} == stored
    for channel in {channel for channel, _ in stored} | {row[1] for row in rows}:
        by_state = [sum(row[1:3] == (channel, state) for row in rows) for state in range(4)]
        assert spool.waiting(channel) == by_state[0]
        assert spool.ledger[channel, "published"] >= by_state[1]
        assert spool.ledger[channel, "duplicate"] >= by_state[2]
        assert spool.ledger[channel, "quarantined"] == by_state[3]
    assert spool.bytes == sum(row[3] + ROW_BYTES for row in rows)
    assert {path.name for path in (spool.folder / "raw").iterdir()} == {row[0] for row in rows if not row[4]}
