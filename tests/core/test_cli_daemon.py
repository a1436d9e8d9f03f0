"""The command line with a real daemon: what it shows, and what it changes."""

import asyncio
import json
import os
import pty
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
import pytest_asyncio

from tests.daemon import ROOT, Daemon, lasting_daemon

FORM = {"type": "webform", "title": "Help", "fields": [{"name": "text", "type": "textarea", "label": "Text"}]}
CHANNELS = dict.fromkeys(("counted", "one", "support", "two"), FORM)
# A channel of somebody else: its messages cannot be read before the file `sweet` is there.
SOUR = """
from pathlib import Path
from gateway.contract import ChannelSettings, Draft, RawMessage, WebhookConnector, json_reply
from gateway.envelope import Message
from gateway.errors import Rejected

class Connector(WebhookConnector):
    Settings = ChannelSettings
    redelivers = False

    async def verify(self, request):
        return {}

    async def extract(self, request, sender):
        return [RawMessage("sour", request.body, facts={"from": "a tree"})]

    def reply(self, request, receipts):
        return json_reply({"id": receipts[0].id, "reference": receipts[0].reference}, 202)

def normalize(raw):
    if not Path(__file__).with_name("sweet").exists():
        raise Rejected("too_sour", reason="it is a lemon \\x1b[31m")
    return Draft(Message(text=raw.body.decode()))
"""


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


Start = Callable[..., Awaitable[Daemon]]


@asynccontextmanager
async def running(daemon: Daemon, *arguments: str, **options: Any) -> AsyncIterator[Process]:
    """A command that does not outlive its test."""
    command = [sys.executable, "-m", "gateway", *arguments, "--config", str(daemon.config_path)]
    options = {"stdout": PIPE, "stderr": PIPE, "stdin": asyncio.subprocess.DEVNULL} | options
    env = {**os.environ, **daemon.env}
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=env, **options)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def huiru(daemon: Daemon, *arguments: str) -> Outcome:
    async with running(daemon, *arguments) as process, asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Outcome(process.returncode, out.decode(), err.decode())


async def submit(daemon: Daemon, text: str, channel: str = "support") -> str:
    """Posts a message and returns its reference."""
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{daemon.url}/c/{channel}", json={"text": text}) as response,
    ):
        assert response.status == 202, await response.text()
        return str((await response.json())["reference"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon() -> AsyncIterator[Daemon]:
    """For the whole module: the messages of other tests are in its stream too."""
    async with lasting_daemon(CHANNELS) as daemon:
        yield daemon


@pytest.fixture
async def own(start_daemon: Start) -> Daemon:
    """For one test."""
    return await start_daemon(channels={"support": FORM})


def sour_package(folder: Path) -> Path:
    """A channel type whose messages cannot be read; making the file `sweet` beside its module heals it."""
    about = folder / "sour-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: sour\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[huiru.connectors]\nsour = sour\n[huiru.normalizers]\nsour = sour\n")
    (folder / "sour.py").write_text(SOUR)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sour(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """For the whole module: the messages of other tests are in quarantine too."""
    package = sour_package(tmp_path_factory.mktemp("sour"))
    async with lasting_daemon({"lemon": {"type": "sour"}}, env={"PYTHONPATH": str(package)}) as daemon:
        yield daemon


@pytest.fixture
async def healing(make_daemon: Callable[..., Daemon], tmp_path: Path) -> tuple[Daemon, Path]:
    """For one test; and the file that heals its channel."""
    package = sour_package(tmp_path / "sour")
    daemon = make_daemon(channels={"lemon": {"type": "sour"}})
    daemon.env["PYTHONPATH"] = str(package)
    return await daemon.start(), package / "sweet"


async def quarantined(daemon: Daemon, text: str = "") -> dict[str, Any]:
    """A message of the test's own, as the quarantine has it."""
    reference = await submit(daemon, text or f"yellow {uuid4()}", "lemon")
    async with asyncio.timeout(20):
        while not (found := [item for item in await in_quarantine(daemon) if item["reference"] == reference]):
            await asyncio.sleep(0.02)
    return found[0]


async def in_quarantine(daemon: Daemon) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await daemon.admin("GET", "/api/quarantine"))["items"]
    return items


async def last_entry(daemon: Daemon) -> str:
    """Of the stream; a tail from here shows what comes after it."""
    async with daemon.redis() as redis:
        return next((entry for entry, _ in await redis.xrevrange("tickets", count=1)), "0")


async def submit_after(daemon: Daemon, text: str) -> tuple[str, str]:
    """Posts a message; its reference, and the entry before its own in the stream. It is there now."""
    before, there = await last_entry(daemon), len(await daemon.tickets())
    reference = await submit(daemon, text)
    await daemon.until_tickets(there + 1)
    return reference, before


# run


async def test_run_says_where_everything_is(start_daemon: Start) -> None:
    daemon = await start_daemon(channels={"support": FORM}, log={"format": "auto"})
    async with asyncio.timeout(20):
        while "/metrics" not in daemon.log():
            await asyncio.sleep(0.02)

    assert f"support  {daemon.url}/c/support\n" in daemon.log()
    assert f"redis-cli -p {daemon.config['redis']['embedded_port']} XREAD COUNT 10 STREAMS tickets 0\n" in daemon.log()
    assert f"{daemon.admin_url}/metrics\n" in daemon.log()


async def test_run_keeps_its_log_pure_where_json_is_asked_for(daemon: Daemon) -> None:
    assert daemon.log()
    assert all(json.loads(line) for line in daemon.log().splitlines())


# status


async def test_status_for_people(daemon: Daemon) -> None:
    await submit(daemon, "hello", "counted")
    await daemon.until_status(lambda status: status["channels"][0]["published"] == 1)

    outcome = await huiru(daemon, "status")
    lines = [line.split() for line in outcome.out.splitlines()]

    assert outcome.status == 0
    assert lines[0][:2] == ["test", "ready"]
    assert ["channel", "type", "accepted", "published", "duplicate", "quarantined", "waiting", "last"] in lines
    assert ["counted", "webform", "1", "1", "0", "0", "0"] in [line[:7] for line in lines]
    assert "\x1b" not in outcome.out


async def test_status_for_programs(daemon: Daemon) -> None:
    outcome = await huiru(daemon, "status", "--json")
    status = json.loads(outcome.out)

    assert outcome.status == 0
    assert (status["gateway"], status["ready"], status["redis"]["up"]) == ("test", True, True)
    assert [channel["name"] for channel in status["channels"]] == [*CHANNELS]


# tail


async def test_tail_shows_what_is_there(daemon: Daemon) -> None:
    reference, before = await submit_after(daemon, "打印机坏了\n\x1b[31mhelp\u202e")

    outcome = await huiru(daemon, "tail", "--from", before, "--count", "1")

    assert outcome.status == 0
    assert f"support         {reference}  " in outcome.out
    assert outcome.out.count("\n") == 1
    assert "打印机坏了" in outcome.out
    assert outcome.out.rstrip("\n").isprintable()


async def test_tail_for_programs_gives_the_event(daemon: Daemon) -> None:
    _, before = await submit_after(daemon, "C1 \x9b and \u202e")

    outcome = await huiru(daemon, "tail", "--from", before, "--count", "1", "--json")

    assert json.loads(outcome.out) == (await daemon.tickets())[-1]
    assert outcome.out.rstrip("\n").isprintable()


async def test_tail_of_one_channel(daemon: Daemon) -> None:
    first = await submit(daemon, "first", "one")
    second = await submit(daemon, "second", "two")

    outcome = await huiru(daemon, "tail", "--from", "0", "--count", "1", "--channel", "two")

    assert second in outcome.out
    assert first not in outcome.out


async def test_tail_passes_over_what_is_no_ticket(daemon: Daemon) -> None:
    before = await last_entry(daemon)
    async with daemon.redis() as redis:
        stray = await redis.xadd("tickets", {"who": "knows"})
        other = await redis.xadd("tickets", {"event": '{"data": []}'})
    await submit(daemon, "hello")

    outcome = await huiru(daemon, "tail", "--from", before, "--count", "1")
    async with daemon.redis() as redis:  # other tests read tickets only
        await redis.xdel("tickets", stray, other)

    assert "hello" in outcome.out
    assert outcome.err.splitlines()[0] == f"entry {stray} is no ticket of ours"


async def reading(daemon: Daemon) -> None:
    """Returns when a tail waits for entries."""
    async with asyncio.timeout(20), daemon.redis() as redis:
        while not any(client["cmd"] == "xread" for client in await redis.client_list()):
            await asyncio.sleep(0.02)


async def test_tail_follows_and_stops_by_ctrl_c(own: Daemon) -> None:
    await submit(own, "old")
    await own.until_tickets(1)
    async with running(own, "tail") as tail:
        await reading(own)
        await submit(own, "new")

        assert tail.stdout is not None
        line = await asyncio.wait_for(tail.stdout.readline(), 20)
        tail.send_signal(signal.SIGINT)

        assert "new" in line.decode()
        assert await asyncio.wait_for(tail.wait(), 20) == 0
        assert await tail.stdout.read() == b""


async def test_tail_survives_a_restart_of_redis(own: Daemon) -> None:
    async with running(own, "tail", "--count", "1") as tail:
        await reading(own)
        async with own.redis() as redis:
            with suppress(Exception):  # it hangs up instead of answering
                await redis.shutdown()
        await submit(own, "afterwards")
        async with asyncio.timeout(40):
            out, _ = await tail.communicate()

    assert tail.returncode == 0
    assert "afterwards" in out.decode()


# The quarantine


async def test_quarantine_list(sour: Daemon) -> None:
    await quarantined(sour)

    outcome = await huiru(sour, "quarantine", "list")

    assert outcome.status == 0
    assert "lemon" in outcome.out
    assert "too_sour  it is a lemon [31m  " in outcome.out
    assert "\x1b" not in outcome.out


async def listed(daemon: Daemon, *options: str) -> list[dict[str, Any]]:
    outcome = await huiru(daemon, "quarantine", "list", "--json", *options)
    items: list[dict[str, Any]] = json.loads(outcome.out)["items"]
    return items


async def test_quarantine_list_for_programs_and_by_channel(sour: Daemon) -> None:
    for _ in range(2):
        item = await quarantined(sour)
    there = await in_quarantine(sour)

    assert item in there
    assert item["code"] == "too_sour"
    assert await listed(sour) == there
    assert await listed(sour, "--channel", "lemon", "--limit", "1") == there[:1]
    assert await listed(sour, "--channel", "orange") == []
    assert await listed(sour, "--offset", "1") == there[1:]


async def test_quarantine_show(sour: Daemon) -> None:
    item = await quarantined(sour)

    by_reference = await huiru(sour, "quarantine", "show", item["reference"])
    by_id = await huiru(sour, "quarantine", "show", item["id"], "--json")

    assert f"id             {item['id']}" in by_reference.out
    assert "facts.from     a tree" in by_reference.out
    assert json.loads(by_id.out)["facts"] == {"from": "a tree"}


async def test_quarantine_show_raw(sour: Daemon) -> None:
    item = await quarantined(sour, "yellow \x1b[2J")

    outcome = await huiru(sour, "quarantine", "show", item["id"], "--raw")

    assert outcome.status == 0
    assert json.loads(outcome.out) == {"text": "yellow \x1b[2J"}


async def test_quarantine_show_raw_spares_a_terminal(sour: Daemon) -> None:
    item = await quarantined(sour, "yellow \x1b[31m")
    ours, theirs = pty.openpty()
    async with running(sour, "quarantine", "show", item["id"], "--raw", stdout=theirs) as process:
        assert await process.wait() == 0
    os.close(theirs)

    shown = os.read(ours, 1000)
    os.close(ours)

    assert b"yellow" in shown
    assert b"\x1b" not in shown


async def test_quarantine_retry(healing: tuple[Daemon, Path]) -> None:
    daemon, sweet = healing
    item = await quarantined(daemon)
    sweet.touch()

    outcome = await huiru(daemon, "quarantine", "retry", item["reference"])

    assert outcome.out == "1 message will be tried again\n"
    assert (await daemon.until_tickets(1))[0]["id"] == item["id"]


async def test_quarantine_retry_all(healing: tuple[Daemon, Path]) -> None:
    daemon, sweet = healing
    for _ in range(2):
        await quarantined(daemon)
    sweet.touch()

    outcome = await huiru(daemon, "quarantine", "retry", "--all")

    assert outcome.out == "2 messages will be tried again\n"
    await daemon.until_tickets(2)
    assert await in_quarantine(daemon) == []


async def test_quarantine_discard(sour: Daemon) -> None:
    item = await quarantined(sour)
    before = (await sour.status())["channels"][0]["discarded"]

    outcome = await huiru(sour, "quarantine", "discard", item["id"])
    again = await huiru(sour, "quarantine", "discard", item["id"])

    assert outcome.out == f"discarded {item['id']}\n"
    assert again.status == 1
    assert "no message has this id" in again.err
    assert (await sour.status())["channels"][0]["discarded"] == before + 1


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", 1), (b"y\n", 0)])
async def test_quarantine_discard_asks_a_person(sour: Daemon, answer: bytes, left: int) -> None:
    item = await quarantined(sour)
    ours, theirs = pty.openpty()

    async with running(sour, "quarantine", "discard", item["id"], stdin=theirs) as process:
        os.write(ours, answer)
        out, _ = await asyncio.wait_for(process.communicate(), 20)
    os.close(theirs)
    os.close(ours)

    assert b"too_sour" in out
    assert process.returncode == left
    assert [one["id"] for one in await in_quarantine(sour)].count(item["id"]) == left


# The rest


async def test_replay(own: Daemon) -> None:
    await submit(own, "hello")
    await own.until_tickets(1)

    outcome = await huiru(own, "replay", "--since", "1h30m")

    assert outcome.out == "1 message will be published again\n"
    assert len(await own.tickets()) == 1


async def test_reload_takes_the_new_file(own: Daemon) -> None:
    own.config["channels"]["second"] = FORM
    own.config["stream"] = {"batch": 7}
    own.write_config()

    outcome = await huiru(own, "reload")

    assert outcome.status == 0
    assert outcome.out == "reloaded\nchanged, but only a restart will take it: stream\n"
    await submit(own, "hello", "second")


async def test_reload_keeps_the_old_one_when_the_file_is_wrong(own: Daemon) -> None:
    own.config["channels"]["second"] = {"type": "webfrom"}
    own.write_config()

    outcome = await huiru(own, "reload")

    assert outcome.status == 78
    assert "channels.second.type: unknown channel type webfrom; did you mean webform?" in outcome.err
    await submit(own, "hello")


async def test_check_finds_the_redis_of_the_running_daemon(daemon: Daemon) -> None:
    outcome = await huiru(daemon, "check", "--probe")

    assert outcome.status == 0
    assert "ok   redis     embedded: version " in outcome.out
