"""The `imap` channel at a real Dovecot: whatever happens to either, every message comes, and comes once."""

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.mail.mailbox import Mailbox, encoded
from tests.connectors.imap_station import Station, signed_address, until
from tests.core.redis_process import RedisProcess, servers
from tests.daemon import Daemon
from tests.dovecot import Dovecot, mail

MakeStation = Callable[..., Station]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = RedisProcess(servers()[0], tmp_path_factory.mktemp("redis"))
    asyncio.run(server.start())
    yield server
    server.kill()


@pytest.fixture
def dovecot() -> Iterator[Dovecot]:
    server = Dovecot().start()
    yield server
    server.remove()


@pytest.fixture
async def make_station(tmp_path: Path, redis: RedisProcess, dovecot: Dovecot) -> AsyncIterator[MakeStation]:
    """`make_station("name", after="seen", …)`: a gateway that reads the mailbox, not started yet."""
    made: list[Station] = []
    await redis.ask("FLUSHALL")

    def make(name: str = "one", **channel: Any) -> Station:
        made.append(Station(tmp_path / name, redis, **{"port": dovecot.port} | channel))
        return made[-1]

    yield make
    for station in made:
        await station.close()


@pytest.fixture
def station(make_station: MakeStation) -> Station:
    return make_station()


# --- what comes -------------------------------------------------------------------------------------------------------


async def test_a_message_comes_as_it_is_with_what_is_known_of_it(dovecot: Dovecot, make_station: MakeStation) -> None:
    reference = "7K3M-9QX2-4WPD"
    sent = mail(1, headers=[f"Delivered-To: {signed_address(reference)}"])
    dovecot.put(sent)
    station = make_station(authserv_ids=["mx.acme.cn"]).start()

    await station.until_new(1)

    (message,) = await station.messages()
    assert message.body == sent
    assert (message.kind, message.content_type) == ("rfc5322", "message/rfc822")
    assert message.facts.pop("uidvalidity") > 0  # type: ignore[attr-defined]  # a dict
    assert message.facts == {"mailbox": "INBOX", "uid": 1, "authserv_ids": ["mx.acme.cn"], "reference": reference}
    assert message.native_id is not None
    assert message.native_id.startswith("1@example.com#")


async def test_new_messages_come_at_once_by_idle(dovecot: Dovecot, station: Station) -> None:
    await station.start(idle_secs=300, timeout_secs=5).until_up()
    await until(lambda: station.connector.missing is not None)

    for n in (1, 2, 3):
        dovecot.put(mail(n))
        await station.until_new(n, 5)


async def test_nothing_is_changed_in_the_mailbox(dovecot: Dovecot, station: Station) -> None:
    dovecot.put(*(mail(n) for n in range(3)))
    station.start()
    await station.until_new(3)
    await station.stop()

    assert [path.parent.name for path in dovecot.mails()] == ["new"] * 3


async def test_what_people_have_read_comes_as_well(dovecot: Dovecot, station: Station) -> None:
    dovecot.put(mail(1))
    (path,) = dovecot.mails()
    path.rename(dovecot.make_folder() / "cur" / f"{path.name}:2,S")

    station.start()

    await station.until_new(1)


async def test_ten_thousand_messages(dovecot: Dovecot, station: Station) -> None:
    dovecot.put(*(mail(n) for n in range(10_000)))

    started = time.monotonic()
    station.start(timeout_secs=30)
    await station.until_new(10_000, 90)

    assert station.count("duplicate") == 0
    assert sorted(await station.uids()) == list(range(1, 10_001))
    assert time.monotonic() - started < 60


async def test_a_huge_message_comes_whole_by_a_file(dovecot: Dovecot, station: Station) -> None:
    huge = mail(1, "0123456789abcdef" * 64 + "\r\n", headers=["X-Huge: yes"]).replace(b"0123", b"0123" * 8)
    huge += b"".join(b"%076d\r\n" % n for n in range(100_000))
    dovecot.put(mail(0), huge, mail(2))

    station.start()
    await station.until_new(3)

    messages = {message.facts["uid"]: message for message in await station.messages()}
    assert messages[2].body == huge
    assert len(huge) > 7 << 20
    assert "truncated" not in messages[2].facts


async def test_of_a_message_over_the_limit_comes_the_beginning(dovecot: Dovecot, make_station: MakeStation) -> None:
    sent = mail(1, "x" * 70 + "\r\n" + "y" * 1_000_000)
    dovecot.put(sent, mail(2))
    station = make_station(max_message_bytes=500_000).start()

    await station.until_new(2)

    messages = {message.facts["uid"]: message for message in await station.messages()}
    assert (messages[1].facts["size"], messages[1].facts["truncated"]) == (len(sent), True)
    assert sent.startswith(messages[1].body)
    assert len(messages[1].body) == 256 << 10


async def test_a_folder_with_a_chinese_name_and_another_one(dovecot: Dovecot, make_station: MakeStation) -> None:
    dovecot.put(mail(1))
    dovecot.put(mail(2), folder=encoded("客服 & 支持"))
    station = make_station(folder=["INBOX", "客服 & 支持"]).start()

    await station.until_new(2)
    dovecot.put(mail(3), folder=encoded("客服 & 支持"))
    await station.until_new(3)

    assert {message.facts["mailbox"] for message in await station.messages()} == {"INBOX", "客服 & 支持"}


async def test_a_folder_that_is_not_there_is_told_and_the_others_are_read(
    dovecot: Dovecot, make_station: MakeStation
) -> None:
    dovecot.put(mail(1))
    station = make_station(folder=["INBOX", "Nowhere"]).start()

    await station.until_new(1)

    await until(lambda: station.is_up)
    assert station.trouble.startswith("Nowhere: NO ")
    dovecot.put(mail(2), folder="Nowhere")
    await station.until_new(2)
    await until(lambda: station.trouble == "")


# --- where it begins, and where it goes on ----------------------------------------------------------------------------


async def test_from_now_on(dovecot: Dovecot, make_station: MakeStation) -> None:
    dovecot.put(mail(1), mail(2))
    station = make_station(start="now").start()
    await until(lambda: station.connector.missing == 0)

    dovecot.put(mail(3))

    await station.until_new(1)
    assert await station.uids() == [3]


async def test_from_a_day_on(dovecot: Dovecot, make_station: MakeStation) -> None:
    dovecot.put(mail(1), mail(2))

    os.utime(dovecot.mails()[0], (0, 1_600_000_000))
    station = make_station(start="2026-01-01").start()

    await station.until_new(1)
    dovecot.put(mail(3))
    await station.until_new(2)

    assert await station.uids() == [2, 3]


async def test_what_came_meanwhile_comes_after_a_restart_and_nothing_twice(
    dovecot: Dovecot, make_station: MakeStation
) -> None:
    station = make_station(start="now").start()
    await until(lambda: station.connector.missing == 0)
    dovecot.put(mail(1))
    await station.until_new(1)
    await station.close()
    dovecot.put(mail(2))

    again = make_station(start="now").start()

    await again.until_new(2)
    assert again.count() == 2


async def test_another_gateway_goes_on_where_the_first_one_stopped(dovecot: Dovecot, make_station: MakeStation) -> None:
    dovecot.put(*(mail(n) for n in range(5)))
    first = make_station("one").start()
    await first.until_new(5)
    await first.stop()
    dovecot.put(mail(5))

    second = make_station("two", start="now").start()

    await second.until_new(1)
    assert await second.uids() == [6]


async def test_two_gateways_at_one_mailbox_read_in_turn(dovecot: Dovecot, make_station: MakeStation) -> None:
    # given
    first = await make_station("one").start().until_up()
    second = make_station("two").start()
    await until(lambda: second.trouble != "")
    assert "another gateway" in second.trouble
    dovecot.put(*(mail(n) for n in range(20)))
    await first.until_new(20)
    while (await first.shared_position()).uid < 20:
        await asyncio.sleep(0.01)

    # when
    await first.stop()
    dovecot.put(*(mail(n) for n in range(20, 30)))

    # then
    await second.until_new(10)
    assert (first.count(), second.count()) == (20, 10)


async def test_a_redis_that_lost_everything_is_no_loss(dovecot: Dovecot, station: Station, redis: RedisProcess) -> None:
    dovecot.put(mail(1))
    station.start()
    await station.until_new(1)
    await redis.ask("FLUSHALL")
    dovecot.put(mail(2))

    await station.until_new(2)

    await asyncio.sleep(1.2)  # the lease is asked for once more
    dovecot.put(mail(3))
    await station.until_new(3)
    assert station.count() == 3


async def test_other_uids_bring_no_message_twice_and_lose_none(dovecot: Dovecot, station: Station) -> None:
    # given
    dovecot.put(*(mail(n) for n in range(20)))
    station.start()
    await station.until_new(20)
    await until(lambda: station.connector.missing == 0)
    await station.stop()

    # when
    await asyncio.sleep(1.1)
    dovecot.forget_uids()
    dovecot.put(mail(20))
    station.start()

    # then
    await station.until_new(21)
    await until(lambda: station.count() == 41)
    assert station.count("duplicate") == 20


# --- when things go wrong ---------------------------------------------------------------------------------------------


async def test_a_server_that_is_killed_in_the_middle(dovecot: Dovecot, station: Station) -> None:
    dovecot.put(*(mail(n, "x" * 20_000) for n in range(1500)))
    station.start()
    await station.until_new(100)

    dovecot.kill()
    await until(lambda: not station.is_up)
    seen = station.new
    dovecot.start()

    await station.until_new(1500, 60)
    assert seen < 1500
    assert sorted(await station.uids()) == list(range(1, 1501))


async def test_a_server_that_stands_still_is_left(dovecot: Dovecot, station: Station) -> None:
    await station.start(idle_secs=0.5, timeout_secs=1).until_up()
    await until(lambda: station.connector.missing is not None)
    with dovecot.halted():
        await until(lambda: not station.is_up)
        dovecot.put(mail(1))

        await station.until_new(1)


async def test_a_kick_is_no_matter(dovecot: Dovecot, station: Station) -> None:
    await station.start(idle_secs=300).until_up()
    await until(lambda: station.connector.missing is not None)

    dovecot.kick()
    await until(lambda: not station.is_up)
    dovecot.put(mail(1))

    await station.until_new(1)


async def test_a_wrong_password_is_told_and_the_right_one_helps(dovecot: Dovecot, station: Station) -> None:
    dovecot.put(mail(1))
    dovecot.set_password("another-password")
    station.start()
    await until(lambda: station.trouble != "")
    assert "AUTHENTICATIONFAILED" in station.trouble
    assert not station.is_up

    dovecot.set_password(dovecot.password)

    await station.until_new(1)
    assert station.trouble == ""


async def test_messages_that_are_deleted_meanwhile_are_no_matter(
    dovecot: Dovecot, station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: after the sizes were told, some are deleted by somebody else
    dovecot.put(*(mail(n) for n in range(10)))
    told = Mailbox.sizes

    async def sizes(self: Mailbox, uids: Any) -> dict[int, int]:
        found = await told(self, uids)
        if len(uids) == 10:
            other = await Mailbox.reach(station.settings.server)
            await other.login(dovecot.user, dovecot.password)
            await other.select("INBOX", read_only=False)
            await other.delete([3, 4, 10])
            other.close()
            await asyncio.sleep(0.1)
        return found

    monkeypatch.setattr(Mailbox, "sizes", sizes)

    # when
    station.start()
    await station.until_new(7)
    await until(lambda: station.connector.missing == 0)

    # then
    assert sorted(set(await station.uids()) - {3, 4, 10}) == [1, 2, 5, 6, 7, 8, 9]


async def test_a_message_that_the_server_cannot_read_is_quarantined_by_its_uid(
    dovecot: Dovecot, station: Station
) -> None:
    # given: one that Dovecot may not open
    dovecot.put(*(mail(n) for n in range(5)))
    broken = dovecot.mails()[2]
    broken.chmod(0)

    # when
    station.start(fetch_tries=2)

    # then
    await station.until_new(5)
    (empty,) = [message for message in await station.messages() if message.body == b""]
    assert "UID 3 of INBOX cannot be fetched" in empty.facts["unreadable"]
    assert (empty.facts["uid"], empty.native_id) == (3, f"unreadable INBOX {empty.facts['uidvalidity']} 3")
    dovecot.put(mail(6))
    await station.until_new(6)


async def test_a_full_spool_is_waited_for(dovecot: Dovecot, station: Station) -> None:
    dovecot.put(*(mail(n) for n in range(5)))
    station.intake._max_bytes = 0
    station.start()
    await until(
        lambda: (
            station.metrics.registry.get_sample_value(
                "huiru_messages_refused_total", {"channel": "mailbox", "code": "spool_full"}
            )
            is not None
        )
    )

    station.intake._max_bytes = 1 << 40

    await station.until_new(5)
    assert station.count() == 5


# --- what is done with accepted messages ------------------------------------------------------------------------------


async def test_accepted_messages_are_marked_as_read(dovecot: Dovecot, make_station: MakeStation) -> None:
    dovecot.put(*(mail(n) for n in range(5)))
    station = make_station(after="seen").start()
    await station.until_new(5)

    await until(lambda: all(path.name.endswith(":2,S") for path in dovecot.mails()))


async def test_accepted_messages_are_moved(dovecot: Dovecot, make_station: MakeStation) -> None:
    done = encoded("已处理")
    dovecot.put(*(mail(n) for n in range(120)))
    dovecot.make_folder(done)
    station = make_station(after={"move": "已处理"}).start()

    await until(lambda: dovecot.mails() == [])

    assert len(dovecot.mails(done)) == 120
    assert station.count() == 120


async def test_they_are_moved_once_without_move(
    dovecot: Dovecot, make_station: MakeStation, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers = Mailbox.offers
    monkeypatch.setattr(Mailbox, "offers", lambda self, name: name != "MOVE" and offers(self, name))
    dovecot.put(*(mail(n) for n in range(60)))
    dovecot.make_folder("Done")
    make_station(after={"move": "Done"}).start()

    await until(lambda: dovecot.mails() == [])

    assert len(dovecot.mails("Done")) == 60


async def test_a_folder_that_cannot_be_moved_to_is_told_and_reading_goes_on(
    dovecot: Dovecot, make_station: MakeStation
) -> None:
    # given
    dovecot.put(*(mail(n) for n in range(120)))
    station = make_station(after={"move": "Done"}).start(idle_secs=0.3)
    await station.until_new(120)
    await until(lambda: "INBOX: NO" in station.trouble)
    assert len(dovecot.mails()) == 120

    # when
    dovecot.make_folder("Done")

    # then
    await until(lambda: len(dovecot.mails("Done")) == 120)
    await until(lambda: station.trouble == "" and dovecot.mails() == [])


async def test_accepted_messages_are_deleted_and_others_stay(dovecot: Dovecot, make_station: MakeStation) -> None:
    dovecot.put(mail(1, "y" * 200_000), mail(2))
    station = make_station(after="delete", max_message_bytes=100_000).start()
    await station.until_new(2)

    await until(lambda: len(dovecot.mails()) == 1)

    assert b"yyyy" in dovecot.mails()[0].read_bytes()  # it was not taken whole


# --- probe ------------------------------------------------------------------------------------------------------------


async def test_a_probe_consumes_nothing(dovecot: Dovecot, station: Station) -> None:
    dovecot.put(mail(1))

    await station.connector.probe()

    assert [path.parent.name for path in dovecot.mails()] == ["new"]
    assert station.count() == 0


# --- TLS and tokens ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of 127.0.0.1, signed by itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=test"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.fixture
def secure(certificate: tuple[Path, Path]) -> Iterator[Dovecot]:
    server = Dovecot(certificate=certificate).start()
    yield server
    server.remove()


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
async def test_a_certificate_that_is_trusted_is_needed(
    secure: Dovecot, make_station: MakeStation, certificate: tuple[Path, Path], tls: str
) -> None:
    # given
    secure.put(mail(1))
    port = secure.tls_port if tls == "implicit" else secure.port
    station = make_station(port=port, tls=tls).start()
    await until(lambda: "certificate verify failed" in station.trouble)
    assert station.new == 0
    await station.stop()

    # when
    station.start(ca_file=certificate[0])

    # then
    await station.until_new(1)


async def test_a_certificate_of_another_name_is_not_trusted(
    secure: Dovecot, make_station: MakeStation, certificate: tuple[Path, Path]
) -> None:
    station = make_station(host="localhost", port=secure.tls_port, tls="implicit", ca_file=certificate[0]).start()

    await until(lambda: "certificate verify failed" in station.trouble)


class Tokens:
    """A token server, and what Dovecot asks of it: whose is this token?"""

    def __init__(self) -> None:
        self.good: set[str] = set()
        self.given = 0
        self.refuses = False

    async def give(self, request: web.Request) -> web.Response:
        if self.refuses:
            return web.json_response({"error": "invalid_client"}, status=401)
        self.given += 1
        self.good.add(token := f"access-token-{self.given}")
        return web.json_response({"access_token": token, "expires_in": 3600})

    async def tell(self, request: web.Request) -> web.Response:
        if request.query.get("access_token") not in self.good:
            return web.json_response({"error": "invalid_token"}, status=401)
        return web.json_response({"email": Dovecot.user})


@pytest.fixture
async def token_server() -> AsyncIterator[tuple[Tokens, str]]:
    tokens = Tokens()
    app = web.Application()
    app.router.add_post("/token", tokens.give)
    app.router.add_get("/whose", tokens.tell)
    async with TestServer(app) as server:
        yield tokens, str(server.make_url("/"))


async def test_a_token_opens_the_mailbox(token_server: tuple[Tokens, str], make_station: MakeStation) -> None:
    # given
    tokens, url = token_server
    server = Dovecot(tokens_at=f"{url}whose")
    try:
        await asyncio.to_thread(server.start)
        server.put(mail(1))
        oauth = {"provider": "other", "token_url": f"{url}token", "client_id": "app", "client_secret": "app-secret"}
        tokens.refuses = True

        # when: first the token server refuses us
        station = make_station(port=server.port, oauth=oauth).start()
        await until(lambda: "invalid_client" in station.trouble)
        tokens.refuses = False

        # then
        await station.until_new(1)
        assert station.connector.credential_expires_at == pytest.approx(time.time() + 3600, abs=60)

        # when: then the mail server refuses the token that it took before
        tokens.good.clear()
        server.kick()
        server.put(mail(2))

        # then: with a new one
        await station.until_new(2)
        assert tokens.given == 2
    finally:
        server.remove()


# --- a whole daemon ---------------------------------------------------------------------------------------------------


async def test_a_daemon_that_is_killed_and_started_again_publishes_every_mail_once(
    dovecot: Dovecot, start_daemon: Callable[..., Awaitable[Daemon]]
) -> None:
    # given
    dovecot.put(*(mail(n, "打印机坏了。" * 100) for n in range(600)))
    server = {"host": "127.0.0.1", "port": dovecot.port, "tls": "none", "username": dovecot.user}
    channel = {"type": "imap", **server, "password": dovecot.password, "start": "all", "after": "seen"}
    daemon = await start_daemon({"mailbox": channel})

    # when
    await daemon.until_tickets(50)
    await daemon.kill()
    await daemon.start()

    # then
    tickets = await daemon.until_tickets(600)
    assert sorted(ticket["data"]["subject"] for ticket in tickets) == sorted(f"mail {n}" for n in range(600))
    (state,) = (await daemon.status())["channels"]
    assert (state["up"], state["trouble"], state["quarantined"]) == (True, "", 0)
    assert (await daemon.metrics())['huiru_messages_missing{channel="mailbox"}'] == 0
    await until(lambda: all(path.name.endswith(":2,S") for path in dovecot.mails()))
    assert dovecot.password not in daemon.log()
