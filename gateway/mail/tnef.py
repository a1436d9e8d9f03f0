"""winmail.dat: what Outlook packs a mail's files and formatted text into ([MS-OXTNEF], [MS-OXRTFCP]).

A stream of attributes, each with a level, a length and a checksum; the newer ones hold MAPI properties. A file begins
at its attAttachRendData. Checksums are not looked at: some senders have them wrong, and the original is kept anyway.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from gateway.contract import Part
from gateway.mail import charset, rtf
from gateway.text import file_name, one_line

SIGNATURE = b"\x78\x9f\x3e\x22"

_MAX_ATTRIBUTES = 20_000
_MAX_PROPERTIES = 5_000
_MAX_FILES = 500
_MAX_DEPTH = 8  # of mails in mails

_MESSAGE, _FILE = 1, 2
_BODY = 0x800C
_FILE_DATA = 0x800F
_FILE_TITLE = 0x8010
_FILE_BEGINS = 0x9002
_MESSAGE_PROPERTIES = 0x9003
_FILE_PROPERTIES = 0x9005
_CODE_PAGE = 0x9007

# MAPI properties
_NAME_SHOWN = 0x3001
_OBJECT = 0x3701
_SHORT_NAME = 0x3704
_LONG_NAME = 0x3707
_MIME_TYPE = 0x370E
_CONTENT_ID = 0x3712
_PLAIN, _RTF, _HTML = 0x1000, 0x1009, 0x1013
_INTERNET_CODE_PAGE = 0x3FDE

_SIZES = {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 0x0A: 4, 0x0B: 2, 0x14: 8, 0x40: 8, 0x48: 16}  # bytes of a fixed type
_OBJECT_TYPE, _STRING, _UNICODE, _BINARY = 0x0D, 0x1E, 0x1F, 0x102
_MANY = 0x1000
_NAMED = 0x8000
_INTERFACE_BYTES = 16  # which stands before an object's data
_EMBEDDED_MESSAGE = bytes.fromhex("0703020000000000c000000000000046")


@dataclass(slots=True)
class _Message:
    """A stream that is not read yet, or what was read of it."""

    stream: bytes
    depth: int = 0
    code_page: int = 1252
    files: list["_File"] = field(default_factory=list)
    body: dict[int, bytes | str] = field(default_factory=dict)


@dataclass(slots=True)
class _File:
    data: bytes | None = None
    title: bytes = b""
    properties: Mapping[int, bytes | str] = field(default_factory=dict)


def is_tnef(data: bytes) -> bool:
    return data.startswith(SIGNATURE)


def unpack(data: bytes) -> list[Part]:
    """The mail's text, as inline parts, and its files, also those of mails in it; [] when there is nothing to be read.

    Never raises; what is cut off is left out. The text is what its sender formatted: often the mail has it as well.
    """
    parts: list[Part] = []
    waiting = [_Message(data)]
    while waiting and len(parts) < _MAX_FILES:
        message = waiting.pop(0)
        if not is_tnef(message.stream):
            continue
        _read(message)
        parts += _body(message)
        for file in message.files[:_MAX_FILES]:
            inner = file.properties.get(_OBJECT, b"")
            if isinstance(inner, bytes) and inner.startswith(_EMBEDDED_MESSAGE) and message.depth < _MAX_DEPTH:
                waiting.append(_Message(inner[_INTERFACE_BYTES:], message.depth + 1))
            elif file.data is not None or _OBJECT in file.properties:
                parts.append(_part(file, message.code_page))
    return parts[:_MAX_FILES]


# Attributes


def _read(message: _Message) -> None:
    for level, name, value in _attributes(message.stream):
        if level == _FILE:
            _read_file(message, name, value)
        elif name == _CODE_PAGE and len(value) >= 4:
            message.code_page = struct.unpack_from("<I", value)[0]
        elif name == _BODY:
            message.body.setdefault(_PLAIN, value.rstrip(b"\0"))
        elif name == _MESSAGE_PROPERTIES:
            message.body |= _properties(value, message.code_page)


def _read_file(message: _Message, name: int, value: bytes) -> None:
    if name == _FILE_BEGINS:
        message.files.append(_File())
    if not message.files:
        return
    file = message.files[-1]
    if name == _FILE_DATA:
        file.data = value
    elif name == _FILE_TITLE:
        file.title = value
    elif name == _FILE_PROPERTIES:
        file.properties = _properties(value, message.code_page)


def _attributes(stream: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 6  # after the signature and the key
    for _ in range(_MAX_ATTRIBUTES):
        if at + 9 > len(stream):
            return
        level, name, _kind, size = struct.unpack_from("<BHHI", stream, at)
        end = at + 9 + size
        if level not in {_MESSAGE, _FILE} or end > len(stream):
            return
        yield level, name, stream[at + 9 : end]
        at = end + 2


# MAPI properties


def _properties(data: bytes, code_page: int) -> dict[int, bytes | str]:
    """Those with text or bytes, by their number; numbers as four bytes."""
    found: dict[int, bytes | str] = {}
    try:
        for name, kind, value in _values(data):
            if kind == _UNICODE:
                found.setdefault(name, value.decode("utf-16-le", "replace").rstrip("\0"))
            elif kind == _STRING:
                found.setdefault(name, _text(value.rstrip(b"\0"), code_page))
            else:
                found.setdefault(name, value)
    except struct.error:
        pass  # cut off, or a type that nobody has described: what came before is kept
    return found


def _values(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Number, type and first value of each property; a number above 0x8000 has its name before its value."""
    (count,), at = struct.unpack_from("<I", data), 4
    for _ in range(min(count, _MAX_PROPERTIES)):
        kind, name = struct.unpack_from("<HH", data, at)
        at += 4
        if name >= _NAMED:
            at = _after_name(data, at)
        values = 1
        single = kind & ~_MANY
        if kind & _MANY or single not in _SIZES:
            (values,) = struct.unpack_from("<I", data, at)
            at += 4
        if single in _SIZES:
            size = _SIZES[single]
            yield name, single, data[at : at + size]
            at += _padded(size * values)
        elif single in {_OBJECT_TYPE, _STRING, _UNICODE, _BINARY}:
            for index in range(min(values, _MAX_PROPERTIES)):
                (size,) = struct.unpack_from("<I", data, at)
                if at + 4 + size > len(data):
                    return
                if index == 0:
                    yield name, single, data[at + 4 : at + 4 + size]
                at += 4 + _padded(size)
        else:
            return


def _after_name(data: bytes, at: int) -> int:
    (kind,) = struct.unpack_from("<I", data, at + 16)
    if kind == 0:
        return at + 24
    (size,) = struct.unpack_from("<I", data, at + 20)
    return at + 24 + _padded(size)


def _padded(size: int) -> int:
    return (size + 3) & ~3


# What is made of them


def _part(file: _File, code_page: int) -> Part:
    properties = file.properties
    names = [properties.get(name, "") for name in (_LONG_NAME, _SHORT_NAME, _NAME_SHOWN)]
    name = next((one for one in names[:2] if isinstance(one, str) and one), "")
    name = name or _text(file.title.rstrip(b"\0"), code_page) or (names[2] if isinstance(names[2], str) else "")
    content_id = one_line(_string(properties, _CONTENT_ID)).strip("<>")
    return Part(
        content=file.data if file.data is not None else _object(properties),
        filename=file_name(name),
        content_type=one_line(_string(properties, _MIME_TYPE)),
        inline=bool(content_id),
        content_id=content_id or None,
    )


def _string(properties: Mapping[int, bytes | str], name: int) -> str:
    value = properties.get(name, "")
    return value if isinstance(value, str) else ""


def _object(properties: Mapping[int, bytes | str]) -> bytes:
    value = properties.get(_OBJECT, b"")
    if not isinstance(value, bytes):
        return b""
    is_object = value[4:_INTERFACE_BYTES] == bytes.fromhex("00000000c000000000000046") or value.startswith(
        _EMBEDDED_MESSAGE
    )
    return value[_INTERFACE_BYTES:] if is_object else value


def _body(message: _Message) -> Iterator[Part]:
    """The text in the best of its forms."""
    html, plain, packed = (message.body.get(name) for name in (_HTML, _PLAIN, _RTF))
    if isinstance(packed, bytes) and not html:
        formatted = rtf.read(rtf.decompress(packed))
        html, plain = formatted.html or html, formatted.text or plain
    for value, kind in ((html, "text/html"), (plain, "text/plain")):
        text = _text(value, _code_page(message)) if isinstance(value, bytes) else value
        if text and text.strip():
            yield Part(text.encode("utf-8", "replace"), content_type=f"{kind}; charset=utf-8", inline=True)
            return


def _code_page(message: _Message) -> int:
    value = message.body.get(_INTERNET_CODE_PAGE, b"")
    return int.from_bytes(value, "little") if isinstance(value, bytes) and len(value) == 4 else message.code_page


def _text(data: bytes, code_page: int) -> str:
    label = {65001: "utf-8", 20127: "us-ascii"}.get(code_page, f"cp{code_page}")
    return charset.decode(data, label).text
