"""Header text: encoded words (RFC 2047) as they come, raw 8-bit text (RFC 6532, and where nobody asked for it)."""

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.mail import charset, transfer

MAX_HEADER_BYTES = 1 << 17  # of one header that are decoded
_ALONE = re.compile(rb"=\?([^?\s=*]{1,60}+)\?([bBqQ])\?([^?\s]{0,200}+)\?=")
_START = re.compile(rb"=\?([^?\s=]{1,60}?)(?:\*[^?\s=]{0,40})?\?([bBqQ])\?")


@dataclass(frozen=True, slots=True)
class _Word:
    charset: str
    base64: bool
    text: bytes
    start: int
    end: int


def decode(raw: bytes, hint: str = "") -> str:
    """The text of a header's value. `hint`: the label of the body, for raw 8-bit text. Never raises."""
    if b"=?" not in raw:
        return raw.decode("ascii") if raw.isascii() else plain(raw, hint)
    if alone := _ALONE.fullmatch(raw):
        return _text(_content(alone[2] in b"bB", alone[3]), alone[1].decode("latin-1")).text
    raw = raw[:MAX_HEADER_BYTES]
    out: list[str] = []
    at = 0
    for run in _runs(raw):
        text = "".join(_texts(run))
        before = raw[at : run[0].start]
        out += (plain(before if text else before.rstrip(b" \t"), hint), text)
        at = run[-1].end
    return "".join((*out, plain(raw[at:], hint)))


def plain(raw: bytes, hint: str = "") -> str:
    """Text without encoded words."""
    return raw.decode("ascii") if raw.isascii() else charset.decode(raw, "", (hint,)).text


def _words(raw: bytes) -> Iterator[_Word]:
    """Each start is looked at once and each end is found once: linear, whatever is left open."""
    start = _START.search(raw)
    end = 0
    while start:
        if end < start.end():
            end = raw.find(b"?=", start.end())
        if end < 0:
            return
        if later := _START.search(raw, start.end(), end + 1):
            start = later
            continue
        yield _Word(start[1].decode("latin-1"), start[2] in b"bB", raw[start.end() : end], start.start(), end + 2)
        start = _START.search(raw, end + 2)


def _runs(raw: bytes) -> Iterator[list[_Word]]:
    """Words with nothing but white space between them, which means nothing (RFC 2047, 6.2)."""
    run: list[_Word] = []
    for word in _words(raw):
        if run and raw[run[-1].end : word.start].strip(b" \t\r\n"):
            yield run
            run = []
        run.append(word)
    if run:
        yield run


def _texts(run: list[_Word]) -> Iterator[str]:
    """Neighbours of one charset are read as one: some mailers cut between the bytes of a character."""
    at = 0
    while at < len(run):
        end = at + 1
        while end < len(run) and run[end].charset.lower() == run[at].charset.lower():
            end += 1
        yield _joined(run[at:end])
        at = end


def _joined(words: list[_Word]) -> str:
    label = words[0].charset
    pieces = [_bytes(word) for word in words]
    if len(words) == 1:
        return _text(pieces[0], label).text
    whole = _text(b"".join(pieces), label)
    if whole.replaced and all(word.base64 for word in words):  # cut between the characters of the base64
        whole = min(whole, _text(_unpadded(b"".join(word.text for word in words)), label), key=_replaced)
    apart = [_text(piece, label) for piece in pieces] if whole.replaced or _stateful(label) else []
    if apart and sum(map(_replaced, apart)) <= whole.replaced:
        return "".join(piece.text for piece in apart)
    return whole.text


def _replaced(decoded: charset.Decoded) -> int:
    return decoded.replaced


def _stateful(label: str) -> bool:
    return label.lower().startswith(("utf-16", "utf-7", "iso-2022", "hz"))


def _text(data: bytes, label: str) -> charset.Decoded:
    return charset.decode(data, label)


def _unpadded(text: bytes) -> bytes:
    return transfer.base64(text.rstrip(b"=")) if b"=" not in text.rstrip(b"=") else b""


def _bytes(word: _Word) -> bytes:
    return _content(word.base64, word.text)


def _content(is_base64: bool, text: bytes) -> bytes:
    if is_base64:
        return transfer.base64_text(text)
    lone = b"=" if text.endswith(b"=") else b""
    return binascii.a2b_qp(text, header=True) + lone
