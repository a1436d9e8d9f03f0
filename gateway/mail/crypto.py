"""Which mails are signed or encrypted (RFC 8551, RFC 3156, RFC 4880): flagged, kept as they are, never refused.

No signature is checked here and nothing is deciphered: there are no keys. What a signed envelope holds in clear can be
read: some clients send a customer's text in no other way.
"""

from collections.abc import Iterator

from gateway.envelope import Oddity
from gateway.mail.message import Part

_MAX_PARTS = 1000
_MAX_INLINE_CHARS = 256 << 10
_SMIME = frozenset({"application/pkcs7-mime", "application/x-pkcs7-mime"})
_SMIME_SIGNATURE = frozenset({"application/pkcs7-signature", "application/x-pkcs7-signature"})
_READABLE = frozenset({"signed-data", "certs-only", "compressed-data"})
_PGP_MESSAGE = "-----BEGIN PGP MESSAGE-----"
_PGP_SIGNED = "-----BEGIN PGP SIGNED MESSAGE-----"

# CMS (RFC 5652), of which only the way to the content is walked
_SEQUENCE, _OID, _OCTETS, _OCTETS_IN_PIECES, _EXPLICIT = 0x30, 0x06, 0x04, 0x24, 0xA0
_SIGNED_DATA = bytes.fromhex("2a864886f70d010702")
_MAX_PIECES = 200_000


def seals(mail: Part, text: str = "") -> tuple[Oddity, ...]:
    """`encrypted` and `signed`, each at most once, with the way it is done. `text`: the mail's whole text."""
    found = {one.code: one for one in (*_inline(text), *_parts(mail))}
    return tuple(found[code] for code in ("encrypted", "signed") if code in found)


def signed_content(envelope: bytes) -> bytes:
    """The MIME entity inside an opaque S/MIME signature (RFC 5652, 5.1), b"" if none can be read. Never raises."""
    inner = _enter(envelope, _SEQUENCE)
    if _first(inner, _OID) != _SIGNED_DATA:
        return b""
    signed = _enter(_first(inner, _EXPLICIT), _SEQUENCE)
    holder = next((value for tag, value in _elements(signed) if tag == _SEQUENCE), b"")
    content = _first(holder, _EXPLICIT)
    return next((_octets(tag, value) for tag, value in _elements(content)), b"")


def _parts(mail: Part) -> Iterator[Oddity]:
    waiting, count = [mail], 0
    while waiting and count < _MAX_PARTS:
        part, count = waiting.pop(), count + 1
        waiting += part.children
        if part.content_type in _SMIME:
            yield _flag(signed=_is_signed(part), how="S/MIME")
        elif part.content_type == "multipart/encrypted" or part.content_type == "application/pgp-encrypted":
            yield _flag(signed=False, how="OpenPGP")
        elif part.content_type in _SMIME_SIGNATURE:
            yield _flag(signed=True, how="S/MIME")
        elif part.content_type == "application/pgp-signature":
            yield _flag(signed=True, how="OpenPGP")
        elif part.content_type == "multipart/signed" and not part.children:
            yield _flag(signed=True, how="")


def _is_signed(part: Part) -> bool:
    kind = part.params.get("smime-type", "").lower()
    return kind in _READABLE or (not kind and bool(signed_content(part.body)))


def _inline(text: str) -> Iterator[Oddity]:
    """Inline PGP: its armour at the beginning of a line of the text itself, not of a quotation."""
    lines = {line.rstrip() for line in text[:_MAX_INLINE_CHARS].splitlines() if line.startswith("-----BEGIN PGP ")}
    if _PGP_MESSAGE in lines:
        yield _flag(signed=False, how="OpenPGP")
    if _PGP_SIGNED in lines:
        yield _flag(signed=True, how="OpenPGP")


def _flag(*, signed: bool, how: str) -> Oddity:
    return Oddity(code="signed" if signed else "encrypted", detail=how)


# BER, as far as it is needed (X.690): an element is a tag, a length or none, and a value


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The elements that stand one after another. One of indefinite length is taken to the end of the data."""
    at = 0
    for _ in range(_MAX_PIECES):
        if at + 2 > len(data) or data[at : at + 2] == b"\0\0":
            return
        tag, size, at = data[at], data[at + 1], at + 2
        if size == 0x80:
            yield tag, data[at:]
            return
        if size > 0x80:
            count = size & 0x7F
            size, at = int.from_bytes(data[at : at + count], "big"), at + count
        yield tag, data[at : at + size]
        at += size


def _first(data: bytes, tag: int) -> bytes:
    return next((value for found, value in _elements(data) if found == tag), b"")


def _enter(data: bytes, tag: int) -> bytes:
    found, value = next(_elements(data), (0, b""))
    return value if found == tag else b""


def _octets(tag: int, value: bytes) -> bytes:
    if tag == _OCTETS:
        return value
    if tag == _OCTETS_IN_PIECES:
        return b"".join(piece for found, piece in _elements(value) if found == _OCTETS)
    return b""
