"""The only way in: room, identity, receipt, and a count of everything."""

import asyncio
import os
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from gateway.contract import RawMessage
from gateway.errors import Rejected, Unavailable
from gateway.identity import message_id, reference
from gateway.intake import Intake
from gateway.spool import ROW_BYTES, Spool
from gateway.telemetry import Metrics
from tests.core.samples import waiting

MakeIntake = Callable[..., Intake]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def make_intake(spool: Spool, metrics: Metrics) -> MakeIntake:
    def make(max_bytes: int = 1 << 30, min_free_bytes: int = 0) -> Intake:
        return Intake(spool, metrics, gateway="acme", max_bytes=max_bytes, min_free_bytes=min_free_bytes)

    return make


def refusals(metrics: Metrics, code: str) -> float | None:
    return metrics.registry.get_sample_value("huiru_messages_refused_total", {"channel": "shop", "code": code})


async def test_the_receipt_tells_id_and_reference(make_intake: MakeIntake) -> None:
    receipt = await make_intake().accept("shop", RawMessage("note", b"x", "n1"))

    assert receipt.id == message_id("/acme/shop", "n1", b"")
    assert receipt.reference == reference(receipt.id)


async def test_whoever_waits_for_messages_is_woken(make_intake: MakeIntake) -> None:
    intake = make_intake()
    woken = asyncio.create_task(intake.arrived.wait())

    await intake.accept("shop", RawMessage("note", b"x", "n1"))

    assert await asyncio.wait_for(woken, 1)


async def test_the_time_it_takes_is_measured(make_intake: MakeIntake, metrics: Metrics) -> None:
    await make_intake().accept("shop", RawMessage("note", b"x", "n1"))

    assert metrics.registry.get_sample_value("huiru_accept_seconds_count", {"channel": "shop"}) == 1


async def test_a_full_spool_refuses_until_there_is_room(make_intake: MakeIntake, spool: Spool) -> None:
    # given room for two
    intake = make_intake(max_bytes=2 * (ROW_BYTES + 100))
    for n in range(2):
        await intake.accept("shop", RawMessage("note", b"x" * 100, f"n{n}"))

    # when
    with pytest.raises(Unavailable) as caught:
        await intake.accept("shop", RawMessage("note", b"x" * 100, "n2"))

    # then
    assert (caught.value.code, caught.value.retry_after) == ("spool_full", 30)
    assert intake.troubles() == ["the spool is full"]
    rows = await waiting(spool)
    assert len(rows) == 2

    # when room is made
    intake._max_bytes *= 2
    await intake.accept("shop", RawMessage("note", b"x" * 100, "n2"))
    assert intake.troubles() == []


async def test_a_message_larger_than_what_is_left_is_refused_and_a_smaller_one_is_not(make_intake: MakeIntake) -> None:
    intake = make_intake(max_bytes=10_000)

    with pytest.raises(Unavailable):
        await intake.accept("shop", RawMessage("note", b"x" * 20_000, "n1"))

    assert intake.troubles() == []
    await intake.accept("shop", RawMessage("note", b"x", "n2"))


async def test_a_disk_that_is_almost_full_refuses(make_intake: MakeIntake, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    free = [5]
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=free[0], f_frsize=4096))
    monkeypatch.setattr("gateway.intake._DISK_CHECK_SECS", 0)
    intake = make_intake(min_free_bytes=6 * 4096)

    # when, then
    with pytest.raises(Unavailable) as caught:
        await intake.accept("shop", RawMessage("note", b"x", "n1"))
    assert caught.value.code == "spool_full"
    assert intake.troubles() == ["the disk is almost full"]

    # when there is room again
    free[0] = 6
    await intake.accept("shop", RawMessage("note", b"x", "n1"))
    assert intake.troubles() == []


async def test_the_disk_is_not_asked_for_every_message(
    make_intake: MakeIntake, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    statvfs = os.statvfs

    def noting(path: str) -> os.statvfs_result:
        asked.append(path)
        return statvfs(path)

    monkeypatch.setattr(os, "statvfs", noting)
    intake = make_intake(min_free_bytes=1)

    await asyncio.gather(*(intake.accept("shop", RawMessage("note", b"x", f"n{n}")) for n in range(50)))

    assert len(asked) == 1


async def test_a_commit_that_failed_makes_it_not_ready(make_intake: MakeIntake, spool: Spool) -> None:
    intake = make_intake()
    spool._journal.healthy = False

    assert intake.troubles() == ["the spool's last commit failed"]
    await intake.accept("shop", RawMessage("note", b"x", "n1"))
    assert intake.troubles() == []


async def test_the_door_of_a_channel_accepts_for_it_and_counts_what_it_refuses(
    make_intake: MakeIntake, metrics: Metrics, spool: Spool
) -> None:
    accept = make_intake().door("shop")
    await accept(RawMessage("note", b"first", "n1"))

    with pytest.raises(Rejected):
        await accept(RawMessage("note", b"other", "n1", on_conflict="refuse"))

    assert spool.waiting("shop") == 1
    assert refusals(metrics, "idempotency_mismatch") == 1


async def test_facts_that_are_no_json_are_nobodys_secret(make_intake: MakeIntake, spool: Spool) -> None:
    with pytest.raises(TypeError):
        await make_intake().accept("shop", RawMessage("note", b"x", "n1", facts={"a": object()}))

    assert await waiting(spool) == []
