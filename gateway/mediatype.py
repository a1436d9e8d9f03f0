"""What a file is, by its bytes: the sender's word for it is believed only where the bytes cannot tell."""

import mimetypes
import re

import puremagic

GENERIC = "application/octet-stream"
_VALID = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")
_ALIASES = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/x-png": "image/png",
    "image/heif": "image/heic",
    "audio/wave": "audio/wav",
    "audio/x-wav": "audio/wav",
    "audio/x-m4a": "audio/mp4",
    "application/x-pdf": "application/pdf",
    "application/x-zip-compressed": "application/zip",
    "application/x-gzip": "application/gzip",
}
# Signatures the library leaves without a media type.
_EXTENSIONS = {".amr": "audio/amr", ".silk": "audio/silk"}
# Text formats that only a name or a declaration can tell from plain text. HTML and SVG are recognised by their bytes.
_TEXTUAL = {"application/json", "application/xml", "message/rfc822", "application/x-ndjson", "application/yaml"}


def declared(content_type: str) -> str:
    """A Content-Type header as a media type: lower case, no parameters, known aliases replaced; "" if it is none."""
    media_type = content_type.partition(";")[0].strip().lower()
    return _ALIASES.get(media_type, media_type) if _VALID.fullmatch(media_type) else ""


def sniff(head: bytes, filename: str = "", content_type: str = "") -> str:
    """The media type of a file from its first bytes, its name and its declared type."""
    hints = [hint for hint in (declared(mimetypes.guess_type(filename)[0] or ""), declared(content_type)) if hint]
    found = _signatures(head)
    for hint in hints:
        if hint in found:
            return hint
    if head.startswith(b"PK\x03\x04"):
        return "application/zip"
    if found:
        return found[0]
    if _is_text(head):
        return next((hint for hint in hints if hint.startswith("text/") or hint in _TEXTUAL), "text/plain")
    # A picture or a PDF would have been recognised: the claim is wrong.
    return next((hint for hint in hints if not _recognisable(hint)), GENERIC)


def _signatures(head: bytes) -> list[str]:
    if not head:
        return []
    try:
        matches = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):
        return []
    types = (declared(match.mime_type) or _EXTENSIONS.get(match.extension, "") for match in matches)
    return list(dict.fromkeys(media_type for media_type in types if media_type and media_type != GENERIC))


def _is_text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    for charset in ("utf-8", "gb18030"):
        try:
            text = head[: len(head) - 4 if len(head) > 64 else None].decode(charset)
        except UnicodeDecodeError:
            continue
        return not any(ord(char) < 32 and char not in "\t\r\n\f\x1b" for char in text)
    return False


def _recognisable(media_type: str) -> bool:
    return media_type.startswith(("image/", "text/")) or media_type in {"application/pdf", "application/zip"}
