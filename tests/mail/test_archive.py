"""Old mail where it lies: every format, every damage, and never more than a message in memory."""

import os
import re
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.archive import Found, Mail, Unreadable, mbox, read, sources

LIMIT = 1 << 20
ONE = b"From: a@example.com\nSubject: one\n\nfirst body\n"
TWO = b"From: b@example.com\nSubject: two\n\nsecond body\n"
POSTMARK = b"From a@example.com Tue Jan  2 10:00:00 2001\n"


def box(*messages: bytes, postmark: bytes = POSTMARK) -> bytes:
    return b"".join(postmark + message + b"\n" for message in messages)


def split(content: bytes, limit: int = LIMIT) -> list[Found]:
    return list(mbox(BytesIO(content), "old", limit))


def contents(found: list[Found]) -> list[bytes]:
    assert all(isinstance(one, Mail) for one in found), found
    return [one.content for one in found if isinstance(one, Mail)]


def look(*paths: Path, limit: int = LIMIT) -> list[Found]:
    return [found for source in sources(paths) for found in read(source, limit)]


def put(path: Path, content: bytes = ONE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- mbox -------------------------------------------------------------------------------------------------------------


def test_the_messages_of_an_mbox_come_as_they_were() -> None:
    found = split(box(ONE, TWO))

    assert contents(found) == [ONE, TWO]
    assert [one.name for one in found] == ["old#1", "old#2"]
    assert sum(one.length for one in found) == len(box(ONE, TWO))


@pytest.mark.parametrize(
    "postmark",
    [
        b"From - Tue Jan 02 10:00:00 2001\n",  # Thunderbird
        b"From 1234567890123456789@xxx Tue Jan 02 10:00:00 +0000 2001\n",  # Gmail's export
        b"From MAILER-DAEMON Tue Jan  2 10:00:00 2001\n",
        b"From a@example.com  Tue Jan  2 10:00 2001\n",
        b"From a b c Tue Jan  2 11:00:00 2001 +0100\n",
        b"From a@example.com Tue, 02 Jan 2001 10:00:00 +0000\n",
        b"From a@example.com Tue Jan  2 10:00:00 2001\r\n",
    ],
)
def test_whoever_wrote_it(postmark: bytes) -> None:
    found = split(box(ONE, TWO, postmark=postmark))

    assert contents(found) == [ONE, TWO]
    assert all(one.received_at == datetime(2001, 1, 2, 10, tzinfo=UTC) for one in found if isinstance(one, Mail))


def test_with_the_line_ends_of_windows() -> None:
    assert contents(split(box(ONE, TWO).replace(b"\n", b"\r\n"))) == [
        ONE.replace(b"\n", b"\r\n"),
        TWO.replace(b"\n", b"\r\n"),
    ]


def test_without_an_end() -> None:
    assert contents(split(box(ONE, TWO).rstrip(b"\n"))) == [ONE, TWO.rstrip(b"\n")]


@pytest.mark.parametrize(
    "text",
    [
        b"From now on we meet at noon.",  # no time
        b"From here, not behind an empty line, Tue Jan  2 10:00:00 2001",
        b"\nFrom 10:30 on Jan 5 2001 the shop is open\nand no field follows",
        b"\nFrom a@example.com Tue Jan  2 10:00:00 2001\n\na forwarded postmark without a header",
    ],
)
def test_text_that_begins_with_from_ends_nothing(text: bytes) -> None:
    message = b"Subject: x\n\nfirst line\n" + text + b"\nlast line\n"

    assert contents(split(box(message, TWO))) == [message, TWO]


def test_a_forgotten_empty_line_costs_no_message() -> None:
    assert contents(split(POSTMARK + ONE + POSTMARK + TWO + POSTMARK + ONE)) == [ONE, TWO, ONE]


def test_a_quotation_mark_is_taken_away_in_the_body_alone() -> None:
    stored = b">From: odd header\nSubject: x\n\n>From a\n>>From b\n> From c\n>From: d\nx >From e\n"

    (content,) = contents(split(box(stored)))

    assert content == b">From: odd header\nSubject: x\n\nFrom a\n>From b\n> From c\n>From: d\nx >From e\n"


def test_a_told_length_that_leads_to_the_next_message_is_believed() -> None:
    # given: mboxcl2, whose bodies are not quoted at all
    body = b"A forward:\n\nFrom x@example.com Tue Jan  2 10:00:00 2001\nSubject: inner\n\n>From y\n"
    one = b"Subject: outer\nContent-Length: %d\n\n" % len(body) + body

    assert contents(split(box(one, TWO))) == [one, TWO]
    assert contents(split(box(TWO, one))) == [TWO, one]
    assert contents(split(POSTMARK + one + box(TWO))) == [one, TWO]


@pytest.mark.parametrize("told", [b"0", b"1", b"5", b"99999", b"999999999999999999999", b"-3", b"x", "１".encode()])
def test_one_that_leads_elsewhere_is_not(told: bytes) -> None:
    one = b"Content-Length: " + told + b"\n" + ONE

    assert contents(split(box(one, TWO))) == [one, TWO]


def test_one_that_leads_into_text_is_not() -> None:
    one = b"Content-Length: 6\nSubject: x\n\nhello\nFrom here on it is text\n"

    assert contents(split(box(one, TWO))) == [one, TWO]


def test_a_told_length_with_quoted_text() -> None:
    body = b">From a\n"
    one = b"Content-Length: %d\n\n" % len(body) + body

    assert contents(split(box(one, TWO))) == [one.replace(b">From", b"From"), TWO]


def test_an_imap_servers_own_message_is_none() -> None:
    own = b"Subject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\nX-IMAP: 1 2\n\nThis text is part of it.\n"

    assert contents(split(box(own, ONE))) == [ONE]


def test_what_is_too_large_is_left_out_and_its_neighbours_are_not() -> None:
    found = split(box(ONE, TWO + b"x" * 4999 + b"\n", TWO), limit=1000)

    assert [type(one) for one in found] == [Mail, Unreadable, Mail]
    assert isinstance(found[1], Unreadable)
    assert found[1].name == "old#2"
    assert "5,047 bytes; the channel takes 1,000 (max_message_bytes)" in found[1].why
    assert sum(one.length for one in found) == len(box(ONE, TWO, TWO)) + 5000


def test_the_limit_is_exact() -> None:
    message = b"Subject: x\n\n" + b"x" * 87 + b"\n"

    assert contents(split(box(message, TWO), limit=len(message))) == [message, TWO]
    assert isinstance(split(box(message), limit=len(message) - 1)[0], Unreadable)


def test_memory_is_bounded_by_the_limit_whatever_the_lines(tmp_path: Path) -> None:
    # given: one line of 64 MiB between two messages
    import tracemalloc

    path = tmp_path / "big"
    with path.open("wb") as file:
        file.write(box(ONE) + POSTMARK + b"Subject: x\n\n")
        for _ in range(64):
            file.write(b"x" * (1 << 20))
        file.write(b"\n\n" + box(TWO))

    # when
    tracemalloc.start()
    found = look(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    # then
    assert [type(one) for one in found] == [Mail, Unreadable, Mail]
    assert peak < 8 << 20


line = st.binary(max_size=30).map(lambda text: re.sub(rb"[\r\n]", b" ", text)) | st.sampled_from(
    [b"", b"From x", b">From x", b">>From x", POSTMARK.strip(), b"Subject: y"]
)


@given(st.lists(st.lists(line, max_size=8), min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_what_an_mboxrd_writer_wrote_is_read_to_the_byte(bodies: list[list[bytes]]) -> None:
    messages = [b"Subject: x\n\n" + b"".join(one + b"\n" for one in body) for body in bodies]
    written = b"".join(
        POSTMARK + b"Subject: x\n\n" + re.sub(rb"(?m)^(>*From )", rb">\1", message[12:]) + b"\n" for message in messages
    )

    assert contents(split(written)) == messages


@given(st.lists(st.binary(max_size=60) | st.sampled_from([POSTMARK, ONE, b"\n", b"\r\n", b"Content-Length: 9\n\n"])))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_to_their_end(pieces: list[bytes]) -> None:
    content = POSTMARK + ONE + b"".join(pieces)

    assert sum(one.length for one in split(content)) == len(content)


# --- folders and files ------------------------------------------------------------------------------------------------


def test_a_maildir_with_its_folders(tmp_path: Path) -> None:
    root = tmp_path / "Maildir"
    put(root / "cur" / "978429600.M1.host:2,S")
    put(root / "new" / "978429601.M2.host", TWO)
    put(root / "tmp" / "978429602.M3.host")
    put(root / ".Archiv.2001" / "cur" / "978429603.M4.host:2,", TWO)
    put(root / "plain" / "new" / "978429604.M5.host")
    put(root / "dovecot.index", b"\1\2\3")
    put(root / ".Archiv.2001" / "maildirfolder", b"")

    found = look(root)

    names = [Path(one.name).name for one in found]
    assert names == [
        "978429603.M4.host:2,",
        "978429600.M1.host:2,S",
        "978429601.M2.host",
        "978429604.M5.host",
    ]
    assert contents(found) == [TWO, ONE, TWO, ONE]


def test_a_maildirs_message_came_when_its_name_or_its_file_says(tmp_path: Path) -> None:
    copied = put(tmp_path / "cur" / "978429600.M1.host:2,S")
    moved = put(tmp_path / "cur" / "1700000000.M2.host:2,S")
    os.utime(moved, (978429601, 978429601))
    with_received = put(tmp_path / "cur" / "978429600.M3.host:2,S", b"Received: x; 3 Jan 2001 11:00:00 +0100\n" + ONE)

    times = {found.name: found.received_at for found in look(tmp_path) if isinstance(found, Mail)}

    assert times == {
        str(copied): datetime(2001, 1, 2, 10, tzinfo=UTC),
        str(moved): datetime(2001, 1, 2, 10, 0, 1, tzinfo=UTC),
        str(with_received): datetime(2001, 1, 3, 10, tzinfo=UTC),
    }


def test_a_folder_of_everything(tmp_path: Path) -> None:
    put(tmp_path / "a.eml")
    put(tmp_path / "b.mbox", box(ONE, TWO))
    put(tmp_path / "c" / "Inbox", box(TWO))
    put(tmp_path / "c" / "Inbox.msf", b"// <!-- <mdb:mork:z v=1.4/> -->\n")
    put(tmp_path / "d" / "picture.eml", b"\x89PNG\r\n\x1a\n\0\0")
    put(tmp_path / "e.eml", b"")
    put(tmp_path / ".hidden", ONE)
    put(tmp_path / ".git" / "x.eml", ONE)

    found = look(tmp_path)

    named = {str(Path(one.name).relative_to(tmp_path)): one for one in found}
    assert list(named) == ["a.eml", "b.mbox#1", "b.mbox#2", "c/Inbox#1", "c/Inbox.msf", "d/picture.eml", "e.eml"]
    assert {name: one.why for name, one in named.items() if isinstance(one, Unreadable)} == {
        "c/Inbox.msf": "is not a mail",
        "d/picture.eml": "is not a mail",
        "e.eml": "is empty",
    }


def test_a_single_message_may_begin_with_a_postmark_and_is_never_split(tmp_path: Path) -> None:
    path = put(tmp_path / "a.eml", POSTMARK + ONE + b"\n" + box(TWO))

    (mail,) = look(path)

    assert isinstance(mail, Mail)
    assert mail.content == ONE + b"\n" + box(TWO)
    assert mail.received_at == datetime(2001, 1, 2, 10, tzinfo=UTC)


def test_without_any_trace_of_its_delivery_a_message_has_no_time(tmp_path: Path) -> None:
    (mail,) = look(put(tmp_path / "a.eml", b"Date: 2 Jan 2001 10:00:00 +0000\n" + ONE))

    assert isinstance(mail, Mail)
    assert mail.received_at is None


def test_a_damaged_beginning_of_an_mbox_is_told_and_skipped(tmp_path: Path) -> None:
    found = look(put(tmp_path / "old", b"\0garbage\n\n" + box(ONE, TWO)))

    assert isinstance(found[0], Unreadable)
    assert found[0].why == "10 bytes before the first message are no mail"
    assert contents(found[1:]) == [ONE, TWO]


def test_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.eml"
    with path.open("wb") as file:
        file.write(ONE)
        file.truncate(1 << 34)

    (found,) = look(path, limit=1000)

    assert isinstance(found, Unreadable)
    assert found.why.startswith("has 17,179,869,184 bytes")


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "box").mkdir()
    os.mkfifo(tmp_path / "box" / "pipe")
    (tmp_path / "box" / "loop").symlink_to("loop")
    gone = put(tmp_path / "gone.eml")
    seen = list(sources([gone, tmp_path / "nowhere"]))
    gone.unlink()

    found = [one for source in seen for one in read(source, LIMIT)] + look(tmp_path / "box")

    assert [(Path(one.name).name, one.why) for one in found if isinstance(one, Unreadable)] == [
        ("gone.eml", "no such file or directory"),
        ("nowhere", "no such file or directory"),
        ("loop", "too many levels of symbolic links"),
        ("pipe", "is neither a file nor a folder"),
    ]


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_file_is_a_mail_or_none(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)

    assert look(path)
