"""The XML or JSON of a push as plain fields, with bounds on what it may cost.

wechatpy's parser reads XML alone, strips texts, turns empty ones into nothing and two elements of a name into a list,
and rewrites some events: what it returns is no longer what the customer sent.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

from gateway import xmltree
from gateway.errors import Rejected

Form = Literal["xml", "json"]

MAX_DEPTH = 16
MAX_ELEMENTS = 1000

# A document type can stand nowhere but before the root: where there is none, neither are entities nor default values.
_ROOT = re.compile(rb"(?:\xef\xbb\xbf)?\s*+(?:<\?xml\s[^<>]*+>\s*+)?+<xml[\s/>]")
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can say half a character, UTF-8 cannot


def form_of(document: bytes) -> Form:
    """By its first character: the Content-Type says nothing reliable. Raises Rejected("malformed")."""
    start = document[:64].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"<":
        return "xml"
    if start == b"{":
        return "json"
    raise _malformed("it is neither XML nor JSON")


def read(document: bytes) -> dict[str, Any]:
    """The fields: texts, and where they nest dicts and lists of texts, dicts and lists; names as WeChat writes them.

    An element's text is verbatim (but for control characters that XML excludes), and so are the digits of a number in
    JSON: `MsgId` is a text in both. `null` is "", `true` is "true". Elements that repeat within another make a list; a
    field that is there twice makes the document ambiguous. Raises Rejected("malformed").
    """
    return _read_xml(document) if form_of(document) == "xml" else _read_json(document)


# XML


def _read_xml(document: bytes) -> dict[str, Any]:
    if not _ROOT.match(document):
        raise _malformed("its root is not xml, or something stands before it")
    try:
        _, fields = xmltree.parse(document, max_elements=MAX_ELEMENTS, max_depth=MAX_DEPTH, bare=True)
    except Rejected as error:
        raise _malformed(f"it is no XML of WeChat's: {error.reason}") from error
    if not isinstance(fields, dict):
        return {}
    if any(isinstance(value, list) for value in fields.values()):
        raise _malformed("a field is there twice")
    return fields


# JSON


def _read_json(document: bytes) -> dict[str, Any]:
    try:
        found = json.loads(
            document.decode("utf-8-sig"),
            object_pairs_hook=_unique,
            parse_int=str,
            parse_float=str,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:  # deeper than the interpreter goes: it stops in time
        raise _malformed(f"it is no JSON: {type(error).__name__}") from error
    plain: dict[str, Any] = _plain(found, 1, iter(range(MAX_ELEMENTS)))
    return plain


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _malformed("a key is there twice")
    return found


def _refuse_constant(name: str) -> None:
    raise _malformed(f"it is no JSON: {name}")


def _plain(value: Any, depth: int, left: Iterator[int]) -> Any:
    """`left` ends when there have been too many values."""
    if depth > MAX_DEPTH or next(left, None) is None:
        raise _malformed(f"it has more than {MAX_ELEMENTS} values, or {MAX_DEPTH} levels")
    if isinstance(value, str):
        return _whole(value)
    if isinstance(value, dict):
        return {_whole(key): _plain(one, depth + 1, left) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one, depth + 1, left) for one in value]
    return "" if value is None else str(value).lower()


def _whole(text: str) -> str:
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def _malformed(reason: str) -> Rejected:
    return Rejected("malformed", "the push cannot be read", reason=reason)
