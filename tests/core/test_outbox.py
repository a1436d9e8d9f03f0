"""Acknowledgements are sent once, late rather than never, and to nobody who answers by machine for ever."""

import asyncio
import json
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway import check
from gateway import outbox as outbox_module
from gateway.contract import Acknowledge, ChannelSettings, Receipt
from gateway.errors import Unavailable
from gateway.letter import Letter, compose
from gateway.mail import replyaddress
from gateway.outbox import Outbox
from gateway.settings import OutgoingMail, load
from gateway.spool import Spool
from tests.core.mailserver import MailServer, certificate
from tests.core.rig import Rig
from tests.daemon import Daemon, free_port

KEY = b"k" * 32
HOUR, DAY = 3600, 86400


class Desk:
    """A rig whose channel acknowledges, and the outbox on it. The clock is the rig's."""

    def __init__(self, rig: Rig, port: int, **settings: Any) -> None:
        self.rig = rig
        self.mail = OutgoingMail(**{"host": "127.0.0.1", "port": port, "tls": "none", **settings})
        self.acknowledge()
        self.outbox = self.made(rig.spool)

    def made(self, spool: Spool) -> Outbox:
        return Outbox(spool, lambda: self.mail, lambda: self.rig.channels, KEY, clock=lambda: self.rig.now)

    def acknowledge(self, **settings: Any) -> None:
        block = Acknowledge.model_validate({"from": "ACME 客服 <support@acme.cn>", **settings})
        self.rig.channels = {"shop": ChannelSettings(type="echo", acknowledge=block)}

    async def receive(self, native_id: str, sender: str = "zhang@example.com", text: str = "", **facts: Any) -> Receipt:
        """A mail, published."""
        facts = {"from": sender, "subject": "打印机坏了", **facts}
        body = (text or f"the text of {native_id}").encode()
        receipt = await self.rig.accept(native_id, body, kind="mail", facts=facts)
        await self.rig.publish_all()
        return receipt

    async def send(self, outbox: Outbox | None = None) -> float:
        """All that is due; the seconds the outbox would wait then."""
        outbox = outbox or self.outbox
        while (pause := await outbox.step()) == 0:
            pass
        return pause

    @property
    def count(self) -> dict[str, int]:
        """The ledger's entries about acknowledgements, by what follows the word."""
        return {name.partition("_")[2]: n for name, n in self.rig.ledger().items() if name.startswith("acknow")}


@pytest.fixture
async def mx() -> AsyncIterator[MailServer]:
    async with MailServer() as mx:
        yield mx


@pytest.fixture
def desk(rig: Rig, mx: MailServer) -> Desk:
    return Desk(rig, mx.port)


# --- one for a message ------------------------------------------------------------------------------------------------


async def test_a_published_message_is_acknowledged(desk: Desk, mx: MailServer) -> None:
    receipt = await desk.receive("m1", thread={"references": ("root@customer.example",)}, language="zh-CN")

    await desk.send()

    (letter,) = mx.taken
    mail = letter.mail
    assert (letter.mail_from, letter.rcpt_to) == ("", ["zhang@example.com"])
    assert mail["To"] == "zhang@example.com"
    assert mail["From"] == "ACME 客服 <support@acme.cn>"
    assert mail["Auto-Submitted"] == "auto-replied"
    assert mail["X-Auto-Response-Suppress"] == "All"
    assert mail["X-Huiru-Acknowledgement"] == receipt.reference
    assert mail["Message-ID"] == f"<acknowledgement.{receipt.id}@acme.cn>"
    assert mail["In-Reply-To"] == "<m1@customer.example>"
    assert mail["References"] == "<root@customer.example> <m1@customer.example>"
    assert mail["Date"].datetime == desk.rig.moment()
    assert mail["Subject"] == f"自动回复：已收到 [{receipt.reference}] 打印机坏了"
    assert receipt.reference in letter.part("plain")
    assert f"<strong>{receipt.reference}</strong>" in letter.part("html")
    assert desk.count == {"sent": 1}


async def test_a_message_is_acknowledged_once(desk: Desk, mx: MailServer) -> None:
    # given a message that was published and acknowledged
    await desk.receive("m1")
    await desk.send()

    # when it is delivered again, published again, and the outbox has its turn again
    await desk.receive("m1")
    desk.rig.pipeline.replay(0)
    await desk.rig.publish_all()
    await desk.send()

    assert len(mx.taken) == 1


async def test_another_gateway_s_duplicate_is_not_acknowledged(
    make_rig: Callable[..., Rig], desk: Desk, mx: MailServer
) -> None:
    # given a second gateway at the same mailbox and the same Redis
    await desk.receive("m1")
    other = Desk(make_rig("other", spool_id="s2"), mx.port)

    await other.receive("m1")
    await other.send()

    assert other.rig.ledger() == {"accepted": 1, "duplicate": 1}
    assert mx.taken == []


async def test_other_content_under_a_known_id_has_a_reference_of_its_own(desk: Desk, mx: MailServer) -> None:
    one = await desk.receive("m1", text="one")
    other = await desk.receive("m1", text="other")

    await desk.send()

    assert [letter.mail["X-Huiru-Acknowledgement"] for letter in mx.taken] == [one.reference, other.reference]


async def test_what_is_quarantined_is_not_acknowledged_before_it_is_published(desk: Desk, mx: MailServer) -> None:
    facts = {"from": "zhang@example.com"}
    receipt = await desk.rig.accept("m1", kind="rejected", facts=facts)
    await desk.rig.publish_all()

    await desk.send()

    assert desk.rig.ledger()["quarantined"] == 1
    assert mx.taken == []
    assert desk.count == {}
    assert receipt.reference


async def test_without_the_setting_nothing_is_written(desk: Desk) -> None:
    desk.rig.channels = {"shop": ChannelSettings(type="echo")}

    await desk.receive("m1")

    assert desk.count == {}


async def test_a_channel_that_acknowledges_no_longer(desk: Desk, mx: MailServer) -> None:
    await desk.receive("m1")
    desk.rig.channels = {"shop": ChannelSettings(type="echo")}

    await desk.send()

    assert mx.taken == []
    assert desk.count == {"failed:channel_gone": 1}


async def test_a_defect_of_ours_does_not_keep_a_message_from_the_stream(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("gateway.acknowledgement._letter", fail)

    await desk.receive("m1")

    assert len(await desk.rig.tickets()) == 1
    assert desk.count == {"suppressed:internal": 1}


# --- durable ----------------------------------------------------------------------------------------------------------


async def reopened(desk: Desk) -> Spool:
    """The spool after a crash and a start."""
    await desk.rig.spool.close()
    spool = Spool(desk.rig.spool.folder, clock=lambda: desk.rig.now)
    spool.open()
    desk.rig.spool = spool
    return spool


async def test_a_letter_survives_a_restart(desk: Desk, mx: MailServer) -> None:
    receipt = await desk.receive("m1")

    await desk.send(desk.made(await reopened(desk)))

    assert [letter.mail["X-Huiru-Acknowledgement"] for letter in mx.taken] == [receipt.reference]
    assert desk.count == {"sent": 1}


async def test_a_letter_that_was_sent_as_we_died_is_known_as_the_same(
    desk: Desk, mx: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given that the disk fails between the server's yes and our note of it
    async def fail(*_: object) -> None:
        raise Unavailable("spool_failed")

    await desk.receive("m1")
    monkeypatch.setattr(desk.outbox._letters, "sent", fail)
    with pytest.raises(Unavailable):
        await desk.outbox.step()

    await desk.send(desk.made(await reopened(desk)))

    first, second = mx.taken
    assert first.mail["Message-ID"] == second.mail["Message-ID"]


async def test_a_disk_that_fails_for_long_does_not_send_a_letter_again_and_again(
    desk: Desk, mx: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise Unavailable("spool_failed")

    await desk.receive("m1")
    await desk.receive("m2", "li@example.com")
    with monkeypatch.context() as patch:
        patch.setattr(desk.outbox._letters, "sent", fail)
        for _ in range(5):
            with pytest.raises(Unavailable):
                await desk.outbox.step()
    assert len(mx.taken) == 1

    await desk.send()

    assert len(mx.taken) == 2
    assert desk.count == {"sent": 2}


async def test_letters_outlive_a_damaged_database(desk: Desk, mx: MailServer) -> None:
    await desk.receive("m1")
    await desk.rig.spool.close()
    desk.rig.spool._replace_damaged()  # what is called when it is found to be damaged

    await desk.send(desk.made(await reopened(desk)))

    assert len(mx.taken) == 1
    assert desk.count == {"sent": 1}


# --- a server that is not well ----------------------------------------------------------------------------------------


async def test_a_server_that_is_away_is_waited_for(desk: Desk, mx: MailServer) -> None:
    # given a server that is gone
    port, desk.mail = mx.port, OutgoingMail(host="127.0.0.1", port=1, tls="none")
    await desk.receive("m1")

    pauses = [await desk.outbox.step() for _ in range(12)]

    assert 1 <= pauses[0] <= 2
    assert 150 <= pauses[-1] <= 300
    assert "SMTPConnectError" in desk.outbox.trouble
    assert (desk.rig.spool.letters.waiting, desk.count) == (1, {"waiting": 1})

    # when it is back
    desk.mail = OutgoingMail(host="127.0.0.1", port=port, tls="none")
    await desk.send()

    assert len(mx.taken) == 1
    assert (desk.rig.spool.letters.waiting, desk.outbox.trouble) == (0, "")


@pytest.mark.parametrize("command", ["RCPT", "DATA"])
async def test_a_temporary_refusal_makes_a_letter_wait(desk: Desk, mx: MailServer, command: str) -> None:
    # given greylisting
    mx.answers[command] = lambda to: "451 4.7.1 try again later" if to == "zhang@example.com" else ""
    await desk.receive("m1")
    await desk.receive("m2", "li@example.com")

    pause = await desk.send()

    assert [letter.rcpt_to for letter in mx.taken] == [["li@example.com"]]
    assert 50 <= pause <= 60

    desk.rig.now += 61
    mx.answers.clear()
    await desk.send()

    assert len(mx.taken) == 2
    assert desk.count == {"sent": 2}


@pytest.mark.parametrize("answer", ["421 4.3.2 going down", "530 5.7.0 authentication required"])
async def test_what_is_not_the_letter_s_fault_makes_all_wait(desk: Desk, mx: MailServer, answer: str) -> None:
    mx.answers["RCPT"] = answer
    await desk.receive("m1")

    await desk.outbox.step()

    assert desk.outbox.trouble == answer
    assert desk.count == {"waiting": 1}


@pytest.mark.parametrize("command", ["RCPT", "DATA"])
async def test_a_final_refusal_ends_a_letter(desk: Desk, mx: MailServer, command: str) -> None:
    mx.answers[command] = "550 5.1.1 no such user"
    await desk.receive("m1")

    await desk.send()
    mx.answers.clear()
    await desk.send()

    assert mx.taken == []
    assert desk.count == {"failed:refused": 1}


async def test_a_letter_over_which_the_server_hangs_up_does_not_hold_up_the_others(desk: Desk, mx: MailServer) -> None:
    mx.answers["DATA"] = lambda to: "hang up" if to == "zhang@example.com" else ""
    await desk.receive("m1")
    await desk.receive("m2", "li@example.com")

    await desk.outbox.step()
    assert desk.outbox.trouble
    await desk.outbox.step()

    assert [letter.rcpt_to for letter in mx.taken] == [["li@example.com"]]
    assert desk.count == {"sent": 1, "waiting": 1}


async def test_a_letter_that_we_cannot_make_does_not_hold_up_the_others(
    desk: Desk, mx: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defective(letter: Letter, *rest: Any) -> bytes:
        return compose(letter, *rest) if letter.recipient != "zhang@example.com" else 1 / 0  # type: ignore[return-value]

    monkeypatch.setattr(outbox_module, "compose", defective)
    await desk.receive("m1")
    await desk.receive("m2", "li@example.com")

    await desk.send()

    assert [letter.rcpt_to for letter in mx.taken] == [["li@example.com"]]
    assert desk.count == {"sent": 1, "waiting": 1}


async def test_a_server_that_insists_on_a_sender(desk: Desk, mx: MailServer) -> None:
    mx.answers["MAIL"] = lambda sender: "" if sender else "501 5.1.7 the sender must be the login's address"
    await desk.receive("m1")

    await desk.outbox.step()

    assert "outgoing_mail.return_path" in desk.outbox.trouble
    assert desk.count == {"waiting": 1}

    desk.mail = desk.mail.model_copy(update={"return_path": "robot@acme.cn"})
    await desk.send()

    assert [letter.mail_from for letter in mx.taken] == ["robot@acme.cn"]


async def test_a_letter_that_could_not_be_sent_for_a_day_is_given_up(desk: Desk, mx: MailServer) -> None:
    await desk.receive("m1")
    desk.rig.now += DAY + 1

    await desk.send()

    assert mx.taken == []
    assert desk.count == {"failed:expired": 1}


async def test_without_a_server_letters_wait_in_peace(desk: Desk) -> None:
    await desk.receive("m1")
    outbox = Outbox(desk.rig.spool, lambda: None, lambda: desk.rig.channels, KEY, clock=lambda: desk.rig.now)

    assert await outbox.step() >= 1
    assert desk.rig.spool.letters.waiting == 1


# --- TLS and a login --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize("mode", ["starttls", "implicit"])
async def test_tls_and_a_login(rig: Rig, tls: tuple[Path, ssl.SSLContext], mode: str) -> None:
    ca_file, context = tls
    options: dict[str, Any] = (
        {"implicit": context} if mode == "implicit" else {"tls_context": context, "require_starttls": True}
    )
    login: dict[str, Any] = {"user": "robot", "password": "open sesame"}
    async with MailServer(**login, auth_require_tls=mode == "starttls", **options) as mx:
        desk = Desk(rig, mx.port, tls=mode, ca_file=ca_file, username="robot", password="closed")
        await desk.receive("m1")

        # when the password is wrong, and then right
        await desk.outbox.step()
        trouble = desk.outbox.trouble
        desk.mail = OutgoingMail(
            host="127.0.0.1", port=mx.port, tls=mode, ca_file=ca_file, username="robot", password="open sesame"
        )
        await desk.send()

        assert trouble.startswith("the login was refused: 535")
        assert [letter.user for letter in mx.taken] == ["robot"]
        assert desk.outbox.trouble == ""


@pytest.mark.parametrize("mode", ["starttls", "implicit"])
async def test_a_server_we_do_not_trust_gets_nothing(rig: Rig, tls: tuple[Path, ssl.SSLContext], mode: str) -> None:
    _, context = tls
    options: dict[str, Any] = {"implicit": context} if mode == "implicit" else {"tls_context": context}
    async with MailServer(**options) as mx:
        desk = Desk(rig, mx.port, tls=mode)
        await desk.receive("m1")

        await desk.outbox.step()

        assert "CERTIFICATE_VERIFY_FAILED" in desk.outbox.trouble
        assert mx.taken == []


async def test_a_server_without_starttls_gets_nothing(desk: Desk, mx: MailServer) -> None:
    desk.mail = OutgoingMail(host="127.0.0.1", port=mx.port)
    await desk.receive("m1")

    await desk.outbox.step()

    assert desk.outbox.trouble
    assert mx.taken == []


async def test_a_probe_tries_the_login(tls: tuple[Path, ssl.SSLContext], tmp_path: Path) -> None:
    ca_file, context = tls
    async with MailServer(user="robot", password="open sesame", tls_context=context) as mx:
        for password, well, said in (
            ("open sesame", True, "the login is good"),
            ("closed-2", False, "login was refused"),
        ):
            mail = {"host": "127.0.0.1", "port": mx.port, "ca_file": str(ca_file), "username": "robot"}
            channels = {"app": {"type": "echo", "secret": "s" * 16}}
            (tmp_path / "g.yaml").write_text(
                json.dumps({"outgoing_mail": mail | {"password": password}, "channels": channels})
            )

            _, verdict, *_ = await check.everything(load(tmp_path / "g.yaml", {}))

            assert (verdict.well, verdict.what) == (well, "outgoing_mail")
            assert said in verdict.text
            assert password not in verdict.text


# --- brakes -----------------------------------------------------------------------------------------------------------


async def test_a_sender_gets_so_many_an_hour_also_over_a_restart(desk: Desk, mx: MailServer) -> None:
    desk.acknowledge(max_per_sender_per_hour=2)
    for n in range(3):  # one person, however they vary the address
        await desk.receive(f"m{n}", f"Zhang+{n}@Example.com")
    assert desk.count == {"waiting": 2, "suppressed:sender_rate": 1}

    # when we restart, and when the hour is over
    await reopened(desk)
    desk.rig.pipeline._spool = desk.rig.intake._spool = desk.rig.spool
    await desk.receive("m3")
    desk.rig.now += HOUR + 1
    await desk.receive("m4")

    assert desk.count == {"waiting": 3, "suppressed:sender_rate": 2}


async def test_a_domain_gets_so_many_an_hour(desk: Desk) -> None:
    desk.acknowledge(max_per_domain_per_hour=3)

    for n in range(5):
        await desk.receive(f"m{n}", f"user{n}@example.com")
    await desk.receive("m5", "user@example.org")

    assert desk.count == {"waiting": 4, "suppressed:domain_rate": 2}


async def test_the_brakes_count_within_one_batch(desk: Desk) -> None:
    desk.acknowledge(max_per_sender_per_hour=2)
    for n in range(5):
        await desk.rig.accept(f"m{n}", b"%d" % n, kind="mail", facts={"from": "zhang@example.com"})

    await desk.rig.publish_all()

    assert desk.count == {"waiting": 2, "suppressed:sender_rate": 3}


async def test_the_same_text_again_is_acknowledged_once_a_day(desk: Desk) -> None:
    desk.acknowledge(max_per_sender_per_hour=100)
    for n in range(30):
        await desk.receive(f"m{n}", text="I am out  of the\noffice" if n % 2 else "I am out of the OFFICE")
        desk.rig.now += HOUR / 2
    assert desk.count == {"waiting": 1, "suppressed:repeated": 29}

    desk.rig.now += DAY
    await desk.receive("later", text="I am out of the office")

    assert desk.count == {"waiting": 2, "suppressed:repeated": 29}


async def test_mails_without_a_text_are_not_the_same(desk: Desk) -> None:
    for n in range(2):
        await desk.rig.accept(f"m{n}", b"", kind="mail", facts={"from": "zhang@example.com"}, fingerprint=b"%d" % n)
    await desk.rig.publish_all()

    assert desk.count == {"waiting": 2}


async def test_no_more_than_so_many_wait(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.letterbox.MOST_WAITING", 2)
    for n in range(4):
        await desk.receive(f"m{n}")

    assert desk.count == {"waiting": 2, "suppressed:full": 2}


async def test_what_counts_no_more_is_forgotten(desk: Desk, mx: MailServer) -> None:
    await desk.receive("m1")
    await desk.send()
    desk.rig.now += DAY + 1
    desk.mail = OutgoingMail(host="127.0.0.1", port=1, tls="none")
    await desk.receive("m2")

    await desk.outbox.step()

    rows = await desk.rig.spool._journal.run(lambda db: db.execute("SELECT seq FROM letter").fetchall())
    assert len(rows) == 1


class Robot(MailServer):
    """Answers every mail at once, by a mail that no header gives away, from an address and with a text that change."""

    def __init__(self, senders: int) -> None:
        super().__init__()
        self.rounds = 0
        self.desk: Desk | None = None
        self._senders = senders

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        answer = await super().handle_DATA(server, session, envelope)
        assert self.desk is not None
        self.rounds += 1
        sender = f"ticket-{self.rounds % self._senders}@robot.example"
        facts = {"from": sender, "subject": f"Your request {self.rounds}", "mail_from": sender}
        await self.desk.rig.accept(f"answer-{self.rounds}", b"We got it. %d" % self.rounds, kind="mail", facts=facts)
        return answer


@pytest.mark.parametrize(("senders", "most"), [(1_000_000, 7), (1, 3)])
async def test_a_loop_with_another_robot_ends(rig: Rig, senders: int, most: int) -> None:
    async with Robot(senders) as robot:
        robot.desk = desk = Desk(rig, robot.port)
        desk.acknowledge(max_per_sender_per_hour=3, max_per_domain_per_hour=7)
        await desk.receive("first", "ticket-0@robot.example")

        # when each answers the other as long as it can
        for _ in range(most + 5):
            await desk.send()
            await rig.publish_all()

        assert robot.rounds == most
        assert desk.rig.spool.letters.waiting == 0
        assert len(await rig.tickets()) == 1 + most  # nothing is kept from the desk


async def test_an_answer_to_an_acknowledgement_is_not_acknowledged(desk: Desk, mx: MailServer) -> None:
    await desk.receive("m1")
    await desk.send()
    ours = mx.taken[0].mail["Message-ID"].strip("<>")

    await desk.receive("m2", thread={"in_reply_to": (ours,)})

    assert desk.count == {"sent": 1, "suppressed:follow_up": 1}


async def test_a_signed_reply_address_leads_back(desk: Desk, mx: MailServer) -> None:
    desk.acknowledge(reply_to="signed")
    receipt = await desk.receive("m1")

    await desk.send()

    address = mx.taken[0].mail["Reply-To"]
    assert address.startswith("support+")
    assert replyaddress.verify(address, KEY) == receipt.reference


# --- life -------------------------------------------------------------------------------------------------------------


async def test_a_letter_is_sent_as_soon_as_its_message_is_published(desk: Desk, mx: MailServer) -> None:
    task = asyncio.create_task(desk.outbox.run())
    for n in range(3):
        await desk.receive(f"m{n}")
        await mx.until(n + 1, seconds=5)

    await desk.outbox.stop()

    await asyncio.wait_for(task, 1)


async def test_a_stop_lets_the_letter_in_hand_be_sent_and_leaves_the_rest(desk: Desk, mx: MailServer) -> None:
    # given a server that is asked to take its time until we stop
    stopping: list[asyncio.Task[None]] = []

    def slow(_: str) -> str:
        stopping.append(asyncio.create_task(desk.outbox.stop()))
        return ""

    mx.answers["RCPT"] = slow
    for n in range(3):
        await desk.receive(f"m{n}", f"user{n}@example.com")

    await asyncio.wait_for(desk.outbox.run(), 5)

    await asyncio.gather(*stopping)
    assert len(mx.taken) == 1
    assert desk.count == {"sent": 1, "waiting": 2}


async def test_a_stop_does_not_wait_for_a_server_that_hangs(
    desk: Desk, mx: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "_STOP_SECS", 0.05)
    hanging = asyncio.Event()

    def hang(_: str) -> str:
        hanging.set()
        return "hang"

    mx.answers["DATA"] = hang
    await desk.receive("m1")
    task = asyncio.create_task(desk.outbox.run())
    await asyncio.wait_for(hanging.wait(), 5)

    await asyncio.wait_for(desk.outbox.stop(), 1)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 1)
    assert desk.count == {"waiting": 1}


async def test_a_nudge_ends_the_wait_for_a_server_that_is_away(desk: Desk, mx: MailServer) -> None:
    good, desk.mail = desk.mail, OutgoingMail(host="127.0.0.1", port=1, tls="none")
    desk.outbox._failures = 9  # it would wait for minutes
    await desk.receive("m1")
    task = asyncio.create_task(desk.outbox.run())
    while not desk.outbox.trouble:
        await asyncio.sleep(0)

    desk.mail = good
    desk.outbox.nudge()

    await mx.until(1, seconds=5)
    await desk.outbox.stop()
    await task


async def test_a_stop_ends_the_wait_for_a_server_that_is_away(desk: Desk) -> None:
    desk.mail = OutgoingMail(host="127.0.0.1", port=1, tls="none")
    await desk.receive("m1")
    task = asyncio.create_task(desk.outbox.run())
    while not desk.outbox.trouble:
        await asyncio.sleep(0)

    await asyncio.wait_for(desk.outbox.stop(), 1)

    await asyncio.wait_for(task, 1)


async def test_a_spool_that_fails_does_not_end_the_outbox(
    desk: Desk, mx: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[int] = []
    due = desk.outbox._letters.due

    async def fail_first(limit: int) -> Any:
        if not failed:
            failed.append(limit)
            raise Unavailable("spool_failed")
        return await due(limit)

    monkeypatch.setattr(desk.outbox._letters, "due", fail_first)
    task = asyncio.create_task(desk.outbox.run())
    while not failed:
        await asyncio.sleep(0)

    await desk.receive("m1")

    await mx.until(1, seconds=5)
    await desk.outbox.stop()
    await task


# --- a whole daemon ---------------------------------------------------------------------------------------------------


FORM = {
    "type": "webform",
    "title": "Contact support",
    "fields": [
        {"name": "subject", "type": "text", "label": "Subject", "required": True},
        {"name": "text", "type": "textarea", "label": "Description", "required": True},
        {"name": "email", "type": "email", "label": "E-mail"},
    ],
    "acknowledge": {"from": "ACME Support <support@acme.example>", "language": "en", "reply_to": "signed"},
}


async def submit(daemon: Daemon, http: aiohttp.ClientSession, text: str) -> str:
    """A submission; its reference."""
    values = {"subject": "打印机坏了", "text": text, "email": "zhang@example.com"}
    async with http.post(f"{daemon.url}/c/web?lang=zh", json=values) as response:
        answer = await response.json()
    return str(answer["reference"])


async def test_a_form_is_acknowledged_also_when_the_mail_server_was_away(
    start_daemon: Callable[..., Awaitable[Daemon]], http: aiohttp.ClientSession
) -> None:
    # given a daemon whose mail server is not there yet
    port = free_port()
    mail = {"host": "127.0.0.1", "port": port, "tls": "none"}
    daemon = await start_daemon({"web": FORM}, outgoing_mail=mail)

    first = await submit(daemon, http, "one")

    # then the ticket is published all the same, and the trouble is shown
    await daemon.until_tickets(1)
    status = await daemon.until_status(lambda status: status["outbox"]["trouble"] != "")
    assert status["outbox"]["waiting"] == 1
    assert (await daemon.metrics())['huiru_acknowledgements_waiting{channel="web"}'] == 1

    # when we are started again, and the server is there
    assert await daemon.stop() == 0
    async with MailServer(port) as mx:
        await daemon.start()
        second = await submit(daemon, http, "two")
        letters = await mx.until(2)

        assert {letter.mail["X-Huiru-Acknowledgement"] for letter in letters} == {first, second}
        assert {letter.mail_from for letter in letters} == {""}
        assert all(letter.mail["X-Huiru-Acknowledgement"] in letter.part("plain") for letter in letters)
        assert all(letter.mail["Subject"].startswith("自动回复：已收到 [") for letter in letters)
        status = await daemon.until_status(lambda status: status["outbox"]["waiting"] == 0)
    assert status["outbox"]["trouble"] == ""
    assert (await daemon.metrics())['huiru_acknowledgements_sent_total{channel="web"}'] == 2


async def test_a_daemon_that_is_killed_as_the_server_says_yes_sends_the_same_letter(
    start_daemon: Callable[..., Awaitable[Daemon]], http: aiohttp.ClientSession
) -> None:
    async with MailServer() as mx:
        mail = {"host": "127.0.0.1", "port": mx.port, "tls": "none"}
        daemon = await start_daemon({"web": FORM}, outgoing_mail=mail)

        def kill(_: str) -> str:
            mx.answers.clear()
            daemon.signal(signal.SIGKILL)
            return ""

        mx.answers["DATA"] = kill
        await submit(daemon, http, "one")
        assert daemon.process is not None
        await daemon.process.wait()

        await daemon.start()

        first, second = await mx.until(2)
        assert first.mail["Message-ID"] == second.mail["Message-ID"]
        await daemon.until_status(lambda status: status["outbox"]["waiting"] == 0)
    assert len(mx.taken) == 2
    assert len(await daemon.tickets()) == 1


async def test_a_reload_takes_other_settings_and_tries_at_once(
    start_daemon: Callable[..., Awaitable[Daemon]], http: aiohttp.ClientSession
) -> None:
    # given a daemon whose mail server is away
    daemon = await start_daemon({"web": FORM}, outgoing_mail={"host": "127.0.0.1", "port": free_port(), "tls": "none"})
    await submit(daemon, http, "one")
    await daemon.until_status(lambda status: status["outbox"]["trouble"] != "")

    async with MailServer() as mx:
        daemon.config["outgoing_mail"]["port"] = mx.port
        daemon.config["channels"]["web"] = FORM | {"acknowledge": {"from": "desk@acme.example"}}
        daemon.write_config()
        answer = await daemon.admin("POST", "/api/reload")

        (letter,) = await mx.until(1)

    assert answer["needs_restart"] == []
    assert letter.mail["From"] == "desk@acme.example"
