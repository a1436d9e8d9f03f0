"""The daemon as a process: it starts, stops, reloads, dies and comes back, and loses nothing."""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.core.redis_process import RedisProcess
from tests.daemon import ROOT, Daemon

KEY = "a-key-for-the-tests-of-the-daemon"
API = {"type": "api", "keys": [{"name": "app", "sha256": sha256(KEY.encode()).hexdigest()}]}
ECHO = {"type": "echo", "secret": "a-secret-of-the-echo-channel"}

MakeDaemon = Callable[..., Daemon]
StartDaemon = Callable[..., Awaitable[Daemon]]


@pytest.fixture
def with_redis(redis: RedisProcess) -> dict[str, Any]:
    """The section for a daemon that publishes to the test's own Redis."""
    return {"redis": {"url": redis.settings.url}}


async def send(daemon: Daemon, http: aiohttp.ClientSession, text: str, channel: str = "app") -> int:
    """The status of the answer to a message."""
    headers = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": sha256(text.encode()).hexdigest()}
    async with http.post(f"{daemon.url}/c/{channel}", json={"text": text}, headers=headers) as response:
        await response.read()
        return response.status


async def texts(daemon: Daemon, n: int) -> list[str]:
    return [ticket["data"]["text"] for ticket in await daemon.until_tickets(n)]


async def ready(daemon: Daemon, http: aiohttp.ClientSession) -> tuple[int, Any]:
    async with http.get(f"{daemon.admin_url}/readyz") as response:
        return response.status, await response.json()


async def until_logged(daemon: Daemon, event: str, times: int = 1) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while len(found := daemon.events(event)) < times:
            await asyncio.sleep(0.01)
    return found[-1]


async def end_of(daemon: Daemon) -> int:
    """The status of a daemon that ends by itself."""
    assert daemon.process is not None
    return await asyncio.wait_for(daemon.process.wait(), 20)


# --- start and stop ---------------------------------------------------------------------------------------------------


async def test_a_message_goes_from_the_channel_to_the_stream(
    start_daemon: StartDaemon, with_redis: dict[str, Any], http: aiohttp.ClientSession
) -> None:
    daemon = await start_daemon({"app": API}, **with_redis)

    assert await send(daemon, http, "打印机坏了") == 202

    assert await texts(daemon, 1) == ["打印机坏了"]
    assert await ready(daemon, http) == (200, {"ready": True, "reasons": []})
    metrics = await daemon.metrics()
    assert metrics['huiru_messages_accepted_total{channel="app"}'] == 1
    assert metrics['huiru_channel_up{channel="app"}'] == 1
    assert metrics["huiru_redis_up"] == 1
    id_ = (await daemon.tickets())[0]["id"]
    for event in ("accepted", "published"):
        assert (await until_logged(daemon, event))["ids"] == [id_]


async def test_a_stop_publishes_what_is_waiting_and_a_second_start_keeps_the_data(
    start_daemon: StartDaemon, http: aiohttp.ClientSession
) -> None:
    # given: an embedded Redis, and a load of messages
    daemon = await start_daemon({"app": API})
    statuses = await asyncio.gather(*(send(daemon, http, f"n{n}") for n in range(100)))
    assert statuses == [202] * 100

    # when
    status = await daemon.stop()

    # then: it ended well, with everything in the stream, and Redis with it
    assert status == 0
    assert [line["event"] for line in map(json.loads, daemon.log().splitlines()[-1:])] == ["stopped"]
    assert not daemon.state_dir.joinpath("admin.sock").exists()
    await daemon.start()
    assert sorted(await texts(daemon, 100)) == sorted(f"n{n}" for n in range(100))
    (channel,) = (await daemon.status())["channels"]
    assert (channel["accepted"], channel["published"], channel["waiting"]) == (100, 100, 0)


async def test_a_request_in_work_is_finished_before_the_end(
    start_daemon: StartDaemon, with_redis: dict[str, Any]
) -> None:
    # given: half a request
    daemon = await start_daemon({"app": API}, **with_redis)
    host, port = daemon.config["http"]["listen"].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = b'{"text": "hello"}'
    head = f"POST /c/app HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body[:5])
    await writer.drain()
    await daemon.status()  # a turn of the daemon: what came before has been read

    # when
    daemon.signal(signal.SIGTERM)
    await until_logged(daemon, "stopping")
    writer.write(body[5:])
    answer = await asyncio.wait_for(reader.readline(), 10)

    # then
    writer.close()
    assert answer.startswith(b"HTTP/1.1 202 ")
    assert await end_of(daemon) == 0
    assert await texts(daemon, 1) == ["hello"]


async def test_a_stop_without_redis_ends_in_time_and_keeps_what_waits(
    start_daemon: StartDaemon, redis: RedisProcess, with_redis: dict[str, Any], http: aiohttp.ClientSession
) -> None:
    # given
    redis.kill()
    daemon = await start_daemon({"app": API}, **with_redis, shutdown_secs=1)
    assert await send(daemon, http, "hello") == 202

    # when
    assert await asyncio.wait_for(daemon.stop(), 10) == 0

    # then
    await redis.start()
    await daemon.start()
    assert await texts(daemon, 1) == ["hello"]


async def test_what_was_accepted_before_a_kill_is_published_after_it(
    start_daemon: StartDaemon, redis: RedisProcess, with_redis: dict[str, Any], http: aiohttp.ClientSession
) -> None:
    # given: no Redis, and messages of every size
    redis.kill()
    daemon = await start_daemon({"app": API}, **with_redis)
    sent = [f"n{n}" + "长" * (n % 3 * 40_000) for n in range(12)]
    assert [await send(daemon, http, text) for text in sent] == [202] * 12

    # when
    await daemon.kill()
    await redis.start()
    await daemon.start()

    # then
    assert sorted(await texts(daemon, len(sent))) == sorted(sent)


async def test_an_embedded_redis_outlives_a_kill_and_is_taken_over(
    start_daemon: StartDaemon, http: aiohttp.ClientSession
) -> None:
    daemon = await start_daemon({"app": API})
    await send(daemon, http, "before")
    await texts(daemon, 1)

    await daemon.kill()
    async with daemon.redis() as client:
        assert await client.ping()
    await daemon.start()

    await send(daemon, http, "after")
    assert await texts(daemon, 2) == ["before", "after"]
    assert daemon.events("redis.taken_over")


async def test_the_service_manager_is_told_how_it_is(
    make_daemon: MakeDaemon, with_redis: dict[str, Any], short_path: Path
) -> None:
    # given
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(short_path / "notify"))
    manager.setblocking(False)
    daemon = make_daemon({"app": API}, **with_redis)
    daemon.env["NOTIFY_SOCKET"] = str(short_path / "notify")

    # when
    await daemon.start()
    daemon.signal(signal.SIGHUP)
    await until_logged(daemon, "reloaded")
    assert await daemon.end(signal.SIGINT) == 0

    # then
    told = b"\n".join(iter_received(manager)).decode().splitlines()
    manager.close()
    names = [line for line in told if not line.startswith("MONOTONIC_USEC=")]
    assert names == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]


def iter_received(manager: socket.socket) -> list[bytes]:
    received = []
    with suppress(BlockingIOError):
        while True:
            received.append(manager.recv(1000))
    return received


# --- reload -----------------------------------------------------------------------------------------------------------


async def test_a_reload_adds_and_removes_channels(
    start_daemon: StartDaemon, with_redis: dict[str, Any], http: aiohttp.ClientSession
) -> None:
    # given
    daemon = await start_daemon({"app": API, "old": ECHO}, **with_redis)
    assert await send(daemon, http, "hello", "new") == 404

    # when
    daemon.config["channels"] = {"app": API, "new": API}
    daemon.config["shutdown_secs"] = 7
    daemon.write_config()
    answer = await daemon.admin("POST", "/api/reload")

    # then
    assert answer == {"status": "reloaded", "needs_restart": ["shutdown_secs"]}
    assert await send(daemon, http, "hello", "new") == 202
    assert await send(daemon, http, "hello", "old") == 404
    ticket = (await daemon.until_tickets(1))[0]
    assert ticket["source"] == "/test/new"
    metrics = await daemon.metrics()
    assert 'huiru_channel_up{channel="new"}' in metrics
    assert 'huiru_channel_up{channel="old"}' not in metrics


async def test_a_reload_of_a_wrong_file_changes_nothing(
    start_daemon: StartDaemon, with_redis: dict[str, Any], http: aiohttp.ClientSession
) -> None:
    daemon = await start_daemon({"app": API}, **with_redis)
    unknown_key = json.dumps(daemon.config | {"chanels": {}})
    unknown_type = json.dumps(daemon.config | {"channels": {"app": {"type": "pigeon"}}})

    for n, damaged in enumerate(["channels: [", unknown_key, unknown_type, ""], 1):
        # when
        daemon.config_path.write_text(damaged)
        daemon.signal(signal.SIGHUP)
        refused = await until_logged(daemon, "reload_refused", n)

        # then
        assert str(daemon.config_path) in refused["reason"]
        assert await send(daemon, http, f"n{n}") == 202
        assert (await daemon.admin("POST", "/api/reload"))["status"] == 422


# --- when it cannot start ---------------------------------------------------------------------------------------------


async def test_a_wrong_configuration_is_told_in_a_line(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon({"app": {**API, "kees": 1}})

    await daemon.start(ready=False)

    assert await end_of(daemon) == 78
    assert f"{daemon.config_path}:" in daemon.log()
    assert "kees" in daemon.log()
    assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("section", ["http", "admin"])
async def test_a_port_in_use_is_told_in_a_line(
    make_daemon: MakeDaemon, with_redis: dict[str, Any], section: str
) -> None:
    daemon = make_daemon({"app": API}, **with_redis)
    address = daemon.config[section]["listen"]
    host, port = address.split(":")

    with socket.create_server((host, int(port))):
        await daemon.start(ready=False)
        assert await end_of(daemon) == 1

    assert f"cannot listen on {address}" in daemon.log()
    assert "Traceback" not in daemon.log()


async def test_a_second_daemon_at_one_state_folder_is_told_so(
    start_daemon: StartDaemon, make_daemon: MakeDaemon, with_redis: dict[str, Any], http: aiohttp.ClientSession
) -> None:
    first = await start_daemon({"app": API}, **with_redis)
    second = make_daemon({"app": API}, **with_redis)
    second.config["state_dir"] = str(first.state_dir)

    await second.start(ready=False)

    assert await end_of(second) == 1
    assert first.process is not None
    assert f"{first.state_dir} is in use by another huiru (pid {first.process.pid})" in second.log()
    assert "Traceback" not in second.log()
    assert await send(first, http, "hello") == 202


async def test_a_state_folder_that_cannot_be_made_is_told_in_a_line(make_daemon: MakeDaemon, short_path: Path) -> None:
    (short_path / "file").write_bytes(b"")
    daemon = make_daemon({"app": API}, state_dir=str(short_path / "file" / "state"))

    await daemon.start(ready=False)

    assert await end_of(daemon) == 1
    assert "Traceback" not in daemon.log()


async def test_an_embedded_redis_that_cannot_start_is_told_in_its_words(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon({"app": API})
    port = daemon.config["redis"]["embedded_port"]

    with socket.create_server(("127.0.0.1", port)):
        await daemon.start(ready=False)
        assert await end_of(daemon) == 1

    assert "the embedded Redis did not start: " in daemon.log()
    assert "ddress already in use" in daemon.log()


# --- trouble ----------------------------------------------------------------------------------------------------------


async def test_a_daemon_without_redis_accepts_and_catches_up(
    start_daemon: StartDaemon, redis: RedisProcess, with_redis: dict[str, Any], http: aiohttp.ClientSession
) -> None:
    # given
    daemon = await start_daemon({"app": API}, **with_redis)
    redis.kill()

    # when
    assert [await send(daemon, http, f"n{n}") for n in range(5)] == [202] * 5
    await daemon.until_status(lambda status: not status["redis"]["up"])
    assert await ready(daemon, http) == (200, {"ready": True, "reasons": []})
    await redis.start()

    # then
    assert await texts(daemon, 5) == [f"n{n}" for n in range(5)]


async def test_a_full_spool_is_not_ready_and_says_so(
    start_daemon: StartDaemon, redis: RedisProcess, with_redis: dict[str, Any], http: aiohttp.ClientSession
) -> None:
    # given: room for one MiB, and Redis is away
    redis.kill()
    daemon = await start_daemon({"app": API}, **with_redis, spool={"max_bytes": "1MiB"})
    statuses = [await send(daemon, http, f"n{n}" + "x" * 200_000) for n in range(8)]

    # then
    assert set(statuses) == {202, 503}
    assert statuses == sorted(statuses)

    # when Redis is back, the copies of what is published give way
    await redis.start()
    assert len(await texts(daemon, statuses.count(202))) == statuses.count(202)


async def test_a_damaged_spool_is_set_aside_and_serving_goes_on(
    start_daemon: StartDaemon, with_redis: dict[str, Any], http: aiohttp.ClientSession
) -> None:
    daemon = await start_daemon({"app": API}, **with_redis)
    await send(daemon, http, "hello")
    await texts(daemon, 1)
    await daemon.stop()
    (daemon.state_dir / "spool" / "spool.db").write_bytes(b"no database" * 1000)

    await daemon.start()

    assert await send(daemon, http, "again") == 202
    assert (await daemon.status())["spool"]["damaged"] is True
    assert (await daemon.metrics())["huiru_spool_damaged"] == 1
    assert await texts(daemon, 2) == ["hello", "again"]


DYING = """
import pathlib, sys
from gateway import app, pipeline

async def run(self):
    raise ZeroDivisionError("a defect of ours")

pipeline.Pipeline.run = run
sys.exit(app.main(pathlib.Path(sys.argv[1])))
"""


async def test_a_daemon_whose_pipeline_died_ends_so_that_it_is_started_again(
    make_daemon: MakeDaemon, with_redis: dict[str, Any]
) -> None:
    daemon = make_daemon({"app": API}, **with_redis, shutdown_secs=1)
    daemon.write_config()

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DYING, daemon.config_path), cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    _, log = await asyncio.wait_for(process.communicate(), 20)

    assert process.returncode == 1
    assert b"task_died" in log
    assert b"a defect of ours" in log


# --- secrets ----------------------------------------------------------------------------------------------------------


async def test_no_secret_of_the_configuration_is_in_the_log(
    make_daemon: MakeDaemon, redis: RedisProcess, http: aiohttp.ClientSession
) -> None:
    # given: a Redis whose password is in the address
    await redis.ask("CONFIG", "SET", "requirepass", "p4ssword-of-redis")
    url = redis.settings.url.replace("//", "//:p4ssword-of-redis@")
    daemon = make_daemon({"app": API, "echo": ECHO}, redis={"url": url}, log={"format": "json", "level": "debug"})
    daemon.config["secret"] = "the-secret-of-the-whole-gateway-0001"

    # when: it works, loses Redis, is reloaded
    await daemon.start()
    assert await send(daemon, http, "hello") == 202
    assert await texts(daemon, 1) == ["hello"]
    async with http.post(f"{daemon.url}/c/echo", data=b"{}", headers={"X-Echo-Signature": "no"}) as response:
        assert response.status == 401
    shown = json.dumps(await daemon.status())
    redis.kill()
    assert await send(daemon, http, "without Redis") == 202
    await daemon.until_status(lambda status: not status["redis"]["up"])
    await daemon.admin("POST", "/api/reload")

    # then
    for secret in ("p4ssword-of-redis", "the-secret-of-the-whole-gateway", ECHO["secret"], KEY):
        assert secret not in daemon.log()
        assert secret not in shown
