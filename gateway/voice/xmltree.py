"""XML as nested mappings, within bounds and without anything that reads or grows on its own: no DTD, no entities."""

import re
from typing import Any
from xml.parsers import expat

from gateway.errors import Rejected

MAX_DEPTH = 32
MAX_ELEMENTS = 20_000
_CONTROLS = dict.fromkeys({*range(0x20)} - {*b"\t\n\r"})  # no XML has them, but what a caller typed may
_DECLARATION = re.compile(r"\s*+<\?xml\b[^>]{0,200}\?>")
_ENCODING = re.compile(rb"""<\?xml\b[^>]{0,150}?\bencoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")


def parse(document: bytes) -> tuple[str, Any]:
    """The root's name and its content. Raises Rejected: `malformed`, `too_large`.

    An element with nothing but text is that text, as it stands. Any other is a mapping: children by name, a list where
    a name comes again; attributes as `@name`; text beside them as `#text`. Chinese bytes under any label are read.
    """
    return parse_text(decode(document))


def decode(document: bytes) -> str:
    """By the encoding that the document declares, if the bytes bear it out, else as UTF-8 or GB18030."""
    declared = _ENCODING.match(document.lstrip()[:256])
    label = declared[1].decode() if declared else "utf-8"
    label = "gb18030" if label.lower() in {"gbk", "gb2312"} else label
    for charset in (label, "utf-8", "gb18030"):
        try:
            return document.decode(charset).removeprefix("\ufeff")
        except (UnicodeError, LookupError):
            continue
    raise Rejected("malformed", "the XML is in no encoding we know")


def parse_text(document: str) -> tuple[str, Any]:
    """As `parse`."""
    builder = _Builder()
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    try:
        parser.Parse(_plain(document).encode("utf-8"), True)
    except (expat.ExpatError, UnicodeEncodeError) as error:
        raise Rejected("malformed", "the XML is damaged", reason=str(error)) from error
    return builder.root


def _plain(document: str) -> str:
    """Without the declaration, whose encoding is no longer true."""
    declaration = _DECLARATION.match(document)
    return document[declaration.end() if declaration else 0 :].translate(_CONTROLS)


def _refuse(*_: Any) -> None:
    raise Rejected("malformed", "the XML has a document type, which is not read")


class _Builder:
    """What expat tells, as mappings; the open elements are a list, not a recursion."""

    def __init__(self) -> None:
        self.root: tuple[str, Any] = ("", "")
        self._open: list[tuple[str, dict[str, Any], list[str]]] = []
        self._count = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._count += 1 + len(attributes)
        if self._count > MAX_ELEMENTS or len(self._open) >= MAX_DEPTH:
            raise Rejected("too_large", f"the XML has more than {MAX_ELEMENTS} elements or {MAX_DEPTH} levels")
        self._open.append((name, {f"@{key}": value for key, value in attributes.items()}, []))

    def text(self, text: str) -> None:
        self._open[-1][2].append(text)

    def end(self, _: str) -> None:
        name, members, texts = self._open.pop()
        text = "".join(texts)
        if members and text.strip():
            members["#text"] = text
        content = members or text
        if not self._open:
            self.root = (name, content)
            return
        siblings = self._open[-1][1]
        if name not in siblings:
            siblings[name] = content
        elif isinstance(siblings[name], list):
            siblings[name].append(content)
        else:
            siblings[name] = [siblings[name], content]
