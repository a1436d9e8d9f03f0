"""What wrote a mail: payloads/auto has the mails, and what a reader of each would say of it."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail import charset
from gateway.mail.auto import Verdict, classify
from gateway.mail.html import to_text
from gateway.mail.message import Part, parse

PAYLOADS = Path(__file__).parents[1] / "payloads" / "auto"
EXPECTED: dict[str, dict[str, Any]] = json.loads((PAYLOADS / "expected.json").read_text("utf-8"))
# Words that decide something, in every kind of place.
WORDS = st.sampled_from(
    (
        *(b"Auto-Submitted: auto-replied", b"Content-Type: multipart/report; boundary=x", b"--x", b"<a@b.example>:"),
        *(
            b"Content-Type: message/delivery-status",
            b"Final-Recipient: rfc822; a@b",
            b"Action: failed",
            b"550 5.1.1 no",
        ),
        *(b"Subject: failure notice", b"From: MAILER-DAEMON", b"Return-Path: <>", b"=?utf-8?q?=", b"\xff\x00", b""),
        *("Subject: 自动回复：".encode(), "退信".encode("gb18030"), "无法送达 a@b.example".encode(), b"\x1b$B"),
    )
)


def text_of(part: Part) -> str:
    if part.children:
        return "\n".join(map(text_of, part.children))
    if not part.content_type.startswith("text/") or part.content_type == "text/rfc822-headers":
        return ""
    text = charset.decode(part.body, part.params.get("charset", "")).text
    return to_text(text) if part.content_type == "text/html" else text


def judged(raw: bytes) -> Verdict:
    mail = parse(raw)
    return classify(mail, text_of(mail))


def test_every_payload_is_judged() -> None:
    assert {path.stem for path in PAYLOADS.glob("*.eml")} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_payload(name: str) -> None:
    expected = dict(EXPECTED[name])

    verdict = judged((PAYLOADS / f"{name}.eml").read_bytes())

    assert verdict.auto == expected.pop("auto")
    said = verdict.fields.get("bounce_diagnostic", "")
    assert expected.pop("diagnostic_has", "") in said
    for key, value in expected.items():
        assert verdict.fields.get(f"bounce_{key}") == value


def test_fields_only_for_bounces() -> None:
    for name, expected in EXPECTED.items():
        verdict = judged((PAYLOADS / f"{name}.eml").read_bytes())
        assert bool(verdict.fields) == (expected["auto"] == "bounce"), name


def test_a_set_that_is_large_enough() -> None:
    people = [name for name, expected in EXPECTED.items() if expected["auto"] is None]

    assert len(EXPECTED) >= 80
    assert len(people) >= 25


def test_the_return_path_of_the_transaction_counts() -> None:
    mail = parse(b"From: a@b.example\r\nSubject: Re: x\r\n\r\nI am out of the office.\r\n")

    assert classify(mail, "I am out of the office.").auto is None
    assert classify(mail, "I am out of the office.", mail_from="").auto == "auto_reply"
    assert classify(mail, "I am out of the office.", mail_from="a@b.example").auto is None


def test_a_null_return_path_alone_decides_nothing() -> None:
    mail = parse(b"Return-Path: <>\r\nFrom: a@b.example\r\nSubject: printer\r\n\r\nIt does not print.\r\n")

    assert classify(mail, "It does not print.").auto is None


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("550 5.1.1 User unknown", "5.1.1"),
        ("host mx[10.5.1.1] said: 552 mailbox full", "5.2.2"),
        ("#5.4.7 retry timeout exceeded", "5.4.7"),
        ("550 用户不存在", "5.1.1"),
        ("对方邮箱已满", "5.2.2"),
        ("找不到收件人的域名", "5.1.2"),
        ("邮件过大，超过限制", "5.3.4"),
        ("该帐号已停用", "5.2.1"),
        ("554 垃圾邮件", "5.7.1"),
        ("connection timed out", "4.4.1"),
        ("421 try again", "4.0.0"),
        ("550 go away", "5.0.0"),
        ("nothing is said", None),
    ],
)
def test_status_from_prose(text: str, status: str | None) -> None:
    report = f"Your message could not be delivered.\n\n<li@corp.example>: {text}\n"
    mail = parse(b"From: MAILER-DAEMON@mx.example\r\nReturn-Path: <>\r\nSubject: failure notice\r\n\r\n")

    verdict = classify(mail, report)

    assert verdict.fields["bounce_recipients"] == ["li@corp.example"]
    assert verdict.fields.get("bounce_status") == status


@given(st.lists(WORDS | st.binary(max_size=20), max_size=30).map(b"\r\n".join))
def test_nothing_raises(raw: bytes) -> None:
    verdict = judged(raw)

    assert all(name.startswith("bounce_") for name in verdict.fields)
    json.dumps(dict(verdict.fields), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "piece",
    [
        "<a@b.c> ",
        "a@",
        "<<<<",
        "((((",
        "a@b.c\n",
        "550 ",
        "收件人 ",
        "> ",
        "----",
        "on a ",
        "5.1.1.",
        "\n\n",
        "退",
        "a" * 64,
        "@",
    ],
)
def test_time_is_linear(piece: str) -> None:
    head = b"From: MAILER-DAEMON@mx.example\r\nReturn-Path: <>\r\nSubject: failure notice\r\n"
    kind = b"Content-Type: multipart/report; boundary=x\r\n\r\n--x\r\nContent-Type: message/delivery-status\r\n\r\n"
    text = piece * (500_000 // len(piece))
    mails = [parse(head + b"\r\n" + text[:1000].encode()), parse(head + kind + text.encode() + b"\r\n--x--\r\n")]
    started = time.process_time()

    for mail in mails:
        classify(mail, text)

    assert time.process_time() - started < 1.5
