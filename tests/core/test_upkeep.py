"""Duties that recur: Redis is looked at, and nothing is kept beyond its time."""

import asyncio
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway import upkeep as module
from gateway.app import _cancel
from gateway.errors import Unavailable
from gateway.settings import GatewaySettings
from gateway.spool import ROW_BYTES
from gateway.upkeep import Upkeep
from tests.core.rig import Rig
from tests.core.samples import query

HOUR, DAY = 3600, 86_400


def settings(folder: Path, **sections: Any) -> GatewaySettings:
    return GatewaySettings.model_validate(
        {"state_dir": folder, "channels": {"app": {"type": "echo", "secret": "x" * 16}}, **sections}
    )


@pytest.fixture
def make_upkeep(rig: Rig, tmp_path: Path) -> Callable[..., Upkeep]:
    def make(wake: Callable[[], None] = lambda: None, **sections: Any) -> Upkeep:
        return Upkeep(rig.spool, rig.blobs, rig.publisher, settings(tmp_path, **sections), wake)

    return make


async def kept(rig: Rig) -> list[str]:
    return [row[0] for row in await query(rig.spool, "SELECT native_id FROM message ORDER BY seq")]


async def publish_at(rig: Rig, moment: float, *names: str, body: bytes = b"hello") -> None:
    rig.now = moment
    for name in names:
        await rig.accept(name, body)
    await rig.publish_all()


@pytest.fixture
def now() -> float:
    return datetime.now(UTC).timestamp()


async def test_published_messages_are_kept_for_their_time(rig: Rig, make_upkeep: Any, now: float) -> None:
    upkeep = make_upkeep(spool={"keep_published_hours": 2})
    await publish_at(rig, now - 2 * HOUR - 60, "old")
    await publish_at(rig, now - 2 * HOUR + 60, "young")
    await rig.accept("waiting")

    await upkeep.purge_spool()

    assert await kept(rig) == ["young", "waiting"]


async def test_many_old_messages_go_in_one_duty(rig: Rig, make_upkeep: Any, now: float) -> None:
    await publish_at(rig, now - 5 * DAY, *(f"n{n}" for n in range(1200)))

    await make_upkeep().purge_spool()

    assert await kept(rig) == []
    assert rig.spool.bytes == 0


async def test_kept_copies_give_way_when_the_spool_is_nearly_full(rig: Rig, make_upkeep: Any, now: float) -> None:
    # given: 95 % of a spool of one MiB, in which the purge takes steps of 500 messages
    size = (1 << 20) * 95 // 100 // 1000 - ROW_BYTES
    upkeep = make_upkeep(spool={"max_bytes": 1 << 20})
    await publish_at(rig, now - 60, *(f"n{n}" for n in range(1000)), body=b"x" * size)

    # when
    await upkeep.purge_spool()

    # then: the oldest are gone, the newest are there
    assert await kept(rig) == [f"n{n}" for n in range(500, 1000)]


async def test_what_waits_is_never_purged_however_full_it_is(rig: Rig, make_upkeep: Any, now: float) -> None:
    rig.now = now - 30 * DAY
    for n in range(10):
        await rig.accept(f"n{n}", b"x" * 200_000)

    await make_upkeep(spool={"max_bytes": 1 << 20}).purge_spool()

    assert len(await kept(rig)) == 10


async def test_attachments_are_deleted_after_their_time(rig: Rig, make_upkeep: Any, now: float) -> None:
    old, young = await rig.blobs.put(b"old"), await rig.blobs.put(b"young")
    path = rig.blobs_folder / old[:2] / old[2:]
    os.utime(path, (now - 8 * DAY, now - 8 * DAY))

    await make_upkeep(blobs={"keep_days": 7}).purge_blobs()

    assert not path.exists()
    assert (rig.blobs_folder / young[:2] / young[2:]).exists()


async def test_a_redis_that_was_emptied_is_noticed_and_the_pipeline_woken(rig: Rig, make_upkeep: Any) -> None:
    woken: list[bool] = []
    upkeep = make_upkeep(lambda: woken.append(rig.publisher.lost_data))
    await rig.accept("n1")
    await rig.publish_all()
    await upkeep.look_at_redis()
    assert woken == []

    await rig.redis.ask("FLUSHALL")
    await upkeep.look_at_redis()

    assert woken == [True]


async def test_a_spool_that_failed_is_tried_without_a_message(rig: Rig, make_upkeep: Any) -> None:
    # given: nobody sends messages to a daemon that is not ready
    upkeep = make_upkeep()
    rig.spool._journal.healthy = False

    await upkeep.try_spool()

    assert rig.spool.healthy
    assert rig.intake.troubles() == []


async def test_the_duties_recur_and_survive_a_fault(
    rig: Rig, make_upkeep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: the disk fails twice
    for name in ("_LOOK_SECS", "_TRY_SECS", "_PURGE_SECS", "_BLOBS_SECS"):
        monkeypatch.setattr(module, name, 0.001)
    purged = asyncio.Event()
    faults: list[Exception] = [Unavailable("spool_failed"), OSError("disk")]

    async def purge(*args: Any) -> None:
        if faults:
            raise faults.pop()
        purged.set()

    monkeypatch.setattr(rig.spool, "purge", purge)
    rig.spool.bytes = 1  # there is something to purge
    tasks = [asyncio.ensure_future(duty) for duty in make_upkeep().duties()]

    # when, then
    await asyncio.wait_for(purged.wait(), 10)
    assert not any(task.done() for task in tasks)
    await _cancel(tasks)
    rig.spool.bytes = 0


async def test_a_blob_store_that_fails_ends_no_duty(
    rig: Rig, make_upkeep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    monkeypatch.setattr(module, "_BLOBS_SECS", 0.001)
    (rig.blobs_folder / "loop").symlink_to(rig.blobs_folder / "loop")
    upkeep: Upkeep = make_upkeep()
    with pytest.raises(Unavailable, match="the blob store refused"):
        await upkeep.purge_blobs()

    # when
    tasks = [asyncio.ensure_future(duty) for duty in upkeep.duties()]
    await asyncio.wait(tasks, timeout=0.05)

    # then
    assert not any(task.done() for task in tasks)
    await _cancel(tasks)
