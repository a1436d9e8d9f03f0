"""What becomes of a message that a program handed in."""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.apimessage import parse
from gateway.contract import Draft, Part, StoredMessage
from gateway.envelope import Identity, Message, Oddity, Sender
from gateway.errors import Rejected
from normalizers.api import normalize

FACTS = {"key": "shop-2026", "client": "shop", "scheme": "bearer", "vouches_for": ["user_id"]}
WHOLE = {
    "subject": "打印机坏了",
    "text": "开机以后\r\n一直闪红灯。",
    "html": "<p onclick='x()'>开机以后<script>alert(1)</script></p>",
    "sender": {"name": " 张三 ", "email": "Zhang@Example.CN", "phone": "+86 138-0013-8000", "user_id": "u-1024"},
    "conversation": "printer-7788",
    "fields": {"order_no": "7788", "list": [1, {"deep": None}]},
    "sent_at": "2026-11-23T17:00:00.123+08:00",
    "language": "zh_CN",
    "attachments": [{"filename": "C:\\logs\\a.txt", "content_type": "text/plain", "content": "aGVsbG8="}],
}


def stored(body: bytes, content_type: str = "application/json", **facts: Any) -> StoredMessage:
    received = datetime(2026, 11, 23, 9, tzinfo=UTC)
    return StoredMessage("id", "shop-api", "api", body, content_type, "shop:k", FACTS | facts, received)


def draft(**document: Any) -> Draft:
    return normalize(stored(json.dumps({"text": "x"} | document).encode()))


def message(**document: Any) -> Message:
    return draft(**document).message


def test_everything_finds_its_place() -> None:
    found = draft(**WHOLE)

    assert found.message == Message(
        conversation="printer-7788",
        sent_at=datetime(2026, 11, 23, 9, 0, 0, 123000, UTC),
        sender=Sender(
            name="张三",
            identities=(
                Identity(kind="user_id", value="u-1024", verified=True, account="shop"),
                Identity(kind="email", value="Zhang@example.cn"),
                Identity(kind="phone", value="+8613800138000"),
            ),
        ),
        subject="打印机坏了",
        text="开机以后\n一直闪红灯。",
        full_text="开机以后\n一直闪红灯。",
        html="<p>开机以后</p>",
        language="zh-CN",
        fields={"order_no": "7788", "list": [1, {"deep": None}]},
    )
    assert found.parts == (Part(b"hello", "a.txt", "text/plain"),)


@pytest.mark.parametrize("nothing", [None, ""])
def test_null_and_an_empty_string_are_nothing(nothing: str | None) -> None:
    keys = ("subject", "html", "conversation", "sent_at", "language")
    sender = dict.fromkeys(("name", "email", "phone", "user_id"), nothing)

    assert message(**dict.fromkeys(keys, nothing), sender=sender) == Message(text="x", full_text="x")


def test_a_key_vouches_for_what_it_says() -> None:
    body = json.dumps({"text": "x", "sender": WHOLE["sender"]}).encode()

    sender = normalize(stored(body, vouches_for=["phone", "email"])).message.sender

    assert {one.kind: one.verified for one in sender.identities} == {"user_id": False, "email": True, "phone": True}


@pytest.mark.parametrize(
    ("given_", "phone"),
    [
        ("+44 (0)20 7946 0958", "+442079460958"),
        ("+1", "+1"),
        ("+nonsense", "+nonsense"),
        ("138 0013 8000", "138 0013 8000"),
    ],
)
def test_a_phone_number_is_e164_where_it_can_be(given_: str, phone: str) -> None:
    assert message(sender={"phone": given_}).sender.identities == (Identity(kind="phone", value=phone),)


@pytest.mark.parametrize("tag", ["zh", "en-US", "zh-Hant-TW", "sr-Latn-RS"])
def test_a_language_tag_is_kept(tag: str) -> None:
    assert message(language=tag).language == tag


def test_what_is_no_language_tag_is_told_and_left_out() -> None:
    found = message(language="Chinese (simplified)")

    assert found.language is None
    assert found.warnings == (Oddity(code="unknown_language", detail="Chinese (simplified)"),)


def test_control_characters_are_left_out() -> None:
    found = message(
        subject="a\0b\nc", text="a\0\x1b[31mb", conversation="\x07k", fields={"a": ["x\0y\tz\r\n", {"b": "\0"}], "n": 1}
    )

    assert (found.subject, found.text, found.conversation) == ("ab c", "a[31mb", "k")
    assert found.fields == {"a": ["xy\tz\n", {"b": ""}], "n": 1}


@pytest.mark.parametrize("time", ["1970-01-01T00:00:00+23:59", "2199-12-31T23:59:59.999999999-23:59"])
def test_the_ends_of_time_are_read(time: str) -> None:
    assert message(sent_at=time).sent_at == datetime.fromisoformat(time).astimezone(UTC)


def test_multipart_has_its_files_after_the_attachments() -> None:
    document = {"text": "x", "attachments": [{"content": base64.b64encode(b"first").decode()}]}
    body = (
        '--b\r\nContent-Disposition: form-data; name="photo"; filename="照片.png"\r\nContent-Type: image/png\r\n\r\n'
        'second\r\n--b\r\nContent-Disposition: form-data; name="message"\r\n\r\n'
        f"{json.dumps(document)}\r\n--b--\r\n"
    ).encode()

    found = normalize(stored(body, 'Multipart/Form-Data; boundary="b"'))

    assert found.parts == (Part(b"first"), Part(b"second", "照片.png", "image/png"))


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b"{}", "application/json"),
        (b'{"text": 1}', "application/json"),
        (b"--b--\r\n", "multipart/form-data; boundary=b"),
        (b"", "multipart/form-data; boundary=b"),
    ],
)
def test_what_cannot_be_read_is_rejected(body: bytes, content_type: str) -> None:
    with pytest.raises(Rejected) as caught:
        normalize(stored(body, content_type))

    assert caught.value.code == "malformed"


def _doubled(key: str, value: str) -> Callable[[str], str]:
    return lambda document: f'{document[:-1]}, "{key}": {value}}}'


@given(
    st.sampled_from(["text", "subject", "conversation"]),
    st.text(st.characters(codec="utf-8", min_codepoint=33), min_size=1).map(json.dumps),
)
def test_it_reads_doubtful_json_as_the_check_did(key: str, value: str) -> None:
    document = _doubled(key, value)(json.dumps({"text": "first", "subject": "first", "conversation": "first"}))

    checked, read = parse(document.encode()), normalize(stored(document.encode())).message

    assert getattr(checked, key) == json.loads(value)
    assert (getattr(read, key) == "first") == (json.loads(value) == "first")
