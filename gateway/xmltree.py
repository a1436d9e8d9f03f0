"""XML as nested mappings, within bounds and without anything that reads or grows on its own: no DTD, no entities.

expat is asked directly: xmltodict strips texts, turns empty ones into nothing, and bounds neither depth nor number.
"""

import re
from typing import Any
from xml.parsers import expat

from gateway.errors import Rejected

_CONTROLS = bytes({*range(0x20)} - {*b"\t\n\r"})  # no XML has them, but what a customer pastes may
_ENCODING = re.compile(rb"""<\?xml\b[^>]{0,150}?\bencoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")


def parse(document: bytes, *, max_elements: int, max_depth: int, bare: bool = False) -> tuple[str, Any]:
    """The root's name and its content, of XML in UTF-8 whatever it declares. Raises Rejected: `malformed`, `too_large`.

    An element with nothing but text is that text, verbatim but for control characters that XML excludes. Any other is a
    mapping: children by name, a list where a name comes again; and unless only the `bare` elements are wanted,
    attributes as `@name`, which count as elements do, and text beside them as `#text`.
    """
    tree = _Tree(max_elements, max_depth, bare)
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler = tree.start
    parser.EndElementHandler = tree.end
    parser.CharacterDataHandler = tree.text
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    try:
        parser.Parse(document.translate(None, _CONTROLS), True)
    except expat.ExpatError as error:
        raise Rejected("malformed", "the XML is damaged", reason=str(error)) from error
    return tree.root


def in_utf8(document: bytes) -> bytes:
    """By the encoding that it declares, if the bytes bear it out, else as UTF-8 or GB18030. Raises Rejected.

    So Chinese bytes under any label can be parsed; and nothing stands before a declaration any more.
    """
    declared = _ENCODING.match(document.lstrip()[:256])
    label = declared[1].decode() if declared else "utf-8"
    label = "gb18030" if label.lower() in {"gbk", "gb2312"} else label
    for charset in (label, "utf-8", "gb18030"):
        try:
            return document.decode(charset).removeprefix("\ufeff").lstrip().encode()
        except (UnicodeError, LookupError):  # LookupError: no such encoding, or none of texts
            continue
    raise Rejected("malformed", "the XML is in no encoding we know")


def _refuse(*_: Any) -> None:
    raise Rejected("malformed", "the XML has a document type, which is not read")


class _Tree:
    """What expat tells, as mappings. For each element that is open: its name, its members and its texts."""

    def __init__(self, max_elements: int, max_depth: int, bare: bool) -> None:
        self.root: tuple[str, Any] = ("", "")
        self._max_elements = max_elements
        self._max_depth = max_depth
        self._bare = bare
        self._open: list[tuple[str, dict[str, Any], list[str]]] = []
        self._count = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        members = {} if self._bare else {f"@{key}": value for key, value in attributes.items()}
        self._count += 1 + len(members)
        if self._count > self._max_elements or len(self._open) >= self._max_depth:
            limits = f"{self._max_elements} elements or {self._max_depth} levels"
            raise Rejected("too_large", f"the XML has more than {limits}")
        self._open.append((name, members, []))

    def text(self, text: str) -> None:
        self._open[-1][2].append(text)

    def end(self, _: str) -> None:
        name, members, texts = self._open.pop()
        text = "".join(texts)
        if members and not self._bare and text.strip():
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
