"""The normalizer of mail: the made corpus, hostile mails within their time, facts, limits, and anything at all."""

import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from email import message_from_bytes
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.contract import Draft, StoredMessage
from gateway.errors import Rejected
from gateway.mail.identity import native_id
from gateway.text import file_name
from normalizers.rfc5322 import normalize

FOLDER = Path(__file__).parent.parent / "payloads" / "rfc5322" / "generated"
EXPECTED: dict[str, dict[str, Any]] = json.loads((FOLDER / "expected.json").read_text("utf-8"))
HEAD = b"From: a@example.com\r\nSubject: s\r\n"
SECONDS = 2.0  # of the processor, on a slow machine; alone most of these take a tenth of one


def stored(body: bytes, **facts: Any) -> StoredMessage:
    return StoredMessage(
        id="id",
        channel="mailbox",
        kind="rfc5322",
        body=body,
        content_type="",
        native_id=None,
        facts=facts,
        received_at=datetime(2026, 11, 23, 9, tzinfo=UTC),
    )


def mail(name: str) -> bytes:
    return (FOLDER / f"{name}.eml").read_bytes()


# The made corpus


@pytest.mark.parametrize("name", EXPECTED)
def test_a_made_mail_is_read_as_expected(name: str) -> None:
    expected = dict(EXPECTED[name])
    if "from_name" in expected:
        expected["from_name"] = expected["from_name"].strip()  # three of them were cut at a blank

    draft = normalize(stored(mail(name)))

    found = _found(draft)
    for key in expected.keys() & found.keys():
        assert found[key] == expected[key], key
    for words in expected.get("text_contains", ()):
        assert words in draft.message.full_text
    for words in expected.get("any_contains", ()):
        assert words in draft.message.full_text + (draft.message.html or "")
    for file in expected.get("attachments", ()):
        assert any(_is_file(file, part.filename, part.content) for part in draft.parts), file


def _found(draft: Draft) -> dict[str, Any]:
    message = draft.message.model_dump(mode="json")
    people = [(one["role"], one["value"]) for one in message["recipients"]]
    identities = message["sender"]["identities"]
    return {
        "from_email": identities[0]["value"] if identities else None,
        "from_name": message["sender"]["name"],
        "to_emails": [value for role, value in people if role == "to"],
        "cc_emails": [value for role, value in people if role == "cc"],
        "subject": message["subject"],
        "message_id": message["thread"]["message_id"],
        "in_reply_to": message["thread"]["in_reply_to"],
        "references": message["thread"]["references"],
        "date_utc": message["sent_at"] and message["sent_at"].replace(".000Z", "Z"),
    }


def _is_file(expected: dict[str, Any], name: str, content: bytes) -> bool:
    """A name is kept without the folders in front of it: what a sender calls `../../etc/passwd` is `passwd`."""
    same = expected.get("sha256") in {None, sha256(content).hexdigest()}
    return name == file_name(expected["filename"]) and len(content) == expected["size"] and same


@pytest.mark.parametrize("name", [name for name in EXPECTED if not name.startswith("hostile")])
def test_the_standard_library_sees_the_same_files(name: str) -> None:
    """Sizes only: names and charsets are what it gets wrong."""
    theirs = [
        len(part.get_payload(decode=True) or b"")  # type: ignore[arg-type]
        for part in message_from_bytes(mail(name)).walk()
        if part.get_content_disposition() == "attachment"
    ]

    draft = normalize(stored(mail(name)))

    assert [len(part.content) for part in draft.parts] == theirs


# Hostile mails

_WORDS = b"=?utf-8?q?a?= "
_NESTED = (b"--b%d\r\nContent-Type: multipart/mixed; boundary=b%d\r\n\r\n" % (n, n + 1) for n in range(10_000))
HOSTILE = {
    "semicolons": b"Content-Type: text/plain" + b";" * 100_000 + b"\r\n\r\nx",
    "encoded words": b"Subject: " + _WORDS * 20_000 + b"\r\n\r\nx",
    "open encoded words": b"Subject: " + b"=?utf-8?q?" * 50_000 + b"\r\n\r\nx",
    "addresses": b"To: " + b", ".join(b"user%d@example.com" % n for n in range(20_000)) + b"\r\n\r\nx",
    "parentheses": b"To: " + b"(" * 50_000 + b"\r\n\r\nx",
    "quotes": b"To: " + b'"\\' * 250_000 + b"\r\n\r\nx",
    "angle brackets": b"To: " + b"a <b" * 250_000 + b"\r\n\r\nx",
    "commas": b"To: " + b"," * 500_000 + b"\r\n\r\nx",
    "words in addresses": b"To: " + b"=?a?q?" * 150_000 + b"\r\n\r\nx",
    "at signs": b"To: " + b" @ ." * 250_000 + b"\r\n\r\nx",
    "parts": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * 10_000 + b"--b--",
    "nested multiparts": b"Content-Type: multipart/mixed; boundary=b0\r\n\r\n" + b"".join(_NESTED) + b"x",
    "RFC 2231 sections": b"Content-Type: text/plain" + b"".join(b"; a*%d=x" % n for n in range(5_000)) + b"\r\n\r\nx",
    "headers": b"a: b\n" * 1_000_000 + b"\r\nx",
    "lines that are no headers": b"abc\n" * 300_000 + b"\r\nx",
    "such lines between headers": b"From: x\nabc\n" * 100_000 + b"\r\nx",
    "one long header": b"X-Long: " + b"x" * 1_000_000 + b"\r\n\r\nx",
    "references": b"References: " + b"<a@example.com> " * 50_000 + b"\r\n\r\nx",
    "base64 in pieces": b"Content-Transfer-Encoding: base64\r\n\r\n" + b"YQ=Y=" * 200_000,
    "equals signs": b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + b"= " * 500_000,
    "uuencode that never ends": b"\r\n" + b"begin 644 a\n" * 100_000,
    "uuencoded files": b"\r\n" + b"begin 644 a\n#86)C\n`\nend\n" * 5_000,
    "escape sequences": b"\r\n" + b"\x1b$B" * 300_000,
    "high bytes": b"\r\n" + bytes(range(128, 256)) * 8_000,
    "carriage returns": b"\r" * 1_000_000,
    "blank lines": b" \n" * 500_000,
    "zeros": b"\0" * 1_000_000,
    "a date": b"Date: " + b"1 " * 500_000 + b"\r\n\r\nx",
    "lines like boundaries": b"Content-Type: multipart/mixed\r\n\r\n" + b"--a\n" * 200_000,
    "quote marks": b"\r\n" + b"> a\n" * 60_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_mail_takes_no_longer_than_its_size(name: str) -> None:
    body = HEAD + HOSTILE[name]

    began = time.process_time()
    draft = normalize(stored(body))
    known = native_id(body)
    took = time.process_time() - began

    assert took < SECONDS
    assert len(draft.message.model_dump_json()) < 3 * len(body) + 10_000
    assert known == native_id(body)


def test_what_is_beyond_a_limit_is_said_to_be_left_out() -> None:
    parts = b"".join(b'--b\r\nContent-Type: image/png; name="%d.png"\r\n\r\nx\r\n' % n for n in range(9))
    people = b", ".join(b"user%d@example.com" % n for n in range(9))
    head = b"From: a@example.com\r\nTo: %s\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n" % people
    limits = {"attachments": 2, "recipients": 3, "text_chars": 5, "parts": 8}

    draft = normalize(stored(head + b"--b\r\n\r\nlong text\r\n" + parts + b"--b--", limits=limits))

    left_out = {(one.what, one.filename) for one in draft.message.omissions}
    assert left_out >= {("recipients", None), ("attachment", "2.png"), ("text", None), ("attachment", None)}
    assert (len(draft.parts), len(draft.message.recipients), draft.message.full_text) == (2, 3, "long ")


# Facts


def test_a_mail_the_mailbox_cannot_give_is_rejected() -> None:
    with pytest.raises(Rejected) as rejected:
        normalize(stored(b"", unreadable="the server answers NO"))

    assert rejected.value.code == "unreadable"
    assert rejected.value.reason == "the server answers NO"


def test_facts_of_the_channel_reach_the_ticket() -> None:
    facts = {"rcpt_to": ["help@acme.cn"], "tags": ["vip"], "queue": "sales", "reference": "7K3M-9QX2-4WPD"}

    message = normalize(stored(HEAD + b"\r\nx", size=10**9, truncated=True, **facts)).message

    assert [(one.role, one.value) for one in message.recipients] == [("envelope", "help@acme.cn")]
    assert (message.tags, message.queue, message.fields["reference"]) == (("vip",), "sales", "7K3M-9QX2-4WPD")
    assert [(one.what, one.size) for one in message.omissions] == [("message", 10**9)]


def test_a_customer_s_urgency_goes_before_that_of_the_address() -> None:
    said, silent = (HEAD + line + b"\r\nx" for line in (b"Importance: low\r\n", b""))

    assert [normalize(stored(raw, priority="high")).message.priority for raw in (said, silent)] == ["low", "high"]


def test_a_reference_that_anyone_may_write_is_a_hint() -> None:
    message = normalize(stored(b"From: a@example.com\r\nSubject: Re: [7K3M-9QX2-4WPD] order\r\n\r\nx")).message

    assert message.fields == {"reference_hint": "7K3M-9QX2-4WPD"}
    assert message.conversation is None


@pytest.mark.parametrize(
    ("headers", "root"),
    [
        (b"References: <r@x> <p@x>\r\nIn-Reply-To: <p@x>\r\nMessage-ID: <m@x>", "r@x"),
        (b"In-Reply-To: <p@x>\r\nMessage-ID: <m@x>", "p@x"),
        (b"Message-ID: <m@x>", "m@x"),
        (b"X: y", None),
    ],
)
def test_the_conversation_is_the_root_of_the_thread(headers: bytes, root: str | None) -> None:
    assert normalize(stored(headers + b"\r\n\r\nx")).message.conversation == root


def test_a_long_thread_keeps_its_root_and_its_end() -> None:
    ids = b" ".join(b"<%d@x>" % n for n in range(600))

    thread = normalize(stored(b"References: " + ids + b"\r\n\r\nx")).message.thread

    assert len(thread.references) == 500
    assert (thread.references[0], thread.references[-1]) == ("0@x", "599@x")


# Anything at all

_PIECES = st.sampled_from(
    [
        *(b"From: ", b"To: ", b"Subject: ", b"Date: ", b"Content-Type: ", b"Content-Disposition: ", b"References: "),
        *(b"Content-Transfer-Encoding: ", b"base64", b"quoted-printable", b"x-uuencode", b"attachment; filename="),
        *(b"multipart/mixed; boundary=b", b"multipart/related; boundary=b", b"multipart/alternative; boundary=b"),
        *(b"text/html; charset=", b"text/plain; charset=", b"message/rfc822", b"multipart/signed", b"format=flowed"),
        *(b"gb2312", b"utf-7", b"utf-16", b"iso-2022-jp", b"hz", b"utf-8", b"big5", b"iso-2022-kr", b"unknown"),
        *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\n\n", b"--b\r\n", b"--b--\r\n", b" ", b"\t", b";", b",", b":", b"@"),
        *(b"=?utf-8?b?", b"=?gbk?q?", b"?=", b"=", b"<", b">", b"(", b")", b'"', b"\\", b"*0*=", b"%E5", b"''"),
        *(b"\x1b$B", b"\x1b$)C", b"~{", b"+AGE-", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe6\x82\xa8", b"\xc4\xfa", b"\x80"),
        *(
            b"begin 644 a\n",
            b"#86)C\n",
            b"end\n",
            b"<p>",
            b"<div",
            b"&#x",
            b"cid:",
            b"-- \n",
            b"> ",
            b"\0",
            b"5 Mar 2024",
        ),
        *(b"\x78\x9f\x3e\x22", b"a@b.cn", b"\xf0\x9f\x98\x80", b"Message-ID: <a@b>", b"+2AA-", b"Return-Path: <>"),
    ]
)
_MAILS = st.lists(_PIECES | st.binary(max_size=6), max_size=60).map(b"".join)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=_MAILS)
def test_whatever_comes_becomes_a_ticket(body: bytes) -> None:
    draft = normalize(stored(body))

    draft.message.model_dump_json().encode("utf-8")
    assert "\0" not in draft.message.model_dump_json()
    assert normalize(replace(stored(body))) == draft
    native_id(body).encode("utf-8")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(sorted(EXPECTED)), at=st.floats(0, 1), gone=st.integers(0, 30), new=st.binary(max_size=8))
def test_a_damaged_mail_becomes_a_ticket(name: str, at: float, gone: int, new: bytes) -> None:
    body = mail(name)
    place = int(at * len(body))

    draft = normalize(stored(body[:place] + new + body[place + gone :]))

    draft.message.model_dump_json().encode("utf-8")


@pytest.mark.parametrize("kind", [b"text/html", b"text/plain"])
def test_half_a_character_goes_nowhere(kind: bytes) -> None:
    """UTF-7 can spell one; then no JSON and no sanitiser takes the text."""
    words = b"=?utf-7?q?+2AA-?="
    head = b"Subject: " + words + b"\r\nFrom: " + words + b" <a@b.cn>\r\nMessage-ID: <" + words + b"@x>\r\n"

    message = normalize(stored(head + b"Content-Type: " + kind + b"; charset=utf-7\r\n\r\na+2AA-b")).message

    assert (message.subject, message.full_text) == ("\ufffd", "a\ufffdb")
    message.model_dump_json().encode("utf-8")
