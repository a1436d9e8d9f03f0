"""The spool: what is in it stays in it, once, with its bytes, and its books balance."""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.contract import Receipt
from gateway.errors import HuiruError, Rejected, Unavailable
from gateway.identity import reference
from gateway.spool import DUPLICATE, PUBLISHED, QUARANTINED, WAITING, Entry, Outcome, Row, Spool
from tests.core.samples import EVERYTHING, MIB, NOW, body_file, publish, query, sample, waiting

MakeSpool = Callable[..., Spool]
LARGE = b"x" * (100 << 10)  # above the spool's threshold for a file of its own


async def quarantine(spool: Spool, row: Row, code: str = "invalid") -> None:
    await spool.settle([Outcome(row.seq, row.message.channel, QUARANTINED, code, "because")])


def counts(spool: Spool, channel: str = "shop") -> dict[str, int]:
    return {name: n for (of, name), n in spool.ledger.items() if of == channel and n}


def raw_files(spool: Spool) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (spool.folder / "raw").iterdir()}


# --- in ---------------------------------------------------------------------------------------------------------------


async def test_a_message_comes_out_as_it_went_in(spool: Spool) -> None:
    entry = sample("n1", b"\x00\xffhello", kind="form", content_type="text/plain", facts={"名": [1, None]})

    receipt = await spool.put(entry)

    (row,) = await waiting(spool)
    message = row.message
    assert receipt == Receipt(entry.id, reference(entry.id))
    assert (message.id, message.channel, message.kind) == (entry.id, "shop", "form")
    assert (message.body, message.content_type, message.native_id) == (b"\x00\xffhello", "text/plain", "n1")
    assert (message.facts, message.received_at) == ({"名": [1, None]}, NOW)
    assert (row.size, row.sha256, row.tries, row.conflict_with) == (7, entry.sha256, 0, None)
    assert counts(spool) == {"accepted": 1}
    assert spool.last_message == {"shop": NOW.timestamp()}


async def test_messages_come_out_in_their_order(spool: Spool) -> None:
    for n in range(5):
        await spool.put(sample(f"n{n}"))

    assert [row.message.native_id for row in await waiting(spool, 3)] == ["n0", "n1", "n2"]


async def test_a_claim_is_bounded_by_bytes_but_never_empty_for_a_large_message(spool: Spool) -> None:
    for n, size in enumerate((3000, 1000, 1000, 1000)):
        await spool.put(sample(f"n{n}", b"x" * size))

    assert [row.size for row in await spool.claim(10, 2000)] == [3000]
    assert [row.size for row in await spool.claim(10, 4500)] == [3000, 1000]


async def test_the_same_message_again_is_one_message(spool: Spool) -> None:
    first = await spool.put(sample())
    again = await spool.put(sample())

    assert again == replace(first, duplicate=True)
    assert len(await waiting(spool)) == 1
    assert counts(spool) == {"accepted": 2, "duplicate": 1}


async def test_a_message_without_native_id_is_known_by_its_content(spool: Spool) -> None:
    one, two = await spool.put(sample(None, b"one")), await spool.put(sample(None, b"two"))

    assert one.id != two.id
    assert (await spool.put(sample(None, b"one"))).duplicate


async def test_a_fingerprint_decides_what_is_the_same(spool: Spool) -> None:
    first = await spool.put(sample("n1", b'{"a": 1}', fingerprint=b"canonical"))
    again = await spool.put(sample("n1", b'{"a":1}', fingerprint=b"canonical"))

    assert again == replace(first, duplicate=True)


async def test_other_content_under_a_native_id_is_a_message_of_its_own(spool: Spool) -> None:
    first = await spool.put(sample("n1", b"first"))
    other = await spool.put(sample("n1", b"other"))
    again = await spool.put(sample("n1", b"other"))

    assert other.id != first.id
    assert not other.duplicate
    assert again == replace(other, duplicate=True)
    assert [(row.message.body, row.conflict_with) for row in await waiting(spool)] == [
        (b"first", None),
        (b"other", first.id),
    ]
    assert counts(spool) == {"accepted": 3, "duplicate": 1}


async def test_other_content_is_refused_where_the_message_asks_for_it(spool: Spool) -> None:
    await spool.put(sample("n1", b"first"))

    with pytest.raises(Rejected) as caught:
        await spool.put(sample("n1", b"other", on_conflict="refuse"))

    assert caught.value.code == "idempotency_mismatch"
    assert counts(spool) == {"accepted": 1}
    assert (await spool.put(sample("n1", b"first", on_conflict="refuse"))).duplicate


async def test_a_native_id_is_the_channels_own(spool: Spool) -> None:
    shop, app = await spool.put(sample(channel="shop")), await spool.put(sample(channel="app"))

    assert shop.id != app.id
    assert (spool.waiting("shop"), spool.waiting("app")) == (1, 1)


# --- the memory of the channels ---------------------------------------------------------------------------------------


async def test_a_memo_is_there_with_its_message(make_spool: MakeSpool) -> None:
    spool = make_spool()
    await spool.put(sample("n1", memo={"position": "1 7"}))
    await spool.put(sample("n2", memo={"position": "1 8", "名": "值"}))
    await spool.close()

    assert await make_spool().recall_for("shop") == {"position": "1 8", "名": "值"}


async def test_the_memo_of_a_duplicate_is_kept_too(spool: Spool) -> None:
    await spool.put(sample("n1", memo={"position": "1 7"}))
    again = await spool.put(sample("n1", memo={"position": "2 1"}))

    assert again.duplicate
    assert await spool.recall_for("shop") == {"position": "2 1"}


async def test_of_several_memos_in_one_commit_the_last_stays(spool: Spool) -> None:
    await asyncio.gather(*(spool.put(sample(f"n{n}", memo={"position": str(n)})) for n in range(20)))

    assert await spool.recall_for("shop") == {"position": "19"}


async def test_a_memo_is_rolled_back_with_its_message(spool: Spool) -> None:
    await spool.put(sample("n1", memo={"position": "1"}))
    body = body_file(spool, LARGE)
    lost = sample("n2", replace(body, path=body.path.with_name("gone")), memo={"position": "2"})

    with pytest.raises(Unavailable):
        await spool.put(lost)

    assert await spool.recall_for("shop") == {"position": "1"}


async def test_a_message_that_is_refused_leaves_no_memo(spool: Spool) -> None:
    await spool.put(sample("n1", b"first"))

    with pytest.raises(Rejected):
        await spool.put(sample("n1", b"other", on_conflict="refuse", memo={"position": "2"}))

    assert await spool.recall_for("shop") == {}


async def test_a_channel_remembers_and_forgets_for_itself_alone(spool: Spool) -> None:
    await spool.memorise({"spool_id": "ours"})
    await spool.memorise_for("shop", {"a": "1", "b": "2"})
    await spool.memorise_for("app", {"a": "9"})

    await spool.memorise_for("shop", {"a": None, "b": "3", "never": None})

    assert await spool.recall_for("shop") == {"b": "3"}
    assert await spool.recall_for("app") == {"a": "9"}
    assert await spool.recall() == {"spool_id": "ours"}


# --- bodies -----------------------------------------------------------------------------------------------------------


async def test_a_body_file_is_taken_over(spool: Spool) -> None:
    body = body_file(spool, LARGE)

    receipt = await spool.put(sample("n1", body))

    assert raw_files(spool) == {receipt.id: LARGE}
    assert not body.path.exists()
    assert [row.message.body for row in await waiting(spool)] == [LARGE]


async def test_the_body_file_of_a_duplicate_is_gone(spool: Spool) -> None:
    receipt = await spool.put(sample("n1", body_file(spool, LARGE)))
    again = await spool.put(sample("n1", body_file(spool, LARGE)))

    assert again.duplicate
    assert list(spool.incoming.iterdir()) == []
    assert raw_files(spool) == {receipt.id: LARGE}


async def test_two_body_files_under_one_native_id_keep_their_own_bytes(spool: Spool) -> None:
    # given: both are in one commit
    bodies = [body_file(spool, LARGE + bytes([n])) for n in range(2)]

    receipts = await asyncio.gather(*(spool.put(sample("n1", body)) for body in bodies))

    assert raw_files(spool) == {receipt.id: LARGE + bytes([n]) for n, receipt in enumerate(receipts)}


async def test_a_large_body_in_memory_becomes_a_file(make_spool: MakeSpool) -> None:
    spool = make_spool(inline_bytes=10)

    await spool.put(sample("small", b"x" * 10))
    large = await spool.put(sample("large", b"x" * 11))

    assert raw_files(spool) == {large.id: b"x" * 11}
    assert [row.size for row in await waiting(spool)] == [10, 11]


async def test_an_unreadable_body_is_that_rows_own_fault(spool: Spool) -> None:
    broken = await spool.put(sample("n1", LARGE))
    await spool.put(sample("n2", b"fine"))
    path = spool.folder / "raw" / broken.id
    path.unlink()

    first, second = await waiting(spool)

    assert first.fault is not None
    assert "No such file" in first.fault
    assert first.message.body == b""
    assert (second.message.body, second.fault) == (b"fine", None)
    path.write_bytes(LARGE)


async def test_a_body_that_vanished_before_the_commit_is_not_accepted(spool: Spool) -> None:
    # given: a request that was cancelled takes its file away
    body = body_file(spool, LARGE)
    entry = sample("n1", body)
    body.path.unlink()

    with pytest.raises(Unavailable):
        await spool.put(entry)

    assert await waiting(spool) == []
    assert (await spool.put(sample("n2"))).duplicate is False
    assert spool.healthy


# --- out --------------------------------------------------------------------------------------------------------------


async def test_a_published_message_is_kept_for_its_time_and_then_purged(make_spool: MakeSpool) -> None:
    now = [1000.0]
    spool = make_spool(clock=lambda: now[0])
    await spool.put(sample("n1", LARGE))
    await publish(spool, *await waiting(spool))

    await spool.purge(999)
    assert len(await spool.published_since(1000, 0, 10, EVERYTHING)) == 1
    await spool.purge(1001)

    assert await spool.published_since(0, 0, 10, EVERYTHING) == []
    assert (raw_files(spool), spool.bytes) == ({}, 0)
    assert counts(spool) == {"accepted": 1, "published": 1}


async def test_a_purge_spares_what_waits_and_what_is_in_quarantine(spool: Spool) -> None:
    for name in ("waiting", "quarantined", "duplicate", "published"):
        await spool.put(sample(name))
    rows = {row.message.native_id: row for row in await waiting(spool)}
    await quarantine(spool, rows["quarantined"])
    await spool.settle([Outcome(rows["duplicate"].seq, "shop", DUPLICATE)])
    await publish(spool, rows["published"])

    await spool.purge(float("inf"))

    assert [row.message.native_id for row in await waiting(spool)] == ["waiting"]
    assert [row.message.native_id for row in await spool.quarantined(None, 10, 0)] == ["quarantined"]
    assert await query(spool, "SELECT count(*) FROM message") == [(2,)]


async def test_a_purge_goes_through_the_spool_in_steps(spool: Spool) -> None:
    for n in range(7):
        await spool.put(sample(f"n{n}"))
    await publish(spool, *await waiting(spool))
    steps, after = 0, 0

    while (following := await spool.purge(float("inf"), after, limit=3)) is not None:
        steps, after = steps + 1, following

    assert steps == 2
    assert await query(spool, "SELECT count(*) FROM message") == [(0,)]


async def test_a_purged_spool_is_a_smaller_file(make_spool: MakeSpool) -> None:
    # given
    spool = make_spool(inline_bytes=MIB)
    await asyncio.gather(*(spool.put(sample(f"n{n}", os.urandom(20_000))) for n in range(300)))
    await publish(spool, *await waiting(spool))
    await spool.close()
    full = (spool.folder / "spool.db").stat().st_size

    # when: pages come back at the pace of the purge
    spool = make_spool(inline_bytes=MIB)
    await spool.purge(float("inf"))
    while await query(spool, "PRAGMA freelist_count") != [(0,)]:
        await spool.purge(float("inf"))
    await spool.close()

    # then
    assert full > 5 * MIB
    assert (spool.folder / "spool.db").stat().st_size < full / 20


async def test_a_try_is_counted_and_waited_for(make_spool: MakeSpool) -> None:
    now = [1000.0]
    spool = make_spool(clock=lambda: now[0])
    await spool.put(sample())
    (row,) = await waiting(spool)

    await spool.settle([Outcome(row.seq, "shop", WAITING, "internal", "oops", not_before=1060, counts_as_try=True)])

    assert await waiting(spool) == []
    now[0] = 1060
    (row,) = await waiting(spool)
    assert (row.tries, row.code, row.reason) == (1, "internal", "oops")


async def test_what_is_settled_stays_settled(spool: Spool) -> None:
    await spool.put(sample())
    (row,) = await waiting(spool)
    await publish(spool, row)

    await quarantine(spool, row)

    assert counts(spool) == {"accepted": 1, "published": 1}


async def test_the_newest_entry_is_memorised_with_the_outcome(spool: Spool) -> None:
    await spool.memorise({"spool_id": "s1"})

    await spool.settle([], newest="5-1")
    await spool.settle([], newest="5-2")
    await spool.settle([])

    assert await spool.recall() == {"spool_id": "s1", "newest": "5-2"}


async def test_a_conflict_with_the_stream_gives_a_waiting_row_its_own_id(spool: Spool) -> None:
    first = await spool.put(sample("n1", LARGE))
    (row,) = await waiting(spool)

    await spool.mark_conflict(row)

    (row,) = await waiting(spool)
    assert row.message.id != first.id
    assert row.conflict_with == first.id
    assert row.message.body == LARGE
    assert raw_files(spool) == {row.message.id: LARGE}


async def test_a_conflict_that_is_known_already_is_a_duplicate(spool: Spool) -> None:
    # given: the conflicting content has a row under the id it would get
    await spool.put(sample("n1", b"first"))
    await spool.put(sample("n1", b"other"))
    first, other = await waiting(spool)
    assert other.conflict_with == first.message.id

    # when: the stream says that the first one has other content, and it is the other one's
    await spool.mark_conflict(replace(first, fingerprint=other.fingerprint))

    assert [row.message.id for row in await waiting(spool)] == [other.message.id]
    assert counts(spool) == {"accepted": 2, "duplicate": 1}


# --- for operators ----------------------------------------------------------------------------------------------------


async def test_a_quarantined_message_is_listed_retried_and_published(spool: Spool) -> None:
    await spool.put(sample("n1", LARGE))
    (row,) = await waiting(spool)
    await quarantine(spool, row, "malformed")
    assert counts(spool) == {"accepted": 1, "quarantined": 1, "quarantined_total:malformed": 1}
    (listed,) = await spool.quarantined("shop", 10, 0)
    assert (listed.code, listed.reason, listed.message.body) == ("malformed", "because", b"")

    assert await spool.retry(listed.seq) == 1

    (row,) = await waiting(spool)
    assert (row.tries, row.code, row.reason, row.message.body) == (0, None, None, LARGE)
    await publish(spool, row)
    assert counts(spool) == {"accepted": 1, "published": 1, "quarantined_total:malformed": 1}


async def test_all_of_the_quarantine_can_be_retried(spool: Spool) -> None:
    for n, channel in enumerate(("shop", "shop", "app", "app")):
        await spool.put(sample(f"n{n}", channel=channel))
    for row in (await waiting(spool))[1:]:
        await quarantine(spool, row)

    assert await spool.retry(None) == 3
    assert await spool.retry(None) == 0

    assert (spool.waiting("shop"), spool.waiting("app")) == (2, 2)


async def test_the_quarantine_is_listed_by_channel_and_page(spool: Spool) -> None:
    for n in range(4):
        await spool.put(sample(f"n{n}", channel="app" if n == 3 else "shop"))
    for row in await waiting(spool):
        await quarantine(spool, row)

    assert [row.message.native_id for row in await spool.quarantined("shop", 2, 1)] == ["n1", "n2"]
    assert [row.message.native_id for row in await spool.quarantined(None, 10, 2)] == ["n2", "n3"]


async def test_a_discarded_message_is_gone_and_stays_in_the_books(spool: Spool) -> None:
    await spool.put(sample("n1", LARGE))
    (row,) = await waiting(spool)
    await quarantine(spool, row)

    await spool.discard(row)

    assert counts(spool) == {"accepted": 1, "discarded": 1, "quarantined_total:invalid": 1}
    assert (raw_files(spool), spool.bytes) == ({}, 0)
    with pytest.raises(Rejected, match="not in quarantine"):
        await spool.discard(row)


async def test_what_waits_cannot_be_discarded(spool: Spool) -> None:
    await spool.put(sample())
    (row,) = await waiting(spool)

    with pytest.raises(Rejected) as caught:
        await spool.discard(row)

    assert caught.value.code == "conflict"
    assert len(await waiting(spool)) == 1


async def test_a_message_is_found_by_id_reference_and_the_beginning_of_either(spool: Spool) -> None:
    receipt = await spool.put(sample("n1", LARGE))
    shown = receipt.reference

    for text in (receipt.id, shown, shown.lower(), shown.replace("-", ""), shown[:6], receipt.id[:20]):
        row = await spool.find(text, with_body=True)
        assert (row.message.id, row.message.body) == (receipt.id, LARGE)
    assert (await spool.find(shown)).message.body == b""


async def test_letters_that_people_misread_are_understood(spool: Spool) -> None:
    receipts = [await spool.put(sample(f"n{n}")) for n in range(200)]
    receipt = next(receipt for receipt in receipts if {"0", "1"} <= set(receipt.reference))

    assert (await spool.find(receipt.reference.replace("0", "O").replace("1", "l"))).message.id == receipt.id


@pytest.mark.parametrize("text", ["", "-", "zzzzzzzzzz", "%", "é", "\ud800", "~", "' OR 1=1 --"])
async def test_what_is_no_message_is_not_found(spool: Spool, text: str) -> None:
    await spool.put(sample())

    with pytest.raises(Rejected) as caught:
        await spool.find(text)

    assert caught.value.code == "not_found"
    assert spool.healthy


async def test_an_ambiguous_beginning_is_said_to_be_one(spool: Spool) -> None:
    receipts = [await spool.put(sample(f"n{n}")) for n in range(40)]
    first_letters = [receipt.id[0] for receipt in receipts]
    twice = next(letter for letter in first_letters if first_letters.count(letter) > 1)

    with pytest.raises(Rejected) as caught:
        await spool.find(twice)

    assert caught.value.code == "conflict"


async def test_a_message_can_be_looked_for_in_one_state(spool: Spool) -> None:
    receipt = await spool.put(sample())

    with pytest.raises(Rejected):
        await spool.find(receipt.id, state=QUARANTINED)
    assert (await spool.find(receipt.id, state=WAITING)).message.id == receipt.id


async def test_published_messages_are_counted_by_time(make_spool: MakeSpool) -> None:
    now = [1000.0]
    spool = make_spool(clock=lambda: now[0])
    for n in range(3):
        now[0] = 1000.0 + n
        await spool.put(sample(f"n{n}"))
        await publish(spool, *await waiting(spool))

    assert await spool.count_published_since(1001) == 2
    rows = await spool.published_since(1001, 0, 10, EVERYTHING)
    assert [row.message.native_id for row in rows] == ["n1", "n2"]
    assert [row.seq for row in await spool.published_since(0, rows[0].seq, 10, EVERYTHING)] == [rows[1].seq]


# --- life -------------------------------------------------------------------------------------------------------------


async def test_a_restart_keeps_everything(make_spool: MakeSpool) -> None:
    # given one message in every state
    spool = make_spool()
    for name in ("published", "duplicate", "quarantined", "waiting"):
        await spool.put(sample(name, LARGE if name == "waiting" else name.encode()))
    published, duplicate, quarantined, _ = await waiting(spool)
    await spool.settle([Outcome(duplicate.seq, "shop", DUPLICATE), Outcome(published.seq, "shop", PUBLISHED)])
    await quarantine(spool, quarantined)
    await spool.memorise({"spool_id": "s1"})
    before = (spool.ledger, spool.bytes, spool.last_message)

    # when
    await spool.close()
    spool = make_spool()

    # then
    assert (spool.ledger, spool.bytes, spool.last_message) == before
    assert [row.message.body for row in await waiting(spool)] == [LARGE]
    assert [row.message.native_id for row in await spool.quarantined(None, 9, 0)] == ["quarantined"]
    assert len(await spool.published_since(0, 0, 9, EVERYTHING)) == 1
    assert await spool.recall() == {"spool_id": "s1"}
    assert (await spool.put(sample("published", b"published"))).duplicate


async def test_a_body_that_cannot_be_deleted_does_not_undo_what_was_committed(make_spool: MakeSpool) -> None:
    # given: something strange lies in its place
    spool = make_spool()
    receipt = await spool.put(sample("n1", LARGE))
    (row,) = await waiting(spool)
    await quarantine(spool, row)
    path = spool.folder / "raw" / receipt.id
    path.unlink()
    path.mkdir()

    # when
    await spool.discard(row)

    # then
    assert counts(spool) == {"accepted": 1, "discarded": 1, "quarantined_total:invalid": 1}
    path.rmdir()


async def test_a_number_is_never_used_twice(make_spool: MakeSpool) -> None:
    # A row's number is in its mark: a later message with a dead row's number would look like that row's second try.
    spool = make_spool()
    await spool.put(sample("n1"))
    (first,) = await waiting(spool)
    await publish(spool, first)
    await spool.purge(float("inf"))
    await spool.close()

    spool = make_spool()
    await spool.put(sample("n1"))

    (second,) = await waiting(spool)
    assert second.seq != first.seq


async def test_what_a_crash_left_behind_is_cleaned_up(make_spool: MakeSpool) -> None:
    # given: a request that never ended, and a body whose row was never committed
    spool = make_spool()
    kept = await spool.put(sample("n1", LARGE))
    await spool.close()
    (spool.incoming / "half").write_bytes(b"half")
    (spool.folder / "raw" / "0rphan").write_bytes(b"orphan")

    # when
    spool = make_spool()

    # then
    assert list(spool.incoming.iterdir()) == []
    assert raw_files(spool) == {kept.id: LARGE}


async def test_a_second_spool_at_one_folder_is_told_so_and_breaks_nothing(make_spool: MakeSpool) -> None:
    spool = make_spool()
    await spool.put(sample())
    body = body_file(spool, LARGE)

    with pytest.raises(Unavailable, match=r"spool\.db cannot be opened: database is locked"):
        Spool(spool.folder).open()

    assert not (await spool.put(sample("n2", body))).duplicate


async def test_a_second_process_at_one_folder_is_told_so(spool: Spool) -> None:
    await spool.put(sample())
    program = "import sys, pathlib; from gateway.spool import Spool; Spool(pathlib.Path(sys.argv[1])).open()"

    done = await asyncio.to_thread(
        lambda: subprocess.run([sys.executable, "-c", program, spool.folder], capture_output=True, check=False)
    )

    assert done.returncode == 1
    assert b"Unavailable: the spool" in done.stderr
    assert b"database is locked" in done.stderr


async def test_a_folder_that_cannot_be_a_spool_is_named(tmp_path: Path) -> None:
    (tmp_path / "spool.db").mkdir()

    with pytest.raises(Unavailable, match=r"spool\.db cannot be opened"):
        Spool(tmp_path).open()


async def cancelled_while_waiting(spool: Spool, entry: Entry) -> None:
    """The message was handed in, and whoever did it went away before it was on disk."""
    gate = threading.Event()
    blocker = asyncio.create_task(spool._journal.run(lambda db: gate.wait(10), slow=True))
    put = asyncio.create_task(spool.put(entry))
    while spool._journal._asked == [] and not put.done():
        await asyncio.sleep(0)
    put.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await put
    gate.set()
    await blocker


async def test_a_cancelled_waiter_does_not_cancel_the_write(spool: Spool) -> None:
    await cancelled_while_waiting(spool, sample())

    assert [row.message.body for row in await waiting(spool)] == [b"hello"]
    assert counts(spool) == {"accepted": 1}


async def test_a_cancelled_waiter_leaves_a_large_message_whole_or_not_at_all(spool: Spool) -> None:
    await cancelled_while_waiting(spool, sample("n1", LARGE))

    assert [row.message.body for row in await waiting(spool) if not row.fault] == [LARGE] * spool.waiting("shop")
    assert list(spool.incoming.iterdir()) == []


async def test_after_its_end_a_spool_is_unavailable(spool: Spool) -> None:
    await spool.close()

    with pytest.raises(Unavailable) as caught:
        await spool.put(sample())

    assert caught.value.code == "stopping"


async def test_what_was_asked_for_before_the_end_is_done(make_spool: MakeSpool) -> None:
    spool = make_spool()
    puts = [asyncio.create_task(spool.put(sample(f"n{n}"))) for n in range(50)]
    await asyncio.sleep(0)

    await spool.close()

    assert len({receipt.id for receipt in await asyncio.gather(*puts)}) == 50
    assert len(await waiting(make_spool())) == 50


# --- one transaction with several changes to one message --------------------------------------------------------------


async def together(spool: Spool, *asks: Callable[[], Coroutine[Any, Any, object]]) -> list[object]:
    """The asks as one batch of the journal."""
    gate = threading.Event()
    blocker = asyncio.create_task(spool._journal.run(lambda db: gate.wait(10), slow=True))
    await asyncio.sleep(0)
    tasks = [asyncio.create_task(ask()) for ask in asks]
    await asyncio.sleep(0)
    gate.set()
    await blocker
    return [*await asyncio.gather(*tasks, return_exceptions=True)]


async def test_a_message_that_comes_again_while_it_is_purged_keeps_its_body(spool: Spool) -> None:
    await spool.put(sample("n1", LARGE))
    await publish(spool, *await waiting(spool))

    await together(spool, lambda: spool.purge(float("inf")), lambda: spool.put(sample("n1", LARGE)))

    (row,) = await waiting(spool)
    assert (row.message.body, row.fault) == (LARGE, None)


async def test_a_message_that_is_refused_in_a_batch_leaves_the_others_whole(spool: Spool) -> None:
    await spool.put(sample("n1", b"first"))

    results = await together(
        spool,
        lambda: spool.put(sample("n2", LARGE)),
        lambda: spool.put(sample("n1", b"other", on_conflict="refuse")),
        lambda: spool.put(sample("\ud800", b"an id that is no text")),
        lambda: spool.put(sample("n3", LARGE)),
    )

    assert [type(result) for result in results] == [Receipt, Rejected, Unavailable, Receipt]
    assert all(isinstance(result, Receipt | HuiruError) for result in results)
    assert [row.message.body for row in await waiting(spool)] == [b"first", LARGE, LARGE]
    assert spool.healthy


async def test_heavy_ones_are_found_without_looking_at_the_light_ones(spool: Spool) -> None:
    # given
    for n in range(3):
        await spool.put(sample(f"light{n}"))
        await spool.put(sample(f"heavy{n}", b"x" * 100_000, channel="shop" if n else "mail"))
    statements: list[str] = []
    spool._journal.connection.set_trace_callback(statements.append)

    # when: one of this channel is in work
    rows = await spool.claim_heavy(10, 80_000, {2: "mail"})

    # then
    spool._journal.connection.set_trace_callback(None)
    assert [row.message.native_id for row in rows] == ["heavy1", "heavy2"]
    assert [row.file and row.file.stat().st_size for row in rows] == [100_000, 100_000]
    (statement,) = [one for one in statements if "size >" in one]
    ((*_, plan), *_) = await query(spool, f"EXPLAIN QUERY PLAN {statement}")
    assert plan == "SCAN message USING INDEX heavy"


async def test_light_ones_are_found_among_heavy_ones(spool: Spool) -> None:
    await spool.put(sample("heavy", b"x" * 100_000))
    await spool.put(sample("light"))

    (row,) = await spool.claim(10, EVERYTHING, 80_000)

    assert row.message.native_id == "light"
