"""The examples of the README read a real daemon's stream, and lose nothing whatever happens to them."""

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.exceptions import ResponseError

from gateway.identity import reference
from tests.daemon import Daemon

HERE = Path(__file__).parent
KEY = "a key for the tests"
CHANNELS = {"app": {"type": "api", "keys": [{"name": "test", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]}}
STREAM, GROUP, DEAD = "tickets", "helpdesk", "{tickets}:dead"
NEVER_MS, SOON_MS = 3_600_000, 300
MAX_TRIES = 2
SECONDS = 30

LANGUAGES = ["python", "node", "shell"]
WITH_DEAD_LETTERS = ["python", "node"]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples in Node with the packages of their lock file."""
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "consumer.mjs", "desk.mjs"):
        shutil.copy(HERE / name, folder)
    subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder, check=True)
    return folder


@pytest.fixture
def folder(request: pytest.FixtureRequest, language: str) -> Path:
    return request.getfixturevalue("installed") if language == "node" else HERE


@pytest.fixture
def example(folder: Path, language: str) -> list[str]:
    """The consumer as the README shows it."""
    return {
        "python": [sys.executable, str(folder / "consumer.py")],
        "node": ["node", str(folder / "consumer.mjs")],
        "shell": ["sh", str(folder / "consumer.sh"), "cat"],
    }[language]


@pytest.fixture
def command(folder: Path, language: str) -> list[str]:
    """The consumer with the store of the tests."""
    desk = [sys.executable, str(HERE / "desk.py")]
    return {
        "python": desk,
        "node": ["node", str(folder / "desk.mjs")],
        "shell": ["sh", str(folder / "consumer.sh"), *desk, "store"],
    }[language]


class Reader:
    """One consumer process. It notes what it has stored."""

    def __init__(self, command: list[str], notes: Path, **env: Any) -> None:
        self._command = command
        self._notes = notes
        self._env = {**os.environ, "NOTES": str(notes), **{key: str(value) for key, value in env.items()}}

    async def start(self) -> "Reader":
        with self._notes.with_suffix(".log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self._command, env=self._env, stdout=log, stderr=log, start_new_session=True
            )
        return self

    @property
    def notes(self) -> list[str]:
        return self._notes.read_text().splitlines() if self._notes.exists() else []

    async def kill(self) -> None:
        """With everything it started."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()


class Desk:
    """A running gateway, the messages sent to it, and the readers of its stream."""

    def __init__(self, daemon: Daemon, http: aiohttp.ClientSession, command: list[str], folder: Path) -> None:
        self.redis = daemon.redis()
        self._daemon = daemon
        self._http = http
        self.command = command
        self._folder = folder
        self.readers: list[Reader] = []

    async def post(self, *texts: str) -> list[str]:
        """The ids of the messages, which are in the stream now."""
        before = await self.redis.xlen(STREAM)
        ids = [await self._post(text) for text in texts]
        async with until("they are in the stream"):
            while await self.redis.xlen(STREAM) < before + len(ids):
                await asyncio.sleep(0.05)
        return ids

    async def _post(self, text: str) -> str:
        headers = {"Authorization": f"Bearer {KEY}"}
        async with self._http.post(f"{self._daemon.url}/c/app", json={"text": text}, headers=headers) as answer:
            assert answer.status == 202, await answer.text()
            return str((await answer.json())["id"])

    async def reader(self, name: str, *, stale_ms: int = NEVER_MS, **env: Any) -> Reader:
        """Starts one."""
        port = self._daemon.config["redis"]["embedded_port"]
        url = f"redis://127.0.0.1:{port}"
        notes = self._folder / f"{len(self.readers)}.notes"
        env = {"REDIS_URL": url, "CONSUMER": name, "STALE_MS": stale_ms, "MAX_TRIES": MAX_TRIES, **env}
        self.readers.append(Reader(self.command, notes, **env))
        return await self.readers[-1].start()

    @property
    def stored(self) -> list[str]:
        return [line for reader in self.readers for line in reader.notes if not line.startswith("begun ")]

    async def pending(self) -> int:
        """Entries that were given to a reader and not acknowledged."""
        return int((await self.redis.xpending(STREAM, GROUP))["pending"])

    async def deliveries(self) -> int:
        """How often the oldest of them was given; 0 when there is none."""
        with suppress(ResponseError):  # no reader has made the group yet
            for oldest in await self.redis.xpending_range(STREAM, GROUP, "-", "+", 1):
                return int(oldest["times_delivered"])
        return 0

    async def dead(self) -> list[dict[str, str]]:
        return [fields for _, fields in await self.redis.xrange(DEAD)]

    async def until_stored(self, *ids: str) -> None:
        async with until(f"{ids} are stored", self.logs):
            while not set(ids) <= set(self.stored):
                await asyncio.sleep(0.05)

    async def until_done(self, *ids: str) -> None:
        """Until these are stored, and everything in the stream has been acknowledged."""
        await self.until_stored(*ids)
        async with until("everything is acknowledged", self.logs):
            while not await self._is_done():
                await asyncio.sleep(0.05)

    async def _is_done(self) -> bool:
        (group,) = await self.redis.xinfo_groups(STREAM)
        stream = await self.redis.xinfo_stream(STREAM)
        return bool(group["pending"] == 0 and group["last-delivered-id"] == stream["last-generated-id"])

    async def until_begun(self, id_: str) -> Reader:
        """The reader that is at work on this ticket."""
        async with until(f"{id_} is begun", self.logs):
            while True:
                for reader in self.readers:
                    if f"begun {id_}" in reader.notes:
                        return reader
                await asyncio.sleep(0.05)

    def logs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in sorted(self._folder.glob("*.log")))

    async def close(self) -> None:
        for reader in self.readers:
            await reader.kill()
        await self.redis.aclose()


@asynccontextmanager
async def until(what: str, logs: Callable[[], str] = str) -> AsyncIterator[None]:
    """Bounds a wait, and says what was waited for."""
    try:
        async with asyncio.timeout(SECONDS):
            yield
    except TimeoutError:
        raise AssertionError(f"not in {SECONDS} s: {what}\n{logs()}") from None


@pytest.fixture
async def desk(
    start_daemon: Callable[..., Awaitable[Daemon]], http: aiohttp.ClientSession, command: list[str], tmp_path: Path
) -> AsyncIterator[Desk]:
    desk = Desk(await start_daemon(CHANNELS), http, command, tmp_path)
    yield desk
    await desk.close()


@pytest.mark.parametrize("language", LANGUAGES)
async def test_it_runs_as_the_readme_says(desk: Desk, example: list[str]) -> None:
    # given
    (id_,) = await desk.post("你好")
    desk.command = example

    # when
    await desk.reader("a")

    # then it shows the ticket and acknowledges it
    async with until("it is shown", desk.logs):
        while reference(id_) not in desk.logs():
            await asyncio.sleep(0.05)
    await desk.until_done()


@pytest.mark.parametrize("language", LANGUAGES)
async def test_each_ticket_is_stored_once(desk: Desk) -> None:
    # given tickets from before the first reader, and two readers
    before = await desk.post("one", "two", "three")
    for name in ("a", "b"):
        await desk.reader(name)

    # when
    after = await desk.post(*(f"ticket {n}" for n in range(12)))

    # then
    await desk.until_done(*before, *after)
    assert sorted(desk.stored) == sorted(before + after)


@pytest.mark.parametrize("language", LANGUAGES)
async def test_what_a_crashed_reader_had_is_taken_over(desk: Desk) -> None:
    # given a reader that is killed at its work
    (id_,) = await desk.post("endless")
    await desk.reader("a")
    reader = await desk.until_begun(id_)
    assert await desk.pending() == 1
    await reader.kill()

    # then nothing is acknowledged that was not stored
    assert await desk.pending() == 1

    # when another comes, then it does the work
    await desk.reader("b", stale_ms=SOON_MS, PATIENT="yes")
    await desk.until_done(id_)
    assert desk.stored == [id_]


@pytest.mark.parametrize("language", WITH_DEAD_LETTERS)
async def test_a_restarted_reader_begins_with_what_it_left(desk: Desk) -> None:
    (id_,) = await desk.post("endless")
    await desk.reader("a")
    await (await desk.until_begun(id_)).kill()

    await desk.reader("a", PATIENT="yes")

    await desk.until_done(id_)
    assert desk.stored == [id_]


@pytest.mark.parametrize("language", WITH_DEAD_LETTERS)
async def test_a_ticket_deleted_from_under_a_reader_does_no_harm(desk: Desk) -> None:
    # given a reader that is killed at its work, and the work is gone
    (lost,) = await desk.post("endless")
    await desk.reader("a")
    await (await desk.until_begun(lost)).kill()
    await desk.redis.xdel(STREAM, (await desk.redis.xrange(STREAM))[0][0])

    # when
    await desk.reader("a", stale_ms=SOON_MS)
    (id_,) = await desk.post("next")

    # then (Redis before 7 keeps the deleted entry among what is pending)
    await desk.until_stored(id_)
    assert desk.stored == [id_]


@pytest.mark.parametrize("language", WITH_DEAD_LETTERS)
async def test_a_poison_ticket_ends_among_the_dead_letters(desk: Desk) -> None:
    # given
    first, poison, last = await desk.post("first", "poison", "last")
    events = {fields["id"]: fields["event"] for _, fields in await desk.redis.xrange(STREAM)}

    # when
    await desk.reader("a", stale_ms=SOON_MS)

    # then
    await desk.until_done(first, last)
    assert sorted(desk.stored) == sorted([first, last])
    (letter,) = await desk.dead()
    assert letter["event"] == events[poison]
    assert "cannot be stored" in letter["reason"]


@pytest.mark.parametrize("language", WITH_DEAD_LETTERS)
async def test_so_does_one_that_kills_its_readers(desk: Desk) -> None:
    # given
    await desk.post("deadly")
    for _ in range(MAX_TRIES):
        reader = await desk.reader("a")
        async with until("it has died"):
            assert await reader.process.wait() == -signal.SIGKILL
    assert await desk.pending() == 1

    # when
    await desk.reader("a")
    (id_,) = await desk.post("next")

    # then
    await desk.until_done(id_)
    (letter,) = await desk.dead()
    assert "its readers died" in letter["reason"]


@pytest.mark.parametrize("language", ["shell"])
async def test_what_a_command_fails_to_store_is_not_acknowledged(desk: Desk) -> None:
    # given
    _, id_ = await desk.post("poison", "next")

    # when
    await desk.reader("a", stale_ms=SOON_MS)

    # then it comes again and again, and its neighbour is stored
    async with until("it has come three times", desk.logs):
        while await desk.deliveries() < 3:
            await asyncio.sleep(0.05)
    assert desk.stored == [id_]
    assert await desk.pending() == 1


@pytest.mark.parametrize("language", LANGUAGES)
async def test_an_emptied_redis_is_filled_and_read_again(desk: Desk) -> None:
    # given
    (before,) = await desk.post("before")
    await desk.reader("a")
    await desk.until_done(before)

    # when
    await desk.redis.flushall()
    (after,) = await desk.post("after")

    # then the gateway publishes again what was lost, and the reader, who made its group again, gets it a second time
    async with until("it has come again", desk.logs):
        while desk.stored.count(before) < 2:
            await asyncio.sleep(0.05)
    await desk.until_done(after)
    assert set(desk.stored) == {before, after}
