"""The channel of an official account: what is said to WeChat, and what is kept of what it says."""

import asyncio
import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from pydantic import ValidationError
from ruamel.yaml import YAML
from structlog.testing import capture_logs

from connectors.wechat import Connector
from gateway.contract import (
    Apart,
    Context,
    HttpResponse,
    Part,
    Profile,
    RawMessage,
    Receipt,
    Reply,
    Request,
    Shared,
    Wanted,
)
from gateway.errors import Rejected, Unavailable
from gateway.wechat.conversation import ASK_SECS
from tests.wechat.peer import AES_KEY, APPID, NOW, OTHER_AES_KEY, TOKEN, Peer, call, fields, sign

EXAMPLE = Path(__file__).parents[2] / "config/channels/wechat.example.yaml"
KEYS = {"type": "wechat", "appid": APPID, "token": TOKEN, "aes_key": AES_KEY}
WECHAT = Peer()
RECEIPT = Receipt("id", "7K3M-9QX2-4WPD")
PNG = b"\x89PNG\r\n\x1a\n"


class Clock:
    def __init__(self) -> None:
        self.time = datetime.fromtimestamp(NOW, UTC)

    def __call__(self) -> datetime:
        return self.time


class Expiring(Apart):
    """Keeps to the times by a clock."""

    def __init__(self, now: Clock) -> None:
        super().__init__()
        self._now, self._ends = now, dict[str, datetime]()

    async def get(self, key: str, /) -> str | None:
        self._expire(key)
        return await super().get(key)

    async def put(self, key: str, value: str, /, *, ttl_secs: float) -> None:
        self._ends[key] = self._now() + timedelta(seconds=ttl_secs)
        await super().put(key, value, ttl_secs=ttl_secs)

    async def claim(self, key: str, value: str, /, *, ttl_secs: float) -> str:
        self._expire(key)
        self._ends.setdefault(key, self._now() + timedelta(seconds=ttl_secs))
        return await super().claim(key, value, ttl_secs=ttl_secs)

    def _expire(self, key: str) -> None:
        if key in self._ends and self._ends[key] <= self._now():
            del self._values[key], self._ends[key]


class Away(Apart):
    """Redis that is not there, or does not answer."""

    def __init__(self, *, silent: bool = False) -> None:
        super().__init__()
        self._silent = silent

    async def get(self, key: str, /) -> str | None:
        return await self._fail()

    async def put(self, key: str, value: str, /, *, ttl_secs: float) -> None:
        await self._fail()

    async def claim(self, key: str, value: str, /, *, ttl_secs: float) -> str:
        return await self._fail()

    async def _fail(self) -> Any:
        if self._silent:
            await asyncio.Event().wait()
        raise Unavailable(reason="Redis is away")


class Web:
    """Answers by path; `asked` has every address."""

    def __init__(self, answers: Mapping[str, HttpResponse | Exception]) -> None:
        self.answers = dict(answers)
        self.asked: list[str] = []
        self.trusted: list[bool] = []

    async def __call__(self, url: str, *, trusted: bool = False, **_: Any) -> HttpResponse:
        self.asked.append(url)
        self.trusted.append(trusted)
        answer = self.answers.get(urlsplit(url).path, Unavailable(reason="nobody is there"))
        if isinstance(answer, Exception):
            raise answer
        return answer


def ok(content: bytes, content_type: str = "application/json", status: int = 200) -> HttpResponse:
    return HttpResponse(status, CIMultiDict({"Content-Type": content_type}), content, "")


TOKEN_ANSWER = ok(b'{"access_token": "' + b"t" * 64 + b'", "expires_in": 7200}')


def channel(shared: Shared | None = None, http: Any = None, now: Clock | None = None, **keys: Any) -> Connector:
    settings = Connector.Settings.model_validate({**KEYS, **keys})
    lent = {"shared": shared or Apart(), "http": http or Web({})}
    context = Context("test", "https://support.example", lambda purpose: bytes(32), now or Clock(), **lent)
    return Connector("main", settings, context)


def xml(**named: object) -> bytes:
    known = {"ToUserName": "gh_aa11", "FromUserName": "oUser01", "CreateTime": NOW, "MsgType": "text"}
    elements = (f"<{name}>{value}</{name}>" for name, value in {**known, **named}.items())
    return f"<xml>{''.join(elements)}</xml>".encode()


def text(id_: object = 1, **named: object) -> bytes:
    return xml(**{"Content": "你好", "MsgId": id_, **named})


def event(name: str, key: str = "", **named: object) -> bytes:
    return xml(MsgType="event", Event=name, EventKey=key, **named)


def push(message: bytes, peer: Peer = WECHAT, at: datetime | None = None) -> Request:
    return peer.push(message, at=int(at.timestamp()) if at else NOW, nonce=secrets.token_hex(8))


async def take(connector: Connector, request: Request) -> RawMessage | Reply:
    """As the core does it: a message, or the reply to what is none."""
    await connector.admit(request)
    found = await connector.extract(request, await connector.verify(request))
    if isinstance(found, Reply):
        return found
    (message,) = found
    return message


async def receive(connector: Connector, request: Request) -> tuple[RawMessage, Reply]:
    message = await take(connector, request)
    assert isinstance(message, RawMessage)
    return message, connector.reply(request, [RECEIPT])


async def said(connector: Connector, message: bytes) -> dict[str, Any] | None:
    """The passive reply to it, None for `success`."""
    _, reply = await receive(connector, push(message))
    return None if reply.body == b"success" else fields(WECHAT.read(reply.body))


# Messages


async def test_a_message_is_kept_as_it_was_before_it_was_encrypted() -> None:
    body = text(24500000000000001)

    message, reply = await receive(channel(), push(body))

    facts = {"appid": APPID, "encrypted": True, "fetch": False, "profile": {}}
    assert message == RawMessage("wechat", body, f"{APPID}:oUser01:24500000000000001", "text/xml", facts)
    assert (reply.status, reply.body) == (200, b"success")


async def test_an_id_that_is_no_number_is_one() -> None:
    message, _ = await receive(channel(), push(text("49d72d67_1555684067")))

    assert message.native_id == f"{APPID}:oUser01:49d72d67_1555684067"


async def test_without_an_id_the_content_is_it() -> None:
    connector = channel()

    ids = [(await receive(connector, push(body)))[0].native_id for body in (text(""), text(""), text("", Content="x"))]

    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("name", ["MsgId", "EventKey"])
async def test_an_id_is_never_long(name: str) -> None:
    body = xml(**{"MsgType": "event", "Event": "VIEW", name: "k" * 5000})

    message, _ = await receive(channel(events={"VIEW": "all"}), push(body))

    assert message.native_id is not None
    assert len(message.native_id) < 200


async def test_an_authentic_push_that_cannot_be_read_is_kept_and_taken() -> None:
    connector = channel(reply={})

    message, reply = await receive(connector, push(b"<xml><MsgType>text"))

    assert message.body == b"<xml><MsgType>text"
    assert message.facts["unreadable"]
    assert (reply.status, reply.body) == (200, b"success")


async def test_a_push_of_nobody_is_taken_without_a_word() -> None:
    _, reply = await receive(channel(reply={}), push(b"<xml><MsgType>text</MsgType><MsgId>1</MsgId></xml>"))

    assert reply.body == b"success"


async def test_there_are_no_paths_below() -> None:
    request = push(text())
    request.path = "/more"

    with pytest.raises(Rejected) as caught:
        await channel().admit(request)

    assert caught.value.code == "not_found"


async def test_the_console_gets_its_echo() -> None:
    reply = await take(channel(), WECHAT.echo("4375120948345356249"))

    assert isinstance(reply, Reply)
    assert (reply.status, reply.body) == (200, b"4375120948345356249")


async def test_a_guessed_signature_is_forbidden() -> None:
    connector = channel()

    for request in (Peer(token="guessed").push(text()), Peer(token="guessed").echo("1"), call({}, text())):
        with pytest.raises(Rejected) as caught:
            await take(connector, request)
        assert connector.refuse(request, caught.value).status == 403


# Keys and modes


async def test_a_key_is_exchanged_while_messages_come() -> None:
    connector = channel(aes_key=OTHER_AES_KEY, previous_aes_key=AES_KEY, reply={"every_minutes": 1})
    new = Peer(aes_key=OTHER_AES_KEY)

    _, to_old = await receive(connector, push(text(1, FromUserName="o1")))
    _, to_new = await receive(connector, push(text(2, FromUserName="o2"), new))

    assert RECEIPT.reference in fields(WECHAT.read(to_old.body))["Content"]
    assert RECEIPT.reference in fields(new.read(to_new.body))["Content"]


async def test_plaintext_is_only_taken_where_it_is_allowed() -> None:
    with pytest.raises(Rejected):
        await take(channel(), WECHAT.plain(text()))

    message, reply = await receive(channel(mode="plaintext", reply={}), WECHAT.plain(text()))

    assert message.facts["encrypted"] is False
    assert RECEIPT.reference in fields(reply.body)["Content"]


@pytest.mark.parametrize("mode", ["safe", "compatible", "plaintext"])
def test_a_mode_that_is_not_safe_is_told_at_the_start(mode: str) -> None:
    with capture_logs() as logs:
        channel(mode=mode)

    told = [(line["event"], line["log_level"]) for line in logs]
    assert told == ([] if mode == "safe" else [("wechat.mode_is_not_safe", "warning")])


# Events


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (event("subscribe"), "event_subscribe"),
        (event("CLICK", "OTHER"), "event_click"),
        (event("LOCATION", Latitude=23.1, Longitude=113.3), "event_location"),
        (event("unsubscribe"), "event_unsubscribe"),
        (event("something_new"), "event_other"),
        (xml(MsgType="event"), "event_other"),
    ],
)
async def test_an_event_is_counted_and_no_ticket(body: bytes, code: str) -> None:
    reply = await take(channel(events={"CLICK": ["HELP"]}, reply={}), push(body))

    assert isinstance(reply, Reply)
    assert (reply.status, reply.body, reply.ignored) == (200, b"success", (code,))


@pytest.mark.parametrize(
    ("events", "body"),
    [
        ({"CLICK": ["HELP", "FAULT"]}, event("CLICK", "FAULT")),
        ({"click": ["FAULT"]}, event("CLICK", "FAULT")),
        ({"subscribe": "all"}, event("subscribe")),
        ({"subscribe": ["counter-12"]}, event("subscribe", "qrscene_counter-12")),
        ({"SCAN": ["counter-12"]}, event("SCAN", "counter-12")),
        ({"something_new": "all"}, event("something_new")),
    ],
)
async def test_an_event_that_is_listed_is_a_ticket(events: dict[str, Any], body: bytes) -> None:
    message, reply = await receive(channel(events=events, reply={}), push(body))

    assert message.body == body
    assert RECEIPT.reference in fields(WECHAT.read(reply.body))["Content"]


async def test_events_of_one_second_are_told_apart() -> None:
    connector = channel(events={"CLICK": "all", "VIEW": "all"})

    bodies = (event("CLICK", "A"), event("CLICK", "B"), event("VIEW", "A"), event("CLICK", "A"))
    ids = [(await receive(connector, push(body)))[0].native_id for body in bodies]

    assert ids[0] == ids[3] == f"{APPID}:oUser01:{NOW}:CLICK:A"
    assert len(set(ids)) == 3


async def test_who_leaves_is_said_nothing() -> None:
    assert await said(channel(events={"unsubscribe": "all"}, reply={}), event("unsubscribe")) is None


# The source


@pytest.mark.parametrize("body", [event("subscribe", "qrscene_counter-12"), event("SCAN", "counter-12")])
async def test_a_scanned_code_goes_with_the_next_messages(body: bytes) -> None:
    now = Clock()
    connector = channel(Expiring(now), now=now, source_hours=1)
    await take(connector, push(body))

    async def source(**named: object) -> Any:
        message, _ = await receive(connector, push(text(**named), at=now()))
        return message.facts.get("source")

    assert await source() == "counter-12"
    assert await source(FromUserName="oUser02") is None
    now.time += timedelta(minutes=59)
    assert await source() == "counter-12"
    now.time += timedelta(minutes=1)
    assert await source() is None


@pytest.mark.parametrize("key", ["", "last_trade_no_4000", "qrscene_"])
async def test_what_is_no_scene_is_no_source(key: str) -> None:
    connector = channel()
    await take(connector, push(event("subscribe", key)))

    message, _ = await receive(connector, push(text()))

    assert "source" not in message.facts


async def test_the_event_itself_has_its_source() -> None:
    message, _ = await receive(channel(events={"SCAN": "all"}), push(event("SCAN", "counter-12")))

    assert message.facts["source"] == "counter-12"


# The passive reply


async def test_a_customer_reads_the_reference() -> None:
    reply = await said(channel(reply={}), text())

    assert reply == {
        "ToUserName": "oUser01",
        "FromUserName": "gh_aa11",
        "CreateTime": str(NOW),
        "MsgType": "text",
        "Content": f"您好，我们已经收到您的消息，受理编号 {RECEIPT.reference}，会尽快回复您。",
    }


async def test_every_try_is_answered_alike() -> None:
    now = Clock()
    connector = channel(Expiring(now), now=now, reply={})

    replies = []
    for _ in range(3):
        replies.append(await said(connector, text(7)))
        now.time += timedelta(seconds=5)

    assert replies[0] is not None
    assert replies[0] == replies[1] == replies[2]


async def test_a_conversation_is_told_once_in_a_while() -> None:
    now = Clock()
    connector = channel(Expiring(now), now=now, reply={"every_minutes": 4})

    first, second = await said(connector, text(1)), await said(connector, text(2))
    other = await said(connector, text(3, FromUserName="oUser02"))
    now.time += timedelta(minutes=4)
    _, later = await receive(connector, push(text(4), at=now()))

    assert (first is None, second is None, other is None) == (False, True, False)
    assert later.body != b"success"


@pytest.mark.parametrize(
    ("language", "default", "reads"), [("en", "zh", "Hello"), ("zh-TW", "en", "您好"), ("ja", "en", "Hello")]
)
async def test_a_customer_reads_their_language(language: str, default: str, reads: str) -> None:
    shared, answers = Apart(), {"/cgi-bin/stable_token": TOKEN_ANSWER}
    answers["/cgi-bin/user/info"] = ok(json.dumps({"openid": "oUser01", "language": language}).encode())
    connector = channel(shared, Web(answers), secret="app-secret", reply={"language": default})
    await connector.fetch(Wanted("profile", "oUser01"))

    reply = await said(connector, text())

    assert reply is not None
    assert reply["Content"].startswith(reads)


async def test_a_template_may_say_anything() -> None:
    connector = channel(reply={"text": "]]></Content><x>& {{ channel }}: {{ reference }}"})

    reply = await said(connector, text())

    assert reply is not None
    assert reply["Content"] == f"]]></Content><x>& main: {RECEIPT.reference}"


@pytest.mark.parametrize("template", ["{{ refrence }}", "{% if %}", "{{ ''.__class__.mro() }}", " ", "长" * 700])
def test_a_template_that_cannot_be_used_is_a_fault(template: str) -> None:
    with pytest.raises(ValidationError):
        channel(reply={"text": {"en": template}})


# Hard times


@pytest.mark.parametrize("silent", [False, True])
async def test_without_redis_messages_are_taken_in_time(silent: bool) -> None:
    connector = channel(Away(silent=silent), secret="app-secret", reply={})
    loop = asyncio.get_running_loop()
    started = loop.time()

    scan = await take(connector, push(event("SCAN", "counter-12")))
    message, reply = await receive(connector, push(text()))

    assert isinstance(scan, Reply)
    assert (message.facts["profile"], message.facts.get("source"), reply.body) == (None, None, b"success")
    assert loop.time() - started < 2 * ASK_SECS + 0.5


async def test_nobody_is_asked_before_the_answer() -> None:
    web = Web({})
    connector = channel(http=web, secret="app-secret", reply={})

    await receive(connector, push(xml(MsgType="image", MediaId="M-1", MsgId=1)))

    assert web.asked == []


@given(body=st.binary(max_size=300), form=st.sampled_from(("xml", "json")), clear=st.booleans())
async def test_no_body_makes_it_fail(body: bytes, form: str, clear: bool) -> None:
    connector = channel(mode="plaintext" if clear else "safe", reply={}, events={"CLICK": "all"})
    request = WECHAT.plain(body) if clear else WECHAT.push(body, form=form)

    try:
        found = await take(connector, request)
    except Rejected:
        return
    if isinstance(found, RawMessage):
        assert connector.reply(request, [RECEIPT]).status == 200


# What is fetched


@pytest.fixture
def web() -> Web:
    return Web({"/cgi-bin/stable_token": TOKEN_ANSWER, "/cgi-bin/media/get": ok(PNG, "image/png")})


async def test_a_profile_that_is_known_is_not_asked_for_again(web: Web) -> None:
    web.answers["/cgi-bin/user/info"] = ok(b'{"openid": "oUser01", "unionid": "u-1", "language": "zh_CN"}')
    connector = channel(http=web, secret="app-secret")
    before, _ = await receive(connector, push(text(1)))

    profile = await connector.fetch(Wanted("profile", "oUser01"))
    after, _ = await receive(connector, push(text(2)))

    assert isinstance(profile, Profile)
    assert before.facts["profile"] is None
    assert after.facts["profile"] == {"unionid": "u-1", "language": "zh-CN"}


async def test_no_profile_is_asked_for_where_none_is_wanted() -> None:
    message, _ = await receive(channel(secret="app-secret", profiles=False), push(text()))

    assert (message.facts["fetch"], message.facts["profile"]) == (True, {})


async def test_a_picture_is_had_by_its_id(web: Web) -> None:
    part = await channel(http=web, secret="app-secret").fetch(Wanted("image", "M-1 http://mmbiz.qpic.cn/a"))

    assert isinstance(part, Part)
    assert (part.content, part.content_type) == (PNG, "image/png")
    assert all("mmbiz" not in url for url in web.asked)


async def test_a_picture_that_is_gone_is_had_by_its_address(web: Web) -> None:
    web.answers["/cgi-bin/media/get"] = ok(b'{"errcode": 40007, "errmsg": "invalid media_id"}')
    web.answers["/mmbiz_jpg/aBc/0"] = ok(PNG, "image/png")
    connector = channel(http=web, secret="app-secret")

    part = await connector.fetch(Wanted("image", "M-1 http://mmbiz.qpic.cn/mmbiz_jpg/aBc/0"))

    assert part == Part(PNG, content_type="image/png")
    assert (web.asked[-1], web.trusted[-1]) == ("http://mmbiz.qpic.cn/mmbiz_jpg/aBc/0", False)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (ok(b"", status=404), Rejected),
        (ok(b"", status=500), Unavailable),
        (Unavailable(), Unavailable),
        (Rejected("forbidden"), Rejected),
    ],
)
async def test_a_picture_that_cannot_be_had(web: Web, answer: Any, error: type[Exception]) -> None:
    web.answers |= {"/cgi-bin/media/get": ok(b'{"errcode": 40007, "errmsg": "invalid media_id"}'), "/a": answer}

    with pytest.raises(error):
        await channel(http=web, secret="app-secret").fetch(Wanted("image", "M-1 http://mmbiz.qpic.cn/a"))


async def test_without_a_secret_nothing_is_fetched(web: Web) -> None:
    with pytest.raises(Rejected):
        await channel(http=web).fetch(Wanted("image", "M-1 http://mmbiz.qpic.cn/a"))

    assert web.asked == []


# The probe


class Ours(Web):
    """A gateway that runs at our public address, with a token of its own."""

    def __init__(self, token: str = TOKEN) -> None:
        super().__init__({"/cgi-bin/stable_token": TOKEN_ANSWER})
        self._token = token

    async def __call__(self, url: str, *, trusted: bool = False, **_: Any) -> HttpResponse:
        if not url.startswith("https://support.example/c/main?"):
            return await super().__call__(url, trusted=trusted)
        query = dict(parse_qsl(urlsplit(url).query))
        if query["signature"] == sign(self._token, query["timestamp"], query["nonce"]):
            return ok(query["echostr"].encode())
        return ok(b"", status=403)


async def test_all_is_well() -> None:
    web = Ours()

    await channel(http=web, secret="app-secret").probe()

    assert [urlsplit(url).path for url in web.asked] == ["/cgi-bin/stable_token"]


async def test_another_token_is_found() -> None:
    with pytest.raises(Unavailable) as caught:
        await channel(http=Ours("another-token")).probe()

    assert "another token" in caught.value.reason
    assert "Token 校验失败" in caught.value.reason


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (Unavailable(reason="no route"), "huiru has to run"),
        (ok(b"", status=404), "no such channel"),
        (ok(b"", status=502), "does not reach huiru"),
        (ok(b"", status=302), "redirect"),
        (ok(b"<html>Welcome to nginx"), "answers in huiru's place"),
    ],
)
async def test_what_the_console_would_refuse_is_explained(answer: Any, word: str) -> None:
    with pytest.raises(Unavailable) as caught:
        await channel(http=Web({"/c/main": answer})).probe()

    assert word in caught.value.reason


async def test_a_wrong_secret_is_found_first() -> None:
    web = Web({"/cgi-bin/stable_token": ok(b'{"errcode": 40125, "errmsg": "invalid appsecret"}')})
    connector = channel(http=web, secret="app-secret")

    with pytest.raises(Unavailable) as caught:
        await connector.probe()

    assert "the secret is wrong" in caught.value.reason
    assert "the secret is wrong" in connector.trouble


async def test_in_plaintext_our_address_is_not_asked() -> None:
    web = Web({})

    await channel(http=web, mode="plaintext").probe()

    assert web.asked == []


# Settings


@pytest.mark.parametrize(
    "keys",
    [
        {"token": ""},
        {"aes_key": AES_KEY[:-1]},
        {"aes_key": None},
        {"secret": ""},
        {"api_base_url": "api.weixin.qq.com"},
        {"api_base_url": "http://api.weixin.qq.com"},
        {"events": {"CLICK": "some"}},
        {"max_request_bytes": 1 << 20},
        {"unknown": 1},
    ],
)
def test_a_setting_that_cannot_be_is_a_fault(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        channel(**keys)


def test_the_example_is_valid() -> None:
    block = YAML(typ="safe").load(EXAMPLE)["channels"]["wechat-main"]

    settings = Connector.Settings.model_validate(block | {"token": TOKEN, "aes_key": AES_KEY, "secret": "app-secret"})

    assert settings.events == {"CLICK": ("REPORT_FAULT",)}
