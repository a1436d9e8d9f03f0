"""Heavy messages: in processes of their own, with limits, and in nobody's way."""

import asyncio
import os
import pickle
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from gateway.contract import StoredMessage
from gateway.errors import Rejected
from gateway.workers import Failed, Workers, _restrict
from tests.core.kinds import PNG, normalizer
from tests.core.rig import Rig
from tests.core.samples import NOW, waiting
from tests.daemon import Daemon

MakeRig = Callable[..., Rig]
HEAVY = b"x" * (300 << 10)


def stored(kind: str, body: bytes = b"hello") -> StoredMessage:
    return StoredMessage("m1", "shop", kind, body, "", None, {}, NOW)


@pytest.fixture
async def make_workers() -> AsyncIterator[Callable[..., Workers]]:
    made: list[Workers] = []

    def make(**options: Any) -> Workers:
        limits = {"size": 1, "timeout_secs": 30, "memory_bytes": 1 << 29, **options}
        made.append(Workers(normalizer, **limits))
        return made[-1]

    yield make
    for workers in made:
        await workers.close()


@pytest.fixture
def workers(make_workers: Callable[..., Workers]) -> Workers:
    return make_workers()


async def pid_of(workers: Workers) -> int:
    return int((await workers.normalize(stored("process"))).message.text)


def is_alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


async def until_gone(pid: int, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while is_alive(pid):
            await asyncio.sleep(0.01)


# --- a worker ---------------------------------------------------------------------------------------------------------


async def test_a_worker_makes_what_the_gateway_itself_would(workers: Workers) -> None:
    assert await workers.normalize(stored("album")) == normalizer("album")(stored("album"))


async def test_it_is_another_process_and_stays_for_the_next_message(workers: Workers) -> None:
    first, second = await pid_of(workers), await pid_of(workers)

    assert first == second != os.getpid()


async def test_it_reads_a_body_that_lies_in_a_file(workers: Workers, tmp_path: Path) -> None:
    file = tmp_path / "body"
    file.write_bytes("打印机坏了".encode())

    assert (await workers.normalize(stored("note", b""), file)).message.text == "打印机坏了"


async def test_a_file_that_vanished_is_unreadable(workers: Workers, tmp_path: Path) -> None:
    with pytest.raises(Rejected) as refusal:
        await workers.normalize(stored("note", b""), tmp_path / "gone")

    assert refusal.value.code == "unreadable"


async def test_what_the_normalizer_refuses_is_refused_with_its_own_words(workers: Workers) -> None:
    with pytest.raises(Rejected) as refusal:
        await workers.normalize(stored("rejected"))

    assert (refusal.value.code, refusal.value.public, refusal.value.reason) == (
        "malformed",
        "the bytes are no message",
        "byte 7",
    )


async def test_a_defect_is_told_with_its_place(workers: Workers) -> None:
    with pytest.raises(Failed, match="ZeroDivisionError: a defect of ours") as failure:
        await workers.normalize(stored("defective"))

    assert "in defective" in failure.value.__notes__[0]


async def test_an_answer_larger_than_a_pipe_comes_through(workers: Workers) -> None:
    body = os.urandom(3 << 20).hex().encode()

    assert (await workers.normalize(stored("note", body))).message.text == body.decode()


async def test_what_it_prints_does_no_harm(workers: Workers) -> None:
    assert (await workers.normalize(stored("talkative"))).message.text == "said"


async def test_as_many_messages_at_a_time_as_there_are_workers(make_workers: Callable[..., Workers]) -> None:
    workers = make_workers(size=2)

    pids = await asyncio.gather(*(pid_of(workers) for _ in range(6)))

    assert len(set(pids)) == 2


# --- its limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["endless", "spinning"])
async def test_what_takes_too_long_is_ended_and_the_next_one_has_a_new_worker(
    make_workers: Callable[..., Workers], kind: str
) -> None:
    workers = make_workers(timeout_secs=0.5)
    first = await pid_of(workers)

    with pytest.raises(Rejected) as refusal:
        await workers.normalize(stored(kind))

    assert (refusal.value.code, refusal.value.reason) == ("too_slow", "normalizing took more than 0.5 s")
    assert not is_alive(first)
    assert await pid_of(workers) != first


async def test_what_takes_too_much_memory_is_ended(workers: Workers) -> None:
    first = await pid_of(workers)

    with pytest.raises(Rejected) as refusal:
        await workers.normalize(stored("greedy"))

    assert refusal.value.code == "too_heavy"
    assert await pid_of(workers) != first


async def test_a_worker_that_dies_fails_its_message_alone(workers: Workers) -> None:
    with pytest.raises(Failed, match="the worker ended: status 3"):
        await workers.normalize(stored("deadly"))

    assert await pid_of(workers)


async def test_one_killed_while_it_was_idle_is_replaced(workers: Workers) -> None:
    first = await pid_of(workers)
    os.kill(first, signal.SIGKILL)
    await until_gone(first)
    with suppress(Failed):  # when nobody has told us yet
        await workers.normalize(stored("note"))

    assert await pid_of(workers) != first


async def test_whoever_is_cancelled_leaves_no_process_behind(workers: Workers) -> None:
    pid = await pid_of(workers)
    task = asyncio.create_task(workers.normalize(stored("endless")))
    while workers._idle:
        await asyncio.sleep(0)

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert not is_alive(pid)
    assert await pid_of(workers) != pid


async def test_closed_they_are_gone(workers: Workers) -> None:
    pid = await pid_of(workers)

    await workers.close()

    assert not is_alive(pid)


PARENT = """
import asyncio, os, signal, sys
from gateway.workers import Workers
from tests.core.kinds import normalizer
from gateway.contract import StoredMessage
from datetime import UTC, datetime

def stored(kind):
    return StoredMessage("m1", "shop", kind, b"", "", None, {}, datetime.now(UTC))

async def pid_of(workers):
    return int((await workers.normalize(stored("process"))).message.text)

async def main():
    workers = Workers(normalizer, size=1, timeout_secs=3600, memory_bytes=1 << 29)
    first = await pid_of(workers)
"""


def parent(*lines: str) -> subprocess.Popen[bytes]:
    """A process with a worker that goes on like this; what it writes to standard error can be read."""
    body = "\n".join(f"    {line}" for line in lines)
    program = f"{PARENT}{body}\n\nasyncio.run(main())\n"
    return subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )


@pytest.mark.parametrize("kind", ["note", "spinning"])
def test_they_end_with_their_parent_however_it_ends(kind: str) -> None:
    # given: a parent whose worker is idle, or at work
    tell = "print(first, file=sys.stderr, flush=True)"
    with parent(tell, f"await workers.normalize(stored({kind!r}))", "await asyncio.sleep(3600)") as process:
        assert process.stderr is not None
        worker = int(process.stderr.readline())

        # when
        process.kill()
        process.wait()

        # then
        asyncio.run(until_gone(worker))


@pytest.mark.parametrize(
    "said", [b"", b"half", struct.pack(">Q", 1000), struct.pack(">Q", 1000) + b"\x80\x05half of it"]
)
@pytest.mark.parametrize("set_up", [False, True])
def test_one_whose_parent_ends_in_the_middle_of_a_word_ends_in_silence(set_up: bool, said: bytes) -> None:
    if set_up:
        frame = pickle.dumps((os.getpid(), normalizer, 30, 1 << 29))
        said = struct.pack(">Q", len(frame)) + frame + said

    child = subprocess.run(
        [sys.executable, "-c", "from gateway.workers import serve; serve()"], input=said, capture_output=True
    )

    assert (child.returncode, child.stderr) == (0, b"")


def test_one_whose_parent_is_gone_before_it_is_ready_ends_in_silence() -> None:
    frame = pickle.dumps((os.getpid(), normalizer, 30, 1 << 29))
    program = "from gateway.workers import serve; serve()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None

        child.stdout.close()
        child.stdin.write(struct.pack(">Q", len(frame)) + frame)
        child.stdin.close()

        assert (child.stderr.read(), child.wait()) == (b"", 0)


def test_a_terminals_interrupt_is_for_the_parent() -> None:
    interrupt = ("signal.signal(signal.SIGINT, signal.SIG_IGN)", "os.killpg(0, signal.SIGINT)")
    with parent(*interrupt, "assert await pid_of(workers) == first", "await workers.close()") as process:
        assert process.wait() == 0


def test_where_it_may_not_limit_itself_it_says_so_and_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr("gateway.workers.resource.setrlimit", refuse)

    assert _restrict(1 << 30) == "not here"


# --- in the pipeline --------------------------------------------------------------------------------------------------


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
async def run() -> AsyncIterator[Callable[[Rig], asyncio.Task[None]]]:
    tasks: list[asyncio.Task[None]] = []

    def start(rig: Rig) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(rig.pipeline.run()))
        return tasks[-1]

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_large_message_is_normalised_in_another_process_and_a_small_one_in_our_own(rig: Rig) -> None:
    await rig.accept("small", b"x", kind="process")
    await rig.accept("large", HEAVY, kind="process")

    await rig.publish_all()

    small, large = [ticket["data"]["text"] for ticket in await rig.tickets()]
    assert small == str(os.getpid())
    assert large != small
    assert rig.ledger() == {"accepted": 2, "published": 2}


async def test_its_files_arrive_too(rig: Rig) -> None:
    await rig.accept("large", HEAVY, kind="album")

    await rig.publish_all()

    (ticket,) = await rig.tickets()
    assert [file["size"] for file in ticket["data"]["attachments"]] == [len(PNG), 10]
    assert ticket["data"]["raw"]["size"] == len(HEAVY)


@pytest.mark.parametrize(
    ("kind", "code"), [("endless", "too_slow"), ("greedy", "too_heavy"), ("rejected", "malformed")]
)
async def test_what_exceeds_a_limit_goes_to_quarantine(make_rig: MakeRig, kind: str, code: str) -> None:
    rig = make_rig(timeout_secs=5 if kind == "greedy" else 0.5)
    await rig.accept("bad", HEAVY, kind=kind)

    await rig.publish_all()

    (row,) = await rig.spool.quarantined(None, 10, 0)
    assert (row.code, row.tries) == (code, 0)
    assert rig.ledger() == {"accepted": 1, "quarantined": 1, f"quarantined_total:{code}": 1}


async def test_a_crash_counts_as_a_try(rig: Rig) -> None:
    await rig.accept("bad", HEAVY, kind="deadly")

    for _ in range(3):
        await rig.publish_all()
        rig.now += 10

    (row,) = await rig.spool.quarantined(None, 10, 0)
    assert (row.code, row.tries) == ("internal", 3)
    assert "status 3" in str(row.reason)


async def test_the_light_ones_of_the_same_batch_and_of_later_ones_go_on(
    rig: Rig, run: Callable[[Rig], asyncio.Task[None]]
) -> None:
    # given: a heavy one that will not end, in front of all
    await rig.accept("heavy", HEAVY, kind="endless")
    for n in range(30):
        await rig.accept(f"same{n}")
    run(rig)
    await until(lambda: rig.ledger().get("published") == 30)

    # when
    for n in range(30):
        await rig.accept(f"later{n}")

    # then
    await until(lambda: rig.ledger().get("published") == 60)
    natives = [ticket["data"]["native_id"] for ticket in await rig.tickets()]
    assert natives == [*(f"same{n}" for n in range(30)), *(f"later{n}" for n in range(30))]
    assert len(rig.pipeline.in_work()) == 1


async def test_the_heavy_ones_of_a_channel_do_not_keep_another_channel_waiting(make_rig: MakeRig) -> None:
    # given: many of one channel, then one of another
    rig = make_rig(timeout_secs=1)
    for n in range(6):
        await rig.accept(f"n{n}", HEAVY, kind="endless")
    await rig.intake.accept("mail", rig.raw("other", HEAVY, kind="note"))

    # when: as many as may be in work are; when one of them is done, the other channel has its turn
    await rig.pipeline.step()
    assert len(rig.pipeline.in_work()) == 2
    while not await rig.tickets():
        await asyncio.wait(rig.pipeline.in_work(), return_when=asyncio.FIRST_COMPLETED)
        await rig.pipeline.step()

    # then
    assert rig.spool.waiting("shop") >= 4


async def test_a_stop_leaves_what_is_in_work_in_the_spool(rig: Rig, run: Callable[[Rig], asyncio.Task[None]]) -> None:
    await rig.accept("heavy", HEAVY, kind="endless")
    run(rig)
    await until(lambda: bool(rig.pipeline.in_work()))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(rig.pipeline.drained(), 0.1)

    await rig.close()

    assert rig.ledger() == {"accepted": 1}


async def test_drained_waits_for_the_heavy_ones(rig: Rig, run: Callable[[Rig], asyncio.Task[None]]) -> None:
    for n in range(4):
        await rig.accept(f"n{n}", HEAVY)
    run(rig)

    await asyncio.wait_for(rig.pipeline.drained(), 20)

    assert rig.ledger() == {"accepted": 4, "published": 4}


async def test_what_redis_has_lost_of_them_is_published_again_to_the_byte(rig: Rig) -> None:
    # given
    for n in range(4):
        await rig.accept(f"n{n}", HEAVY if n % 2 else b"hello")
    await rig.publish_all()
    before = sorted(await rig.events())

    # when
    await rig.redis.ask("FLUSHALL")
    await rig.publisher.look()
    await rig.publish_all()

    # then
    assert sorted(await rig.events()) == before
    assert rig.metrics.republished._value.get() == 4
    assert not rig.pipeline._replay


async def test_a_heavy_one_that_is_published_again_does_not_hold_up_new_ones(
    rig: Rig, run: Callable[[Rig], asyncio.Task[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: what was lost takes for ever now
    await rig.accept("heavy", HEAVY)
    await rig.publish_all()

    async def never(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(rig.workers, "normalize", never)
    await rig.redis.ask("FLUSHALL")
    await rig.publisher.look()

    # when
    run(rig)
    await rig.accept("new")

    # then
    await until(lambda: rig.ledger().get("published") == 2)
    assert rig.pipeline._bookmark() == ""


async def test_a_conflict_among_them_gets_an_id_of_its_own(make_rig: MakeRig) -> None:
    one, other = make_rig("one"), make_rig("other", spool_id="s2")
    await one.accept("n1", HEAVY)
    await one.publish_all()

    await other.accept("n1", HEAVY + b"!")
    await other.publish_all()

    first, second = await one.tickets()
    assert second["data"]["conflict_with"] == first["id"]
    assert other.ledger() == {"accepted": 1, "published": 1}


async def test_a_body_file_that_is_gone_goes_to_quarantine(rig: Rig) -> None:
    receipt = await rig.accept("n1", HEAVY)
    path = rig.spool.folder / "raw" / receipt.id
    path.unlink()

    await rig.publish_all()

    (row,) = await rig.spool.quarantined(None, 10, 0)
    assert row.code == "unreadable"
    path.write_bytes(HEAVY)
    assert not await waiting(rig.spool)


# --- in a daemon ------------------------------------------------------------------------------------------------------

SLOW = """
import time
from gateway.contract import ChannelSettings, RawMessage, WebhookConnector, json_reply

class Connector(WebhookConnector):
    Settings = ChannelSettings
    redelivers = True

    async def verify(self, request):
        return {}

    async def extract(self, request, sender):
        return [RawMessage("slow", request.body)]

    def reply(self, request, receipts):
        return json_reply({})

def normalize(raw):
    time.sleep(3600)
"""


@pytest.fixture
async def daemon(make_daemon: Callable[..., Daemon], short_path: Path) -> Daemon:
    """With a channel whose messages take an hour, and a worker that has one of them."""
    plugin = short_path / "plugin"
    (plugin / "slow-1.dist-info").mkdir(parents=True)
    (plugin / "slow.py").write_text(SLOW)
    (plugin / "slow-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1\n")
    (plugin / "slow-1.dist-info" / "entry_points.txt").write_text(
        "[huiru.connectors]\nslow = slow\n[huiru.normalizers]\nslow = slow\n"
    )
    key = {"name": "k", "sha256": sha256(b"key").hexdigest()}
    daemon = make_daemon({"slow": {"type": "slow"}, "app": {"type": "api", "keys": [key]}}, shutdown_secs=1)
    daemon.env["PYTHONPATH"] = str(plugin)
    await daemon.start()
    async with aiohttp.ClientSession() as http, http.post(f"{daemon.url}/c/slow", data=HEAVY) as response:
        assert response.status == 200
    await until(lambda: bool(worker_of(daemon)))
    return daemon


def worker_of(daemon: Daemon) -> int | None:
    assert daemon.process is not None
    children = psutil.Process(daemon.process.pid).children()
    return next((child.pid for child in children if "gateway.workers" in " ".join(child.cmdline())), None)


async def test_other_channels_and_a_stop_do_not_wait_for_it(daemon: Daemon) -> None:
    worker = worker_of(daemon)
    assert worker

    # when a light message comes
    headers = {"Authorization": "Bearer key"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{daemon.url}/c/app", json={"text": "hello"}) as response,
    ):
        assert response.status == 202

    # then it goes on
    await daemon.until_tickets(1)

    # when the daemon is stopped, then it ends in time, and so does the worker
    async with asyncio.timeout(10):
        assert await daemon.stop() == 0
    await until_gone(worker)
    assert not daemon.events("failed")


async def test_a_kill_of_the_daemon_ends_its_worker_and_loses_nothing(daemon: Daemon) -> None:
    worker = worker_of(daemon)
    assert worker

    await daemon.kill()
    await until_gone(worker)

    await daemon.start()
    await until(lambda: worker_of(daemon) not in (None, worker))
    (channel,) = [one for one in (await daemon.status())["channels"] if one["name"] == "slow"]
    assert (channel["accepted"], channel["waiting"]) == (1, 1)
