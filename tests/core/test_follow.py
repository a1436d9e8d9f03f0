"""A reader of the stream sees every entry once, in order, over restarts of Redis."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway import follow


class Server:
    """A real Redis on a unix socket, with its data in a file."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self._folder = folder

    async def start(self, *options: str) -> None:
        program = shutil.which("redis-server") or "redis-server"
        self._process = await asyncio.create_subprocess_exec(
            *(program, "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self._folder)),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", "", *options),
            stdout=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(20):
            while not await self._answers():
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        self._process.kill()
        await self._process.wait()

    def client(self) -> Redis:
        return Redis(unix_socket_path=str(self.socket), retry=Retry(NoBackoff(), 0), protocol=2, socket_timeout=5)

    async def _answers(self) -> bool:
        async with self.client() as client:
            try:
                await client.ping()
            except (RedisError, OSError) as error:
                return "NOAUTH" in str(error)
        return True


@pytest.fixture
async def server(short_path: Path) -> AsyncIterator[Server]:
    server = Server(short_path)
    await server.start()
    yield server
    await server.kill()


@pytest.fixture
async def redis(server: Server) -> AsyncIterator[Redis]:
    async with server.client() as client:
        yield client


async def read(redis: Redis, after: str | None, count: int) -> list[bytes]:
    found = []
    async with asyncio.timeout(20), aclosing(follow.entries(redis, "s", after)) as entries:
        async for _, fields in entries:
            found.append(fields[b"n"])
            if len(found) == count:
                break
    return found


async def add(redis: Redis, *numbers: int) -> None:
    for number in numbers:
        await redis.xadd("s", {"n": number})


async def test_from_the_beginning(redis: Redis) -> None:
    await add(redis, *range(250))

    assert await read(redis, "0", 250) == [b"%d" % number for number in range(250)]


async def test_after_an_entry(redis: Redis) -> None:
    first = await redis.xadd("s", {"n": 1})
    await add(redis, 2)

    assert await read(redis, first.decode(), 1) == [b"2"]


@pytest.mark.parametrize("before", [(), (1, 2)])
async def test_only_new_ones(server: Server, redis: Redis, before: tuple[int, ...]) -> None:
    await add(redis, *before)
    async with server.client() as other, asyncio.TaskGroup() as group:
        reader = group.create_task(read(other, None, 1))
        while not await redis.client_list() or not any("xread" in one["cmd"] for one in await redis.client_list()):
            await asyncio.sleep(0.01)
        await add(redis, 3)

    assert reader.result() == [b"3"]


async def test_a_restart_of_redis_loses_and_repeats_nothing(server: Server, redis: Redis) -> None:
    await add(redis, 1, 2)
    troubles: list[str] = []
    seen: list[bytes] = []

    async with asyncio.timeout(20), aclosing(follow.entries(redis, "s", "0", troubles.append)) as entries:
        async for _, fields in entries:
            seen.append(fields[b"n"])
            if len(seen) == 2:
                await server.kill()
                await server.start()
                async with server.client() as writer:
                    await add(writer, 3)
            if len(seen) == 3:
                break

    assert seen == [b"1", b"2", b"3"]
    assert len(troubles) in (0, 2)  # a restart between two reads may pass unnoticed


async def test_it_waits_for_a_redis_that_is_away(server: Server, redis: Redis) -> None:
    await add(redis, 1)
    await server.kill()
    away = asyncio.Event()
    troubles: list[str] = []

    def on_trouble(trouble: str) -> None:
        troubles.append(trouble)
        away.set()

    async def bring_back() -> None:
        await away.wait()
        await server.start()

    async with (
        asyncio.timeout(20),
        asyncio.TaskGroup() as group,
        aclosing(follow.entries(redis, "s", "0", on_trouble)) as entries,
    ):
        group.create_task(bring_back())
        assert (await anext(entries))[1] == {b"n": b"1"}

    assert troubles[0]
    assert troubles[1:] == [""]


async def test_a_key_that_is_no_stream_is_told(redis: Redis) -> None:
    await redis.set("s", "x")

    with pytest.raises(RedisError, match="WRONGTYPE"):
        await read(redis, "0", 1)


async def test_a_password_that_is_wanted_is_told(server: Server, redis: Redis) -> None:
    await redis.config_set("requirepass", "x")

    async with server.client() as stranger:
        with pytest.raises(RedisError, match="Authentication required"):
            await read(stranger, "0", 1)


@pytest.mark.parametrize(("text", "is_id"), [("0", True), ("1764-3", True), ("$", False), ("", False), ("1-", False)])
def test_what_an_entry_id_looks_like(text: str, is_id: bool) -> None:
    assert follow.is_entry_id(text) is is_id


@pytest.mark.parametrize("steps", range(40))
async def test_it_can_be_cancelled_at_any_step(redis: Redis, server: Server, steps: int) -> None:
    got_one = asyncio.Event()

    async def run() -> None:
        async with server.client() as client, aclosing(follow.entries(client, "s", "0")) as entries:
            async for _ in entries:
                got_one.set()

    await add(redis, 1)
    reader = asyncio.create_task(run())
    await got_one.wait()
    for _ in range(steps):
        await asyncio.sleep(0)
    reader.cancel()

    async with asyncio.timeout(10):
        await asyncio.wait([reader])
    assert reader.cancelled()
