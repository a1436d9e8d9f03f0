"""The tree of a mail's parts and the text of its headers, beside what the standard library makes of them."""

from email import message_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail import parameters, transfer, words
from gateway.mail.message import Limits, Part, parse

MIXED = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"


def leaves(part: Part) -> list[Part]:
    return [leaf for child in part.children for leaf in leaves(child)] if part.children else [part]


def test_names_of_headers_are_found_in_any_case_and_values_are_unfolded() -> None:
    headers = parse(b"SUBJECT: one\r\n\ttwo\r\nReceived: a\r\nreceived: b\r\n\r\n").headers

    assert headers.first("Subject") == b"one\ttwo"
    assert headers.all("RECEIVED") == [b"a", b"b"]
    assert (headers.first("X"), headers.text("X"), "x" in headers) == (None, "", False)


@pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r", b"\r\r\n"])
def test_any_line_end_will_do(end: bytes) -> None:
    mail = parse(end.join((b"From: a@b", b"Subject: s", b"", b"text", b"")))

    assert (mail.headers.text("Subject"), mail.body.strip()) == ("s", b"text")


@pytest.mark.parametrize(
    ("raw", "subject", "body"),
    [
        (b"From x Tue Mar 5 2024\nSubject: s\n\nt", "s", b"t"),
        (b"\n \nSubject: s\n\nt", "s", b"t"),
        (b"just text\nand more\n", "", b"just text\nand more\n"),
        (b"Note: this\nis text\n\nall of it", "", b"Note: this\nis text\n\nall of it"),
        (b"Subject: s\nnobody wrote the empty line\n", "s", b"nobody wrote the empty line\n"),
        (b"From: a@b\nnonsense\nSubject: s\n\nt", "s", b"t"),
        (b"Subject : s\n\nt", "s", b"t"),
        (b"", "", b""),
    ],
)
def test_where_the_header_ends(raw: bytes, subject: str, body: bytes) -> None:
    mail = parse(raw)

    assert (mail.headers.text("Subject"), mail.body) == (subject, body)


@pytest.mark.parametrize(
    ("raw", "bodies"),
    [
        (MIXED + b"--b\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--\r\nafter", [b"one", b"two"]),
        (MIXED + b"--b\r\n\r\none\r\n--bc\r\n\r\ntwo", [b"one\r\n--bc\r\n\r\ntwo"]),
        (MIXED + b"--b\r\n\r\none", [b"one"]),
        (MIXED + b"--b\r\n--b--", [b""]),
        (b"Content-Type: multipart/mixed\r\n\r\n--x\r\n\r\none\r\n--x--", [b"one"]),
        (MIXED + b"no delimiter", [b"no delimiter"]),
    ],
)
def test_where_parts_begin_and_end(raw: bytes, bodies: list[bytes]) -> None:
    assert [leaf.body for leaf in leaves(parse(raw))] == bodies


def test_beyond_the_limits_parts_are_counted() -> None:
    many = parse(MIXED + b"--b\r\n\r\nx\r\n" * 9, Limits(parts=4))
    deep = parse(MIXED + b"--b\r\n" + MIXED + b"--c\r\n\r\nx", Limits(depth=1))

    assert (len(many.children), many.omitted) == (4, 5)
    assert (deep.omitted, deep.content_type) == (1, "application/octet-stream")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"=?utf-8?B?5oKo5aU=?= =?utf-8?B?veS4lueVjA==?=", "您好世界"),
        (b"=?utf-8?B?5oKo5aW9?==?utf-8?B?5LiW55WM?=", "您好世界"),
        (b"=?UTF-8?Q?Re: caf=C3=A9 bar?=", "Re: café bar"),
        (b"=?gb2312?B?xPq6ww?=", "您好"),
        (b"=?utf-8*en?Q?caf=C3=A9?=", "café"),
        (b"=?utf-8?b?5oKo5aW9?", "=?utf-8?b?5oKo5aW9?"),
        (b"=?x-unknown?q?a?= b", "a b"),
        ("您好".encode(), "您好"),
        ("您好，订单".encode("gbk"), "您好，订单"),
        (b"=?utf-8?b?" * 3 + b"5oKo?=", "=?utf-8?b?=?utf-8?b?您"),
    ],
)
def test_header_text(raw: bytes, text: str) -> None:
    assert words.decode(raw) == text


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"attachment; filename*=UTF-8''%E5%8F%91.pdf", "发.pdf"),
        (b"attachment; filename*0*=gb2312''%B7%A2; filename*1=.pdf", "发.pdf"),
        (b"attachment; filename=my file.pdf; size=3", "my file.pdf"),
        (b"attachment; filename==?utf-8?B?5Y+R56WoLnBkZg==?=", "发票.pdf"),
        (b'attachment; filename="a \\"b\\".pdf"', 'a "b".pdf'),
        (b'attachment filename="a.pdf"', "a.pdf"),
        ('attachment; filename="发票.pdf"'.encode("gbk"), "发票.pdf"),
    ],
)
def test_names_of_files(raw: bytes, name: str) -> None:
    value, params = parameters.parse(raw)

    assert (value, params["filename"]) == ("attachment", name)


@pytest.mark.parametrize(
    ("encoded", "content"),
    [
        (b"YWJj", b"abc"),
        (b"YW Jj\r\n!", b"abc"),
        (b"YWI", b"ab"),
        (b"YWI=\r\nYWI=", b"abab"),
        (
            b"YWJj\r\n\r\n--\r\nthis list is kindly hosted by nobody at all",
            b"YWJj\r\n\r\n--\r\nthis list is kindly hosted by nobody at all",
        ),
        (b"YWJjZGVmZ2hpamtsbW4=\r\n____\r\nfooter of a list", b"abcdefghijklmn"),
        (b"this is plainly text", b"this is plainly text"),
    ],
)
def test_base64(encoded: bytes, content: bytes) -> None:
    assert transfer.base64(encoded) == content


_PART = st.binary(max_size=30).filter(lambda body: b"--" not in body and b"\r" not in body and b"\n" not in body)


@given(bodies=st.lists(_PART, min_size=1, max_size=5))
def test_the_parts_are_those_of_the_standard_library(bodies: list[bytes]) -> None:
    raw = MIXED + b"".join(b"--b\r\n\r\n" + body + b"\r\n" for body in bodies) + b"--b--\r\n"

    theirs = [part.get_payload(decode=True) for part in message_from_bytes(raw).get_payload()]  # type: ignore[union-attr]

    assert [leaf.body for leaf in leaves(parse(raw))] == theirs == bodies


@given(raw=st.binary(max_size=200))
def test_whatever_comes_is_a_tree(raw: bytes) -> None:
    assert parse(raw)
    assert parse(b"Content-Type: " + raw + b"\r\n\r\n" + raw)
    words.decode(raw).encode("utf-8")
    transfer.decode(raw, b"base64")
    transfer.decode(raw, b"x-uuencode")
    transfer.decode(raw, b"quoted-printable")
