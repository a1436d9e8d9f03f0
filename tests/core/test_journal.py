"""The journal under load and on a failing disk: group commit, honest answers, and a way back."""

import asyncio
import functools
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway import journal
from gateway.contract import Receipt
from gateway.errors import Rejected, Unavailable
from gateway.spool import ROW_BYTES, Spool
from tests.core.samples import EVERYTHING, MIB, body_file, publish, query, sample, waiting

MakeSpool = Callable[..., Spool]
ROOT = Path(__file__).parents[2]
PAGE = 4096


async def put_all(spool: Spool, names: list[str], body: bytes = b"hello") -> list[Receipt | BaseException]:
    """What becomes of messages that come at the same time."""
    return await asyncio.gather(*(spool.put(sample(name, body)) for name in names), return_exceptions=True)


async def natives(spool: Spool) -> list[str | None]:
    return [row.message.native_id for row in await waiting(spool)]


# --- group commit -----------------------------------------------------------------------------------------------------


async def test_messages_that_come_together_share_a_commit(spool: Spool) -> None:
    statements: list[str] = []
    spool._journal.connection.set_trace_callback(statements.append)

    receipts = await put_all(spool, [f"n{n}" for n in range(400)])

    assert len({receipt.id for receipt in receipts if isinstance(receipt, Receipt)}) == 400
    assert statements.count("COMMIT") <= 3


async def test_messages_that_come_during_a_commit_share_the_next(spool: Spool) -> None:
    statements: list[str] = []
    spool._journal.connection.set_trace_callback(statements.append)

    async def sender(n: int) -> None:
        for m in range(10):
            await spool.put(sample(f"n{n}-{m}"))

    await asyncio.gather(*(sender(n) for n in range(30)))

    assert len(await waiting(spool)) == 300
    assert statements.count("COMMIT") < 60


async def test_more_than_a_batch_is_taken_in_batches(spool: Spool) -> None:
    receipts = await put_all(spool, [f"n{n}" for n in range(2 * journal.BATCH + 7)])

    assert all(isinstance(receipt, Receipt) for receipt in receipts)
    assert await query(spool, "SELECT count(*) FROM message") == [(2 * journal.BATCH + 7,)]


async def test_a_defective_job_does_not_hurt_its_neighbours(spool: Spool) -> None:
    def defective(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM message")
        raise ZeroDivisionError

    before, failed, after = await asyncio.gather(
        spool.put(sample("n1")), spool._journal.run(defective), spool.put(sample("n2")), return_exceptions=True
    )

    assert isinstance(before, Receipt)
    assert isinstance(after, Receipt)
    assert isinstance(failed, Unavailable)
    assert failed.code == "spool_failed"
    assert await natives(spool) == ["n1", "n2"]
    assert spool.healthy


async def test_a_wrong_statement_does_not_hurt_its_neighbours(spool: Spool) -> None:
    put, failed = await asyncio.gather(
        spool.put(sample()), spool._journal.run(lambda db: db.execute("SELECT nonsense")), return_exceptions=True
    )

    assert isinstance(put, Receipt)
    assert isinstance(failed, Unavailable)
    assert await natives(spool) == ["n1"]


async def test_a_job_that_refuses_says_why_and_nobody_else_is_concerned(spool: Spool) -> None:
    def refuse(db: sqlite3.Connection) -> None:
        raise Rejected("conflict", "not like this")

    put, refused = await asyncio.gather(spool.put(sample()), spool._journal.run(refuse), return_exceptions=True)

    assert isinstance(put, Receipt)
    assert isinstance(refused, Rejected)
    assert refused.public == "not like this"


# --- a disk that is full ----------------------------------------------------------------------------------------------


async def set_max_pages(spool: Spool, pages: int) -> None:
    await spool._journal.run(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchall())


async def test_a_full_disk_refuses_and_recovers(spool: Spool) -> None:
    # given: room for a few more
    await put_all(spool, ["first"])
    ((pages,),) = await query(spool, "PRAGMA page_count")
    await set_max_pages(spool, pages + 2)

    # when
    refused = await put_all(spool, [f"n{n}" for n in range(20)], b"x" * 2000)

    # then: nobody is told yes, by a temporary error, and nothing is there
    assert {getattr(error, "code", None) for error in refused} == {"spool_failed"}
    assert all(isinstance(error, Unavailable) for error in refused)
    assert not spool.healthy
    assert await natives(spool) == ["first"]

    # when there is room again, then it goes on
    await set_max_pages(spool, 1 << 30)
    accepted = await put_all(spool, [f"n{n}" for n in range(20)], b"x" * 2000)
    assert all(isinstance(receipt, Receipt) and not receipt.duplicate for receipt in accepted)
    assert spool.healthy


FILE_LIMIT = """
import asyncio, json, pathlib, resource, sys
sys.path.insert(0, ".")
from gateway.errors import Unavailable
from gateway.spool import Spool
from tests.core.samples import audit, body_file, sample, waiting

async def main():
    spool = Spool(pathlib.Path(sys.argv[1]))
    spool.open()
    await spool.put(sample("first"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    told = {}
    for n in range(60):
        large = n % 10 == 0
        try:
            await spool.put(sample(f"n{n}", b"x" * (2 << 20 if large else 60_000)))
            told[f"n{n}"] = "yes"
        except Unavailable as error:
            told[f"n{n}"] = error.code
    left = len(list(spool.incoming.iterdir()))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    later = await spool.put(sample("later", b"x" * (2 << 20)))
    await audit(spool)
    await spool.close()
    print(json.dumps({"told": told, "left": left}))

asyncio.run(main())
"""


async def test_a_disk_that_takes_no_more_is_survived_and_every_yes_was_true(
    tmp_path: Path, make_spool: MakeSpool
) -> None:
    # given a process that may not make larger files for a while: see FILE_LIMIT
    done = await asyncio.to_thread(
        lambda: subprocess.run(
            [sys.executable, "-c", FILE_LIMIT, tmp_path / "spool"], cwd=ROOT, capture_output=True, check=False
        )
    )
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout.splitlines()[-1])

    # then
    yes = [name for name, told in report["told"].items() if told == "yes"]
    assert yes
    assert set(report["told"].values()) == {"yes", "spool_failed"}
    assert report["left"] == 0
    assert await natives(make_spool()) == ["first", *yes, "later"]


# --- a disk that does not sync ----------------------------------------------------------------------------------------


class FaultyConnection(sqlite3.Connection):
    """A connection whose next commits fail with these errors; it remembers what it was asked."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.faults: list[int] = []
        self.asked: list[str] = []

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        self.asked.append(sql.split("(")[0])
        if sql == "COMMIT" and self.faults:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = self.faults.pop(0)
            raise error
        return super().execute(sql, *values)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch, make_spool: MakeSpool) -> tuple[Spool, FaultyConnection]:
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=FaultyConnection))
    spool = make_spool()
    connection = spool._journal.connection
    assert isinstance(connection, FaultyConnection)
    return spool, connection


async def test_a_sync_that_failed_is_a_yes_to_nobody(faulty: tuple[Spool, FaultyConnection]) -> None:
    # given
    spool, connection = faulty
    await put_all(spool, ["kept"])
    connection.faults, connection.asked = [sqlite3.SQLITE_IOERR_FSYNC], []

    # when
    refused = await put_all(spool, ["n1", "n2", "n3"])

    # then: it is not tried again piece by piece, for a second sync may lie
    assert [type(error) for error in refused] == [Unavailable] * 3
    assert connection.asked.count("COMMIT") == 1
    assert not spool.healthy
    assert spool.ledger["shop", "accepted"] == 1


async def test_after_a_failed_sync_everything_is_written_anew_before_the_next_yes(
    faulty: tuple[Spool, FaultyConnection],
) -> None:
    # given
    spool, connection = faulty
    connection.faults = [sqlite3.SQLITE_IOERR_FSYNC]
    await put_all(spool, ["n1"])
    connection.asked = []

    # when
    receipts = await put_all(spool, ["n1", "n2"])

    # then
    rewritten = connection.asked.index("PRAGMA wal_checkpoint")
    assert rewritten < connection.asked.index("COMMIT")
    assert [isinstance(receipt, Receipt) and not receipt.duplicate for receipt in receipts] == [True, True]
    assert await natives(spool) == ["n1", "n2"]
    assert connection.asked.count("PRAGMA wal_checkpoint") == 1
    assert spool.healthy


async def test_a_sync_that_fails_again_is_again_a_yes_to_nobody(faulty: tuple[Spool, FaultyConnection]) -> None:
    spool, connection = faulty
    connection.faults = [sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_FSYNC]

    first, second = await put_all(spool, ["n1"]), await put_all(spool, ["n1"])

    assert [type(error) for error in first + second] == [Unavailable] * 2
    assert isinstance((await put_all(spool, ["n1"]))[0], Receipt)


async def test_a_write_error_refuses_the_batch_at_once(faulty: tuple[Spool, FaultyConnection]) -> None:
    spool, connection = faulty
    connection.faults, connection.asked = [sqlite3.SQLITE_IOERR_WRITE], []

    refused = await put_all(spool, ["n1", "n2"])

    assert [type(error) for error in refused] == [Unavailable] * 2
    assert connection.asked.count("COMMIT") == 1


async def test_any_other_error_is_tried_message_by_message(faulty: tuple[Spool, FaultyConnection]) -> None:
    spool, connection = faulty
    connection.faults = [sqlite3.SQLITE_INTERRUPT]

    receipts = await put_all(spool, ["n1", "n2"])

    assert all(isinstance(receipt, Receipt) and not receipt.duplicate for receipt in receipts)
    assert await natives(spool) == ["n1", "n2"]


async def test_who_was_refused_because_of_a_neighbour_that_failed_is_told_to_retry(
    faulty: tuple[Spool, FaultyConnection],
) -> None:
    # given: the second is refused because the first is there, and then the first is not there
    spool, connection = faulty
    connection.faults = [sqlite3.SQLITE_FULL]

    first, second = await asyncio.gather(
        spool.put(sample("n1", b"one", on_conflict="refuse")),
        spool.put(sample("n1", b"two", on_conflict="refuse")),
        return_exceptions=True,
    )

    assert isinstance(first, Unavailable)
    assert isinstance(second, Unavailable)


async def test_a_body_file_survives_the_commit_that_failed(faulty: tuple[Spool, FaultyConnection]) -> None:
    spool, connection = faulty
    body = body_file(spool, b"x" * MIB)
    connection.faults = [sqlite3.SQLITE_FULL]

    with pytest.raises(Unavailable):
        await spool.put(sample("n1", body))
    assert list((spool.folder / "raw").iterdir()) == []  # it would fill a disk that is full
    await spool.put(sample("n1", body))

    assert [row.message.body for row in await waiting(spool)] == [b"x" * MIB]


# --- a damaged database -----------------------------------------------------------------------------------------------


async def filled(make_spool: MakeSpool, n: int = 300) -> Spool:
    """A spool with a third of its messages published; every tenth lies in a file of its own."""
    spool = make_spool(inline_bytes=1000)
    await asyncio.gather(*(spool.put(sample(f"n{i}", content(f"n{i}"))) for i in range(n)))
    await publish(spool, *(await waiting(spool))[: n // 3])
    return spool


def content(name: str | None) -> bytes:
    return f"the words of {name} ".encode() * (100 if str(name).endswith("0") else 20)


def damage_row(spool: Spool, native_id: str) -> None:
    """Overwrites the page that holds this message's row."""
    path = spool.folder / "spool.db"
    content = bytearray(path.read_bytes())
    start = content.index(f"shopnote{native_id}".encode()) // PAGE * PAGE  # three columns that follow each other
    content[start : start + PAGE] = b"\xff" * PAGE
    path.write_bytes(content)


async def assert_saved(spool: Spool, at_least: int, of: int = 300) -> None:
    """What is there is whole, and most of it is there."""
    rows = await waiting(spool) + await spool.published_since(0, 0, 1000, EVERYTHING)
    assert at_least <= len(rows) <= of
    assert all(row.message.body == content(row.message.native_id) for row in rows if not row.fault)
    assert spool.bytes == sum(row.size + ROW_BYTES for row in rows)


async def test_garbage_in_the_place_of_the_database_is_set_aside(tmp_path: Path, make_spool: MakeSpool) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    (folder / "spool.db").write_bytes(b"this was never a database" * 1000)

    spool = make_spool()

    assert spool.damaged is not None
    assert (spool.damaged / "spool.db").read_bytes() == b"this was never a database" * 1000
    assert isinstance((await put_all(spool, ["n1"]))[0], Receipt)


@pytest.mark.parametrize("checked_pages", [0, 65_536], ids=["met while reading", "met by the check"])
async def test_a_damaged_page_costs_what_was_on_it(
    make_spool: MakeSpool, monkeypatch: pytest.MonkeyPatch, checked_pages: int
) -> None:
    # given
    monkeypatch.setattr(journal, "_CHECKED_PAGES", checked_pages)
    spool = await filled(make_spool)
    await spool.close()
    damage_row(spool, "n150")
    damaged = (spool.folder / "spool.db").read_bytes()

    # when
    spool = make_spool(inline_bytes=1000)

    # then: its bytes are kept, what can be read goes on, the books start from what is there
    assert spool.damaged is not None
    assert (spool.damaged / "spool.db").read_bytes() == damaged
    await assert_saved(spool, at_least=200)
    assert spool.ledger["shop", "published"] > 0
    assert isinstance((await put_all(spool, ["new"]))[0], Receipt)


async def test_the_file_of_a_message_whose_row_was_lost_is_kept(
    make_spool: MakeSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: large messages, and a page with rows of theirs is damaged
    spool = make_spool(inline_bytes=10)
    receipts = await put_all(spool, [f"n{n}" for n in range(100)], b"a large message")
    await spool.close()
    damage_row(spool, "n50")

    # when: it is started, and started once more
    spool = make_spool(inline_bytes=10)
    aside = spool.damaged
    await spool.close()
    spool = make_spool(inline_bytes=10)

    # then
    assert aside is not None
    saved = {row.message.id for row in await waiting(spool)}
    lost = {receipt.id for receipt in receipts if isinstance(receipt, Receipt)} - saved
    assert saved
    assert lost
    assert {path.name for path in aside.iterdir()} >= lost
    assert all((aside / id_).read_bytes() == b"a large message" for id_ in lost)


async def test_damage_that_is_met_at_work_is_dealt_with_at_work(make_spool: MakeSpool) -> None:
    # given: a page goes bad under a running daemon
    spool = await filled(make_spool)
    connection = spool._journal.connection
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.execute("PRAGMA shrink_memory").fetchall()
    damage_row(spool, "n150")

    # when: whoever met it is told to try again
    with pytest.raises(Unavailable):
        await waiting(spool)

    # then
    assert spool.damaged is not None
    await assert_saved(spool, at_least=200)
    assert isinstance((await put_all(spool, ["new"]))[0], Receipt)
    assert spool.healthy


async def test_a_damaged_spool_that_cannot_be_replaced_now_is_replaced_later(
    make_spool: MakeSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: damage at work, and no room for the new database
    moment = datetime(2026, 11, 23, tzinfo=UTC).timestamp()
    spool = make_spool(clock=lambda: moment)
    await put_all(spool, [f"n{n}" for n in range(10)])
    obstacle = spool.folder / "damaged-20261123T000000000000"
    obstacle.write_bytes(b"")
    monkeypatch.setattr(journal, "_REOPEN_SECS", 0)
    corrupt = sqlite3.DatabaseError("database disk image is malformed")
    corrupt.sqlite_errorcode = sqlite3.SQLITE_CORRUPT

    def meet_damage(db: sqlite3.Connection) -> None:
        raise corrupt

    with pytest.raises(Unavailable):
        await spool._journal.run(meet_damage)

    # when, then
    assert [type(error) for error in await put_all(spool, ["a", "b"])] == [Unavailable] * 2
    assert not spool.healthy
    obstacle.unlink()
    assert isinstance((await put_all(spool, ["later"]))[0], Receipt)
    assert await natives(spool) == [*(f"n{n}" for n in range(10)), "later"]
    assert spool.damaged == obstacle


async def test_a_crash_while_a_damaged_spool_is_replaced_loses_nothing(make_spool: MakeSpool) -> None:
    # given: the old one is aside, the new one not yet in its place
    spool = make_spool()
    await put_all(spool, ["n1"])
    await spool.close()
    (spool.folder / "spool.db").rename(spool.folder / "salvaged.db")

    assert await natives(make_spool()) == ["n1"]
