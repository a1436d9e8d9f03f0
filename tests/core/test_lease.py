"""Leases on a real Redis: one owner at a time, whatever becomes of the owner or of Redis."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from redis.crc import key_slot

from gateway.errors import Unavailable
from gateway.lease import Leases
from tests.core.redis_process import RedisProcess

LIFE_SECS = 1.0

MakeLeases = Callable[..., Leases]


@pytest.fixture
async def make_leases(redis: RedisProcess, tmp_path: Path) -> AsyncIterator[MakeLeases]:
    """`make_leases("s1")`: of the gateway with this spool."""
    made: list[Leases] = []

    def make(spool: str, *, life_secs: float = LIFE_SECS) -> Leases:
        made.append(Leases(redis.settings, "tickets", tmp_path, spool=spool, life_secs=life_secs))
        return made[-1]

    yield make
    for leases in made:
        await leases.close()


class Owner:
    """A gateway that wants to read the channel `mailbox`."""

    def __init__(self, leases: Leases) -> None:
        self.waits: list[str] = []
        self.has_it = asyncio.Event()
        self.may_end = asyncio.Event()
        self.lease = leases.of("mailbox")
        self.task = asyncio.create_task(self._own())

    async def _own(self) -> None:
        async with self.lease.hold(self.waits.append) as self.hold:
            self.has_it.set()
            await self.may_end.wait()

    async def owns(self) -> "Owner":
        async with asyncio.timeout(10):
            await self.has_it.wait()
        return self

    async def ends(self) -> None:
        self.may_end.set()
        await self.task

    async def is_told(self) -> None:
        """That it has lost it."""
        with pytest.raises(Unavailable):
            await asyncio.wait_for(self.task, 10)

    async def vanishes(self) -> None:
        """As when its machine loses its power: nothing is given back."""
        leases: Leases = self.lease._leases  # type: ignore[attr-defined]  # of this implementation
        await leases.close()
        leases._client = _Dead()  # type: ignore[assignment]  # as seen by Redis
        self.task.cancel()
        await asyncio.wait([self.task])


class _Dead:
    async def eval(self, *_: object) -> None:
        raise ConnectionError

    async def aclose(self) -> None: ...


async def test_two_gateways_take_turns(make_leases: MakeLeases) -> None:
    first = await Owner(make_leases("s1")).owns()
    second = Owner(make_leases("s2"))
    await asyncio.sleep(LIFE_SECS * 1.2)  # longer than it lives without renewal
    assert not second.has_it.is_set()
    assert set(second.waits) == {"another gateway reads it"}

    await first.ends()

    await second.owns()
    assert second.hold.number > first.hold.number
    await second.ends()


async def test_what_an_owner_shares_is_there_for_the_next(make_leases: MakeLeases) -> None:
    first = await Owner(make_leases("s1")).owns()
    assert await first.hold.recall() == {}
    await first.hold.memorise({"position 收件箱": "1 7", "other": "x"})
    await first.hold.memorise({"position 收件箱": "1 8"})
    await first.ends()

    second = await Owner(make_leases("s2")).owns()

    assert await second.hold.recall() == {"position 收件箱": "1 8", "other": "x"}
    await second.ends()


async def test_channels_do_not_share(make_leases: MakeLeases) -> None:
    leases = make_leases("s1")
    async with leases.of("a").hold(print) as a, leases.of("b").hold(print) as b:
        await a.memorise({"position": "7"})

        assert await b.recall() == {}


async def test_a_dead_owner_is_followed_by_another(make_leases: MakeLeases) -> None:
    first = await Owner(make_leases("s1")).owns()
    await first.vanishes()

    second = await Owner(make_leases("s2")).owns()

    assert second.waits
    await second.ends()


async def test_a_gateway_that_was_killed_need_not_wait_for_its_own_lease(make_leases: MakeLeases) -> None:
    first = await Owner(make_leases("s1", life_secs=3600)).owns()
    await first.vanishes()

    again = await asyncio.wait_for(Owner(make_leases("s1", life_secs=3600)).owns(), 2)

    assert again.waits == []
    await again.ends()


async def test_an_owner_that_comes_back_late_changes_nothing(make_leases: MakeLeases) -> None:
    # given: the first stood still, and the second took over
    first = await Owner(make_leases("s1")).owns()
    late = first.hold
    await late.memorise({"position": "1 7"})
    await first.vanishes()
    second = await Owner(make_leases("s2")).owns()
    await second.hold.memorise({"position": "1 9"})

    # when
    woken = make_leases("s1")
    late._leases = woken  # type: ignore[attr-defined]  # its connection is good again
    with pytest.raises(Unavailable):
        await late.memorise({"position": "1 8"})

    # then
    assert await second.hold.recall() == {"position": "1 9"}
    await second.ends()


async def test_an_owner_that_stood_still_notices_before_it_acts(make_leases: MakeLeases) -> None:
    async with make_leases("s1").of("mailbox").hold(print) as hold:
        hold.check()
        hold.until = asyncio.get_running_loop().time()  # type: ignore[attr-defined]  # the time has come meanwhile

        with pytest.raises(Unavailable):
            hold.check()


async def test_work_ends_when_redis_is_away_for_too_long(make_leases: MakeLeases, redis: RedisProcess) -> None:
    owner = await Owner(make_leases("s1")).owns()
    redis.kill()

    await owner.is_told()

    waiting = Owner(make_leases("s1"))
    async with asyncio.timeout(5):
        while not waiting.waits:
            await asyncio.sleep(0.01)
    assert "Redis" in waiting.waits[0]
    await redis.start()
    await waiting.owns()
    await waiting.ends()


async def test_a_restart_of_redis_is_survived(make_leases: MakeLeases, redis: RedisProcess) -> None:
    owner = await Owner(make_leases("s1", life_secs=6)).owns()
    await owner.hold.memorise({"position": "1 7"})
    redis.kill()
    await redis.start()

    async with asyncio.timeout(5):
        while True:
            try:
                await owner.hold.memorise({"position": "1 8"})
                break
            except Unavailable:
                await asyncio.sleep(0.05)

    assert await owner.hold.recall() == {"position": "1 8"}
    await owner.ends()


async def test_a_wiped_redis_ends_the_work_and_knows_no_position(make_leases: MakeLeases, redis: RedisProcess) -> None:
    owner = await Owner(make_leases("s1")).owns()
    await owner.hold.memorise({"position": "1 7"})
    await redis.ask("FLUSHALL")
    with pytest.raises(Unavailable):
        await owner.hold.memorise({"position": "1 8"})
    await owner.is_told()

    again = await Owner(make_leases("s1")).owns()

    assert await again.hold.recall() == {}
    await again.ends()


async def test_an_error_of_the_work_itself_passes_through(make_leases: MakeLeases) -> None:
    leases = make_leases("s1")
    for error in (TimeoutError("of the work"), ValueError("of the work")):
        with pytest.raises(type(error), match="of the work"):
            async with leases.of("mailbox").hold(print):
                raise error

    assert await leases.step("mailbox", "take", "s2:x", 1000)  # it was given back


async def test_the_keys_are_in_the_streams_slot(make_leases: MakeLeases, redis: RedisProcess) -> None:
    async with make_leases("s1").of("mailbox").hold(print) as hold:
        await hold.memorise({"position": "1 7"})
        keys = await redis.ask("KEYS", "*")

    assert len(keys) == 3
    assert {key_slot(key.encode()) for key in keys} == {key_slot(b"{tickets}:x")}
