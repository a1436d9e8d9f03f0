"""The text of an RTF, and the HTML that Outlook hides in one ([MS-OXRTFCP], [MS-OXRTFEX], Rich Text Format 1.9.1).

Only words are taken: no fonts, no pictures. It never raises, and takes a time that is linear in its size.
"""

import re
from dataclasses import dataclass, field

from gateway.mail import charset

_MAX_BYTES = 8 << 20
_MAX_TOKENS = 2_000_000
_MAX_DEPTH = 2_000

_COMPRESSED, _STORED = b"LZFu", b"MELA"
_DICTIONARY = (
    rb"{\rtf1\ansi\mac\deff0\deftab720{\fonttbl;}{\f0\fnil \froman \fswiss \fmodern \fscript \fdecor "
    rb"MS Sans SerifSymbolArialTimes New RomanCourier{\colortbl\red0\green0\blue0"
    b"\r\n"
    rb"\par \pard\plain\f0\fs20\b\i\u\tab\tx"
)
_RING = 4096
_TOKEN = re.compile(
    rb"\\([a-zA-Z]{1,32})(-?\d{1,10})? ?|\\'([0-9a-fA-F]{2})|\\([^a-zA-Z'])|([{}])|([^\\{}\r\n]++)|[\r\n]++|\\"
)
_BREAKS = {b"par": "\n", b"line": "\n", b"row": "\n", b"sect": "\n", b"page": "\n", b"tab": "\t", b"cell": "\t"}
_BREAKS |= {b"emdash": "—", b"endash": "–", b"bullet": "•", b"lquote": "‘", b"rquote": "’", b"ldblquote": "“"}
_BREAKS |= {b"rdblquote": "”", b"nestcell": "\t", b"nestrow": "\n"}
_SYMBOLS = {b"~": "\xa0", b"_": "-", b"{": "{", b"}": "}", b"\\": "\\", b"\n": "\n", b"\r": "\n"}
# Groups whose words are not the text's.
_SILENT = frozenset(
    b"fonttbl colortbl stylesheet info pict object header footer headerl headerr footerl footerr listtable generator"
    b" listoverridetable themedata datastore xmlnstbl rsidtbl latentstyles filetbl revtbl".split()
)


@dataclass(frozen=True, slots=True)
class Formatted:
    """`html` where the RTF was made from one, else `text`."""

    text: str = ""
    html: str = ""


@dataclass(slots=True)
class _Group:
    silent: bool = False
    skipped: bool = False  # between \htmlrtf and \htmlrtf0: what the HTML says in another way
    starred: bool = False  # after \*: silent unless known
    fallback: int = 1  # characters after a \u that stand for it


@dataclass(slots=True)
class _Reader:
    label: str = "cp1252"
    from_html: bool = False
    groups: list[_Group] = field(default_factory=lambda: [_Group()])
    pieces: list[str] = field(default_factory=list)
    waiting: bytearray = field(default_factory=bytearray)  # bytes of the code page, which may need the next ones
    skip: int = 0

    def write(self, text: str) -> None:
        self.flush()
        self.pieces.append(text)

    def flush(self) -> None:
        if self.waiting:
            self.pieces.append(charset.decode(bytes(self.waiting), self.label).text)
            self.waiting.clear()


def decompress(data: bytes) -> bytes:
    """A compressed RTF ([MS-OXRTFCP], 2.1.3.1); b"" when it is none."""
    kind, body = data[8:12], data[16:]
    size = min(int.from_bytes(data[4:8], "little"), _MAX_BYTES)
    if kind == _STORED:
        return body[:size]
    return _unpacked(body, size) if kind == _COMPRESSED else b""


def read(data: bytes) -> Formatted:
    """What it says; nothing if it is no RTF."""
    if not data.lstrip().startswith(b"{\\rtf"):
        return Formatted()
    reader = _Reader()
    for count, token in enumerate(_TOKEN.finditer(data[:_MAX_BYTES])):
        if count > _MAX_TOKENS:
            break
        _take(reader, token)
    reader.flush()
    text = "".join(reader.pieces).strip()
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # halves that \u wrote one by one
    return Formatted(html=text) if reader.from_html else Formatted(text=text)


def _unpacked(body: bytes, size: int) -> bytes:
    ring = bytearray(_DICTIONARY + bytes(_RING - len(_DICTIONARY)))
    out, write, at = bytearray(), len(_DICTIONARY), 0
    while at < len(body) and len(out) < size:
        control, at = body[at], at + 1
        for bit in range(8):
            if control >> bit & 1:
                token = int.from_bytes(body[at : at + 2], "big")
                offset, run, at = token >> 4, (token & 15) + 2, at + 2
                if offset == write or at > len(body):
                    return bytes(out[:size])
                copied = range(offset, offset + run)
            else:
                copied = range(0)
                if at < len(body):
                    out.append(body[at])
                    ring[write] = body[at]
                    write = (write + 1) % _RING
                at += 1
            for position in copied:
                byte = ring[position % _RING]
                out.append(byte)
                ring[write] = byte
                write = (write + 1) % _RING
    return bytes(out[:size])


def _take(reader: _Reader, token: re.Match[bytes]) -> None:
    word, number, escaped, symbol, brace, plain = token.groups()
    group = reader.groups[-1]
    if brace:
        _nest(reader, group, opens=brace == b"{")
    elif word:
        _control(reader, group, word, int(number) if number else None)
    elif symbol == b"*":
        group.starred = True
    elif not (group.silent or group.skipped):
        _say(reader, escaped, symbol, plain)


def _nest(reader: _Reader, group: _Group, *, opens: bool) -> None:
    if opens and len(reader.groups) < _MAX_DEPTH:
        reader.groups.append(_Group(group.silent, group.skipped, fallback=group.fallback))
    elif not opens:
        reader.flush()
        reader.skip = 0
        if len(reader.groups) > 1:
            reader.groups.pop()


def _say(reader: _Reader, escaped: bytes | None, symbol: bytes | None, plain: bytes | None) -> None:
    if escaped:
        _byte(reader, bytes.fromhex(escaped.decode()))
    elif plain:
        _byte(reader, plain)
    elif symbol in _SYMBOLS:
        reader.write(_SYMBOLS[symbol])


def _byte(reader: _Reader, data: bytes) -> None:
    skipped = min(reader.skip, len(data))
    reader.skip -= skipped
    reader.waiting += data[skipped:]


def _control(reader: _Reader, group: _Group, word: bytes, number: int | None) -> None:
    if word == b"fromhtml":
        reader.from_html = True
    elif word == b"ansicpg" and number:
        reader.label = "utf-8" if number == 65001 else f"cp{number}"
    elif word == b"htmltag":
        group.silent = group.skipped = False  # the HTML itself
    elif word == b"htmlrtf":
        group.skipped = number != 0
    elif word in _SILENT or group.starred:
        group.silent = True
    elif word == b"uc" and number is not None:
        group.fallback = min(max(number, 0), 8)
    elif not (group.silent or group.skipped):
        _character(reader, group, word, number)
    group.starred = False


def _character(reader: _Reader, group: _Group, word: bytes, number: int | None) -> None:
    if word == b"u" and number is not None:
        reader.write(chr(number & 0xFFFF))
        reader.skip = group.fallback
    elif word in _BREAKS:
        reader.write(_BREAKS[word])
