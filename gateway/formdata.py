"""HTML form bodies: `application/x-www-form-urlencoded`, and `multipart/form-data` (RFC 7578) read and written."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header

from gateway.contract import Body, BodyFile
from gateway.errors import Rejected

URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
HEAD_BYTES = 4096  # enough of a file to tell its type
_CHUNK = 64 << 10


@dataclass(frozen=True, slots=True)
class Upload:
    """A file in a form. `head` is its first HEAD_BYTES; `content` is empty unless it was asked for."""

    name: str
    filename: str
    content_type: str
    size: int
    sha256: str
    head: bytes
    content: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class FormData:
    """Values and uploads in the order in which they came; a name may come more than once."""

    values: list[tuple[str, str]]
    uploads: list[Upload]


def parse(
    body: Body, content_type: str, *, keep_content: bool, max_parts: int = 256, max_value_bytes: int = 1 << 20
) -> FormData:
    """Raises Rejected: `unsupported_media_type`, `malformed`, `too_large`. File inputs left empty do not appear.

    Text that is not UTF-8 is taken for GB18030: pages in GBK still post here.
    """
    media_type, options = parse_options_header(content_type)
    if media_type == URLENCODED:
        return FormData(_urlencoded(b"".join(_chunks(body)), max_parts, max_value_bytes), [])
    if media_type != MULTIPART:
        raise Rejected("unsupported_media_type", f"send {URLENCODED} or {MULTIPART}")
    if not options.get("boundary"):
        raise Rejected("malformed", "the multipart boundary is missing")
    try:
        # Header bytes are kept as they are (latin-1) and decoded like the text.
        with PushMultipartParser(options["boundary"], max_segment_count=max_parts, header_charset="latin-1") as parser:
            return _collect(parser, body, lambda segment: _PartBuilder(segment, keep_content, max_value_bytes))
    except ParserLimitReached as error:
        raise Rejected("too_large", "the form has too many parts or too large a header", reason=str(error)) from error
    except (MultipartError, ValueError) as error:
        raise Rejected("malformed", "the multipart body is damaged", reason=str(error)) from error


class Writer:
    """Writes a `multipart/form-data` body, in memory or into a file: `parse` reads what was given. Blocks on a file.

    Content types are taken as valid. Who does not `finish` it has to `discard` it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._boundary = secrets.token_hex(16)  # nobody who sends a content can know it
        self._path = path
        self._to: BinaryIO = path.open("wb") if path else BytesIO()
        self._digest = sha256()

    @property
    def content_type(self) -> str:
        return f"{MULTIPART}; boundary={self._boundary}"

    def value(self, name: str, value: str) -> None:
        self._part(f'name="{_quoted(name)}"', value.encode())

    def file(self, name: str, filename: str, content_type: str, content: bytes) -> None:
        about = f'name="{_quoted(name)}"; filename="{_quoted(filename)}"'
        self._part(f"{about}\r\nContent-Type: {content_type}" if content_type else about, content)

    def finish(self) -> Body:
        self._write(f"--{self._boundary}--\r\n".encode())
        size = self._to.tell()
        if self._path is None:
            self._to.seek(0)
            return self._to.read()
        self._to.close()
        return BodyFile(self._path, size, self._digest.digest())

    def discard(self) -> None:
        self._to.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _part(self, about: str, content: bytes) -> None:
        self._write(f"--{self._boundary}\r\nContent-Disposition: form-data; {about}\r\n\r\n".encode())
        self._write(content)
        self._write(b"\r\n")

    def _write(self, piece: bytes) -> None:
        self._to.write(piece)
        self._digest.update(piece)


def decode(raw: bytes) -> str:
    """UTF-8, else GB18030, else UTF-8 with replacement characters."""
    for charset in ("utf-8", "gb18030"):
        try:
            return raw.decode(charset)
        except UnicodeDecodeError:
            continue
    return raw.decode("utf-8", "replace")


@dataclass(slots=True)
class _PartBuilder:
    """One part of a multipart body while it is being read."""

    segment: MultipartSegment
    keep_content: bool
    max_value_bytes: int
    size: int = 0
    kept: bytearray = field(default_factory=bytearray)
    head: bytearray = field(default_factory=bytearray)
    digest: Any = field(default_factory=sha256)

    def add(self, chunk: bytes | bytearray) -> None:
        self.size += len(chunk)
        if self.segment.filename is None:
            if self.size > self.max_value_bytes:
                raise Rejected("too_large", f"a value is longer than {self.max_value_bytes} bytes")
            self.kept += chunk
            return
        self.digest.update(chunk)
        self.head += chunk[: HEAD_BYTES - len(self.head)]
        if self.keep_content:
            self.kept += chunk

    def finish(self, form: FormData) -> None:
        name, filename = _text(self.segment.name), self.segment.filename
        if filename is None:
            form.values.append((name, decode(bytes(self.kept))))
        elif self.size or filename:
            declared = self.segment.content_type or ""
            found = (self.size, self.digest.hexdigest(), bytes(self.head), bytes(self.kept))
            form.uploads.append(Upload(name, _text(filename), declared, *found))


def _collect(parser: PushMultipartParser, body: Body, start: Callable[[MultipartSegment], _PartBuilder]) -> FormData:
    form = FormData([], [])
    part: _PartBuilder | None = None
    for chunk in _chunks(body):
        for event in parser.parse(chunk):
            if isinstance(event, MultipartSegment):
                part = start(event)
            elif part is not None and event:
                part.add(event)
            elif part is not None:
                part.finish(form)
                part = None
    return form


def _quoted(name: str) -> str:
    # HTML Living Standard, "Multipart form data": these three alone are escaped.
    return name.replace("\r", "%0D").replace("\n", "%0A").replace('"', "%22")


def _text(latin: str) -> str:
    return decode(latin.encode("latin-1", "replace"))


def _urlencoded(raw: bytes, max_parts: int, max_value_bytes: int) -> list[tuple[str, str]]:
    pairs = [pair for pair in raw.split(b"&") if pair]
    if len(pairs) > max_parts:
        raise Rejected("too_large", f"the form has more than {max_parts} values")
    values = []
    for pair in pairs:
        name, _, value = pair.partition(b"=")
        if len(value) > 3 * max_value_bytes:
            raise Rejected("too_large", f"a value is longer than {max_value_bytes} bytes")
        values.append(tuple(decode(unquote_to_bytes(part.replace(b"+", b" "))) for part in (name, value)))
    return values  # type: ignore[return-value]  # two parts each


def _chunks(body: Body) -> Iterator[bytes]:
    if isinstance(body, BodyFile):
        with body.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    else:
        yield body
