"""What can still be read of a damaged spool goes on into a new one; the damaged files themselves are only copied."""

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

_LAST = 1 << 62
_SHA256 = 11  # column of a message
_MAX_FAULTS = 100_000  # where nothing can be read, every range is a fault


def salvage(damaged: Path, new: Path, schema: str) -> int:
    """Makes the database `new` with every message of `damaged` that can be read; returns how many those are.

    A draft that lies at `new` is replaced. The new ledger counts the messages that are there, under the names the old
    one used. What the channels memorised is copied as far as it can be read.
    """
    new.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as target:
        return _fill(target, damaged, schema)


def _fill(target: sqlite3.Connection, damaged: Path, schema: str) -> int:
    target.execute("PRAGMA auto_vacuum=INCREMENTAL")
    target.execute("PRAGMA synchronous=FULL")
    target.executescript(schema)
    with tempfile.TemporaryDirectory(dir=damaged.parent) as folder:
        for path in damaged.parent.glob(damaged.name + "*"):
            shutil.copy(path, folder)
        with contextlib.closing(sqlite3.connect(Path(folder) / damaged.name, isolation_level=None)) as source:
            target.execute("BEGIN IMMEDIATE")
            saved = sum(_copy(source, target, seq) for seq in _readable(source))
            _copy_letters(source, target)
            _copy_media(source, target)
            _copy_memory(source, target)
            _count(target)
            target.execute("COMMIT")
    return saved


def _readable(source: sqlite3.Connection) -> Iterator[int]:
    """The numbers of the messages, as far as they can be read: a range that cannot be is halved."""
    ranges = [(0, _LAST)]
    faults = 0
    while ranges and faults < _MAX_FAULTS:
        low, high = ranges.pop()
        try:
            rows = source.execute("SELECT seq FROM message WHERE seq > ? AND seq <= ? ORDER BY seq", (low, high))
            yield from [row[0] for row in rows]
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
                return
            faults += 1
            middle = (low + high) // 2
            if middle > low:
                ranges += [(middle, high), (low, middle)]


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, seq: int) -> bool:
    try:
        message = source.execute("SELECT * FROM message WHERE seq = ?", (seq,)).fetchone()
        body = source.execute("SELECT * FROM body WHERE seq = ?", (seq,)).fetchone()
    except sqlite3.DatabaseError:
        return False
    if message is None or not _insert(target, "message", message):
        return False
    if body and sha256(body[1]).digest() == message[_SHA256]:  # else the message is there, and its body unreadable
        _insert(target, "body", body)
    return True


def _copy_letters(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """As far as they can be read: a customer may miss an acknowledgement, and nobody gets one twice."""
    with contextlib.suppress(sqlite3.DatabaseError):
        for letter in source.execute("SELECT * FROM letter"):
            _insert(target, "letter", letter)


def _copy_media(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.DatabaseError):  # what is lost is fetched again
        for thing in source.execute("SELECT * FROM media"):
            _insert(target, "media", thing)


def _copy_memory(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.DatabaseError):  # damaged, or of a version that had none
        for row in source.execute("SELECT channel, key, value FROM memory"):
            _insert(target, "memory", row)


def _insert(target: sqlite3.Connection, table: str, row: tuple[Any, ...]) -> bool:
    places = ", ".join("?" * len(row))
    try:
        target.execute(f"INSERT INTO {table} VALUES ({places})", row)  # noqa: S608 - a name of ours
    except sqlite3.Error:  # damaged values: of the wrong type, or an id that stands there twice
        return False
    return True


def _count(target: sqlite3.Connection) -> None:
    target.execute("INSERT INTO ledger SELECT channel, 'accepted', count(*) FROM message GROUP BY channel")
    for state, entry in ((1, "published"), (2, "duplicate"), (3, "quarantined")):
        target.execute(
            "INSERT INTO ledger SELECT channel, ?, count(*) FROM message WHERE state = ? GROUP BY channel",
            (entry, state),
        )
    target.execute(
        "INSERT INTO ledger SELECT channel, 'acknowledgement_waiting', count(*) FROM letter"
        " WHERE content IS NOT NULL GROUP BY channel"
    )
