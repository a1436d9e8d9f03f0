"""The `smtp` channel, spoken to byte by byte."""

import asyncio
import base64
import smtplib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML

from connectors.smtp import Connector
from gateway.contract import Context, RawMessage, Receipt
from gateway.errors import ANSWERS, ConfigError, Rejected, Unavailable
from gateway.mail import replyaddress
from gateway.password import hashed
from tests.daemon import free_port
from tests.mail.nameserver import NameServer, Zone
from tests.smtp_talk import Talk, make_certificate, stuffed, talk, unchecked

EXAMPLE = Path(__file__).parents[2] / "config/channels/smtp.example.yaml"
OURS = "support@acme.cn"
MAIL = b"From: zhang@example.com\r\nSubject: hello\r\n\r\nmy printer is broken\r\n"
ENVELOPE = ("MAIL FROM:<zhang@example.com>", f"RCPT TO:<{OURS}>")
PASSWORD = "correct horse"
SHOP = {"name": "shop", "password": hashed(PASSWORD.encode(), bytes(16))}
NOW = datetime.now(UTC)

Accept = Callable[[RawMessage], Awaitable[Receipt]]


class Served:
    """A channel that receives. `refusal` is raised instead of a receipt; `gate` is waited for before one is given."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.messages: list[RawMessage] = []
        self.refusal: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = asyncio.Event()
        self.task: asyncio.Task[None]
        self.connector: Connector

    async def accept(self, raw: RawMessage) -> Receipt:
        self.arrived.set()
        await self.gate.wait()
        if self.refusal:
            raise self.refusal
        self.messages.append(raw)
        return Receipt("id", "7K3M-9QX2-4WPD")

    @property
    def facts(self) -> dict[str, Any]:
        """Of the only message."""
        (message,) = self.messages
        return dict(message.facts)

    def talk(self, **how: Any) -> AbstractAsyncContextManager[Talk]:
        return talk(self.port, **how)

    async def deliver(self, body: bytes = MAIL, to: tuple[str, ...] = (OURS,), **how: Any) -> list[str]:
        async with self.talk(**how) as one:
            return await one.hand_over(body, to)


Serve = Callable[..., AbstractAsyncContextManager[Served]]


def made(**block: Any) -> Connector:
    channel = {"type": "smtp", "listen": "127.0.0.1:2525", "domains": ["acme.cn"], "hostname": "mx.test", **block}
    context = Context("test", "https://support.example", lambda purpose: bytes(32), lambda: NOW)
    return Connector("inbound", Connector.Settings.model_validate(channel), context)


@asynccontextmanager
async def serving(**block: Any) -> AsyncIterator[Served]:
    served = Served(free_port())
    served.connector = made(**{"listen": f"127.0.0.1:{served.port}", **block})
    up = asyncio.Event()
    served.task = asyncio.create_task(served.connector.run(served.accept, lambda is_up: up.set()))
    waiting = asyncio.create_task(up.wait())
    await asyncio.wait({served.task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if served.task.done():
        waiting.cancel()
        served.task.result()
    try:
        async with asyncio.timeout(10):
            yield served
    finally:
        served.gate.set()
        served.task.cancel()
        with suppress(asyncio.CancelledError):
            await served.task


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    chain, key = make_certificate(tmp_path_factory.mktemp("tls"))
    return {"certificate": str(chain), "private_key": str(key)}


# --- a message --------------------------------------------------------------------------------------------------------


async def test_a_message_is_taken_as_it_is(served: Served) -> None:
    replies = await served.deliver()

    assert replies == ["250 2.1.5 OK", "250 2.0.0 Accepted as 7K3M-9QX2-4WPD"]
    (message,) = served.messages
    assert (message.kind, message.body) == ("rfc5322", MAIL)
    assert message.facts == {
        "mail_from": "zhang@example.com",
        "rcpt_to": [OURS],
        "remote": "127.0.0.1",
        "helo": "client.example",
    }


async def test_several_recipients_are_one_message(served: Served) -> None:
    await served.deliver(to=(OURS, "billing@acme.cn", OURS))

    assert served.facts["rcpt_to"] == [OURS, "billing@acme.cn"]


async def test_the_same_mail_by_another_way_is_the_same_message(served: Served) -> None:
    await served.deliver(b"Received: from a\r\n" + MAIL, ("a@acme.cn", "b@acme.cn"))
    await served.deliver(b"Received: from b\r\n" + MAIL, ("b@acme.cn",))

    first, second = served.messages
    assert (first.native_id, first.fingerprint) == (second.native_id, second.fingerprint)


async def test_one_connection_brings_several_messages(served: Served) -> None:
    async with served.talk() as one:
        for n in range(3):
            await one.hand_over(MAIL + b"%d\r\n" % n, [OURS])

    assert [message.body[-3:] for message in served.messages] == [b"0\r\n", b"1\r\n", b"2\r\n"]


async def test_the_null_sender_is_accepted(served: Served) -> None:
    async with served.talk() as one:
        replies = await one.hand_over(MAIL, [OURS], sender="")

    assert replies[-1].startswith("250")
    assert served.facts["mail_from"] == ""


BODIES = [
    b"",
    b"\r\n",
    b".\r\n",
    b"..\r\n.\r\n",
    b"a\r\n.b\r\n..c\r\n",
    b"\r\n.\r\n.\r\n",
    b"a\rb\nc\x00\xff\r\n",
    b"x" * 200_000 + b"\r\n",
    (b"." + b"x" * 997 + b"\r\n") * 300,
    b"x" * 65_531 + b"\r\n.y\r\n",
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
async def test_every_byte_of_a_body_is_kept(served: Served, body: bytes) -> None:
    await served.deliver(body)

    assert [message.body for message in served.messages] == [body]


async def test_a_body_in_any_pieces_is_kept(served: Served) -> None:
    loop = asyncio.get_running_loop()

    async def send(body: bytes, cuts: list[int]) -> None:
        wire = stuffed(body) + b".\r\n"
        async with served.talk() as one:
            await one.say(*ENVELOPE, "DATA")
            for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(wire)], strict=True):
                await one.send(wire[start:end])
                await asyncio.sleep(0)
            assert (await one.reply()).startswith("250")
        assert served.messages.pop().body == body

    lines = st.lists(st.sampled_from([b".", b"\r\n", b"\r", b"\n", b"x", b"..", b"\r\n.\r"]), max_size=30)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        body=lines.map(b"".join).map(lambda text: text and text + b"\r\n"),
        cuts=st.lists(st.integers(0, 40), max_size=6),
    )
    def run(body: bytes, cuts: list[int]) -> None:
        asyncio.run_coroutine_threadsafe(send(body, cuts), loop).result(10)

    await asyncio.to_thread(run)


async def test_libraries_are_understood(served: Served) -> None:
    def by_smtplib() -> None:
        with smtplib.SMTP("127.0.0.1", served.port) as client:
            client.sendmail(
                "张三@例子.cn",
                ["支持@acme.cn"],
                "Subject: 打印机\r\n\r\n坏了\r\n".encode(),
                ["SMTPUTF8", "BODY=8BITMIME"],
            )

    await asyncio.to_thread(by_smtplib)
    await aiosmtplib.send(MAIL, sender="a@example.com", recipients=[OURS], hostname="127.0.0.1", port=served.port)

    first, second = served.messages
    assert (first.facts["mail_from"], first.facts["rcpt_to"]) == ("张三@例子.cn", ["支持@acme.cn"])
    assert first.body == "Subject: 打印机\r\n\r\n坏了\r\n".encode()
    assert second.body == MAIL


async def test_lmtp_answers_for_each_recipient() -> None:
    async with (
        serving(protocol="lmtp", recipients={"a@acme.cn": {}, "b@acme.cn": {}}, domains=[]) as served,
        served.talk(hello="LHLO client.example") as one,
    ):
        replies = await one.hand_over(MAIL, ["a@acme.cn", "nobody@acme.cn", "b@acme.cn", "a@acme.cn"])
        more = [await one.reply(), await one.reply()]
        served.refusal = Unavailable("spool_full")
        refused = await one.hand_over(MAIL, ["a@acme.cn", "b@acme.cn"])
        refused.append(await one.reply())
        idle = await one.say("NOOP")

    assert [reply[:3] for reply in replies + more] == ["250", "550", "250", "250", "250", "250", "250"]
    assert [reply[:9] for reply in refused] == ["250 2.1.5", "250 2.1.5", "452 4.3.1", "452 4.3.1"]
    assert idle.startswith("250")
    assert served.facts["rcpt_to"] == ["a@acme.cn", "b@acme.cn"]


async def test_lmtp_knows_no_ehlo() -> None:
    async with serving(protocol="lmtp") as served, served.talk(hello="") as one:
        assert (await one.say("EHLO client.example")).startswith("500")
        assert (await one.say("HELO client.example")).startswith("500")


async def test_a_unix_socket_is_served(short_path: Path) -> None:
    path = short_path / "mail.sock"
    async with serving(listen=None, unix_socket=str(path), unix_socket_mode="0600") as served:
        reader, writer = await asyncio.open_unix_connection(path)
        one = Talk(reader, writer)
        await one.reply()
        await one.say("EHLO client.example")
        await one.hand_over(MAIL, [OURS])
        writer.close()

        assert path.stat().st_mode & 0o777 == 0o600
        assert served.facts["remote"] == ""


# --- what goes wrong --------------------------------------------------------------------------------------------------


FAULTS = [
    *[(Unavailable(code), ANSWERS[code].smtp) for code in ("spool_full", "spool_failed", "busy", "stopping")],
    (Rejected("idempotency_mismatch"), "554 5.6.0"),
    (RuntimeError("the secret of the house"), "451 4.3.0"),
]


@pytest.mark.parametrize(("fault", "expected"), FAULTS, ids=str)
async def test_a_fault_has_its_answer(served: Served, fault: Exception, expected: str) -> None:
    served.refusal = fault

    reply = (await served.deliver())[-1]

    assert reply.startswith(expected)
    assert "secret" not in reply


async def test_a_fault_before_the_message_is_temporary(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the secret of the house")

    monkeypatch.setattr("gateway.smtpsession.Session._getparams", fail)

    async with served.talk() as one:
        assert await one.say("MAIL FROM:<a@example.com>") == "451 4.3.0 Temporarily unavailable"


async def test_no_yes_before_the_receipt(served: Served) -> None:
    served.gate.clear()
    async with served.talk() as one:
        await one.say(*ENVELOPE, "DATA")
        await one.send(MAIL + b".\r\n")
        await served.arrived.wait()
        reply = asyncio.create_task(one.reply())
        await asyncio.sleep(0)

        assert not reply.done()
        served.gate.set()
        assert (await reply).startswith("250")


# Each is an end of data to some servers (SEC Consult, SMTP smuggling, 2023; CVE-2024-27305); to us none is.
SMUGGLED = [b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r.\r\n", b"\r\n.\n", b"\r\n.\r", b"\r\n\x00.\r\n", b"\n.\r"]


@pytest.mark.parametrize("end", SMUGGLED, ids=repr)
async def test_no_second_message_is_smuggled_in(served: Served, end: bytes) -> None:
    inner = f"MAIL FROM:<boss@acme.cn>\r\nRCPT TO:<{OURS}>\r\nDATA\r\n".encode() + MAIL
    body = b"Subject: outer\r\n\r\ntext" + end + inner
    async with served.talk() as one:
        await one.say(*ENVELOPE, "DATA")
        reply = await one.say(body + b".")
        idle = await one.say("NOOP")

    assert (reply[:3], idle[:3]) == ("250", "250")
    assert [message.body for message in served.messages] == [body.replace(b"\r\n.", b"\r\n")]


async def test_what_was_sent_ahead_of_tls_is_not_obeyed(certificate: dict[str, str]) -> None:
    """STARTTLS injection, CVE-2024-34083."""
    async with serving(tls="starttls", **certificate) as served, served.talk() as one:
        await one.send("STARTTLS\r\nMAIL FROM:<injected@example.com>\r\n")
        await one.reply()
        await one.writer.start_tls(unchecked())

        assert (await one.say("NOOP")).startswith("250")
        assert (await one.say(f"RCPT TO:<{OURS}>")).startswith("503")


async def test_a_body_sent_ahead_is_not_read_as_commands(served: Served) -> None:
    smuggled = f"RSET\r\nMAIL FROM:<boss@acme.cn>\r\nRCPT TO:<{OURS}>\r\nDATA\r\n".encode() + MAIL
    async with served.talk() as one:
        await one.send(b"MAIL FROM:<a@example.com>\r\nRCPT TO:<a@elsewhere.example>\r\nDATA\r\n" + smuggled + b".\r\n")
        said = await one.rest()

    assert [line[:3] for line in said.splitlines()] == ["250", "550", "503", "421"]
    assert served.messages == []


async def test_commands_sent_ahead_are_obeyed_in_order(served: Served) -> None:
    async with served.talk() as one:
        await one.send("\r\n".join([*ENVELOPE, "DATA"]).encode() + b"\r\n" + MAIL + b".\r\nNOOP\r\nQUIT\r\n")
        said = await one.rest()

    assert [line[:3] for line in said.splitlines()] == ["250", "250", "354", "250", "250", "221"]
    assert [message.body for message in served.messages] == [MAIL]


async def test_a_browser_is_sent_away(served: Served) -> None:
    async with served.talk(hello="") as one:
        await one.send(b"POST / HTTP/1.1\r\nHost: a\r\n\r\nEHLO a\r\nMAIL FROM:<a@b>\r\n")

        assert (await one.rest()).startswith("421")


@pytest.mark.parametrize(
    "line",
    [
        *(
            "MAIL FROM:",
            "MAIL FROM:<",
            "MAIL FROM:<a",
            "MAIL",
            "MAIL TO:<a@b>",
            "MAIL FROM:<a@b> SIZE=x",
            "MAIL FROM:<@>",
        ),
        *("MAIL FROM:<" + "(" * 3000 + ">", "MAIL FROM:<" + '"' * 3001 + ">", "RCPT TO:<a@acme.cn>", "DATA", "BDAT 3"),
        *("AUTH PLAIN AAAA", "STARTTLS", "VRFY \udcff", "HELP \udcff", "\udcff", "EXPN a", "RSET x", "NOOP \udcff"),
        "x" * 9000,
    ],
)
async def test_odd_commands_get_an_answer(served: Served, line: str) -> None:
    async with served.talk() as one:
        assert (await one.say(line))[:1] in ("2", "4", "5")
        assert (await one.say("RSET"))[:3] == "250"


async def test_half_characters_become_text(served: Served) -> None:
    async with served.talk(hello="EHLO \udcff\udcfe") as one:
        replies = await one.hand_over(MAIL, ["\udcff@acme.cn", OURS], sender="\udcff\udcfe@x.example")

    assert [reply[:3] for reply in replies] == ["550", "250", "250"]
    assert (served.facts["mail_from"], served.facts["helo"]) == ("\ufffd\ufffd@x.example", "\ufffd\ufffd")


# --- recipients -------------------------------------------------------------------------------------------------------

RECIPIENTS = {
    "support@acme.cn": {"queue": "first", "tags": ["a"]},
    "support+vip@acme.cn": {"queue": "vip", "tags": ["b"], "priority": "high"},
    "sales-*@acme.cn": {"queue": "sales"},
    "sales-eu-*@acme.cn": {"queue": "sales-eu"},
    "*@例子.cn": {"queue": "idn"},
    "help@other.example": {},
}


@pytest.mark.parametrize(
    ("path", "address", "queue"),
    [
        ("support@acme.cn", "support@acme.cn", "first"),
        ("Support@ACME.cn.", "Support@acme.cn", "first"),
        ("support+order-7@acme.cn", "support+order-7@acme.cn", "first"),
        ("support+vip@acme.cn", "support+vip@acme.cn", "vip"),
        ('"support"@acme.cn', "support@acme.cn", "first"),
        (r'"sup\port"@acme.cn', "support@acme.cn", "first"),
        ("@relay.example,@b.example:support@acme.cn", "support@acme.cn", "first"),
        ("sales-cn@acme.cn", "sales-cn@acme.cn", "sales"),
        ("sales-eu-1@acme.cn", "sales-eu-1@acme.cn", "sales-eu"),
        ("anyone@xn--fsqu00a.cn", "anyone@xn--fsqu00a.cn", "idn"),
        ("谁@例子.cn", "谁@例子.cn", "idn"),
        ("help@other.example", "help@other.example", None),
        ("postmaster", "postmaster@acme.cn", None),
        ("PostMaster@other.example", "PostMaster@other.example", None),
    ],
)
async def test_an_address_of_ours_has_its_route(path: str, address: str, queue: str | None) -> None:
    connector = made(domains=[], recipients=RECIPIENTS)

    found = connector._book.recipient(path.rpartition(":")[2])

    assert found == address
    route = connector._book.route(found)
    assert route is not None
    assert route.queue == queue


def test_it_knows_which_addresses_come_back_to_us() -> None:
    settings = made(recipients={"sales-*@acme.cn": {}}, domains=["example.cn"]).settings

    ours = [settings.receives(one) for one in ("sales-1@acme.cn", "x@example.cn", "x@acme.cn", "x@example.com")]

    assert ours == [True, True, False, False]


@pytest.mark.parametrize(
    ("path", "reply"),
    [
        ("someone@elsewhere.example", "550 5.7.1"),
        ("@acme.cn:someone@elsewhere.example", "550 5.7.1"),
        ("someone%elsewhere.example@acme.cn", "550 5.7.1"),
        ("elsewhere.example!someone@acme.cn", "550 5.7.1"),
        ('"someone@elsewhere.example"@acme.cn', "550 5.7.1"),
        ('"someone%elsewhere.example"@acme.cn', "550 5.7.1"),
        ("someone@elsewhere.example@acme.cn", "550 5.7.1"),
        ('"a b"@acme.cn', "550 5.7.1"),
        ('""@acme.cn', "550 5.7.1"),
        ("someone@[127.0.0.1]", "550 5.7.1"),
        ("someone", "550 5.7.1"),
        ("", "550 5.7.1"),
        ("@acme.cn", "553 5.1.3"),
        ("a\u202eb@acme.cn", "550 5.7.1"),
        ("someone@sub.acme.cn", "550 5.7.1"),
        (f"a@{'x' * 300}.cn", "550 5.7.1"),
        ("nobody@other.example", "550 5.1.1"),
    ],
)
async def test_what_is_not_ours_is_never_relayed(path: str, reply: str) -> None:
    async with serving(recipients={"help@other.example": {}}) as served, served.talk() as one:
        await one.say("MAIL FROM:<zhang@example.com>")

        assert (await one.say(f"RCPT TO:<{path}>"))[:9] == reply


async def test_recipients_give_queue_tags_and_priority() -> None:
    async with serving(recipients=RECIPIENTS, authserv_ids=["mx.acme.cn"]) as served:
        await served.deliver(to=("other@acme.cn", "support@acme.cn", "support+vip@acme.cn"))

    given = {key: served.facts[key] for key in ("queue", "tags", "priority", "authserv_ids")}
    assert given == {"queue": "first", "tags": ["a", "b"], "priority": "high", "authserv_ids": ["mx.acme.cn"]}


async def test_plus_addresses_can_be_turned_off() -> None:
    async with serving(domains=[], recipients={"support@acme.cn": {}}, plus="") as served:
        replies = await served.deliver(to=("support+x@acme.cn",))

    assert replies == ["550 5.1.1 No such address here"]


async def test_a_signed_address_names_the_ticket_it_answers() -> None:
    signed = replyaddress.make(OURS, "7K3M-9QX2-4WPD", bytes(32))
    async with serving() as served:
        await served.deliver(to=(f"{OURS[:-8]}+{'7k3m9qx24wpd' + 'a' * 16}@acme.cn",))
        assert "reference" not in served.messages.pop().facts
        await served.deliver(to=("other@acme.cn", signed))

    assert served.facts["reference"] == "7K3M-9QX2-4WPD"


async def test_the_sender_is_checked_where_that_is_wanted() -> None:
    zone: Zone = {("example.com", "TXT"): ['"v=spf1 ip4:127.0.0.1 -all"']}
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(lambda: NameServer(zone), ("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    async with serving(verify_sender={"resolver": f"127.0.0.1:{port}"}) as served:
        await served.deliver()
    transport.close()

    assert ("example.com", "TXT") in server.asked
    assert served.facts["authentication"]["spf"] == "pass"


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_an_oversized_message_is_refused_when_announced_and_when_not() -> None:
    async with serving(max_message_bytes=2000) as served, served.talk() as one:
        announced = await one.say("MAIL FROM:<a@example.com> SIZE=2001")
        unannounced = (await one.hand_over(b"x" * 1999 + b"\r\n", [OURS]))[-1]
        largest = (await one.hand_over(b"x" * 1998 + b"\r\n", [OURS]))[-1]

    assert [announced[:3], unannounced[:9], largest[:3]] == ["552", "552 5.3.4", "250"]
    assert len(served.messages) == 1


async def test_a_large_oversized_message_is_read_to_its_end() -> None:
    async with serving(max_message_bytes=2000) as served, served.talk() as one:
        replies = await one.hand_over(b"x" * 300_000 + b"\r\n", [OURS])

        assert replies[-1].startswith("552 5.3.4")
        assert (await one.say("NOOP")).startswith("250")


async def test_a_line_may_be_long_but_not_without_end() -> None:
    async with serving(max_line_bytes=100_000) as served, served.talk() as one:
        long = await one.hand_over(b"x" * 99_998 + b"\r\n", [OURS])
        longer = await one.hand_over(b"a\r\n" + b"x" * 100_001 + b"\r\nb\r\n", [OURS])

    assert (long[-1][:3], longer[-1][:9]) == ("250", "552 5.3.4")


async def test_bytes_in_flight_are_bounded() -> None:
    async with serving(max_inflight_bytes=100_000) as served, served.talk() as one, served.talk() as other:
        served.gate.clear()
        await one.say(*ENVELOPE, "DATA")
        await one.send(b"x" * 80_000 + b"\r\n.\r\n")
        await served.arrived.wait()

        assert (await other.hand_over(b"x" * 80_000 + b"\r\n", [OURS]))[-1].startswith("452 4.3.1")
        served.gate.set()
        assert (await one.reply()).startswith("250")
        assert (await other.hand_over(b"x" * 80_000 + b"\r\n", [OURS]))[-1].startswith("250")


async def test_recipients_beyond_the_limit_are_to_come_again() -> None:
    async with serving(max_recipients=100) as served:
        replies = await served.deliver(to=tuple(f"r{n}@acme.cn" for n in range(101)))

    assert [reply[:9] for reply in replies[99:]] == ["250 2.1.5", "452 4.5.3", "250 2.0.0"]


async def test_connections_are_bounded_in_all_and_by_client() -> None:
    for limit in ({"max_connections": 2}, {"max_connections_per_client": 2}):
        async with serving(**limit) as served:
            async with served.talk() as one, served.talk():
                async with served.talk(hello="") as third:
                    assert await third.rest() == ""
                assert (await one.say("NOOP")).startswith("250")
            await until_served(served)


async def test_who_is_one_too_many_is_told_to_come_again() -> None:
    async with serving(max_connections=1) as served, served.talk():
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)

        assert (await reader.read()).startswith(b"421 ")
        writer.close()


@pytest.mark.parametrize(("limit", "line", "last"), [("max_commands", "NOOP", 10), ("max_errors", "BOGUS", 4)])
async def test_who_talks_without_end_is_sent_away(limit: str, line: str, last: int) -> None:
    async with serving(**{limit: last}) as served, served.talk() as one:
        await one.send(f"{line}\r\n" * 20)
        said = (await one.rest()).splitlines()

    assert said[-1].startswith("421 4.7.0")
    assert len(said) <= last + 1


async def test_messages_renew_the_allowance() -> None:
    async with serving(max_commands=10) as served, served.talk() as one:
        for n in range(8):
            assert (await one.hand_over(MAIL + b"%d\r\n" % n, [OURS]))[-1].startswith("250")


async def test_who_says_nothing_is_sent_away() -> None:
    async with serving(idle_timeout_secs=0.1) as served, served.talk() as one:
        assert (await one.rest()).startswith("421 4.4.2")


async def test_who_stops_within_a_message_is_sent_away() -> None:
    async with serving(idle_timeout_secs=0.1) as served, served.talk() as one:
        await one.say(*ENVELOPE, "DATA")
        await one.send(b"Subject: hel")

        assert (await one.rest()).startswith("421 4.4.2")


async def test_who_reads_nothing_is_cut_off() -> None:
    """A close alone would wait for the client to take what we have said."""
    async with serving(idle_timeout_secs=0.2, max_commands=1_000_000) as served:
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(deaf, ("127.0.0.1", served.port))

        with deaf, pytest.raises(ConnectionError):
            await loop.sock_sendall(deaf, b"HELP\r\n" * 5_000_000)


async def test_a_slow_message_passes() -> None:
    """Longer in all than the limit for silence, which in the library is one for the whole command."""
    async with serving(idle_timeout_secs=0.2) as served, served.talk() as one:
        await one.say(*ENVELOPE, "DATA")
        for _ in range(12):
            await one.send(b"x" * 50 + b"\r\n")
            await asyncio.sleep(0.05)

        assert (await one.say(b".")).startswith("250")


async def test_a_message_has_its_time() -> None:
    async with serving(data_timeout_secs=0.2) as served, served.talk() as one:
        await one.say(*ENVELOPE, "DATA")
        with suppress(ConnectionError):
            for _ in range(12):
                await one.send(b"x\r\n")
                await asyncio.sleep(0.05)

        assert (await one.rest())[:9] in ("421 4.4.2", "")
        assert served.messages == []


async def test_a_slow_receipt_is_waited_for() -> None:
    async with serving(idle_timeout_secs=0.1) as served, served.talk() as one:
        served.gate.clear()
        await one.say(*ENVELOPE, "DATA")
        await one.send(MAIL + b".\r\n")
        await asyncio.sleep(0.3)
        served.gate.set()

        assert (await one.reply()).startswith("250")


async def test_a_foreign_network_is_refused() -> None:
    async with serving(networks=["192.0.2.0/24"]) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)

        assert (await reader.read()).startswith(b"554 5.7.1 ")
        writer.close()


@pytest.mark.parametrize(("client", "begins"), [("192.0.2.7", b"220"), ("203.0.113.7", b"554"), ("127.0.0.1", b"554")])
async def test_a_trusted_proxy_names_the_client(client: str, begins: bytes) -> None:
    async with serving(networks=["192.0.2.0/24"], trusted_proxies=["127.0.0.1"]) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        one = Talk(reader, writer)
        await one.send(f"PROXY TCP4 {client} 192.0.2.1 4711 25\r\n")

        assert (await one.reply()).encode().startswith(begins)
        if begins == b"220":
            await one.say("EHLO client.example")
            await one.hand_over(MAIL, [OURS])
            assert served.facts["remote"] == client
        writer.close()


async def test_a_proxy_that_names_nobody_is_cut_off() -> None:
    async with serving(trusted_proxies=["127.0.0.1"]) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"EHLO client.example\r\n")

        assert await reader.read() == b""
        writer.close()


# --- TLS and passwords ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("min_tls", ["1.2", "1.3"])
async def test_tls_is_offered_and_can_be_demanded(certificate: dict[str, str], min_tls: str) -> None:
    async with (
        serving(tls="starttls", require_tls=True, min_tls=min_tls, **certificate) as served,
        served.talk() as one,
    ):
        assert "250-STARTTLS" in await one.say("EHLO client.example")
        assert (await one.say("MAIL FROM:<a@example.com>")).startswith("530 5.7.0")
        await one.start_tls()
        assert (await one.say("MAIL FROM:<a@example.com>")).startswith("503")  # all is forgotten, RFC 3207
        assert "STARTTLS" not in await one.say("EHLO client.example")
        assert (await one.say("STARTTLS")).startswith("503")
        assert (await one.hand_over(MAIL, [OURS]))[-1].startswith("250")

    assert served.facts["tls"].startswith("TLSv1.3 ")


async def test_lmtp_with_tls(certificate: dict[str, str]) -> None:
    async with (
        serving(protocol="lmtp", tls="starttls", require_tls=True, **certificate) as served,
        served.talk(hello="LHLO client.example") as one,
    ):
        await one.start_tls()
        await one.say("LHLO client.example")

        assert (await one.hand_over(MAIL, [OURS]))[-1].startswith("250")


async def test_implicit_tls(certificate: dict[str, str]) -> None:
    async with serving(tls="implicit", **certificate) as served:
        replies = await served.deliver(b"x" * 300_000 + b"\r\n", tls=True)

    assert replies[-1].startswith("250")
    assert served.facts["tls"].startswith("TLSv1.3 ")


@pytest.mark.parametrize("noise", [b"EHLO client.example\r\n", b"\x16\x03\x01\xff\xff" + bytes(600), b""])
async def test_what_is_no_handshake_does_no_harm(certificate: dict[str, str], noise: bytes) -> None:
    async with serving(tls="implicit", max_connections=1, **certificate) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(noise)
        writer.write_eof()
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

        await until_served(served, tls=True)


async def until_served(served: Served, **how: Any) -> None:
    """The server notices in its own time that others have gone."""
    async with asyncio.timeout(5):
        while True:
            with suppress(OSError):
                async with served.talk(**how) as one:
                    if (await one.say("NOOP")).startswith("250"):
                        return
            await asyncio.sleep(0.01)


async def test_a_new_certificate_is_used_at_once(tmp_path: Path) -> None:
    chain, key = make_certificate(tmp_path, "mx.test")
    async with serving(tls="implicit", certificate=str(chain), private_key=str(key)) as served:
        before = await shown(served.port)
        expiry = served.connector.credential_expires_at
        new_chain, new_key = make_certificate(tmp_path, "new.test", days=90)

        new_chain.replace(chain)  # the key does not fit yet
        assert await shown(served.port) == before
        new_key.replace(key)
        assert await shown(served.port) != before
        assert expiry is not None
        assert served.connector.credential_expires_at == pytest.approx(expiry + 60 * 86400, abs=60)
        chain.unlink()
        assert (await served.deliver(tls=True))[-1].startswith("250")


async def shown(port: int) -> bytes:
    """The certificate that is presented."""
    async with talk(port, tls=True, hello="") as one:
        found: bytes = one.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return found


async def test_authentication_is_offered_over_tls_only(certificate: dict[str, str]) -> None:
    async with serving(tls="starttls", users=[SHOP], **certificate) as served, served.talk() as one:
        assert "AUTH" not in await one.say("EHLO client.example")
        assert (await one.say("AUTH PLAIN")).startswith("538")
        await one.start_tls()
        assert "250-AUTH LOGIN PLAIN" in await one.say("EHLO client.example")


async def test_nothing_is_offered_without_users(certificate: dict[str, str]) -> None:
    async with serving(tls="implicit", **certificate) as served, served.talk(tls=True) as one:
        assert "AUTH" not in await one.say("EHLO client.example")
        assert (await one.say("AUTH PLAIN " + plain("shop", PASSWORD))).startswith("504")


def plain(user: str, password: str) -> str:
    return base64.b64encode(f"\0{user}\0{password}".encode()).decode()


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "lines",
    [
        ["AUTH PLAIN " + plain("shop", PASSWORD)],
        ["auth plain", plain("shop", PASSWORD)],
        ["AUTH LOGIN", encoded("shop"), encoded(PASSWORD)],
        ["AUTH LOGIN " + encoded("shop"), encoded(PASSWORD)],
    ],
)
async def test_a_user_is_known_by_the_password(certificate: dict[str, str], lines: list[str]) -> None:
    async with (
        serving(tls="implicit", users=[SHOP], require_auth=True, **certificate) as served,
        served.talk(tls=True) as one,
    ):
        assert (await one.say("MAIL FROM:<a@example.com>")).startswith("530 5.7.0")
        assert (await one.say(*lines)).startswith("235")
        await one.hand_over(MAIL, [OURS])

    assert served.facts["user"] == "shop"
    assert PASSWORD not in str(served.facts)


@pytest.mark.parametrize(
    ("lines", "reply"),
    [
        (["AUTH PLAIN " + plain("shop", "guessed")], "535 5.7.8"),
        (["AUTH PLAIN " + plain("nobody", PASSWORD)], "535 5.7.8"),
        (["AUTH PLAIN " + plain("", "")], "535 5.7.8"),
        (["AUTH PLAIN " + base64.b64encode(b"\0\xff\0\xff").decode()], "535 5.7.8"),
        (["AUTH PLAIN ="], "501"),
        (["AUTH PLAIN", "*"], "501"),
        (["AUTH LOGIN", "%"], "501"),
        (["AUTH CRAM-MD5"], "504"),
    ],
)
async def test_others_are_refused(certificate: dict[str, str], lines: list[str], reply: str) -> None:
    async with (
        serving(tls="implicit", users=[SHOP], require_auth=True, **certificate) as served,
        served.talk(tls=True) as one,
    ):
        assert (await one.say(*lines)).startswith(reply)
        assert (await one.say("MAIL FROM:<a@example.com>")).startswith("530 5.7.0")


async def test_passwords_cannot_be_tried_for_long(certificate: dict[str, str]) -> None:
    async with serving(tls="implicit", users=[SHOP], max_auth_failures=1, **certificate) as served:
        said = []
        for _ in range(11):
            async with served.talk(tls=True) as one:
                said.append(await one.say("AUTH PLAIN " + plain("shop", "guessed")))
                assert (await one.rest()).startswith("421")
        async with served.talk(tls=True) as one:
            right = await one.say("AUTH PLAIN " + plain("shop", PASSWORD))

    assert [reply[:9] for reply in said] == ["535 5.7.8"] * 10 + ["451 4.7.1"]
    assert right.startswith("451 4.7.1")


# --- life -------------------------------------------------------------------------------------------------------------


async def test_a_stop_lets_a_message_in_hand_end() -> None:
    async with serving() as served, served.talk() as idle, served.talk() as one:
        served.gate.clear()
        await one.say(*ENVELOPE, "DATA")
        await one.send(MAIL + b".\r\n")
        await served.arrived.wait()

        served.task.cancel()
        assert (await idle.rest()).startswith("421 4.3.2")
        served.gate.set()

        assert (await one.reply()).startswith("250")
        with pytest.raises(asyncio.CancelledError):
            await served.task
        assert len(served.messages) == 1


async def test_a_stop_does_not_wait_for_a_second_word() -> None:
    async with serving() as served, served.talk() as one:
        await one.say(*ENVELOPE, "DATA")
        await one.send(b"Subject: hel")

        served.task.cancel()
        await asyncio.sleep(0)
        served.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await served.task
        assert (await one.rest())[:9] in ("421 4.3.2", "")


async def test_a_port_in_use_fails_the_run() -> None:
    async with serving() as served:
        with pytest.raises(Unavailable, match="in use"):
            async with serving(listen=f"127.0.0.1:{served.port}"):
                pass


# --- probe ------------------------------------------------------------------------------------------------------------


async def test_the_probe_is_content_with_a_free_port_and_with_ourselves(certificate: dict[str, str]) -> None:
    await made(listen=f"127.0.0.1:{free_port()}").probe()
    async with serving() as served:
        await served.connector.probe()
    async with serving(tls="implicit", **certificate) as served:
        await served.connector.probe()


async def test_the_probe_tells_of_another_program() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mx.test ESMTP Postfix\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConfigError, match="another program"):
            await made(listen=f"127.0.0.1:{port}").probe()


@pytest.mark.parametrize(("later", "said"), [(27, "expires in 3 days"), (31, "has expired")])
async def test_the_probe_tells_of_an_old_certificate(certificate: dict[str, str], later: int, said: str) -> None:
    connector = made(tls="starttls", **certificate)
    connector.context = replace(connector.context, now=lambda: NOW + timedelta(days=later))

    with pytest.raises(ConfigError, match=said):
        await connector.probe()


async def test_a_certificate_that_cannot_be_used_is_told(tmp_path: Path, certificate: dict[str, str]) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    other, _ = make_certificate(tmp_path, "other.test")
    for chain, key, said in (
        (str(tmp_path / "none.pem"), None, "there is no file"),
        (str(nonsense), None, "not PEM"),
        (certificate["certificate"], None, "not PEM, or its private key is missing"),
        (str(other), certificate["private_key"], "belongs to another"),
    ):
        with pytest.raises(ConfigError, match=said):
            await made(tls="starttls", certificate=chain, private_key=key).probe()


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"listen": None}, "nobody could connect"),
        ({"domains": []}, "no address would be received"),
        ({"domains": ["a@b"]}, "is no domain"),
        ({"domains": ["*.acme.cn"]}, "is no domain"),
        ({"domains": ["a..b"]}, "is no domain"),
        ({"recipients": {"acme.cn": {}}}, "write an address"),
        ({"recipients": {"a*b*@acme.cn": {}}}, "single"),
        ({"recipients": {"a@*": {}}}, "write an address"),
        ({"tls": "starttls"}, "go together"),
        ({"certificate": "/a.pem"}, "go together"),
        ({"require_tls": True}, "need tls"),
        ({"users": [SHOP]}, "need tls"),
        ({"require_auth": True}, "needs users"),
        ({"tls": "implicit", "certificate": "/a", "trusted_proxies": ["10.0.0.1"]}, "before TLS begins"),
        ({"tls": "implicit", "certificate": "/a", "users": [{"name": "a", "password": "clear"}]}, "a hash"),
        ({"max_request_bytes": 5000}, "max_message_bytes"),
        ({"rate": {"per_minute": 1, "burst": 1}}, "max_connections_per_client"),
        ({"verify_sender": {"resolver": "dns.example:53"}}, "IP address"),
        ({"networks": ["10.0.0.1/8"]}, "expected a network"),
    ],
)
def test_a_fault_of_the_settings_is_told(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        made(**change)


def test_the_example_is_valid() -> None:
    channel = YAML(typ="safe").load(EXAMPLE)["channels"]["inbound"]

    assert Connector.Settings.model_validate(channel).max_message_bytes == 32 << 20
