"""A real daemon, a real Redis, and everything that may end them. What was acknowledged is published once, as it came.

Each test is: faults under load, then `verdict`, which lets everything come to rest and has the oracle compare.
"""

import asyncio

import pytest

from tests.faults.conftest import StartRig
from tests.faults.disk import DiskKind
from tests.faults.rig import Rig


async def test_a_daemon_killed_at_any_moment(start_rig: StartRig, seed: int, storm: int, kills: int) -> None:
    rig = await start_rig(seed + storm)
    rig.spoil_wires(trouble=0.01, appetite=0.05)

    while rig.kills < kills:
        await rig.pause(0, 0.6)
        await mishap_of_redis(rig)
        await mishap_of_dovecot(rig)
        await (rig.pause_until_work() if rig.rng.random() < 0.7 else rig.pause(0, 0.3))
        await rig.kill_daemon()
        await rig.start_daemon(ready=rig.rng.random() < 0.8)  # some are killed while they start

    await rig.daemon.until_ready()
    await rig.verdict()


async def mishap_of_redis(rig: Rig) -> None:
    """Mostly none."""
    chance = rig.rng.random()
    if chance < 0.1:
        await rig.redis.kill()
        await rig.pause(0, 0.3)
        await rig.redis.start()
    elif chance < 0.15:
        await rig.wipe_redis()
    elif chance < 0.2:
        await rig.redis.flush()
    elif chance < 0.25:
        await rig.cut_redis()
    elif chance < 0.3:
        await rig.redis.freeze(rig.rng.uniform(0, 1.5))


async def mishap_of_dovecot(rig: Rig) -> None:
    """Mostly none."""
    chance = rig.rng.random()
    if chance < 0.1:
        await rig.mailbox.kill_server()
        await rig.pause(0, 0.3)
        await rig.mailbox.start_server()
    elif chance < 0.15:
        await rig.mailbox.number_anew()
    elif chance < 0.2:
        await rig.mailbox.freeze(rig.rng.uniform(0, 1.5))


async def test_a_redis_that_is_killed(start_rig: StartRig, seed: int) -> None:
    rig = await start_rig(seed)

    for _ in range(3):
        await rig.pause(0.2, 0.8)
        await rig.redis.kill()
        await rig.pause(0, 1)
        await rig.redis.start()

    await rig.verdict()


@pytest.mark.parametrize("how", ["wiped", "flushed"])
async def test_a_redis_that_forgets_everything(start_rig: StartRig, seed: int, how: str) -> None:
    rig = await start_rig(seed)

    await rig.pause(1, 2)
    await (rig.wipe_redis() if how == "wiped" else rig.redis.flush())
    await rig.pause(0.5, 1)

    await rig.verdict()
    assert rig.daemon.events("redis.lost_data")


async def test_a_redis_that_forgets_its_newest(start_rig: StartRig, seed: int) -> None:
    rig = await start_rig(seed)
    rig.spoil_wires(trouble=0, appetite=0.5)

    for _ in range(3):
        await rig.pause(0.3, 0.8)
        await rig.cut_redis()
    rig.spoil_wires(0, 0)
    await rig.pause(0.5, 1)
    await rig.cut_redis(200_000)

    await rig.verdict()
    assert rig.daemon.events("redis.lost_data")


async def test_a_daemon_killed_while_it_publishes_again(start_rig: StartRig, seed: int) -> None:
    rig = await start_rig(seed, stream={"batch": 8})
    await rig.pause(1, 2)
    await rig.kill_daemon()
    await rig.wipe_redis()

    for _ in range(2):
        await rig.start_daemon()
        await rig.pause(0, 0.3)
        await rig.kill_daemon()
    await rig.start_daemon()

    await rig.verdict()
    assert rig.daemon.events("redis.lost_data")


async def test_wires_that_eat_answers(start_rig: StartRig, seed: int) -> None:
    rig = await start_rig(seed)

    rig.spoil_wires(trouble=0.03, appetite=0.2)
    await rig.pause(2, 3)
    await rig.until(lambda: min(wire.mishaps["eat"] for wire in rig.wires.values()) > 3)

    await rig.verdict()


async def test_a_redis_that_freezes(start_rig: StartRig, seed: int) -> None:
    rig = await start_rig(seed)

    for seconds in (0.5, 3):
        await rig.pause(0.3, 0.6)
        await rig.redis.freeze(seconds)

    await rig.verdict()
    assert rig.daemon.events("redis.down")


async def test_a_mailbox_whose_server_is_killed_and_frozen(start_rig: StartRig, seed: int) -> None:
    rig = await start_rig(seed)

    for seconds in (0.5, 3):
        await rig.pause(0.2, 0.8)
        await rig.mailbox.kill_server()
        await rig.pause(0, 1)
        await rig.mailbox.start_server()
        await rig.until_more_is_read()
        await rig.mailbox.freeze(seconds)

    await rig.verdict()


async def test_a_mailbox_that_is_numbered_anew(start_rig: StartRig, seed: int) -> None:
    rig = await start_rig(seed, after="seen")
    rig.spoil_wires(trouble=0.02, appetite=0)

    for _ in range(2):
        await rig.until_more_is_read()
        await rig.mailbox.number_anew()
    await rig.until_more_is_read()

    await rig.verdict()
    assert rig.daemon.events("imap.uidvalidity_changed")


async def test_a_full_disk(start_rig: StartRig, seed: int, disk_kind: DiskKind) -> None:
    rig = await start_rig(seed, disk_kind)
    await rig.pause(0.5, 1)

    await rig.fill_disk()
    await rig.pause(1, 2)
    await rig.kill_daemon()
    await rig.start_daemon()
    await rig.pause(0.5, 1)
    rig.free_disk()

    await rig.verdict()


async def test_sigterm_under_load(start_rig: StartRig, seed: int) -> None:
    rig = await start_rig(seed)

    for _ in range(2):
        await rig.pause(0.3, 0.8)
        await rig.stop_daemon()
        await rig.start_daemon()

    await rig.verdict()


async def test_sigterm_while_redis_is_frozen(start_rig: StartRig, seed: int) -> None:
    rig = await start_rig(seed, shutdown_secs=2)
    await rig.pause(0.3, 0.8)

    freeze = asyncio.create_task(rig.redis.freeze(5))
    await rig.pause(0.3, 0.8)
    await rig.stop_daemon()
    await freeze
    await rig.start_daemon()

    await rig.verdict()
