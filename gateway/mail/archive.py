r"""Old mail where it lies: mbox files, Maildirs, single messages, and folders of all of these.

mbox: RFC 4155, and what programs make of it. A message begins with a line `From … time … year` that a header field
follows, behind an empty line, or without one where there can be no doubt; so neither text that begins with "From " nor
a missing quotation mark ends one early. A Content-Length that leads exactly to the next message is believed (mboxcl,
mboxcl2). Of the lines `>From `, `>>From ` in a body one `>` is taken away (mboxrd, and mboxo as far as it can be told
apart), unless such a body shows by an unquoted "From " that its writer quotes nothing (mboxcl2).
Maildir: cr.yp.to/proto/maildir.html, with subfolders as Maildir++ or as plain folders.

Whatever is there is read, also what a mail program has only marked as deleted. No more than one message is in memory.
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from gateway.contract import Body, ChannelSettings, RawMessage
from gateway.mail import dates
from gateway.mail.identity import fingerprint, native_id
from gateway.mail.message import Headers, header_block

_HEAD_BYTES = 64 << 10
_LINE_BYTES = 64 << 10  # a longer line is read in pieces
_MAX_HEADER_BYTES = 1 << 20  # of a message in an mbox: beyond it everything is its body
_LANDING_BYTES = 1024
_EMPTY = (b"\n", b"\r\n")
_MESSAGE_FOLDERS = ("cur", "new")

_MONTHS = rb"\b(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\b"
_POSTMARK = re.compile(rb"From (?=.{0,900}" + _MONTHS + rb")(?=.{0,900}\d:\d\d)(?=.{0,900}\b(?:19|20)\d\d\b)")
_POSTMARK_TIME = re.compile(rb"\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)\b.*|" + _MONTHS + rb".*")
_FIELD = re.compile(rb"[!-9;-~]{1,200}[ \t]*:|>From ")
# Where a writer forgot the empty line.
_STRICT_POSTMARK = re.compile(
    rb"From \S+ {1,4}(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) " + _MONTHS + rb" [ \d]\d \d\d:\d\d(?::\d\d)?[ +\-\w]{5,20}\r?\n"
)
_USUAL_FIELD = re.compile(
    rb"(?:Received|Return-Path|Delivered-To|From|To|Date|Subject|Message-ID|MIME-Version|Status|X-[!-9;-~]{1,80}):",
    re.I,
)
_FIRST_POSTMARK = re.compile(rb"(?:\A|\n\r?\n)(?=From )")
_QUOTED = re.compile(rb"^>(>*From )", re.MULTILINE)
_BARE = re.compile(rb"^From ", re.MULTILINE)
_USUAL = ("From", "To", "Date", "Subject", "Received", "Message-ID", "Return-Path", "Delivered-To", "MIME-Version")
_FOLDER_DATA = "DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA"  # of the IMAP servers uw-imapd and Dovecot


@dataclass(frozen=True, slots=True)
class Source:
    """A file that is to be read, or why it cannot be. `maildir`: it is a message by its place."""

    path: Path
    size: int = 0
    maildir: bool = False
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Mail:
    """A message as it lies there. `received_at`: when it was delivered then; `length`: what it takes of its file."""

    name: str
    content: bytes
    received_at: datetime | None
    length: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file, or a message in one, that is left out, and why."""

    name: str
    why: str
    length: int = 0


Found = Mail | Unreadable


# Into a channel


def largest(channel: ChannelSettings) -> int | None:
    """The largest mail that a channel takes, by the key that all mail channels have. None: it is no mail channel."""
    limit = getattr(channel, "max_message_bytes", None)
    return int(limit) if limit is not None else None


def raw_message(channel: ChannelSettings, body: Body, received_at: datetime | None) -> RawMessage:
    """Old mail as the channel's own connector would hand it in, so that the same mail has the same identity (R3).

    `received_at` stands in the ticket; the message's arrival is now, as that of any other.
    """
    facts: dict[str, Any] = {"imported": True}
    if authserv_ids := getattr(channel, "authserv_ids", ()):
        facts["authserv_ids"] = list(authserv_ids)
    if received_at is not None:
        facts["received_at"] = received_at.isoformat()
    native = native_id(body)
    return RawMessage("rfc5322", body, native, "message/rfc822", facts, fingerprint(native))


# Which files there are


def sources(paths: Sequence[Path]) -> Iterator[Source]:
    """The files at these places, those of a folder by their names. Links to folders are not followed within one."""
    stack = [Source(path) for path in reversed(paths)]
    while stack:
        source = stack.pop()
        try:
            found = source.path.stat()
            if stat.S_ISDIR(found.st_mode):
                stack += reversed(list(_inside(source.path)))
            elif stat.S_ISREG(found.st_mode):
                yield Source(source.path, found.st_size, source.maildir)
            else:
                yield Source(source.path, trouble="is neither a file nor a folder")
        except OSError as error:
            yield Source(source.path, trouble=_why(error))


def _inside(folder: Path) -> Iterator[Source]:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    is_maildir = any(entry.name in _MESSAGE_FOLDERS and entry.is_dir() for entry in entries)
    is_messages = folder.name in _MESSAGE_FOLDERS and not is_maildir
    for entry in entries:
        path, hidden = Path(entry.path), entry.name.startswith(".")
        if entry.is_dir(follow_symlinks=False):
            if not (is_maildir and entry.name == "tmp") and (not hidden or _is_maildir(path)):
                yield Source(path)
        elif not (hidden or is_maildir or _is_link_to_folder(entry)):  # beside cur and new lies what the server needs
            yield Source(path, maildir=is_messages)


def _is_link_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: to be told of when it is read
        return False


def _is_maildir(path: Path) -> bool:
    return any((path / name).is_dir() for name in _MESSAGE_FOLDERS)


# What is in a file


def read(source: Source, max_bytes: int) -> Iterator[Found]:
    """The messages of a file; a larger one than `max_bytes` is left out. Never raises."""
    name = str(source.path)
    if source.trouble:
        yield Unreadable(name, source.trouble)
        return
    try:
        with source.path.open("rb") as file:
            yield from _messages(file, source, name, max_bytes)
    except OSError as error:
        yield Unreadable(name, _why(error))


def _messages(file: BinaryIO, source: Source, name: str, max_bytes: int) -> Iterator[Found]:
    head = file.read(_HEAD_BYTES)
    start = None if source.maildir or source.path.suffix.lower() == ".eml" else _first_message(head)
    if not head:
        yield Unreadable(name, "is empty")
    elif start is not None:
        if head[:start].strip():
            yield Unreadable(f"{name}#0", f"{start:,} bytes before the first message are no mail", start)
        file.seek(start)
        yield from mbox(file, name, max_bytes)
    else:
        content = head + file.read(max(0, max_bytes + 1 - len(head)))
        yield _single(content, source, name, max_bytes)


def _first_message(head: bytes) -> int | None:
    """Where an mbox's first message begins, whatever lies before it; None: it is no mbox."""
    for found in _FIRST_POSTMARK.finditer(head):
        line, _, rest = head[found.end() :].partition(b"\n")
        if _POSTMARK.match(line) and _FIELD.match(rest):
            return found.end()
    return None


def _single(content: bytes, source: Source, name: str, max_bytes: int) -> Found:
    if len(content) > max_bytes:
        return _too_large(name, source.size, max_bytes)
    postmark = b""
    if content.startswith(b"From "):
        postmark, _, content = content.partition(b"\n")
    headers, _ = header_block(content[:_MAX_HEADER_BYTES])
    if not source.maildir and not any(name_ in headers for name_ in _USUAL):
        return Unreadable(name, "is not a mail", source.size)
    received_at = _delivered(headers, postmark) or (_filed(source.path) if source.maildir else None)
    return Mail(name, content, received_at, source.size)


def _filed(path: Path) -> datetime | None:
    """When a Maildir's message was delivered: the earlier of what its name and its file say.

    A copied file has a new time and its old name; one that was moved there by IMAP has a new name and its old time.
    """
    digits = re.match(r"[0-9]{9,10}(?=\.)", path.name)
    named = float(digits[0]) if digits else float("inf")
    return datetime.fromtimestamp(min(path.stat().st_mtime, named), UTC)


def _delivered(headers: Headers, postmark: bytes) -> datetime | None:
    """By the topmost Received, which has a time zone, else by the line `From `, whose time is taken for UTC."""
    received = dates.parse((headers.first("Received") or b"").rpartition(b";")[2])
    found = _POSTMARK_TIME.search(postmark[5:])
    return received or (dates.parse(found[0]) if found else None)


# mbox


def mbox(file: BinaryIO, name: str, max_bytes: int) -> Iterator[Found]:
    """The messages of an mbox, which begins where the file stands now with a line `From `."""
    for number, raw in enumerate(_split(file, max_bytes), 1):
        found = _from_mbox(raw, f"{name}#{number}", max_bytes)
        if found is not None:
            yield found


@dataclass(slots=True)
class _Raw:
    """A message in the making. What is above the limit is only counted."""

    postmark: bytes
    limit: int
    length: int
    size: int = 0
    content: bytearray | None = field(default_factory=bytearray)
    body_at: int | None = None
    exact: bool = False  # its length was told: no line behind it is its own

    def add(self, line: bytes) -> None:
        self.length += len(line)
        self.size += len(line)
        if self.content is not None:
            self.content += line
            if self.size > self.limit + 2:  # the last empty line is not its own
                self.content = None

    @property
    def in_header(self) -> bool:
        return self.body_at is None and self.size < _MAX_HEADER_BYTES


def _split(file: BinaryIO, limit: int) -> Iterator[_Raw]:
    raw: _Raw | None = None
    blank = whole = True  # the line before was empty; it had an end
    while line := file.readline(_LINE_BYTES):
        if whole and _begins(file, line, behind_blank=blank):
            if raw is not None:
                yield raw
            raw = _Raw(line, limit, len(line))
        elif raw is not None:
            _add(file, raw, line)
        blank, whole = whole and line in _EMPTY, line.endswith(b"\n")
    if raw is not None:
        yield raw


def _begins(file: BinaryIO, line: bytes, *, behind_blank: bool) -> bool:
    """Whether a message begins with this line: what follows tells."""
    postmark, field_ = (_POSTMARK, _FIELD) if behind_blank else (_STRICT_POSTMARK, _USUAL_FIELD)
    if not postmark.match(line):
        return False
    here = file.tell()
    following = file.read(_LANDING_BYTES)
    file.seek(here)
    return field_.match(following) is not None


def _add(file: BinaryIO, raw: _Raw, line: bytes) -> None:
    if raw.exact and line in _EMPTY:
        raw.length += len(line)
        return
    raw.add(line)
    if line in _EMPTY and raw.in_header:
        raw.body_at = raw.size
        _take_told_length(file, raw)


def _take_told_length(file: BinaryIO, raw: _Raw) -> None:
    """The body by Content-Length, if that leads to where a message begins, or to the end of the file."""
    headers, _ = header_block(bytes(raw.content or b""))
    told = (headers.first("Content-Length") or b"").strip()
    if not told.isdigit() or len(told) > 12 or not int(told):
        return
    here, left = file.tell(), int(told)
    file.seek(here + left - 1)
    last, landing = file.read(1), file.read(_LANDING_BYTES)
    file.seek(here)
    if not last or not re.match(rb"(?:\r?\n){0,2}(?:\Z|From )", landing):
        return
    if not _POSTMARK.match(landing.lstrip(b"\r\n")) and landing.strip():
        return
    raw.exact = True
    while left and (chunk := file.read(min(left, _LINE_BYTES))):
        raw.add(chunk)
        left -= len(chunk)


def _from_mbox(raw: _Raw, name: str, max_bytes: int) -> Found | None:
    if raw.content is None:
        return _too_large(name, raw.size, max_bytes, raw.length)
    content = bytes(raw.content)
    if not raw.exact:
        content = re.sub(rb"(?<=\n)\r?\n\Z", b"", content)
    body_at = raw.body_at if raw.body_at is not None else len(content)
    header, body = content[:body_at], content[body_at:]
    headers, _ = header_block(header)
    if headers.text("Subject").startswith(_FOLDER_DATA):
        return None
    if not (raw.exact and _BARE.search(body)):
        body = _QUOTED.sub(rb"\1", body)
    content = header + body
    if len(content) > max_bytes:
        return _too_large(name, len(content), max_bytes, raw.length)
    return Mail(name, content, _delivered(headers, raw.postmark), raw.length)


def _too_large(name: str, size: int, max_bytes: int, length: int | None = None) -> Unreadable:
    why = f"has {size:,} bytes; the channel takes {max_bytes:,} (max_message_bytes)"
    return Unreadable(name, why, size if length is None else length)


def _why(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__).lower()
