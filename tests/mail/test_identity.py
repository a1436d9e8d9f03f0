"""When two mails are one."""

from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import BodyFile
from gateway.mail.identity import fingerprint, native_id

MAIL = b"From: a@example.com\r\nDate: now\r\nSubject: a\r\n b\r\nMessage-ID: <1@x>\r\n\r\nbody\r\nmore\r\n"


@pytest.mark.parametrize(
    "other",
    [
        b"Received: by mx; now\r\n" + MAIL,
        b"Return-Path: <b@x>\r\nDelivered-To: c@x\r\nX-Spam: no\r\n" + MAIL,
        MAIL.replace(b"\r\n", b"\n"),
        MAIL.replace(b"\r\n", b"\r"),
        MAIL + b"\r\n\r\n",
        MAIL.rstrip(),
        MAIL.replace(b"a\r\n b", b"a b"),
        b"From a@example.com Tue Mar  5 10:11:12 2024\n" + MAIL,
        MAIL.replace(b"Message-ID", b"Message-Id"),
    ],
)
def test_two_ways_of_one_mail(other: bytes) -> None:
    assert native_id(other) == native_id(MAIL)


@pytest.mark.parametrize(
    "other",
    [
        MAIL.replace(b"more", b"less"),
        MAIL.replace(b"a\r\n b", b"c"),
        MAIL.replace(b"Date: now", b"Date: later"),
        MAIL.replace(b"a@example.com", b"b@example.com"),
        MAIL.replace(b"<1@x>", b"<2@x>"),
        MAIL.replace(b"body\r\n", b"body\r\n\r\n"),
    ],
)
def test_other_content_is_another_mail(other: bytes) -> None:
    assert native_id(other) != native_id(MAIL)


def test_a_mail_without_an_id_has_one_by_its_content() -> None:
    nameless = MAIL.replace(b"Message-ID: <1@x>\r\n", b"")

    assert native_id(nameless).startswith("#")
    assert native_id(nameless) != native_id(nameless.replace(b"more", b"less"))


@pytest.mark.parametrize("line", [b"x" * 70 + b"\r\n", b"\r\n", b"\r"])
def test_a_file_has_the_id_of_its_bytes(line: bytes, tmp_path: Path) -> None:
    body = MAIL + line * 300_000
    path = tmp_path / "mail"
    path.write_bytes(body)

    known = native_id(BodyFile(path, len(body), sha256(body).digest()))

    assert known == native_id(body)


def test_the_fingerprint_is_that_of_the_id() -> None:
    assert fingerprint(native_id(MAIL)) == fingerprint(native_id(b"Received: by mx\r\n" + MAIL))


def test_a_long_id_is_cut_to_its_digest() -> None:
    assert len(native_id(b"Message-ID: <" + b"x" * 5000 + b"@x>\r\n\r\n")) < 200


@given(body=st.binary(max_size=200), cut=st.integers(0, 200))
def test_line_ends_do_not_matter(body: bytes, cut: int) -> None:
    text = body.replace(b"\r", b"")

    assert native_id(text.replace(b"\n", b"\r\n")) == native_id(text)
