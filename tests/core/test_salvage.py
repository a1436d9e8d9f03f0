"""What salvage makes of a damaged database: whole messages, right books, and the damaged files as they were."""

import contextlib
import sqlite3
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gateway import salvage as salvage_module
from gateway.salvage import salvage
from gateway.spool import _SCHEMA

PAGE = 4096


def made(path: Path, n: int = 300) -> None:
    """A spool's database with `n` messages, of which every fourth is in each of the four states."""
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(_SCHEMA)
    db.execute("BEGIN")
    for seq in range(1, n + 1):
        db.execute(
            "INSERT INTO message (seq, id, fingerprint, state, channel, kind, content_type, facts, received_at, size,"
            " sha256) VALUES (?, ?, x'00', ?, ?, 'note', '', x'7b7d', 0, 300, ?)",
            (seq, f"id{seq}", seq % 4, "shop" if seq % 2 else "app", sha256(content(seq)).digest()),
        )
        db.execute("INSERT INTO body VALUES (?, ?)", (seq, content(seq)))
    db.execute("INSERT INTO ledger VALUES ('shop', 'accepted', 999)")
    db.execute("COMMIT")
    db.close()


def content(seq: int) -> bytes:
    return f"{seq} ".encode() * 75


def read(path: Path, sql: str) -> list[tuple[Any, ...]]:
    db = sqlite3.connect(path)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


def test_all_of_a_sound_database_is_saved(tmp_path: Path) -> None:
    made(tmp_path / "old.db")

    assert salvage(tmp_path / "old.db", tmp_path / "new.db", _SCHEMA) == 300

    everything = "SELECT m.*, bytes FROM message m JOIN body USING (seq) ORDER BY seq"
    assert read(tmp_path / "new.db", everything) == read(tmp_path / "old.db", everything)


def test_what_channels_memorised_is_saved(tmp_path: Path) -> None:
    made(tmp_path / "old.db", 1)
    with contextlib.closing(sqlite3.connect(tmp_path / "old.db", isolation_level=None)) as db:
        db.execute("INSERT INTO memory VALUES ('mailbox', 'position INBOX', '7')")

    salvage(tmp_path / "old.db", tmp_path / "new.db", _SCHEMA)

    assert read(tmp_path / "new.db", "SELECT * FROM memory") == [("mailbox", "position INBOX", "7")]


def test_a_database_without_memory_is_saved_as_well(tmp_path: Path) -> None:
    made(tmp_path / "old.db", 4)
    with contextlib.closing(sqlite3.connect(tmp_path / "old.db", isolation_level=None)) as db:
        db.execute("DROP TABLE memory")

    assert salvage(tmp_path / "old.db", tmp_path / "new.db", _SCHEMA) == 4


def test_the_new_books_count_what_is_there(tmp_path: Path) -> None:
    made(tmp_path / "old.db")

    salvage(tmp_path / "old.db", tmp_path / "new.db", _SCHEMA)

    books = {(channel, entry): n for channel, entry, n in read(tmp_path / "new.db", "SELECT * FROM ledger")}
    assert books == {
        ("app", "accepted"): 150,
        ("app", "duplicate"): 75,
        ("shop", "accepted"): 150,
        ("shop", "published"): 75,
        ("shop", "quarantined"): 75,
    }


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_damaged_what_is_saved_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    # given: some pages or some bytes are random
    monkeypatch.setattr(salvage_module, "_MAX_FAULTS", 10_000)
    made(tmp_path / "old.db")
    rng, damaged = Random(seed), bytearray((tmp_path / "old.db").read_bytes())
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(1, len(damaged) // PAGE) * PAGE
        length = rng.choice([1, 16, PAGE])
        damaged[start : start + length] = rng.randbytes(length)
    (tmp_path / "old.db").write_bytes(damaged)

    # when
    saved = salvage(tmp_path / "old.db", tmp_path / "new.db", _SCHEMA)

    # then: a body is the one that came, or is missing
    rows = read(tmp_path / "new.db", "SELECT sha256, bytes FROM message LEFT JOIN body USING (seq)")
    assert saved == len(rows)
    assert all(body is None or sha256(body).digest() == digest for digest, body in rows)
    assert read(tmp_path / "new.db", "PRAGMA integrity_check") == [("ok",)]
    assert (tmp_path / "old.db").read_bytes() == damaged


def test_a_body_that_is_not_the_one_that_came_is_left_out(tmp_path: Path) -> None:
    # given: SQLite itself cannot see such damage
    made(tmp_path / "old.db")
    damaged = (tmp_path / "old.db").read_bytes().replace(content(7), content(7).replace(b"7", b"8"))
    (tmp_path / "old.db").write_bytes(damaged)

    # when
    saved = salvage(tmp_path / "old.db", tmp_path / "new.db", _SCHEMA)

    # then: the message is there, to be looked at by a person
    assert saved == 300
    missing = "SELECT seq FROM message LEFT JOIN body USING (seq) WHERE bytes IS NULL"
    assert read(tmp_path / "new.db", missing) == [(7,)]


def test_nothing_is_left_of_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "old.db").write_bytes(b"no database at all" * 1000)

    assert salvage(tmp_path / "old.db", tmp_path / "new.db", _SCHEMA) == 0

    assert read(tmp_path / "new.db", "SELECT count(*) FROM message") == [(0,)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.db", "old.db"]


def test_what_is_only_in_the_log_is_saved_too(tmp_path: Path) -> None:
    # given: a daemon that was killed before its log went into the database
    db = sqlite3.connect(tmp_path / "old.db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.executescript(_SCHEMA)
    db.execute(
        "INSERT INTO message (id, fingerprint, state, channel, kind, content_type, facts, received_at, size, sha256)"
        " VALUES ('id1', x'00', 0, 'shop', 'note', '', x'7b7d', 0, 0, x'00')"
    )
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("old.db", "old.db-wal"):
        (copy / name).write_bytes((tmp_path / name).read_bytes())
    db.close()

    assert salvage(copy / "old.db", copy / "new.db", _SCHEMA) == 1


def test_a_draft_that_a_crash_left_behind_is_replaced(tmp_path: Path) -> None:
    made(tmp_path / "old.db", 4)
    (tmp_path / "new.db").write_bytes(b"half a draft")

    assert salvage(tmp_path / "old.db", tmp_path / "new.db", _SCHEMA) == 4
