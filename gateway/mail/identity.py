"""What makes two copies of a mail the same message.

A Message-ID alone does not: shops re-use one for every notice, scripts write none. Received, Return-Path, Delivered-To
and the like differ between two ways of one mail; From, Date, Subject and the body do not.
"""

from collections.abc import Iterator
from hashlib import sha256

from gateway.contract import Body, BodyFile
from gateway.mail.message import Headers, header_block

_CHUNK_BYTES = 1 << 18
_MAX_HEADER_BYTES = 1 << 21  # beyond it a header is taken for text
_MAX_ID_CHARS = 200
_UNCHANGING = ("From", "Date", "Subject")


def native_id(body: Body) -> str:
    """The Message-ID, if there is one, and a digest of the unchanging content. Reads a file in pieces; never raises
    but for a file that cannot be read.
    """
    chunks = _unix(_chunks(body))
    head = _head(chunks)
    headers, at = header_block(head)
    digest = sha256()
    for name in _UNCHANGING:
        for value in headers.all(name):
            digest.update(name.encode() + b":" + b" ".join(value.split()) + b"\n")
    digest.update(b"\n")
    newlines = 0
    for chunk in _chain(head[at:], chunks):
        text = chunk.rstrip(b"\n")
        if text:
            digest.update(b"\n" * newlines + text)
            newlines = 0
        newlines += len(chunk) - len(text)
    return f"{message_id(headers)}#{digest.hexdigest()}"


def fingerprint(native: str) -> bytes:
    """For `RawMessage.fingerprint`: two ways of one mail differ in their bytes, and are no conflict."""
    return sha256(native.encode("utf-8", "replace")).digest()


def message_id(headers: Headers) -> str:
    """The Message-ID without its brackets, "" if there is none; a digest of one that is too long."""
    text = headers.text("Message-ID")
    text = text.partition("<")[2].partition(">")[0] or text.strip("<> ")
    text = text.strip() if '"' in text else "".join(text.split())
    printable = text if text.isprintable() else "".join(filter(str.isprintable, text))
    return printable if len(printable) <= _MAX_ID_CHARS else sha256(printable.encode()).hexdigest()


def _chunks(body: Body) -> Iterator[bytes]:
    if not isinstance(body, BodyFile):
        for at in range(0, len(body), _CHUNK_BYTES):
            yield body[at : at + _CHUNK_BYTES]
        return
    with body.path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _unix(chunks: Iterator[bytes]) -> Iterator[bytes]:
    r"""With `\n` for every line end."""
    held = b""
    for chunk in chunks:
        whole = held + chunk
        held = b"\r" if whole.endswith(b"\r") else b""
        yield whole[: len(whole) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if held:
        yield b"\n"


def _head(chunks: Iterator[bytes]) -> bytes:
    head = bytearray()
    for chunk in chunks:
        searched = max(0, len(head) - 1)
        head += chunk
        if head.find(b"\n\n", searched) >= 0 or len(head) > _MAX_HEADER_BYTES:
            break
    return bytes(head)


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
