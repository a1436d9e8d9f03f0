"""Structured MIME headers (`Content-Type`, `Content-Disposition`): RFC 2045, RFC 2231, and how mailers write them.

Read as well: a missing semicolon, a value with blanks and no quotes, an encoded word for a value (against RFC 2047, and
widespread), raw 8-bit, percent signs without a charset, sections out of order, comments.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from types import MappingProxyType
from urllib.parse import unquote_to_bytes

from gateway.mail import charset, words

_MAX_BYTES = 1 << 16
_MAX_SECTIONS = 1000  # of one header
_CACHED_BYTES = 160

_VALUE = re.compile(rb"[\s;]*+([^\s;()]*+)")
_NAME = re.compile(rb"[;\s]*+([^\s;=\"()<>@,:?/\[\]]{1,60}+)\s*+=\s*+")
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.|"(?!\s*+(?:;|\Z|\(|[\w*-]{1,60}+=)))*+)(?:"|\Z)', re.DOTALL)
_BARE = re.compile(rb"(=\?[^?\s]{1,60}\?[bBqQ]\?[^;]*?\?=[^;]*|[^;]*+)")
_NEXT_NAME = re.compile(rb"\s+(?:\([^()]*\)|[A-Za-z-]{3,20}\*?=(?!\?))")
_COMMENT = re.compile(rb"\s*\([^()]*+\)\s*")
_ESCAPED = re.compile(rb'\\(["\\])')
_EXTENDED = re.compile(rb"([^'\s]{0,60})'([^']{0,60})'")
_PERCENT = re.compile(rb"%[0-9A-Fa-f]{2}")
_PERCENT_HIGH = re.compile(rb"%[89A-Fa-f][0-9A-Fa-f]")
_SECTION = re.compile(r"([^*]+)(?:\*(\d{1,9}))?(\*)?")

Header = tuple[str, MappingProxyType[str, str]]
_Section = tuple[int, bool, bytes]


def parse(raw: bytes, hint: str = "") -> Header:
    """The value in lower case and the parameters by their names in lower case. `hint`: a label for raw 8-bit text."""
    if len(raw) <= _CACHED_BYTES:
        return _cached(raw, hint)
    return _parse(raw[:_MAX_BYTES], hint)


def _parse(raw: bytes, hint: str) -> Header:
    value = _VALUE.match(raw)
    if value is None or (b"=" in value[1] and b"/" not in value[1]):  # no value, only parameters
        return "", MappingProxyType(_parameters(raw, 0, hint))
    name = value[1].strip(b"\"',").lower().decode("latin-1")
    return name, MappingProxyType(_parameters(raw, value.end(), hint))


_cached = lru_cache(maxsize=1024)(_parse)


def _parameters(raw: bytes, at: int, hint: str) -> dict[str, str]:
    plain: dict[str, bytes] = {}
    extended: dict[str, list[_Section]] = {}
    for number, (name, value) in enumerate(_pairs(raw, at)):
        if number >= _MAX_SECTIONS:
            break
        if "*" not in name:
            plain.setdefault(name, value)
        elif section := _SECTION.fullmatch(name):
            extended.setdefault(section[1], []).append((int(section[2] or -1), bool(section[3]), value))
    found = {name: _plain(value, hint) for name, value in plain.items()}
    return found | {name: _extended(sections, hint) for name, sections in extended.items()}


def _pairs(raw: bytes, at: int) -> Iterator[tuple[str, bytes]]:
    while at < len(raw):
        name = _NAME.match(raw, at)
        if name is None:
            at = _past(raw, at)
            continue
        quoted = _QUOTED.match(raw, name.end())
        if quoted:
            at, value = quoted.end(), _ESCAPED.sub(rb"\1", quoted[1])
        else:
            at, value = _bare(raw, name.end())
        yield name[1].lower().decode("latin-1"), value


def _past(raw: bytes, at: int) -> int:
    """Past what is no parameter: to the next semicolon or blank."""
    found = _GAP.search(raw, at)
    return found.end() if found else len(raw)


_GAP = re.compile(rb"[^;\s]*+[;\s]++")


def _bare(raw: bytes, at: int) -> tuple[int, bytes]:
    found = _BARE.match(raw, at)
    if found is None:
        return at + 1, b""
    value = found[0]
    if following := _NEXT_NAME.search(value):
        value = value[: following.start()]
        return at + len(value), value.strip()
    return found.end(), _COMMENT.sub(b" ", value).strip(b" \t\r\n'") if b"(" not in value[:1] else value.strip()


def _plain(value: bytes, hint: str) -> str:
    if b"%" in value and value.isascii() and _PERCENT_HIGH.search(value) and b" " not in value:
        try:
            return unquote_to_bytes(value).decode("utf-8")
        except UnicodeDecodeError:
            pass
    return words.decode(value, hint)


def _extended(sections: list[_Section], hint: str) -> str:
    """RFC 2231: a charset in front of the first section, and sections that are percent-encoded or not."""
    sections.sort(key=lambda section: section[0])
    if sections[0][0] == -1 and len(sections) > 1:
        sections = sections[:1]
    _, encoded, first = sections[0]
    label, head = "", _EXTENDED.match(first) if encoded else None
    if head:
        label, first = head[1].decode("latin-1"), first[head.end() :]
    sections = _unbroken(sections)
    percent = any(section[1] for section in sections)
    pieces = [_unquoted(first, percent)]
    pieces += [
        _unquoted(value, starred or (percent and bool(_PERCENT_HIGH.search(value))))
        for _, starred, value in sections[1:]
    ]
    whole = b"".join(pieces)
    if b"=?" in whole:
        return words.decode(whole, label or hint)
    return charset.decode(whole, label, (hint,) if hint else ()).text


def _unbroken(sections: list[_Section]) -> list[_Section]:
    """Without what comes after a gap, and without a number's second section."""
    kept = sections[:1]
    for section in sections[1:]:
        if section[0] > kept[-1][0] + 1:
            break
        kept += [section] if section[0] > kept[-1][0] else []
    return kept


def _unquoted(value: bytes, encoded: bool) -> bytes:
    return unquote_to_bytes(value) if encoded and b"%" in value else value
