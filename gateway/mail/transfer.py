"""Content transfer encodings (RFC 2045, section 6) and what is found in their place. Nothing here raises."""

import binascii
import re
from dataclasses import dataclass

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NOT_ALPHABET = bytes(byte for byte in range(256) if byte not in _ALPHABET)
_NOT_BASE64 = bytes(byte for byte in range(256) if byte not in _ALPHABET + b"=")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_WHITE = b" \t\r\n"
_CLEARLY_BASE64 = 16
_BASE64_LINE = re.compile(rb"[A-Za-z0-9+/]{2,}={0,2}")
_PADDING = re.compile(rb"=++")
_BROKEN_SOFT_BREAK = re.compile(rb"=(?:[ \t]++\r?\n|[ \t]*\r(?!\n))")
_UU_BEGIN = re.compile(rb"^begin(?:-base64)? [0-7]{3,4} ?([^\r\n]*)\r?\n", re.MULTILINE)


def decode(data: bytes, encoding: bytes) -> bytes:
    """The content without its transfer encoding; as it is where the encoding is unknown or plainly not applied."""
    name = encoding.partition(b";")[0].partition(b"(")[0].strip(b" \t\"'").lower()
    if name == b"base64":
        return base64(data)
    if name == b"quoted-printable":
        return quoted_printable(data)
    if name in {b"x-uuencode", b"uuencode", b"x-uue", b"uue"}:
        return next((file.content for file in uuencoded(data)), data)
    return data


def base64(data: bytes) -> bytes:
    """Lenient: other characters are passed over, padding may lack, several pieces may follow each other."""
    body = data.rstrip(_WHITE)
    pad = body.find(b"=")
    if pad < 0 or not body[pad:].strip(b"=" + _WHITE):
        return _base64_or_plain(body)
    pieces = _pieces(body)
    try:
        return b"".join(map(binascii.a2b_base64, pieces))
    except binascii.Error:
        return b"".join(map(_piece, pieces))


def base64_text(text: bytes) -> bytes:
    """Base64 in a header: one piece, never plain text."""
    return b"".join(map(_piece, _pieces(text))) if b"=" in text.rstrip(b"= ") else _piece(text)


def _base64_or_plain(body: bytes) -> bytes:
    alien = len(body.translate(None, _ALPHABET + b"=" + _WHITE))
    worded = len(body) >= _CLEARLY_BASE64 and body.count(b" ") * 12 > len(body)
    if not worded and alien and alien == body.count(b"-") + body.count(b"_") and b"+" not in body and b"/" not in body:
        return _piece(body.translate(_URL_SAFE))
    if worded or (alien > 4 and alien * 12 > len(body)):
        return _plain_after_all(body)
    return _piece(body)


def _plain_after_all(body: bytes) -> bytes:
    """Text that only says it is base64; but what a list appended in clear is not the text."""
    encoded = bytearray()
    for line in body.splitlines():
        if not _BASE64_LINE.fullmatch(line.strip(_WHITE)):
            break
        encoded += line.strip(_WHITE)
    return _piece(bytes(encoded)) if len(encoded) >= _CLEARLY_BASE64 and len(encoded) % 4 == 0 else body


def _pieces(body: bytes) -> list[bytes]:
    """What is base64 of a body that goes on after its padding: further pieces do, a list's plain footer does not."""
    kept: list[bytes] = []
    padded = False
    for line in body.splitlines():
        text = line.strip(_WHITE)
        if padded and not _BASE64_LINE.fullmatch(text):
            break
        kept.append(text)
        padded = text.endswith(b"=")
    return [piece + b"=" * (-len(piece) % 4) for piece in _PADDING.split(b"".join(kept)) if len(piece) > 1]


def _piece(text: bytes) -> bytes:
    try:
        return binascii.a2b_base64(text)
    except binascii.Error:
        clean = text.translate(None, _NOT_ALPHABET)
        clean = clean[: len(clean) - (len(clean) % 4 == 1)]
        return binascii.a2b_base64(clean + b"=" * (-len(clean) % 4))


def quoted_printable(data: bytes) -> bytes:
    if b"= " in data or b"=\t" in data or b"=\r" in data:
        data = _BROKEN_SOFT_BREAK.sub(b"=\n", data)
    return binascii.a2b_qp(data)


@dataclass(frozen=True, slots=True)
class Uuencoded:
    """A file in the middle of a text, and where it stands there."""

    name: bytes
    content: bytes
    start: int
    end: int


def uuencoded(data: bytes) -> list[Uuencoded]:
    """The files between `begin` and `end`. No line is read for two of them: `begin` itself is none of uuencode's."""
    found: list[Uuencoded] = []
    at = 0
    while begin := _UU_BEGIN.search(data, at):
        read = _uu_base64 if begin[0].startswith(b"begin-") else _uu_content
        content, at = read(data, begin.end())
        if content is not None:
            found.append(Uuencoded(begin[1].strip(), content, begin.start(), at))
    return found


def _uu_content(data: bytes, at: int) -> tuple[bytes | None, int]:
    """Content and where it ends; None when a line is no uuencode, or `end` never comes."""
    out = bytearray()
    while at < len(data):
        line, at = _line(data, at)
        if line == b"end":
            return bytes(out), at
        piece = b"" if line.strip() in {b"", b"`"} else _uu_line(line)
        if piece is None:
            return None, at - len(line) - 1
        out += piece
    return None, at


def _uu_base64(data: bytes, start: int) -> tuple[bytes | None, int]:
    at = start
    while at < len(data):
        line, following = _line(data, at)
        if line == b"====":
            return base64(data[start:at]), following
        if not _BASE64_LINE.fullmatch(line):
            return None, at
        at = following
    return None, at


def _line(data: bytes, at: int) -> tuple[bytes, int]:
    """The line at a place, without its end, and where the next one begins."""
    stop = data.find(b"\n", at)
    stop = len(data) if stop < 0 else stop
    return data[at:stop].rstrip(b"\r"), stop + 1


def _uu_line(text: bytes) -> bytes | None:
    length = (text[0] - 32) & 63
    needed = (length + 2) // 3 * 4 + 1
    if not 32 <= text[0] <= 96 or len(text) > needed + 2:
        return None
    try:
        return binascii.a2b_uu(text[:needed])
    except binascii.Error:
        return None
