"""A stored form becomes a draft, by the body and the facts alone."""

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.contract import Draft, Part, StoredMessage
from gateway.envelope import Identity, Message, Oddity, Sender
from gateway.errors import Rejected
from normalizers.form import normalize

URLENCODED = "application/x-www-form-urlencoded"
FACTS = {
    "fields": {
        "subject": ["text", ""],
        "text": ["textarea", ""],
        "name": ["text", ""],
        "email": ["email", ""],
        "phone": ["phone", "CN"],
        "second_phone": ["phone", "GB"],
        "product": ["select", ""],
        "reach": ["checkbox", "many"],
        "agree": ["checkbox", ""],
        "bought": ["date", ""],
        "build": ["hidden", "v1"],
        "photo": ["file", ""],
    },
    "language": "zh",
    "remote": "192.0.2.1",
}


def stored(body: bytes, content_type: str = URLENCODED, **facts: Any) -> StoredMessage:
    received_at = datetime(2026, 11, 23, tzinfo=UTC)
    return StoredMessage("id", "web", "form", body, content_type, "nonce", {**FACTS, **facts}, received_at)


def test_every_value_finds_its_place() -> None:
    body = urlencode(
        [
            ("form_token", "…"),
            ("subject", " 打印机\t坏了 "),
            ("text", "一直闪\r\n红灯\r\n"),
            ("name", "张三"),
            ("email", "zhang@Example.com"),
            ("phone", "138 1234 5678"),
            ("second_phone", "020 7946 0958"),
            ("product", "printer"),
            ("reach", "mail"),
            ("reach", "call"),
            ("agree", "on"),
            ("bought", "2026/3/1"),
            ("homepage", ""),
        ]
    ).encode()

    draft = normalize(stored(body, source="shop-12"))

    assert draft == Draft(
        Message(
            kind="form",
            sender=Sender(
                name="张三",
                identities=(
                    Identity(kind="email", value="zhang@example.com"),
                    Identity(kind="phone", value="+8613812345678"),
                ),
            ),
            subject="打印机 坏了",
            text="一直闪\n红灯",
            full_text="一直闪\n红灯",
            language="zh",
            fields={
                "second_phone": "+442079460958",
                "product": "printer",
                "reach": ["mail", "call"],
                "agree": True,
                "bought": "2026-03-01",
                "build": "v1",
                "source": "shop-12",
            },
        )
    )


def test_json_gives_the_same_as_urlencoded() -> None:
    values = {"subject": "a", "text": "b", "reach": ["mail"], "agree": "true", "product": "7788"}
    document = {**values, "agree": True, "product": 7788}

    from_json = normalize(stored(json.dumps(document).encode(), "application/json"))

    assert from_json == normalize(stored(urlencode(values, doseq=True).encode()))


def test_files_become_parts_and_only_those_of_file_fields() -> None:
    body = "\r\n".join(
        [
            *("--b", 'Content-Disposition: form-data; name="text"', "", "看图"),
            *(
                "--b",
                'Content-Disposition: form-data; name="photo"; filename="C:\\x\\图.png"',
                "Content-Type: image/png",
            ),
            *("", "PNG", "--b", 'Content-Disposition: form-data; name="photo"; filename="empty.txt"', "", ""),
            *("--b", 'Content-Disposition: form-data; name="other"; filename="b.png"', "", "no"),
            *("--b", 'Content-Disposition: form-data; name="name"; filename="c.png"', "", "no", "--b--", ""),
        ]
    ).encode()

    draft = normalize(stored(body, "multipart/form-data; boundary=b"))

    assert draft.message.text == "看图"
    assert draft.parts == (Part(b"PNG", "图.png", "image/png"), Part(b"", "empty.txt"))


def test_a_field_that_only_is_called_email_proves_nothing() -> None:
    facts = {"fields": {"email": ["text", ""], "subject": ["checkbox", "many"]}}

    message = normalize(stored(b"email=none&subject=a&subject=b", **facts)).message

    assert message.sender == Sender()
    assert message.fields == {"email": "none", "subject": ["a", "b"]}


def test_a_suspicion_is_shown_and_nothing_dropped() -> None:
    message = normalize(stored(b"text=buy", suspect="honeypot")).message

    assert message.text == "buy"
    assert message.tags == ("suspected-spam",)
    assert message.warnings == (Oddity(code="suspected_spam", detail="honeypot"),)


def test_a_value_that_is_no_longer_valid_is_kept_as_it_is() -> None:
    message = normalize(stored(b"phone=12&bought=soon")).message

    assert message.sender.identities == ()
    assert message.fields == {"phone": "12", "bought": "soon", "build": "v1"}


def test_an_empty_form_is_an_empty_message() -> None:
    facts = {"fields": {"text": ["textarea", ""]}}

    assert normalize(stored(b"", **facts)) == Draft(Message(kind="form", language="zh"))


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (b"{", "application/json", "malformed"),
        (b"--x", "multipart/form-data; boundary=b", "malformed"),
        (b"", "multipart/form-data", "malformed"),
        (b"a", "text/plain", "unsupported_media_type"),
    ],
)
def test_a_body_that_cannot_be_read_is_rejected(body: bytes, content_type: str, code: str) -> None:
    with pytest.raises(Rejected) as caught:
        normalize(stored(body, content_type))

    assert caught.value.code == code


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*FACTS["fields"], "x"]), st.lists(st.text(), max_size=3)))
def test_any_values_give_a_message(values: dict[str, list[str]]) -> None:
    body = urlencode(values, doseq=True, errors="replace").encode()

    draft = normalize(stored(body))

    assert draft == normalize(stored(body))
    draft.message.model_dump_json()


def test_who_is_logged_in_is_known_and_what_the_channel_vouches_for_is_verified() -> None:
    body = urlencode([("text", "坏了"), ("phone", "+8613812345678"), ("second_phone", "+442079460958")]).encode()
    openid = {"kind": "wechat_openid", "value": "oUser01", "verified": True, "account": "wx01"}

    draft = normalize(
        stored(body, identities=[openid], verified=["second_phone"], conversation="wechat:wx01:oUser01", language=None)
    )

    assert draft.message.conversation == "wechat:wx01:oUser01"
    assert draft.message.sender.identities == (
        Identity(kind="wechat_openid", value="oUser01", verified=True, account="wx01"),
        Identity(kind="phone", value="+8613812345678"),
        Identity(kind="phone", value="+442079460958", verified=True),
    )
    assert "second_phone" not in draft.message.fields
