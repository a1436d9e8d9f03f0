"""Authenticating and reading a push of any mode and form; who is refused; the answers."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import MultiDict
from wechatpy.parser import parse_message

from gateway import nonces
from gateway.contract import Apart, BodyFile, Request, Shared
from gateway.errors import Rejected, Unavailable
from gateway.wechat.credentials import PushSettings
from gateway.wechat.crypto import Key
from gateway.wechat.push import MAX_PUSH_BYTES, SUCCESS, Account, seal
from tests.wechat.peer import AES_KEY, APPID, NOW, OTHER_AES_KEY, TEXT, TOKEN, Peer, call, envelope, fields, sign

PEER = Peer()
OLDER = Peer(aes_key=OTHER_AES_KEY)
JSON = json.dumps({"ToUserName": "gh_aa11", "FromUserName": "oUser01", "CreateTime": NOW, "MsgType": "text"}).encode()
FORGED = TEXT.replace("订单 7788 未到货".encode(), b"forged")


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.at = NOW

    def __call__(self) -> datetime:
        return datetime.fromtimestamp(self.at, UTC)


class Away(Apart):
    """Redis as it fails: at once, or never answering."""

    def __init__(self, *, hangs: bool) -> None:
        super().__init__()
        self.hangs = hangs
        self.asked = 0

    async def claim(self, key: str, value: str, /, *, ttl_secs: float) -> str:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        raise Unavailable


def account(shared: Shared | None = None, now: Callable[[], datetime] | None = None, **keys: Any) -> Account:
    given_ = {"type": "wechat", "appid": APPID, "token": TOKEN, "aes_key": AES_KEY} | keys
    return Account(PushSettings.model_validate(given_), shared or Apart(), now or Clock())


def plaintext(shared: Shared | None = None, now: Callable[[], datetime] | None = None) -> Account:
    return account(shared, now, mode="plaintext", aes_key=None)


async def refusal(one: Account, request: Request) -> Rejected:
    with pytest.raises(Rejected) as refused:
        await one.verify(request)
    return refused.value


def with_query(request: Request, **changes: str) -> Request:
    query = MultiDict(request.query)
    query.update(changes)
    return replace(request, query=query)


def without(request: Request, *names: str) -> Request:
    return replace(
        request, query=MultiDict((name, value) for name, value in request.query.items() if name not in names)
    )


# The address is checked


def test_the_published_check_of_an_address_is_answered_with_its_echostr() -> None:
    clock = Clock()
    clock.at = 1714036504
    signature = "f464b24fc39322e44b38aa78f5edd27bd1441696"
    query = {"signature": signature, "timestamp": "1714036504", "nonce": "1514711492", "echostr": "4375120948345356249"}

    reply = account(None, clock, token="AAAAA").echo(call(query, method="GET"))

    assert (reply.status, reply.body) == (200, b"4375120948345356249")
    assert reply.content_type == "text/plain; charset=utf-8"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("mode", ["safe", "compatible", "plaintext"])
def test_every_mode_answers_the_check_in_clear(mode: str) -> None:
    assert account(mode=mode).echo(PEER.echo("5927782489442352469")).body == b"5927782489442352469"


GET = PEER.echo("4375120948345356249")
WRONG_CHECKS = {
    "no signature": (without(GET, "signature"), "forbidden"),
    "an empty signature": (with_query(GET, signature=""), "forbidden"),
    "another signature": (with_query(GET, signature="0" * 40), "forbidden"),
    "a signature that is no ASCII": (with_query(GET, signature="签名"), "forbidden"),
    "a signature that is no text": (with_query(GET, signature="\udcff"), "forbidden"),
    "two signatures": (replace(GET, query=MultiDict([*GET.query.items(), ("signature", "x")])), "forbidden"),
    "another nonce": (with_query(GET, nonce="1"), "forbidden"),
    "another timestamp": (with_query(GET, timestamp=str(NOW + 1)), "forbidden"),
    "no timestamp": (without(GET, "timestamp"), "forbidden"),
    "another token": (Peer(token="other").echo("1"), "forbidden"),
    "an empty token": (Peer(token="").echo("1"), "forbidden"),
    "too old": (PEER.echo("1", at=NOW - 301), "forbidden"),
    "of the future": (PEER.echo("1", at=NOW + 301), "forbidden"),
    "a timestamp that is no number": (with_query(GET, timestamp="now"), "malformed"),
    "a timestamp in other digits": (with_query(GET, timestamp="١٧٦٠٠٠٠٠٠٠"), "malformed"),
    "a timestamp without end": (with_query(GET, timestamp="1" * 5000), "malformed"),
    "a nonce without end": (with_query(GET, nonce="1" * 5000), "malformed"),
    "no echostr": (without(GET, "echostr"), "forbidden"),
    "an echostr with markup": (PEER.echo("<script>alert(1)</script>"), "malformed"),
    "an echostr with words": (PEER.echo("your account is locked"), "malformed"),
    "an echostr with lines": (PEER.echo("a\r\nb"), "malformed"),
    "an echostr without end": (PEER.echo("1" * 5000), "malformed"),
}


@pytest.mark.parametrize(("request_", "code"), WRONG_CHECKS.values(), ids=WRONG_CHECKS)
def test_any_other_check_of_the_address_is_refused(request_: Request, code: str) -> None:
    with pytest.raises(Rejected) as refused:
        account().echo(request_)

    assert refused.value.code == code


# Safe mode

E3 = (
    "+qdx1OKCy+5JPCBFWw70tm0fJGb2Jmeia4FCB7kao+/Q5c/ohsOzQHi8khUOb05JCpj0JB4RvQMkUyus8TPxLKJGQqcvZqzDpVzazhZv6JsXUnnR8XG"
    "T740XgXZUXQ7vJVnAG+tE8NUd4yFyjPy7GgiaviNrlCTj+l5kdfMuFUPpRSrfMZuMcp3Fn2Pede2IuQrKEYwKSqFIZoNqJ4M8EajAsjLY2km32IIjdf"
    "8YL/P50F7mStwntrA2cPDrM1kb6mOcfBgRtWygb3VIYnSeOBrebufAlr7F9mFUPAJGj04="
)
PUBLISHED = call(
    {
        "signature": "6c5c811b55cc85e0e1b54100749188c20beb3f5d",
        "timestamp": "1714112445",
        "nonce": "415670741",
        "encrypt_type": "aes",
        "msg_signature": "046e02f8204d34f8ba5fa3b1db94908f3df2e9b3",
    },
    json.dumps({"ToUserName": "gh_97417a04a28d", "Encrypt": E3}).encode(),
)


def of_the_published() -> Account:
    clock = Clock()
    clock.at = 1714112445
    return account(None, clock, appid="wxba5fad812f8e6fb9", token="AAAAA", aes_key="A" * 43)


async def test_the_published_push_is_read() -> None:
    push = await of_the_published().verify(PUBLISHED)

    assert (push.form, push.encrypted, push.key, push.unreadable) == ("json", True, 0, "")
    assert (push.fields["Event"], push.fields["debug_str"]) == ("debug_demo", "hello world")
    assert len(push.plain) == 167


async def test_the_signature_of_the_address_is_refused_in_place_of_the_published_pushs() -> None:
    swapped = with_query(PUBLISHED, msg_signature=PUBLISHED.query["signature"])

    assert (await refusal(of_the_published(), swapped)).code == "forbidden"
    assert (await refusal(of_the_published(), without(PUBLISHED, "msg_signature"))).code == "forbidden"


async def test_the_signature_of_the_address_does_not_matter() -> None:
    push = await of_the_published().verify(without(PUBLISHED, "signature", "encrypt_type"))

    assert push.fields["Event"] == "debug_demo"


@pytest.mark.parametrize(("form", "message"), [("xml", TEXT), ("json", JSON), ("json", TEXT), ("xml", JSON)])
async def test_an_encrypted_push_in_either_form(form: str, message: bytes) -> None:
    push = await account().verify(PEER.push(message, form=form))

    assert (push.plain, push.form, push.encrypted) == (message, form, True)
    assert push.fields["FromUserName"] == "oUser01"


async def test_a_large_body_comes_in_a_file(tmp_path: Path) -> None:
    request = PEER.push()
    assert isinstance(request.body, bytes)
    file = tmp_path / "body"
    file.write_bytes(request.body)

    push = await account().verify(
        replace(request, body=BodyFile(file, len(request.body), sha256(request.body).digest()))
    )

    assert push.plain == TEXT


@pytest.mark.parametrize("mode", ["safe", "compatible"])
async def test_plain_fields_beside_the_encrypted_are_not_read(mode: str) -> None:
    push = await account(mode=mode).verify(PEER.compatible(TEXT, FORGED))

    assert push.plain == TEXT
    assert push.fields["Content"] == "订单 7788 未到货"


async def test_both_keys_work_while_they_are_exchanged() -> None:
    one = account(previous_aes_key=OTHER_AES_KEY)

    current, previous = await one.verify(PEER.push(nonce="1")), await one.verify(OLDER.push(nonce="2"))

    assert (current.key, previous.key) == (0, 1)
    assert current.plain == previous.plain == TEXT


async def test_a_key_that_is_no_longer_valid_is_refused() -> None:
    assert (await refusal(account(), OLDER.push())).code == "forbidden"


async def test_a_refusal_says_of_each_key_why() -> None:
    other = Peer(appid="wx0000000000000000")

    refused = await refusal(account(previous_aes_key=OTHER_AES_KEY), other.push())

    assert "wx0000000000000000" in refused.reason
    assert "padding" in refused.reason
    assert "wx0000000000000000" not in refused.public


def altered(request: Request) -> Request:
    assert isinstance(request.body, bytes)
    at = request.body.index(b"Encrypt><![CDATA[") + 40
    other = b"A" if request.body[at : at + 1] != b"A" else b"B"
    return replace(request, body=request.body[:at] + other + request.body[at + 1 :])


def with_body(request: Request, body: bytes) -> Request:
    return replace(request, body=body)


PUSH = PEER.push()
ENCRYPT = PEER.encrypt(TEXT)
REFUSED: dict[str, tuple[Request, str]] = {
    "no Encrypt": (with_body(PUSH, TEXT), "forbidden"),
    "no Encrypt, with the signature of the address alone": (PEER.plain(), "forbidden"),
    "an empty Encrypt": (PEER.sealed(""), "forbidden"),
    "an altered Encrypt": (altered(PUSH), "forbidden"),
    "no msg_signature": (without(PUSH, "msg_signature"), "forbidden"),
    "signature in place of msg_signature": (with_query(PUSH, msg_signature=PUSH.query["signature"]), "forbidden"),
    "msg_signature in upper case": (with_query(PUSH, msg_signature=PUSH.query["msg_signature"].upper()), "forbidden"),
    "two timestamps": (replace(PUSH, query=MultiDict([*PUSH.query.items(), ("timestamp", "1")])), "forbidden"),
    "another token": (Peer(token="other").push(), "forbidden"),
    "an empty token": (Peer(token="").push(), "forbidden"),
    "another account": (Peer(appid="wx0000000000000000").push(), "forbidden"),
    "another key": (OLDER.push(), "forbidden"),
    "too old": (PEER.push(at=NOW - 301), "forbidden"),
    "of the future": (PEER.push(at=NOW + 301), "forbidden"),
    "a length beyond the end": (PEER.sealed(PEER.encrypt(TEXT, length=len(TEXT) + 1)), "forbidden"),
    "a padding of 0": (PEER.sealed(PEER.encrypt_blocks(bytes(64))), "forbidden"),
    "no base64": (PEER.sealed("*" * 64), "forbidden"),
    "Encrypt twice": (
        with_body(PUSH, f"<xml><Encrypt>{ENCRYPT}</Encrypt><Encrypt>{ENCRYPT}</Encrypt></xml>".encode()),
        "malformed",
    ),
    "Encrypt with elements": (with_body(PUSH, b"<xml><Encrypt><a>1</a></Encrypt></xml>"), "malformed"),
    "Encrypt a list": (with_body(PUSH, envelope([ENCRYPT], "json")), "malformed"),
    "Encrypt an object": (with_body(PUSH, envelope({"a": ENCRYPT}, "json")), "malformed"),
    "Encrypt a number": (with_body(PUSH, envelope(17, "json")), "forbidden"),
    "Encrypt null": (with_body(PUSH, envelope(None, "json")), "forbidden"),
    "Encrypt half a character": (with_body(PUSH, envelope("\ud800", "json")), "forbidden"),
    "a document type": (with_body(PUSH, b"<!DOCTYPE xml>" + envelope(ENCRYPT)), "malformed"),
    "nothing": (with_body(PUSH, b""), "malformed"),
    "no document": (with_body(PUSH, b"success"), "malformed"),
    "two MiB": (with_body(PUSH, TEXT.ljust(2 << 20)), "too_large"),
    "a byte too much": (with_body(PUSH, envelope(ENCRYPT).ljust(MAX_PUSH_BYTES + 1)), "too_large"),
}


@pytest.mark.parametrize("mode", ["safe", "compatible"])
@pytest.mark.parametrize(("request_", "code"), REFUSED.values(), ids=REFUSED)
async def test_what_is_not_proven_to_be_a_push_is_refused(mode: str, request_: Request, code: str) -> None:
    assert (await refusal(account(mode=mode), request_)).code == code


async def test_a_large_file_is_refused_unread() -> None:
    request = replace(PUSH, body=BodyFile(Path("/nowhere"), MAX_PUSH_BYTES + 1, b""))

    assert (await refusal(account(), request)).code == "too_large"


UNREADABLE = {
    "a field twice": TEXT.replace(b"<MsgType>", b"<MsgType>event</MsgType><MsgType>"),
    "a document type": b"<!DOCTYPE xml>" + TEXT,
    "no document": b"hello",
    "nothing": b"",
    "no end": TEXT[:-1],
    "GBK": b"\xb6\xa9\xb5\xa5",
}


@pytest.mark.parametrize("message", UNREADABLE.values(), ids=UNREADABLE)
async def test_what_wechat_encrypted_is_kept_even_if_it_cannot_be_read(message: bytes) -> None:
    push = await account().verify(PEER.push(message))

    assert (push.plain, push.fields, push.form) == (message, {}, "xml")
    assert push.unreadable


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_anything_that_is_signed_is_read_or_refused(data: st.DataObject) -> None:
    body = data.draw(
        st.binary(max_size=99)
        | st.binary(max_size=99).map(PEER.encrypt).map(envelope)
        | st.binary(max_size=4).map(lambda blocks: envelope(PEER.encrypt_blocks((blocks * 32)[:64])))
        | st.text(max_size=99).map(lambda encrypted: envelope(encrypted, "json"))
    )
    encrypted = data.draw(st.sampled_from(["", ENCRYPT]) | st.text(max_size=9))
    try:
        encrypted = fields(body)["Encrypt"]
    except Exception:
        assert body is not None
    query = data.draw(
        st.just(PEER.sealed_query(encrypted.encode("utf-8", "replace").decode(), NOW, "1"))
        | st.dictionaries(st.sampled_from(["timestamp", "nonce", "signature", "msg_signature"]), st.text(max_size=50))
    )
    one = account(mode=data.draw(st.sampled_from(["safe", "compatible", "plaintext"])))
    try:
        push = asyncio.run(one.verify(call(query, body)))
    except Rejected as refused:
        assert refused.code in ("forbidden", "malformed")  # noqa: PT017 - it may as well be read
    else:
        assert push.fields or push.unreadable or push.plain


# Plaintext mode


@pytest.mark.parametrize(("message", "form"), [(TEXT, "xml"), (JSON, "json")])
async def test_a_plain_push_is_read_where_the_settings_say_so(message: bytes, form: str) -> None:
    push = await plaintext().verify(PEER.plain(message))

    assert (push.plain, push.form, push.encrypted) == (message, form, False)
    assert push.fields["FromUserName"] == "oUser01"


async def test_the_published_signature_of_a_plain_push() -> None:
    clock = Clock()
    clock.at = 1714037059
    query = {"signature": "899cf89e464efb63f54ddac96b0a0a235f53aa78", "timestamp": "1714037059", "nonce": "486452656"}

    push = await account(None, clock, token="AAAAA", mode="plaintext").verify(call(query, JSON))

    assert push.plain == JSON


async def test_with_a_key_an_encrypted_push_is_read_in_plaintext_mode_too() -> None:
    """So that the console can be changed over without losing a message."""
    push = await account(mode="plaintext").verify(PEER.compatible(TEXT, FORGED))

    assert (push.plain, push.encrypted) == (TEXT, True)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (without(PEER.plain(), "signature"), "forbidden"),
        (with_query(PEER.plain(), signature="0" * 40), "forbidden"),
        (PEER.plain(at=NOW - 301), "forbidden"),
        (PEER.push(), "forbidden"),  # without a key it says nothing
        (PEER.plain(b"<!DOCTYPE xml>" + TEXT), "malformed"),
        (PEER.plain(UNREADABLE["a field twice"]), "malformed"),
        (PEER.plain(b"hello"), "malformed"),
        (PEER.plain(TEXT.ljust(MAX_PUSH_BYTES + 1)), "too_large"),
    ],
)
async def test_what_is_wrong_is_refused_in_plaintext_mode(request_: Request, code: str) -> None:
    assert (await refusal(plaintext(), request_)).code == code


# Time, and the same again


@pytest.mark.parametrize("off", [-300, -1, 0, 1, 300])
async def test_a_time_within_the_window_is_fresh(off: int) -> None:
    assert (await account().verify(PEER.push(at=NOW + off))).plain == TEXT


async def test_the_window_is_a_setting() -> None:
    one = account(freshness_secs=10)

    assert (await one.verify(PEER.push(at=NOW - 10))).plain == TEXT
    assert "11 s behind" in (await refusal(one, PEER.push(at=NOW - 11))).reason


MODES = pytest.mark.parametrize("make", [account, plaintext], ids=["safe", "plaintext"])


def pushes(make: Callable[..., Account], *messages: bytes, at: int = NOW) -> list[Request]:
    """All under one timestamp and nonce."""
    build = PEER.plain if make is plaintext else PEER.push
    return [build(message, at=at, nonce="77") for message in messages]


@MODES
async def test_a_retry_goes_through(make: Callable[..., Account]) -> None:
    one, (first, again) = make(), pushes(make, TEXT, TEXT)

    assert (await one.verify(first)).plain == (await one.verify(again)).plain == TEXT


async def test_a_retry_that_is_encrypted_anew_goes_through() -> None:
    one = account()
    first, again = (PEER.sealed(PEER.encrypt(TEXT, random=random)) for random in (b"a" * 16, b"b" * 16))

    assert (await one.verify(first)).plain == (await one.verify(again)).plain == TEXT


@MODES
async def test_another_body_under_a_nonce_is_refused(make: Callable[..., Account]) -> None:
    one, (first, other) = make(), pushes(make, TEXT, FORGED)
    await one.verify(first)

    assert (await refusal(one, other)).code == "forbidden"
    assert (await one.verify(first)).plain == TEXT


@MODES
async def test_a_nonce_is_remembered_as_long_as_its_timestamp_is_fresh(make: Callable[..., Account]) -> None:
    clock = Clock()
    one, (first, other) = make(None, clock), pushes(make, TEXT, FORGED, at=NOW + 300)
    await one.verify(first)

    clock.at = NOW + 600

    assert "another body" in (await refusal(one, other)).reason


async def test_a_refused_push_uses_no_nonce_up() -> None:
    one, (first, other) = plaintext(), pushes(plaintext, TEXT, FORGED)
    await refusal(one, with_query(other, signature="0" * 40))

    assert (await one.verify(first)).plain == TEXT


async def test_gateways_that_share_redis_share_the_nonces_of_plain_pushes() -> None:
    shared, (first, other) = Apart(), pushes(plaintext, TEXT, FORGED)
    one, another = plaintext(shared), plaintext(shared)
    await one.verify(first)

    assert (await refusal(another, other)).code == "forbidden"
    assert (await another.verify(first)).plain == TEXT  # WeChat's retry, which a forger was before


async def test_redis_is_not_asked_about_what_the_signature_covers() -> None:
    shared = Away(hangs=False)

    assert (await account(shared).verify(PEER.push())).plain == TEXT
    assert shared.asked == 0


@pytest.mark.parametrize("hangs", [False, True])
async def test_without_redis_this_process_remembers(hangs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonces, "_WAIT_SECS", 0.01)
    one, (first, other) = plaintext(Away(hangs=hangs)), pushes(plaintext, TEXT, FORGED)

    assert (await one.verify(first)).plain == TEXT
    assert (await refusal(one, other)).code == "forbidden"


async def test_what_this_process_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonces, "MAX_KEPT", 10)
    kept = nonces.Nonces("n:", Apart(), Clock())

    for number in range(50):
        await kept.claim(str(number), "digest", 60, everywhere=False)

    assert len(kept._held) == 10


async def test_what_has_expired_is_forgotten() -> None:
    clock = Clock()
    kept = nonces.Nonces("n:", Apart(), clock)
    await kept.claim("1", "digest", 60, everywhere=False)

    clock.at += 61
    await kept.claim("2", "digest", 60, everywhere=False)

    assert list(kept._held) == ["2"]


# Answers


def test_success_is_plain() -> None:
    assert (SUCCESS.status, SUCCESS.body) == (200, b"success")


HOSTILE_TEXT = "您好]]></Content><Content>]]]]>&amp;<b>\n再见"


@pytest.mark.parametrize("peer", [PEER, OLDER], ids=["current key", "previous key"])
@pytest.mark.parametrize(("form", "message"), [("xml", TEXT), ("json", JSON)])
async def test_what_the_account_says_is_encrypted_with_the_key_of_the_push(
    peer: Peer, form: str, message: bytes
) -> None:
    one = account(previous_aes_key=OTHER_AES_KEY)
    push = await one.verify(peer.push(message, form=form))

    reply = one.say(push, HOSTILE_TEXT)

    said = fields(peer.read(reply.body))
    assert (said["ToUserName"], said["FromUserName"], said["MsgType"]) == ("oUser01", "gh_aa11", "text")
    assert said["Content"] == HOSTILE_TEXT
    assert int(said["CreateTime"]) == int(fields(reply.body)["TimeStamp"]) == NOW
    assert reply.content_type == {"xml": "text/xml; charset=utf-8", "json": "application/json"}[form]
    assert reply.status == 200


@pytest.mark.parametrize(("form", "message"), [("xml", TEXT), ("json", JSON)])
async def test_a_plain_push_is_answered_in_clear(form: str, message: bytes) -> None:
    one = plaintext()
    push = await one.verify(PEER.plain(message))

    said = fields(one.say(push, HOSTILE_TEXT).body)

    assert (said["Content"], said["ToUserName"]) == (HOSTILE_TEXT, "oUser01")


@pytest.mark.parametrize(("form", "message"), [("xml", TEXT), ("json", JSON)])
async def test_a_message_is_handed_to_wechats_own_tool(form: str, message: bytes) -> None:
    one = account()
    push = await one.verify(PEER.push(message, form=form))

    said = fields(PEER.read(one.transfer(push).body))

    assert {name: said[name] for name in ("ToUserName", "FromUserName", "MsgType")} == {
        "ToUserName": "oUser01",
        "FromUserName": "gh_aa11",
        "MsgType": "transfer_customer_service",
    }
    assert int(said["CreateTime"]) == NOW


async def test_types_in_json_are_wechats() -> None:
    """`TimeStamp` and `CreateTime` are numbers there."""
    one = account()
    answer = json.loads(one.say(await one.verify(PEER.push(JSON, form="json")), "hello").body)

    assert (type(answer["TimeStamp"]), type(answer["Nonce"])) == (int, str)
    assert type(json.loads(PEER.decrypt(answer["Encrypt"]))["CreateTime"]) is int


def test_the_published_answer() -> None:
    key = Key("A" * 43, "wxba5fad812f8e6fb9", lambda n: b"707722b803182950")

    answer = json.loads(seal(b'{"demo_resp":"good luck"}', "json", key, "AAAAA", 1713424427, "415670741"))

    assert answer == {
        "Encrypt": "ELGduP2YcVatjqIS+eZbp80MNLoAUWvzzyJxgGzxZO/5sAvd070Bs6qrLARC9nVHm48Y4hyRbtzve1L32tmxSQ==",
        "MsgSignature": "1b9339964ed2e271e7c7b6ff2b0ef902fc94dea1",
        "TimeStamp": 1713424427,
        "Nonce": "415670741",
    }


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60) | st.text("]>[<!CDAT&;", max_size=30), form=st.sampled_from(["xml", "json"]))
def test_no_text_breaks_out_of_an_answer(text: str, form: str) -> None:
    one = account()
    push = asyncio.run(one.verify(PEER.push(TEXT if form == "xml" else JSON, form=form)))

    said = fields(PEER.read(one.say(push, text).body))

    assert set(said) == {"ToUserName", "FromUserName", "CreateTime", "MsgType", "Content"}
    assert "".join(said["Content"].split()) in "".join(text.split()) or not text.isprintable()
    assert said["ToUserName"] == "oUser01"


@pytest.mark.parametrize(("form", "message"), [("xml", TEXT), ("json", JSON)])
async def test_what_no_document_can_hold_is_left_out_of_an_answer(form: str, message: bytes) -> None:
    one = account()
    push = await one.verify(PEER.push(message, form=form))

    assert fields(PEER.read(one.say(push, "您\ud800\x00\x1b\uffff好").body))["Content"] == "您好"


async def test_wechatpy_reads_what_the_account_says() -> None:
    one = account()
    reply = one.say(await one.verify(PEER.push()), "您好")

    message = parse_message(PEER.read(reply.body))

    assert (message.type, message.content, message.target) == ("text", "您好", "oUser01")


@pytest.mark.parametrize(
    "message",
    [b"<xml><MsgType>text</MsgType></xml>", b"<xml><ToUserName/><FromUserName><a>b</a></FromUserName></xml>", b"no"],
)
async def test_nobody_is_answered_whom_the_push_does_not_name(message: bytes) -> None:
    one = account()
    push = await one.verify(PEER.push(message))

    for answer in (lambda: one.say(push, "hello"), lambda: one.transfer(push)):
        with pytest.raises(Rejected) as refused:
            answer()
        assert refused.value.code == "malformed"


async def test_the_signature_of_an_answer_is_of_its_own() -> None:
    one = account()
    push = await one.verify(PUSH)

    one_answer, another = fields(one.say(push, "a").body), fields(one.say(push, "a").body)

    assert one_answer["Nonce"] not in (another["Nonce"], PUSH.query["nonce"])
    assert one_answer["MsgSignature"] == sign(TOKEN, str(NOW), one_answer["Nonce"], one_answer["Encrypt"])
