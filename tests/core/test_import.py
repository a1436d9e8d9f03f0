"""`huiru import`: a real daemon, or none; whatever is interrupted goes on where it ended."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.exceptions import RedisError
from rich.progress import Progress

from gateway.contract import ChannelSettings
from gateway.errors import Rejected, Unavailable
from gateway.mail.archive import raw_message
from gateway.oldmail import Tally, _Import
from tests.core.rig import Rig
from tests.daemon import ROOT, Daemon

MakeDaemon = Callable[..., Daemon]
POSTMARK = b"From a@example.com Tue Jan  2 10:00:00 2001\n"
CONNECTOR = """
import asyncio
from typing import Literal
from gateway.contract import ChannelSettings, RunningConnector

class OldSettings(ChannelSettings):
    type: Literal["letterbox"]
    max_message_bytes: int = 1 << 20
    authserv_ids: tuple[str, ...] = ()

class Connector(RunningConnector):
    Settings = OldSettings
    redelivers = True

    async def run(self, accept, up):
        up(True)
        await asyncio.Event().wait()
"""


def mail(n: int, text: str = "你好", head: str = "") -> bytes:
    return (
        f"{head}From: 张三 <zhang{n}@example.com>\nTo: support@acme.cn\nSubject: Nr. {n}\n"
        f"Date: Mon, 1 Jan 2001 10:00:00 +0800\nMessage-ID: <{n}@example.com>\n"
        f"Content-Type: text/plain; charset=utf-8\n\n{text} {n}\n"
    ).encode()


def box(*messages: bytes) -> bytes:
    return b"".join(POSTMARK + message + b"\n" for message in messages)


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def make_mailbox(make_daemon: MakeDaemon, short_path: Path) -> MakeDaemon:
    """A daemon with a mail channel of the test's own, beside one that takes no mail."""
    plugin = short_path / "plugin"
    put(plugin / "letterbox.py", CONNECTOR.encode())
    put(plugin / "letterbox-1.dist-info" / "METADATA", b"Metadata-Version: 2.1\nName: letterbox\nVersion: 1\n")
    put(plugin / "letterbox-1.dist-info" / "entry_points.txt", b"[huiru.connectors]\nletterbox = letterbox\n")

    def make(channel: dict[str, Any] | None = None, **sections: Any) -> Daemon:
        echo = {"type": "echo", "secret": "x" * 16}
        daemon = make_daemon({"box": {"type": "letterbox", **(channel or {})}, "echo": echo}, **sections)
        daemon.env["PYTHONPATH"] = str(plugin)
        daemon.write_config()
        return daemon

    return make


async def start(daemon: Daemon, *arguments: str | Path, channel: str = "box") -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "import", "-c", str(daemon.config_path), channel, *map(str, arguments)),
        cwd=ROOT,
        env={**os.environ, **daemon.env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def bring(daemon: Daemon, *arguments: str | Path, status: int = 0) -> dict[str, Any]:
    process = await start(daemon, "--json", *arguments)
    out, err = await process.communicate()
    assert process.returncode == status, err.decode()
    assert err == b""
    answer: dict[str, Any] = json.loads(out)
    return answer


@pytest.fixture(params=["with a daemon", "without a daemon"])
async def mailbox(request: pytest.FixtureRequest, make_mailbox: MakeDaemon) -> Daemon:
    daemon = make_mailbox()
    return await daemon.start() if request.param == "with a daemon" else daemon


async def in_stream(daemon: Daemon) -> list[dict[str, Any]]:
    """After an import: a daemon is there, or has to be started for its Redis."""
    if daemon.process is None:
        await daemon.start()
    await daemon.until_status(lambda status: not any(one["waiting"] for one in status["channels"]))
    return await daemon.tickets()


# --- from the command to the stream -----------------------------------------------------------------------------------


async def test_mail_of_every_kind_comes_into_the_stream_once(mailbox: Daemon, tmp_path: Path) -> None:
    # given: five mails, one of them twice, and three files that are none
    old = tmp_path / "old"
    put(old / "archive.mbox", box(mail(1), mail(2, head="Received: by x; 3 Jan 2001 12:00:00 +0800\n")))
    put(old / "Maildir" / "cur" / "978429600.M1.host:2,S", mail(3))
    put(old / "letters" / "a.eml", mail(4).replace(b"\n", b"\r\n"))
    put(old / "letters" / "again.eml", b"X-Mozilla-Status: 0001\n" + mail(1))
    put(old / "letters" / "empty.eml", b"")
    put(old / "letters" / "picture.eml", b"\x89PNG\r\n\x1a\n\0")
    put(old / "letters" / "large.eml", mail(5, "x" * (1 << 20)))

    # when
    answer = await bring(mailbox, old, status=1)

    # then
    left_out = {one["file"].removeprefix(f"{old}/"): one["why"] for one in answer.pop("left_out")}
    assert answer == {"channel": "box", "imported": 4, "duplicates": 1, "unreadable": 3, "stopped": ""}
    assert left_out["letters/empty.eml"] == "is empty"
    assert left_out["letters/picture.eml"] == "is not a mail"
    assert "the channel takes 1,048,576" in left_out["letters/large.eml"]
    tickets = {ticket["data"]["subject"]: ticket["data"] for ticket in await in_stream(mailbox)}
    assert sorted(tickets) == ["Nr. 1", "Nr. 2", "Nr. 3", "Nr. 4"]
    assert tickets["Nr. 1"]["text"] == "你好 1"
    assert tickets["Nr. 1"]["received_at"] == "2001-01-02T10:00:00.000Z"
    assert tickets["Nr. 2"]["received_at"] == "2001-01-03T04:00:00.000Z"
    assert tickets["Nr. 3"]["received_at"] == "2001-01-02T10:00:00.000Z"
    assert tickets["Nr. 4"]["received_at"].startswith(str(datetime.now(UTC).year))
    assert tickets["Nr. 4"]["sent_at"] == "2001-01-01T02:00:00.000Z"

    # when it is brought again
    again = await bring(mailbox, old, status=1)

    # then
    assert (again["imported"], again["duplicates"]) == (0, 5)
    assert len(await in_stream(mailbox)) == 4


async def test_an_interrupted_import_goes_on_where_it_ended(mailbox: Daemon, tmp_path: Path) -> None:
    # given
    old = put(tmp_path / "old", box(*(mail(n) for n in range(2000))))
    process = await start(mailbox, "--json", old)
    await until_some(mailbox, 50)

    # when
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()

    # then
    assert (process.returncode, err) == (1, b"")
    first = json.loads(out)
    assert first["stopped"] == "interrupted"
    assert 0 < first["imported"] < 2000

    # when
    second = await bring(mailbox, old)

    # then: what was on its way when it was interrupted may have been accepted
    assert second["imported"] + second["duplicates"] == 2000
    assert first["imported"] <= second["duplicates"] <= first["imported"] + 64
    tickets = await in_stream(mailbox)
    assert sorted(ticket["data"]["subject"] for ticket in tickets) == sorted(f"Nr. {n}" for n in range(2000))
    (channel,) = [one for one in (await mailbox.status())["channels"] if one["name"] == "box"]
    assert (channel["published"], channel["duplicate"]) == (2000, second["duplicates"])


async def until_some(daemon: Daemon, n: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                if len(await daemon.tickets()) >= n:
                    return
            except (OSError, RedisError):
                pass
            await asyncio.sleep(0.01)


async def test_a_daemon_that_dies_ends_the_import_and_the_next_one_needs_none(
    make_mailbox: MakeDaemon, tmp_path: Path
) -> None:
    # given
    daemon = await make_mailbox().start()
    old = put(tmp_path / "old", box(*(mail(n) for n in range(1000))))
    process = await start(daemon, old)
    await daemon.until_tickets(20)

    # when
    await daemon.kill()
    out, _ = await process.communicate()

    # then
    assert process.returncode == 1
    assert "run it again to go on" in out.decode()

    # when
    answer = await bring(daemon, old)

    # then
    assert answer["imported"] + answer["duplicates"] == 1000
    daemon.process = None
    assert len(await in_stream(daemon)) == 1000


async def test_for_people_there_is_a_line_and_one_for_each_that_is_left_out(
    make_mailbox: MakeDaemon, tmp_path: Path
) -> None:
    put(tmp_path / "a.eml", mail(1))
    put(tmp_path / "b\x1b[31m.eml", b"")

    process = await start(make_mailbox(), tmp_path)
    out, err = await process.communicate()

    assert (process.returncode, err) == (1, b"")
    assert out.decode() == f"imported 1, duplicates 0, unreadable 1\n{tmp_path}/b[31m.eml: is empty\n"


@pytest.mark.parametrize(
    ("channel", "path", "status", "told"),
    [
        ("bx", ".", 1, "there is no channel bx; did you mean box?"),
        ("box", "/nowhere/at/all", 2, "does not exist"),
    ],
)
async def test_what_cannot_be_done_is_said(
    make_mailbox: MakeDaemon, channel: str, path: str, status: int, told: str
) -> None:
    process = await start(make_mailbox(), path, channel=channel)
    _, err = await process.communicate()

    assert process.returncode == status
    assert told in " ".join(err.decode().replace("│", " ").split())


async def test_a_channel_of_another_kind_takes_no_old_mail(mailbox: Daemon) -> None:
    process = await start(mailbox, ".", channel="echo")
    _, err = await process.communicate()

    assert process.returncode == 1
    assert err.decode() == "echo is of type echo; only a mail channel takes old mail\n"


async def test_the_socket_takes_only_what_it_should(make_mailbox: MakeDaemon) -> None:
    daemon = await make_mailbox({"max_message_bytes": 1000}).start()

    async def post(path: str, content: bytes = mail(1)) -> str:
        connector = aiohttp.UnixConnector(str(daemon.state_dir / "admin.sock"))
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.post(f"http://admin/api/import/{path}", data=content) as response,
        ):
            answer = await response.json(content_type=None)
            return str(answer.get("code") or answer["duplicate"])

    assert await post("nobox") == "not_found"
    assert await post("echo") == "invalid"
    assert await post("box", b"x" * 1001) == "too_large"
    assert await post("box?received_at=soon") == "malformed"
    assert await post("box?received_at=2001-01-02T10:00:00") == "malformed"
    assert await post("box?received_at=2001-01-02T10:00:00Z") == "False"
    assert await post("box") == "True"


async def test_a_state_folder_that_is_in_use_is_left_alone(make_mailbox: MakeDaemon, tmp_path: Path) -> None:
    daemon = await make_mailbox().start()
    (daemon.state_dir / "admin.sock").rename(daemon.state_dir / "hidden")

    process = await start(daemon, put(tmp_path / "a.eml", mail(1)))
    _, err = await process.communicate()

    assert process.returncode == 1
    assert "is in use by another huiru" in err.decode()


# --- its parts --------------------------------------------------------------------------------------------------------


class Reluctant:
    """A door that is full for a while."""

    def __init__(self, *refusals: Exception) -> None:
        self.refusals = list(refusals)
        self.taken: list[bytes] = []

    async def largest_mail(self, channel: str) -> int:
        return 1 << 20

    async def take_mail(self, channel: str, content: bytes, received_at: datetime | None) -> bool:
        if self.refusals:
            raise self.refusals.pop()
        self.taken.append(content)
        return False

    async def drained(self) -> None:
        pass


async def through(door: Reluctant, *paths: Path) -> Tally:
    tally = Tally("box")
    await _Import(door, tally, Progress(disable=True)).run(paths, 1 << 20)
    return tally


async def test_a_full_spool_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.oldmail._LONGEST_WAIT_SECS", 0.01)
    door = Reluctant(*(Unavailable("spool_full", retry_after=30) for _ in range(5)))

    tally = await through(door, put(tmp_path / "old", box(mail(1), mail(2))))

    assert (tally.imported, tally.unreadable, len(door.taken)) == (2, 0, 2)


async def test_what_the_channel_refuses_is_left_out_with_its_reason(tmp_path: Path) -> None:
    door = Reluctant(Rejected("invalid", "not this one"))

    tally = await through(door, put(tmp_path / "old", box(mail(1), mail(2))))

    assert (tally.imported, tally.left_out) == (1, [{"file": f"{tmp_path}/old#1", "why": "not this one"}])


async def test_what_is_under_way_is_bounded(tmp_path: Path) -> None:
    door = Reluctant()
    most = under_way = 0
    take = door.take_mail

    async def slowly(*mail: Any) -> bool:
        nonlocal most, under_way
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return await take(*mail)

    door.take_mail = slowly  # type: ignore[method-assign]

    await through(door, put(tmp_path / "old", box(*(mail(n) for n in range(100)))))

    assert len(door.taken) == 100
    assert most == 64


async def test_a_list_of_what_is_left_out_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.oldmail._LISTED", 3)
    for n in range(5):
        put(tmp_path / f"{n}.eml", b"")

    tally = await through(Reluctant(), tmp_path)

    assert (tally.unreadable, len(tally.left_out)) == (5, 3)


# --- its time ---------------------------------------------------------------------------------------------------------


async def test_the_ticket_says_when_it_came_then_and_the_event_when_it_came_to_us(rig: Rig) -> None:
    then = datetime(2001, 1, 2, 10, tzinfo=UTC)
    raw = raw_message(ChannelSettings(type="x"), b"hello", then)
    assert raw.facts == {"imported": True, "received_at": "2001-01-02T10:00:00+00:00"}

    await rig.accept("n1", facts=raw.facts)
    await rig.publish_all()

    (ticket,) = await rig.tickets()
    assert ticket["data"]["received_at"] == "2001-01-02T10:00:00.000Z"
    assert ticket["time"] == "2026-11-23T09:00:00.000Z"
    expires = int(ticket["data"]["raw"]["url"].partition("expires=")[2].partition("&")[0])
    assert expires > rig.now


@pytest.mark.parametrize(
    "facts",
    [
        {"received_at": "2001-01-02T10:00:00+00:00"},  # not imported: a sender's own word
        {"imported": True, "received_at": "2033-01-01T00:00:00+00:00"},  # after its arrival
        {"imported": True},
    ],
)
async def test_else_it_came_when_it_came_to_us(rig: Rig, facts: dict[str, Any]) -> None:
    await rig.accept("n1", facts=facts)

    await rig.publish_all()

    (ticket,) = await rig.tickets()
    assert ticket["data"]["received_at"] == ticket["time"] == "2026-11-23T09:00:00.000Z"
