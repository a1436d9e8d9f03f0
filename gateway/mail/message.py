"""A mail's bytes as a tree of parts: header fields, MIME structure, transfer encodings. It never raises.

The standard library's parser is either slow and unsafe (`policy.default`) or makes surrogates of raw 8-bit header text
(`compat32`), so this is our own. Time is linear in the size, with the depth of nesting bounded. Bytes are cut out for
leaves alone; what lies beyond a limit is counted in `Part.omitted` and `Headers.omitted`.

Sources: RFC 5322 (3.6, 4.5), RFC 2045, RFC 2046 (5.1), RFC 2183, RFC 6532.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from gateway.mail import parameters, transfer, words


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of one mail is looked at. What is beyond is left out, and said to be."""

    header_bytes: int = 1 << 20  # of one header block
    headers: int = 2000  # of one header block
    parts: int = 1000
    depth: int = 100
    recipients: int = 1000
    references: int = 500
    attachments: int = 500
    attachment_bytes: int = 64 << 20  # all of them together
    text_chars: int = 1 << 20


_FIELD = re.compile(rb"^([!-9;-~]{1,200}+)[ \t]*+:([^\n]*+(?:\n[ \t][^\n]*+)*+)", re.MULTILINE)
_NO_FIELD = re.compile(rb"^(?![!-9;-~]{1,200}+[ \t]*+:|[ \t]|\r?$)", re.MULTILINE)
_END = re.compile(rb"\n\r?\n")
_FOLD = re.compile(rb"(?:\r?\n[ \t]++(?=\r?\n|\Z))++|\r?\n(?=[ \t])")  # a line of blanks is nothing
_BLANK_LINES = re.compile(rb"(?:[ \t]*+\r?\n)++")
_LINE = re.compile(rb"[^\n]*+\n|[^\n]++")
_ENVELOPE_LINE = re.compile(rb">?From (?![ \t]*+:)[^\n]*\n")
_PARAMETER_LINE = re.compile(rb"[ \t]*[A-Za-z][A-Za-z0-9*-]{0,40}\s?=")
_KNOWN = re.compile(
    rb"(?:from|to|cc|bcc|subject|date|sender|reply-to|received|return-path|delivered-to|message-id|in-reply-to|references"
    rb"|mime-version|content-[a-z-]+|x-[!-9;-~]+|dkim-signature|authentication-results|list-[a-z-]+|importance|priority"
    rb"|precedence|user-agent|thread-[a-z-]+|errors-to|comments|keywords|status|lines|resent-[a-z-]+)[ \t]*\Z",
    re.IGNORECASE,
)
_DELIMITER = re.compile(rb"(?:^|\n)--([^\r\n]{1,200}?)[ \t]*\r?\n(?=[!-9;-~]{1,200}:|\r?\n)")
_SALVAGED_BYTES = 1 << 18  # of a header with lines that are no fields
_DELIMITER_BYTES = 1 << 16  # of a multipart without a usable boundary, in which one is looked for
_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+")


@lru_cache(maxsize=1024)
def _key(name: str) -> bytes:
    return name.lower().encode()


class Headers:
    """A header block in its order. Names are looked up in any case, values are bytes as they came."""

    __slots__ = ("_by_name", "_texts", "charset", "items", "omitted")

    def __init__(self, items: list[tuple[bytes, bytes]], omitted: int = 0) -> None:
        self.items = items
        self.omitted = omitted  # bytes beyond the limits
        self.charset = ""  # the body's label, for raw 8-bit text
        self._texts: dict[str, str] = {}  # what was decoded before
        self._by_name: dict[bytes, list[bytes]] = {}
        for name, value in items:
            self._by_name.setdefault(name.lower(), []).append(value)

    def first(self, name: str) -> bytes | None:
        """The first value of that name: unfolded, without white space around it."""
        values = self._by_name.get(_key(name))
        return _unfolded(values[0]) if values else None

    def all(self, name: str) -> list[bytes]:
        return [_unfolded(value) for value in self._by_name.get(_key(name), ())]

    def text(self, name: str) -> str:
        """The first one as text, "" if there is none: encoded words and raw 8-bit decoded, no surrogates."""
        known = self._texts.get(name)
        if known is None:
            value = self.first(name)
            known = self._texts[name] = words.decode(value, self.charset) if value else ""
        return known

    def __contains__(self, name: str) -> bool:
        return _key(name) in self._by_name


@dataclass(slots=True, eq=False)
class Part:
    """One node of a mail. A message/rfc822 is a leaf: it is kept as a file."""

    headers: Headers
    content_type: str = "text/plain"
    params: Mapping[str, str] = field(default_factory=dict)
    disposition: str = ""  # "", "inline" or "attachment"
    filename: str = ""  # as the sender wrote it, any characters
    content_id: str | None = None
    body: bytes = b""  # of a leaf, without its transfer encoding
    children: tuple["Part", ...] = field(default=(), repr=False)
    omitted: int = 0  # children beyond the limits

    @property
    def is_multipart(self) -> bool:
        return self.content_type.startswith("multipart/")


Span = tuple[int, int]


def parse(raw: bytes, limits: Limits = Limits()) -> Part:
    """The whole mail as a tree."""
    data = _line_ends(raw)
    start = _beginning(data)
    root, body = _part(data, start, len(data), "text/plain", limits)
    pending = [(root, body, 1)] if root.is_multipart else []
    left = limits.parts
    while pending:
        part, span, depth = pending.pop()
        if depth >= limits.depth:
            part.content_type, part.disposition, part.omitted = "application/octet-stream", "attachment", 1
            _become_leaf(part, data, span)
            continue
        spans = _spans(data, span, part)
        if spans is None:  # no delimiter: it is text, whatever it calls itself
            part.content_type = "text/plain"
            _become_leaf(part, data, span)
            continue
        default = "message/rfc822" if part.content_type == "multipart/digest" else "text/plain"
        kept, part.omitted = spans[:left], max(0, len(spans) - left)
        left -= len(kept)
        made = [_part(data, *inner, default, limits) for inner in kept]
        part.children = tuple(child for child, _ in made)
        pending += [(child, inner, depth + 1) for child, inner in made if child.is_multipart]
    if not root.headers.charset:
        root.headers.charset = _first_charset(root)
    return root


def header_block(raw: bytes, limits: Limits = Limits()) -> tuple[Headers, int]:
    r"""Only the header, and where the body begins. `raw` has `\n` or `\r\n` for line ends."""
    return _headers(raw, _beginning(raw), len(raw), limits)


def _line_ends(raw: bytes) -> bytes:
    if b"\n" not in raw:
        return raw.replace(b"\r", b"\n")
    if raw[: raw.find(b"\n")].endswith(b"\r\r"):  # a text file written twice through Windows
        return raw.replace(b"\r\r\n", b"\r\n")
    return raw


def _beginning(data: bytes) -> int:
    """Past what may stand before a header: blank lines, a byte order mark, the first line of an mbox."""
    start = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    if blank := _BLANK_LINES.match(data, start):
        following = data[blank.end() : blank.end() + 200].partition(b":")[0]
        start = blank.end() if _KNOWN.match(following) else start
    line = _ENVELOPE_LINE.match(data, start)
    return line.end() if line else start


def _part(data: bytes, start: int, end: int, default: str, limits: Limits) -> tuple[Part, Span]:
    """A part and where its body lies. The body of a multipart is not cut out."""
    headers, body = _headers(data, start, end, limits)
    part = Part(headers, default)
    if headers.items:
        _describe(part, default)
    if not part.is_multipart:
        _become_leaf(part, data, (body, end))
    return part, (body, end)


def _become_leaf(part: Part, data: bytes, span: Span) -> None:
    body = data[span[0] : span[1]]
    encoding = part.headers.first("Content-Transfer-Encoding")
    part.body = transfer.decode(body, encoding) if encoding else body


def _describe(part: Part, default: str) -> None:
    headers = part.headers
    if (raw := headers.first("Content-Type")) is not None:
        value, part.params = parameters.parse(raw)
        part.content_type = value if _TYPE.fullmatch(value) else default
        headers.charset = part.params.get("charset", "")
        part.filename = part.params.get("name", "")
    if (raw := headers.first("Content-Disposition")) is not None:
        value, params = parameters.parse(raw, headers.charset)
        part.disposition = value if value in {"", "inline"} else "attachment"
        part.filename = params.get("filename", "") or params.get("name", "") or part.filename
    if (raw := headers.first("Content-ID")) is not None:
        part.content_id = words.decode(raw).strip(" <>\t") or None


def _first_charset(root: Part) -> str:
    pending = list(root.children)
    for part in pending:
        if label := part.params.get("charset"):
            return label
        pending += part.children
    return ""


# Header blocks


def _headers(data: bytes, start: int, end: int, limits: Limits) -> tuple[Headers, int]:
    """The fields from `start` on, and where the body begins."""
    if data.startswith((b"\n", b"\r\n"), start):
        return Headers([]), data.index(b"\n", start) + 1
    blank = _END.search(data, start, end)
    stop, body = (blank.start() + 1, blank.end()) if blank else (end, end)
    block = _cut(data[start:stop], limits.header_bytes)
    if _NO_FIELD.search(block):
        block = _cut(block, _SALVAGED_BYTES)
        items, used = _salvaged(block)
        if used < len(block) or not items:
            body = start + used
    else:
        items = _FIELD.findall(block)
    omitted = max(0, stop - start - len(block)) + sum(len(name) + len(value) for name, value in items[limits.headers :])
    return Headers(items[: limits.headers], omitted), body


def _cut(block: bytes, size: int) -> bytes:
    """At the end of a line, where there is one."""
    return block if len(block) <= size else block[: block.rfind(b"\n", 0, size) + 1 or size]


def _salvaged(block: bytes) -> tuple[list[tuple[bytes, bytes]], int]:
    """The fields of a block with lines that are none, and how much of it is header.

    Such a line is passed over when known fields follow; otherwise the text begins there, without an empty line.
    """
    lines = _LINE.findall(block)
    fields = [_field(line) for line in lines]
    last = max((at for at, found in enumerate(fields) if found and _KNOWN.match(found[0])), default=-1)
    items: list[tuple[bytes, list[bytes]]] = []
    used = 0
    for at, line in enumerate(lines):
        found = fields[at]
        if found:
            items.append((found[0], [found[1]]))
        elif items and (line[:1] in b" \t" or _goes_on(items[-1][0], line)):
            items[-1][1].append(line if line[:1] in b" \t" else b" " + line)
        elif at > last:
            break
        used += len(line)
    return ([(name, b"".join(pieces)) for name, pieces in items], used) if last >= 0 else ([], 0)


def _field(line: bytes) -> tuple[bytes, bytes] | None:
    found = _FIELD.match(line)
    return (found[1], line[found.start(2) :]) if found else None


def _goes_on(name: bytes, line: bytes) -> bool:
    """A parameter on a line that was not indented."""
    return name.lower().startswith(b"content-") and bool(_PARAMETER_LINE.match(line))


def _unfolded(value: bytes) -> bytes:
    return (_FOLD.sub(b"", value) if b"\n" in value else value).strip(b" \t\r\n")


# Multiparts


def _spans(data: bytes, span: Span, part: Part) -> list[Span] | None:
    """Where the parts lie; None when there is no delimiter to be found."""
    boundary = part.params.get("boundary", "").strip().encode("utf-8", "replace")
    found = _split(data, span, boundary) if boundary else None
    if found is None and (
        guess := _DELIMITER.search(data, max(0, span[0] - 1), min(span[1], span[0] + _DELIMITER_BYTES))
    ):
        found = _split(data, span, guess[1])
    return found


def _split(data: bytes, span: Span, boundary: bytes) -> list[Span] | None:
    start, end = span
    spans: list[Span] = []
    opened = -1
    at = max(0, start - 1)  # the line end before the body may be that of the first delimiter
    while (at := data.find(b"\n--" + boundary, at, end)) >= 0:
        tail = at + 3 + len(boundary)
        stop = data.find(b"\n", tail, end)
        stop = end if stop < 0 else stop
        rest = data[tail:stop].strip()
        if rest not in {b"", b"--"}:
            at = tail
            continue
        if opened >= 0:
            spans.append((opened, _without_cr(data, opened, at)))
        if rest:
            return spans or _never_opened(data, start, at)
        opened = min(stop + 1, end)
        at = stop
    if opened >= 0:
        spans.append((opened, end))
    return spans or None


def _never_opened(data: bytes, start: int, end: int) -> list[Span]:
    """Of a multipart that only ends, what stands before that is a part."""
    return [(start, end)] if data[start:end].strip() else []


def _without_cr(data: bytes, start: int, end: int) -> int:
    return end - 1 if end > start and data[end - 1] == 0x0D else max(start, end)
