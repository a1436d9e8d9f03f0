"""What a vendor is told, by its preset: several take anything but their own words for a failure, and 204 as well.

FreeSWITCH's mod_xml_cdr takes exactly 200 for success; TCCC wants `ErrCode` 0; Aliyun a `code` that is a number.
"""

from typing import Any
from urllib.parse import urlencode
from xml.sax.saxutils import escape

import orjson

from gateway.contract import Reply
from gateway.errors import ANSWERS, Unavailable, wire_error
from gateway.formdata import URLENCODED
from gateway.voice.preset import Answer, Preset


def success(preset: Preset, reference: str = "") -> Reply:
    """When everything is durable. `reference` is the ticket's, where one was made."""
    return _reply(preset.success, preset.success.status, reference=reference)


def failure(preset: Preset, error: BaseException, **headers: str) -> Reply:
    """In the vendor's form. A fault of ours has the status that makes it try again, one of the request its own."""
    known = wire_error(error)
    if isinstance(known, Unavailable):
        headers["Retry-After"] = str(known.retry_after)
        return _reply(preset.failure, preset.failure.status, headers, message=known.public)
    return _reply(preset.failure, ANSWERS[known.code].http, headers, message=known.public)


def _reply(answer: Answer, status: int, headers: dict[str, str] | None = None, **values: str) -> Reply:
    kind = answer.content_type.partition(";")[0].strip().lower()
    if not isinstance(answer.body, str):
        members = _filled(answer.body, values)
        body = urlencode(members).encode() if kind == URLENCODED else orjson.dumps(members)
    elif kind.endswith("xml"):
        body = _filled(answer.body, {name: escape(value) for name, value in values.items()}).encode()
    else:
        body = _filled(answer.body, values).encode()
    return Reply(status, body, answer.content_type, headers or {})


def _filled(node: Any, values: dict[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, values) for key, value in node.items()}
    if not isinstance(node, str):
        return node
    for name in ("reference", "message"):
        node = node.replace(f"{{{name}}}", values.get(name, ""))
    return node
