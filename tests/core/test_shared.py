"""What gateways share, on a real Redis."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.crc import key_slot

from gateway.contract import Apart, Shared
from gateway.errors import Unavailable
from gateway.shared import SharedState
from tests.core.redis_process import RedisProcess


@pytest.fixture
async def ours(redis: RedisProcess, tmp_path: Path) -> AsyncIterator[SharedState]:
    state = SharedState(redis.settings, "tickets", tmp_path)
    yield state
    await state.close()


@pytest.fixture(params=["redis", "apart"])
def shared(request: pytest.FixtureRequest) -> Shared:
    state: Shared = request.getfixturevalue("ours") if request.param == "redis" else Apart()
    return state


async def test_what_was_put_is_there(shared: Shared) -> None:
    assert await shared.get("wx1:token") is None
    await shared.put("wx1:token", "值 \ud800", ttl_secs=60)
    assert await shared.get("wx1:token") == "值 \ud800"
    await shared.delete("wx1:token")
    assert await shared.get("wx1:token") is None


async def test_the_first_has_a_claim(shared: Shared) -> None:
    assert await shared.claim("wx1:reply", "m1", ttl_secs=60) == "m1"
    assert await shared.claim("wx1:reply", "m2", ttl_secs=60) == "m1"
    assert await shared.claim("wx1:reply", "m1", ttl_secs=60) == "m1"


async def test_a_merge_gives_the_whole(shared: Shared) -> None:
    assert await shared.merge("call:1", {"ring": "1"}, ttl_secs=60) == {"ring": "1"}
    assert await shared.merge("call:1", {"end": "2"}, ttl_secs=60) == {"ring": "1", "end": "2"}
    assert await shared.merge("call:1", {}, ttl_secs=60) == {"ring": "1", "end": "2"}
    assert await shared.merge("call:2", {}, ttl_secs=60) == {}


async def test_of_two_at_a_time_one_has_a_claim(ours: SharedState, redis: RedisProcess, tmp_path: Path) -> None:
    others = SharedState(redis.settings, "tickets", tmp_path)

    held = await asyncio.gather(*(state.claim("k", str(n), ttl_secs=60) for n, state in enumerate([ours, others] * 20)))

    await others.close()
    assert len(set(held)) == 1


async def test_what_is_asked_at_a_time_is_asked_together(ours: SharedState, redis: RedisProcess) -> None:
    for n in range(500):
        await ours.put(str(n), f"value {n}", ttl_secs=60)
    await redis.ask("CONFIG", "RESETSTAT")

    found = await asyncio.gather(*(ours.get(str(n)) for n in range(501)))
    held = await asyncio.gather(*(ours.claim(f"k{n % 250}", str(n), ttl_secs=60) for n in range(500)))

    assert found == [*(f"value {n}" for n in range(500)), None]
    assert held == [str(n % 250) for n in range(500)]
    calls = await redis.ask("INFO", "commandstats")
    assert calls["cmdstat_mget"]["calls"] < 10
    assert calls["cmdstat_eval"]["calls"] < 10


async def test_whoever_goes_away_takes_nobody_along(ours: SharedState) -> None:
    await ours.put("a", "1", ttl_secs=60)
    first, second = (asyncio.create_task(ours.get("a")) for _ in range(2))
    await asyncio.sleep(0)

    first.cancel()

    assert await second == "1"
    assert first.cancelled() or first.cancelling()


async def test_it_is_kept_for_its_time(ours: SharedState, redis: RedisProcess) -> None:
    await ours.put("a", "1", ttl_secs=7)
    await ours.claim("b", "1", ttl_secs=7)
    await ours.merge("c", {"x": "1"}, ttl_secs=7)

    for key in "abc":
        assert 6000 < await redis.ask("PTTL", f"{{tickets}}:shared:{key}") <= 7000
    assert key_slot(b"{tickets}:shared:a") == key_slot(b"tickets")


async def test_a_redis_that_is_away_is_told_soon_and_asked_again(
    ours: SharedState, redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    monkeypatch.setattr("gateway.shared._PAUSE_SECS", 0.2)
    redis.signal(signal.SIGSTOP)
    loop = asyncio.get_running_loop()

    # when
    started = loop.time()
    for _ in range(20):
        with pytest.raises(Unavailable):
            await ours.get("a")
    took = loop.time() - started

    # then: not twenty times the patience
    redis.signal(signal.SIGCONT)
    assert took < 5
    async with asyncio.timeout(10):
        while True:
            try:
                assert await ours.get("a") is None
                return
            except Unavailable:
                await asyncio.sleep(0.05)
