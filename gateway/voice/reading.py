"""A request as records, each with the bytes it came as. What lies in the body is told by the body, not by its header.

FreeSWITCH sends JSON under a form type, 容联云 XML under text/plain, Asterisk whatever the dialplan says as a form.
Everything is bounded, and nothing but Rejected is raised.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

from gateway import formdata, xmltree
from gateway.contract import BodyFile, Request
from gateway.errors import Rejected
from gateway.voice.preset import Format, Preset

MAX_BYTES = 4 << 20
MAX_RECORDS = 1000
MAX_DEPTH = 32
MAX_VALUES = 100_000  # in JSON
MAX_ELEMENTS = 20_000  # in XML, with the attributes
_MAX_PAIRS = 1000
_MAX_VALUE_BYTES = 1 << 20
_MAX_ESCAPES = 300_000  # of a URL-encoded record: each costs the time of many plain bytes
_EXACT_DIGITS = 15  # longer numbers stay text: ids that a float, or a consumer's integer, would change

_SPACE = b"\xef\xbb\xbf \t\r\n"
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.?)*+"?|[\[\]{},]', re.DOTALL)  # matches at every quote: linear for any input
_BASE64 = re.compile(rb"[A-Za-z0-9+/_=-]*+")
_STARTS: Mapping[bytes, Format] = {b"{": "json", b"[": "array", b"<": "xml"}


@dataclass(frozen=True, slots=True)
class Record:
    """One call's record. `fault` says why it cannot be read: then `data` is empty."""

    raw: bytes
    data: Mapping[str, Any]
    fault: str = ""


def read(preset: Preset, request: Request) -> list[Record]:
    """All records of the request. Raises Rejected: `malformed`, `too_large`, `unsupported_media_type`.

    An element of an array that cannot be read is a record with a fault: its neighbours are read.
    """
    body = body_of(request)
    found = _format(preset, request, body)
    if found == "query":
        return [Record(raw_query(request).encode("utf-8", "replace"), query(preset, request))]
    if found == "array":
        return _elements(_text(body))
    data = _form(preset, request, body) if found in ("form", "wrapped") else _document(body, found)
    return _within(preset, data) if preset.records else [Record(body, data)]


def body_of(request: Request) -> bytes:
    """The body in memory. Raises Rejected("too_large")."""
    body = request.body
    size = body.size if isinstance(body, BodyFile) else len(body)
    if size > MAX_BYTES:
        raise Rejected("too_large", f"a call record may have {MAX_BYTES} bytes")
    return body.path.read_bytes() if isinstance(body, BodyFile) else body


def raw_query(request: Request) -> str:
    """What stands behind the first question mark of the address, as it was sent."""
    return request.url.partition("#")[0].partition("?")[2]


def query(preset: Preset, request: Request) -> dict[str, Any]:
    """The parameters of the address. FreeSWITCH appends `?uuid=` to whatever the operator wrote as the address."""
    raw = raw_query(request)
    return _values((raw.replace("?", "&") if preset.appended_query else raw).encode("utf-8", "replace"))


def _format(preset: Preset, request: Request, body: bytes) -> Format:
    start = body[:256].lstrip(_SPACE)[:1]
    found = _STARTS.get(start, "form") if start else "query"
    if found == "form" and "wrapped" in preset.formats:
        found = "wrapped"
    if found not in preset.formats:
        expected = ", ".join(preset.formats)
        raise Rejected("unsupported_media_type", f"expected {expected}", reason=f"{found} came, {expected} is expected")
    return found


def _document(body: bytes, found: Format) -> Mapping[str, Any]:
    data = _xml(body) if found == "xml" else _json(_text(body))
    if not isinstance(data, dict):
        raise Rejected("malformed", "the body is no record")
    return data


def _xml(body: bytes) -> Any:
    return xmltree.parse(xmltree.in_utf8(body), max_elements=MAX_ELEMENTS, max_depth=MAX_DEPTH)[1]


def _within(preset: Preset, data: Mapping[str, Any]) -> list[Record]:
    node: Any = data
    for name in (preset.records or "").split("."):
        node = node.get(name) if isinstance(node, dict) else None
    if node is None:
        raise Rejected("malformed", f"the body has no {preset.records}")
    elements = node if isinstance(node, list) else [node]
    _demand_few(elements)
    return [
        _record(json.dumps(element, ensure_ascii=False).encode("utf-8", "replace"), element) for element in elements
    ]


def _record(raw: bytes, element: Any) -> Record:
    return Record(raw, element) if isinstance(element, dict) else Record(raw, {}, "the element is no object")


def _demand_few(elements: list[Any]) -> None:
    if len(elements) > MAX_RECORDS:
        raise Rejected("too_large", f"there are more than {MAX_RECORDS} records")


# Forms


def _form(preset: Preset, request: Request, body: bytes) -> Mapping[str, Any]:
    if "wrapped" in preset.formats:
        head, equals, value = body.lstrip(_SPACE).partition(b"=")
        if equals and head == preset.wrapper.encode():
            return _unwrapped(value)
    if request.content_type == formdata.MULTIPART:
        return _gathered(_parsed(body, request.headers["Content-Type"]))
    data = _values(body)
    if "form" not in preset.formats:
        raise Rejected("malformed", f"the form has no {preset.wrapper}")
    return data


def _unwrapped(value: bytes) -> Mapping[str, Any]:
    """The record as it is, with whatever `&` and `=` it has, or URL-encoded, or in base64 with a plus that is a plus:
    the encodings of mod_json_cdr and mod_xml_cdr.
    """
    if value.count(b"%") > _MAX_ESCAPES:
        raise Rejected("too_large", f"the record has more than {_MAX_ESCAPES} escapes")
    for decode in (bytes, _from_urlencoded, _from_base64):
        document = decode(value)
        start = document[:256].lstrip(_SPACE)[:1]
        if start in (b"<", b"{"):
            return _document(document, _STARTS[start])
    raise Rejected("malformed", "the record is neither JSON nor XML")


def _from_urlencoded(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" "))


def _from_base64(text: bytes) -> bytes:
    compact = b"".join(unquote_to_bytes(text).split()).rstrip(b"=")
    if not _BASE64.fullmatch(compact):
        raise Rejected("malformed", "the record is neither JSON, XML nor base64")
    try:
        return base64.urlsafe_b64decode(compact.translate(bytes.maketrans(b"+/", b"-_")) + b"=" * (-len(compact) % 4))
    except (binascii.Error, ValueError) as error:
        raise Rejected("malformed", "the record's base64 is damaged", reason=str(error)) from error


def _values(raw: bytes) -> dict[str, Any]:
    return _gathered(_parsed(raw, formdata.URLENCODED))


def _parsed(raw: bytes, content_type: str) -> list[tuple[str, str]]:
    form = formdata.parse(raw, content_type, keep_content=False, max_parts=_MAX_PAIRS, max_value_bytes=_MAX_VALUE_BYTES)
    return form.values


def _gathered(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """A name that comes again has a list of values."""
    data: dict[str, Any] = {}
    for name, value in pairs:
        if name not in data:
            data[name] = value
        elif isinstance(data[name], list):
            data[name].append(value)
        else:
            data[name] = [data[name], value]
    return data


# JSON


def _text(body: bytes) -> str:
    return formdata.decode(body).removeprefix("\ufeff").strip()


def _json(text: str) -> Any:
    """Raises Rejected. Of two equal keys the last counts: mod_json_cdr repeats `callflow`, the newest profile first."""
    for _ in _commas(text):
        pass
    try:
        return json.loads(text, parse_int=_integer, parse_float=_float, parse_constant=_refuse)
    except ValueError as error:
        raise Rejected("malformed", "the JSON is damaged", reason=str(error)) from error


def _elements(text: str) -> list[Record]:
    """The elements of an array, each parsed on its own, so that a damaged one spoils no other."""
    if not text.endswith("]"):
        raise Rejected("malformed", "the array has no end")
    marks = [0, *_commas(text), len(text) - 1]
    slices = [text[start + 1 : end].strip() for start, end in pairwise(marks)]
    slices = [] if slices == [""] else slices
    _demand_few(slices)
    return [_element(element) for element in slices]


def _element(text: str) -> Record:
    raw = text.encode()
    try:
        return _record(raw, _json(text))
    except Rejected as error:
        return Record(raw, {}, error.public)


def _commas(text: str) -> Iterator[int]:
    """Where the commas of the outermost array or object are. Raises Rejected at too many values or levels."""
    depth = 0
    for count, token in enumerate(_TOKEN.finditer(text)):
        kind = token[0]
        if kind in "[{":
            depth += 1
        elif kind in "]}":
            depth -= 1
        elif kind == "," and depth == 1:
            yield token.start()
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise Rejected("too_large", f"the JSON has more than {MAX_DEPTH} levels or {MAX_VALUES} values")


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _EXACT_DIGITS else digits


def _float(digits: str) -> float | str:
    number = float(digits)
    return number if math.isfinite(number) and len(digits) <= _EXACT_DIGITS else digits


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
