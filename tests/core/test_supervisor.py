"""Channels that run on their own, with a real TCP listener as the channel."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gateway import supervisor as supervisor_module
from gateway.contract import Accept, ChannelSettings, Context, RawMessage, Receipt, RunningConnector
from gateway.errors import Unavailable
from gateway.supervisor import Supervisor
from gateway.telemetry import Metrics
from tests.daemon import free_port


class Lines(RunningConnector):
    """Every line that is sent to it is a message; the answer is its reference."""

    Settings = ChannelSettings
    redelivers = False

    def __init__(self, name: str) -> None:
        super().__init__(name, ChannelSettings(type="lines"), Context("acme", "", lambda _: b"", lambda: None))  # type: ignore[arg-type,return-value]  # not used
        self.port = free_port()
        self.runs = 0
        self.failures: list[Exception | None] = []  # of the next runs; None: it just ends
        self.fail_when_up = asyncio.Event()

    async def run(self, accept: Accept, up: Callable[[bool], None]) -> None:
        self.runs += 1
        if self.failures:
            failure = self.failures.pop(0)
            if failure is None:
                return
            raise failure

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer):
                while line := await reader.readline():
                    receipt = await accept(RawMessage("note", line.strip()))
                    writer.write(receipt.reference.encode() + b"\n")

        async with await asyncio.start_server(serve, "127.0.0.1", self.port):
            up(True)
            await self.fail_when_up.wait()
            self.fail_when_up.clear()
            raise ConnectionError("the line is dead")


class Stubborn(Lines):
    """Does not want to end."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.let_go = asyncio.Event()

    async def run(self, accept: Accept, up: Callable[[bool], None]) -> None:
        up(True)
        while not self.let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.let_go.wait()


class Deaf(Lines):
    """Takes its cancellation for the end of its work."""

    async def run(self, accept: Accept, up: Callable[[bool], None]) -> None:
        self.runs += 1
        up(True)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


class Forgetful(Lines):
    """Loses the first cancellation, as asyncio.wait_for of Python 3.11 may."""

    async def run(self, accept: Accept, up: Callable[[bool], None]) -> None:
        up(True)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()


class Rig:
    def __init__(self) -> None:
        self.accepted: list[tuple[str, bytes]] = []
        self.metrics = Metrics()
        self.supervisor = Supervisor(self._door, self.metrics)

    def _door(self, channel: str) -> Accept:
        async def accept(raw: RawMessage) -> Receipt:
            assert isinstance(raw.body, bytes)
            self.accepted.append((channel, raw.body))
            return Receipt("id", "7K3M")

        return accept

    def is_up(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value("huiru_channel_up", {"channel": name})

    async def until(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(supervisor_module, "_FIRST_WAIT", 0.02)
    rig = Rig()
    yield rig
    await rig.supervisor.stop()


async def send(port: int, line: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(line + b"\n")
    answer = await reader.readline()
    writer.close()
    return answer


async def test_a_channel_receives_and_accepts_by_its_own_door(rig: Rig) -> None:
    lines = Lines("hotline")
    rig.supervisor.start(lines)
    await rig.until(lambda: rig.supervisor.up["hotline"])

    assert await send(lines.port, b"hello") == b"7K3M\n"
    assert rig.accepted == [("hotline", b"hello")]
    assert rig.is_up("hotline") == 1


async def test_a_channel_is_down_until_it_says_that_it_is_up(rig: Rig) -> None:
    rig.supervisor.start(Lines("hotline"))

    assert rig.supervisor.up == {"hotline": False}
    assert rig.is_up("hotline") == 0


async def test_a_channel_that_fails_or_ends_is_started_again(rig: Rig) -> None:
    lines = Lines("hotline")
    lines.failures = [RuntimeError("a defect"), ConnectionError("no network"), None]

    rig.supervisor.start(lines)

    await rig.until(lambda: rig.supervisor.up["hotline"])
    assert lines.runs == 4


async def test_the_reason_of_a_failure_is_shown_until_the_channel_is_up_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines("hotline")
    lines.failures = [Unavailable(reason="no network")]
    monkeypatch.setattr(supervisor_module, "_FIRST_WAIT", 0.2)

    rig.supervisor.start(lines)

    await rig.until(lambda: rig.supervisor.troubles == {"hotline": "no network"})
    await rig.until(lambda: rig.supervisor.up["hotline"])
    assert rig.supervisor.troubles == {}


async def test_a_channel_that_fails_is_shown_as_down_and_comes_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    lines = Lines("hotline")
    seen: list[float] = []
    rig.supervisor.start(lines)
    await rig.until(lambda: rig.supervisor.up["hotline"])
    lines.failures = [RuntimeError(), RuntimeError()]
    monkeypatch.setattr(rig.metrics.channel_up.labels("hotline"), "set", seen.append)

    # when
    lines.fail_when_up.set()
    await rig.until(lambda: lines.runs == 4 and rig.supervisor.up["hotline"])

    # then
    assert seen == [False, False, False, True]
    assert await send(lines.port, b"again") == b"7K3M\n"


async def test_the_waits_grow_and_a_run_that_was_up_makes_the_next_one_short(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: waits are noted, and do not take their time
    waits: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float, *rest: Any) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(supervisor_module, "_FIRST_WAIT", 0.5)
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    monkeypatch.setattr(asyncio, "sleep", noted)
    lines = Lines("hotline")
    lines.failures = [RuntimeError() for _ in range(9)]

    # when
    rig.supervisor.start(lines)
    while not rig.supervisor.up["hotline"]:
        await sleep(0.001)
    lines.fail_when_up.set()
    while lines.runs < 11 or not rig.supervisor.up["hotline"]:
        await sleep(0.001)

    # then
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 0.5]


async def test_the_failure_of_one_channel_is_nothing_to_the_others(rig: Rig) -> None:
    good, bad = Lines("good"), Lines("bad")
    bad.failures = [RuntimeError() for _ in range(3)]
    rig.supervisor.start(bad)
    rig.supervisor.start(good)

    await rig.until(lambda: rig.supervisor.up["good"] and rig.supervisor.up["bad"])

    assert (good.runs, bad.runs) == (1, 4)


async def test_stopping_ends_every_channel(rig: Rig) -> None:
    channels = [Lines(f"line{n}") for n in range(3)]
    for channel in channels:
        rig.supervisor.start(channel)
    await rig.until(lambda: all(rig.supervisor.up.values()))

    await asyncio.wait_for(rig.supervisor.stop(), 2)

    for channel in channels:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", channel.port)


async def test_stopping_does_not_wait_for_the_next_try(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_FIRST_WAIT", 3600)
    lines = Lines("hotline")
    lines.failures = [RuntimeError()]
    rig.supervisor.start(lines)
    await rig.until(lambda: lines.runs == 1)

    await asyncio.wait_for(rig.supervisor.stop(), 2)


async def test_a_channel_that_does_not_want_to_end_does_not_hold_up_the_end(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    monkeypatch.setattr(supervisor_module, "_STOP_SECS", 0.05)
    stubborn = Stubborn("stubborn")
    rig.supervisor.start(stubborn)
    await rig.until(lambda: rig.supervisor.up["stubborn"])

    # when, then
    await asyncio.wait_for(rig.supervisor.stop(), 5)
    stubborn.let_go.set()
    await rig.until(lambda: not asyncio.all_tasks() - {asyncio.current_task()})


async def test_a_channel_that_swallows_its_cancellation_is_not_started_again(rig: Rig) -> None:
    deaf = Deaf("deaf")
    rig.supervisor.start(deaf)
    await rig.until(lambda: rig.supervisor.up["deaf"])

    await asyncio.wait_for(rig.supervisor.stop(), 2)

    assert deaf.runs == 1


async def test_a_cancellation_that_was_lost_is_repeated(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_STOP_SECS", 0.1)
    rig.supervisor.start(Forgetful("forgetful"))
    await rig.until(lambda: rig.supervisor.up["forgetful"])
    task = rig.supervisor._tasks["forgetful"]

    await rig.supervisor.stop()

    assert task.done()


async def test_a_channel_that_was_taken_away_is_not_shown_any_more(rig: Rig) -> None:
    lines, other = Lines("hotline"), Lines("other")
    for channel in (lines, other):
        rig.supervisor.start(channel)
    await rig.until(lambda: all(rig.supervisor.up.values()))

    await rig.supervisor.stop(["hotline"])

    assert rig.supervisor.up == {"other": True}
    assert (rig.is_up("hotline"), rig.is_up("other")) == (None, 1)


async def test_a_channel_may_be_started_again_after_its_end(rig: Rig) -> None:
    lines = Lines("hotline")
    for _ in range(2):
        rig.supervisor.start(lines)
        await rig.until(lambda: rig.supervisor.up["hotline"])
        await rig.supervisor.stop(["hotline"])

    assert lines.runs == 2
