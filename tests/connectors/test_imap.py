"""The `imap` channel at servers that are odd, old, or no IMAP servers, and the settings."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from connectors.imap import ImapSettings
from gateway.errors import Rejected, Unavailable
from gateway.mail import position
from gateway.mail.mailbox import LoginRefused, Mailbox, Refused, Server, encoded, uid_set
from gateway.mail.position import Failure, Position
from tests.connectors.imap_standin import StandIn
from tests.connectors.imap_station import Station, until
from tests.core.redis_process import RedisProcess, servers
from tests.dovecot import mail

MakeStation = Callable[..., Station]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = RedisProcess(servers()[0], tmp_path_factory.mktemp("redis"))
    asyncio.run(server.start())
    yield server
    server.kill()


@pytest.fixture
async def standin() -> AsyncIterator[StandIn]:
    async with StandIn({uid: mail(uid) for uid in range(1, 6)}) as server:
        yield server


@pytest.fixture
async def make_station(tmp_path: Path, redis: RedisProcess, standin: StandIn) -> AsyncIterator[MakeStation]:
    made: list[Station] = []
    await redis.ask("FLUSHALL")

    def make(**channel: Any) -> Station:
        made.append(Station(tmp_path / str(len(made)), redis, standin.port, **channel))
        return made[-1]

    yield make
    for station in made:
        await station.close()


async def reach(standin: StandIn, *, timeout_secs: float = 2, tls: Any = "none") -> Mailbox:
    return await Mailbox.reach(Server("127.0.0.1", standin.port, tls, None, timeout_secs))


# --- the conversation -------------------------------------------------------------------------------------------------


async def test_a_server_without_idle_is_asked_again_and_again(standin: StandIn, make_station: MakeStation) -> None:
    station = make_station(poll_secs=0.05).start()
    await station.until_new(5)

    standin.mails[6] = mail(6)

    await station.until_new(6, 5)
    assert "IDLE" not in standin.names()


async def test_a_server_that_offers_idle_and_refuses_it_is_asked_again_and_again(
    standin: StandIn, make_station: MakeStation
) -> None:
    standin.capabilities += " IDLE"
    standin.instead["IDLE"] = b"{tag} BAD not now\r\n"
    station = make_station(idle_secs=0.05).start()
    await station.until_new(5)

    standin.mails[6] = mail(6)

    await station.until_new(6, 5)
    assert standin.names().count("LOGIN") == standin.names().count("IDLE") == 1


async def test_who_we_are_is_said_before_a_folder_is_opened(standin: StandIn, make_station: MakeStation) -> None:
    """As NetEase wants it: 163 and 126 answer a SELECT of who has not said so with NO "Unsafe Login"."""
    standin.capabilities += " ID"
    usual = standin._answer

    def netease(tag: str, command: str) -> bytes | None:
        if command.startswith("EXAMINE") and "ID" not in standin.names():
            return f"{tag} NO EXAMINE Unsafe Login. Please contact kefu@188.com for help\r\n".encode()
        return usual(tag, command)

    standin._answer = netease  # type: ignore[method-assign]  # this server's way

    station = make_station().start()

    await station.until_new(5)


@pytest.mark.parametrize(
    "greeting",
    [b"* BYE too many connections\r\n", b"220 mail ESMTP\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 100, b""],
)
async def test_who_does_not_greet_as_an_imap_server_is_unavailable(standin: StandIn, greeting: bytes) -> None:
    standin.greeting = greeting

    with pytest.raises(Unavailable):
        await reach(standin, timeout_secs=0.5)


@pytest.mark.parametrize(
    "noise",
    [
        b"* 1 FETCH (UID 1 BODY[] {99999999999}\r\nabc",
        b"Z9 OK who is that\r\n",
        b"* \xff\xff\xff (\r\n{tag} OK\r\nxx OK\r\n",
        b"\r\n" * 5000,
        b"* 1 EXPUNGE\r\n" * 5000,
        b"* 1 FETCH (UID 1 BODY[] " + b"(" * 5000,
        None,
    ],
)
async def test_whatever_a_server_says_an_end_comes_in_time(standin: StandIn, noise: bytes | None) -> None:
    standin.instead["FETCH"] = noise
    mailbox = await reach(standin, timeout_secs=0.5)
    await mailbox.login("support", "secret")
    await mailbox.select("INBOX", read_only=True)

    async with asyncio.timeout(3):
        with pytest.raises((Unavailable, Refused)):
            await mailbox.bodies([1])
    mailbox.close()


async def test_a_line_for_each_of_thousands_of_messages_is_no_matter(standin: StandIn) -> None:
    """aioimaplib recurses for each line (its issue 118)."""
    standin.instead["SEARCH"] = b"* 1 EXPUNGE\r\n" * 20_000 + b"* SEARCH 1 2\r\n{tag} OK done\r\n"
    mailbox = await reach(standin)
    await mailbox.login("support", "secret")
    await mailbox.select("INBOX", read_only=True)

    assert await mailbox.search("ALL") == [1, 2]
    mailbox.close()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"{tag} NO [AUTHENTICATIONFAILED] Invalid credentials (Failure)\r\n", LoginRefused),
        (b"{tag} NO LOGIN Login error or password error\r\n", LoginRefused),
        (b"{tag} BAD User is authenticated but not connected.\r\n", LoginRefused),
        (b"{tag} NO [UNAVAILABLE] Temporary authentication failure.\r\n", Unavailable),
        (b"{tag} NO [ALERT] Too many simultaneous connections. (Failure)\r\n", Unavailable),
        (b"* BYE Autologout\r\n", Unavailable),
        (None, Unavailable),
    ],
)
async def test_a_login_that_is_refused_is_told_from_a_server_that_is_ill(
    standin: StandIn, answer: bytes | None, error: type[Exception]
) -> None:
    standin.instead["LOGIN"] = answer
    mailbox = await reach(standin, timeout_secs=0.5)

    with pytest.raises(error):
        await mailbox.login('sup"port', 'sec\\r"et')
    mailbox.close()


async def test_a_password_that_a_server_repeats_is_hidden(standin: StandIn) -> None:
    standin.instead["LOGIN"] = lambda tag, command: f"{tag} BAD what is {command}?\r\n".encode()
    mailbox = await reach(standin)

    with pytest.raises(LoginRefused) as caught:
        await mailbox.login("support", "the-password")

    assert "the-password" not in str(caught.value)
    mailbox.close()


async def test_names_and_passwords_are_quoted_and_cannot_be_commands(standin: StandIn) -> None:
    mailbox = await reach(standin)

    await mailbox.login('sup"port', 'sec\\r"et')
    with pytest.raises(LoginRefused):
        await mailbox.login("a", "b\r\nx LOGOUT")

    assert r'LOGIN "sup\"port" "sec\\r\"et"' in standin.commands
    mailbox.close()


async def test_a_token_that_is_refused_by_a_challenge_is_refused(standin: StandIn) -> None:
    """As Google and Microsoft do it: the reason comes as a challenge, the NO when it was answered."""
    challenge = b"+ eyJzdGF0dXMiOiI0MDAiLCJzY2hlbWVzIjoiQmVhcmVyIn0=\r\n"
    tags: list[str] = []
    standin.instead["AUTHENTICATE"] = lambda tag, _: (tags.append(tag), challenge)[1]
    standin.instead[""] = lambda *_: f"{tags[0]} NO [AUTHENTICATIONFAILED] Invalid credentials\r\n".encode()
    mailbox = await reach(standin)

    with pytest.raises(LoginRefused, match="AUTHENTICATIONFAILED"):
        await mailbox.login_by_token("support@acme.cn", "the-token")
    mailbox.close()


@pytest.mark.parametrize(
    ("greeting", "answer"),
    [
        (b"* OK ready\r\n", b"{tag} BAD what is that\r\n"),
        (b"* PREAUTH you are in\r\n", b"{tag} OK begin\r\n"),
        (b"* OK ready\r\n", b"{tag} OK begin\r\n* OK [ALERT"),
        (b"* OK ready\r\n", b"{tag} OK begin\r\nno handshake\r\n"),
    ],
)
async def test_without_tls_where_it_is_wanted_nothing_is_said(standin: StandIn, greeting: bytes, answer: bytes) -> None:
    standin.greeting, standin.instead["STARTTLS"] = greeting, answer

    with pytest.raises(Unavailable):
        await reach(standin, tls="starttls", timeout_secs=1)

    assert "LOGIN" not in standin.names()


async def test_a_password_is_not_sent_in_clear_to_a_server_that_does_not_want_it(standin: StandIn) -> None:
    standin.capabilities += " LOGINDISABLED"
    mailbox = await reach(standin)

    with pytest.raises(LoginRefused, match="TLS"):
        await mailbox.login("support", "secret")

    assert "LOGIN" not in standin.names()
    mailbox.close()


@pytest.mark.parametrize(
    ("said", "body"),
    [
        (b'(UID 1 BODY[] "a \\"b\\"")', b'a "b"'),
        (b'(UID 1 BODY[] "")', b""),
        (b"(UID 1 BODY[] {0}\r\n)", b""),
        (b"(BODY[] {3}\r\nabc UID 1 FLAGS (\\Seen))", b"abc"),
        (b"(UID 1 BODY[] {27}\r\n* 5 EXISTS\r\n)\r\nA1 OK {12}\r\n)", b"* 5 EXISTS\r\n)\r\nA1 OK {12}\r\n"),
        (b"(UID 1 BODY[] NIL)", None),
        (b"(UID 1)", None),
    ],
)
async def test_bodies_in_every_form(standin: StandIn, said: bytes, body: bytes | None) -> None:
    standin.instead["FETCH"] = b"* 1 FETCH " + said + b"\r\n{tag} OK done\r\n"
    mailbox = await reach(standin)
    await mailbox.login("support", "secret")
    await mailbox.select("INBOX", read_only=True)

    assert (await mailbox.bodies([1])).get(1) == body
    mailbox.close()


@pytest.mark.parametrize(
    ("name", "on_the_wire"),
    [
        ("INBOX", "INBOX"),
        ("收件箱", "&ZTZO9nux-"),
        ("客服 & 支持", "&W6JnDQ- &- &ZS9jAQ-"),
        ("~peter/mail/台北/日本語", "~peter/mail/&U,BTFw-/&ZeVnLIqe-"),  # RFC 3501, 5.1.3
        ("😀", "&2D3eAA-"),
    ],
)
def test_names_of_folders(name: str, on_the_wire: str) -> None:
    assert encoded(name) == on_the_wire


def test_sets_of_uids() -> None:
    assert uid_set([7, 1, 2, 3, 9, 10]) == "1:3,7,9:10"


# --- messages that make trouble ---------------------------------------------------------------------------------------


async def test_a_message_on_which_the_connection_breaks_does_not_stop_the_others(
    standin: StandIn, make_station: MakeStation
) -> None:
    # given: whoever asks for message 3 is thrown out
    usual = standin._answer

    def breaks(tag: str, command: str) -> bytes | None:
        return None if "FETCH" in command and 3 in standin._among(command) else usual(tag, command)

    standin._answer = breaks  # type: ignore[method-assign]  # this server's way

    # when
    station = make_station(fetch_tries=3).start()

    # then
    await station.until_new(5)
    *others, lost = await station.messages()
    assert sorted(message.facts["uid"] for message in others) == [1, 2, 4, 5]
    assert (lost.facts["uid"], lost.body) == (3, b"")


async def test_tries_are_counted_over_restarts(standin: StandIn, make_station: MakeStation) -> None:
    standin.instead["FETCH"] = lambda tag, command: f"{tag} NO [SERVERBUG] cannot open it\r\n".encode()
    del standin.mails[2], standin.mails[3], standin.mails[4], standin.mails[5]
    station = make_station(fetch_tries=4, fetch_retry_secs=3600).start()
    await until(lambda: station.connector.missing == 1)

    tries = []
    for _ in range(2):
        await station.stop()
        text = (await station.spool.recall_for("mailbox"))["position INBOX"]
        at = position.read(text)
        assert at is not None
        tries.append(at.failed[1].tries)
        due = at.to(failed={1: at.failed[1].model_copy(update={"due": 0})})
        await station.spool.memorise_for("mailbox", {"position INBOX": due.model_dump_json()})
        station.start()
        await until(lambda: station.connector.missing is not None)

    await station.until_new(1)
    assert tries == [2, 3]
    (lost,) = await station.messages()
    assert "cannot open it" in lost.facts["unreadable"]


async def test_a_size_that_is_wrong_does_not_cut_a_message(standin: StandIn, make_station: MakeStation) -> None:
    """Exchange estimates RFC822.SIZE."""
    large = mail(9, "0123456789abcde\n" * 200_000)
    standin.mails = {1: large}
    standin.instead["FETCH"] = lambda tag, command: (
        f"* 1 FETCH (UID 1 RFC822.SIZE 2000000)\r\n{tag} OK\r\n".encode()
        if "SIZE" in command
        else standin._fetched(1, command) + f"{tag} OK\r\n".encode()
    )

    station = make_station().start()

    await station.until_new(1)
    (message,) = await station.messages()
    assert message.body == large
    assert "truncated" not in message.facts


async def test_what_a_server_does_not_name_at_first_is_missed_and_fetched(
    standin: StandIn, make_station: MakeStation, capsys: pytest.CaptureFixture[str]
) -> None:
    # given: a server whose first answer is incomplete
    answers = iter([b"* SEARCH 1 2 5\r\n{tag} OK\r\n"])
    usual = standin._answer

    def forgetful(tag: str, command: str) -> bytes | None:
        if "SEARCH" in command and (answer := next(answers, None)):
            return answer.replace(b"{tag}", tag.encode())
        return usual(tag, command)

    standin._answer = forgetful  # type: ignore[method-assign]  # this server's way

    # when
    station = make_station().start()

    # then
    await station.until_new(5)
    await until(lambda: station.connector.missing == 0)
    assert "imap.missing" in capsys.readouterr().out


async def test_a_connection_that_breaks_while_a_large_message_comes_leaves_nothing_behind(
    standin: StandIn, make_station: MakeStation
) -> None:
    standin.mails = {1: mail(1, "x" * 3_000_000), 2: mail(2)}
    usual, breaks = standin._answer, iter([True])

    def breaking(tag: str, command: str) -> bytes | None:
        return None if "<2097152." in command and next(breaks, False) else usual(tag, command)

    standin._answer = breaking  # type: ignore[method-assign]  # this server's way

    station = make_station().start()

    await station.until_new(2)
    await until(lambda: list(station.spool.incoming.iterdir()) == [])


# --- positions --------------------------------------------------------------------------------------------------------


def test_the_position_that_is_further_on_counts() -> None:
    ours, shared = Position(validity=1, uid=10, failed={3: Failure(tries=1)}), Position(validity=1, uid=20)

    assert position.newest([ours, shared], 1) == shared
    assert position.newest([ours, None], 1) == ours
    assert position.newest([None, None], 1) is None


def test_one_of_other_uids_counts_only_when_there_is_no_better_one() -> None:
    old, new = Position(validity=1, uid=900, settled_at=5), Position(validity=2, uid=3)

    assert position.newest([old, new], 2) == new
    assert position.newest([old, Position(validity=3, settled_at=4)], 2) == old


def test_of_two_at_one_place_nothing_is_forgotten() -> None:
    ours = Position(validity=1, uid=9, failed={3: Failure(tries=2)}, todo=(8, 9))
    shared = Position(validity=1, uid=9, failed={4: Failure(tries=1)}, todo=(9,))

    both = position.newest([ours, shared], 1)

    assert both is not None
    assert (set(both.failed), set(both.todo)) == ({3, 4}, {8, 9})


@pytest.mark.parametrize("text", [None, "", "{}", "no json", '{"validity": "x"}', '{"validity": 1, "uid": []}'])
def test_what_is_no_position_is_none(text: str | None) -> None:
    assert position.read(text) is None


# --- settings ---------------------------------------------------------------------------------------------------------


def settings(**more: Any) -> ImapSettings:
    given = {"type": "imap", "host": "imap.acme.cn", "username": "support", "password": "secret"}
    return ImapSettings.model_validate(given | more)


def test_it_knows_its_own_address_and_says_where_it_reads() -> None:
    read = settings(username="Support@acme.cn")

    assert [read.receives("support@acme.cn"), read.receives("zhang@example.com")] == [True, False]
    assert [settings(tls=tls).where for tls in ("implicit", "none")] == [
        "imaps://imap.acme.cn:993",
        "imap://imap.acme.cn:143",
    ]


def test_ports_and_folders_have_defaults() -> None:
    assert (settings().server.port, settings(tls="starttls").server.port, settings(port=1143).server.port) == (
        993,
        143,
        1143,
    )
    assert settings().folders == ("INBOX",)
    assert settings(folder=["A", "B"]).folders == ("A", "B")


@pytest.mark.parametrize(
    "wrong",
    [
        {"password": None},
        {"oauth": {"provider": "google", "client_id": "a", "client_secret": "b", "refresh_token": "c"}},
        {"folder": []},
        {"folder": ["A", "A"]},
        {"folder": ""},
        {"after": {"move": ""}},
        {"after": "archive"},
        {"start": "yesterday"},
        {"idle_secs": 1740},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**wrong)


# --- probe ------------------------------------------------------------------------------------------------------------


async def test_a_probe_opens_every_folder_and_names_the_one_that_is_wrong(
    standin: StandIn, make_station: MakeStation
) -> None:
    await make_station(folder=["INBOX", "客服"], after={"move": "Done"}).connector.probe()
    assert [line for line in standin.commands if line.startswith("EXAMINE")] == [
        'EXAMINE "INBOX"',
        'EXAMINE "&W6JnDQ-"',
        'EXAMINE "Done"',
    ]

    standin.instead["EXAMINE"] = b"{tag} NO [NONEXISTENT] Unknown Mailbox\r\n"
    with pytest.raises(Rejected, match="folder INBOX: NO"):
        await make_station().connector.probe()


async def test_a_probe_tells_a_wrong_password(standin: StandIn, make_station: MakeStation) -> None:
    standin.instead["LOGIN"] = b"{tag} NO [AUTHENTICATIONFAILED] no\r\n"

    with pytest.raises(Rejected, match="AUTHENTICATIONFAILED"):
        await make_station().connector.probe()
