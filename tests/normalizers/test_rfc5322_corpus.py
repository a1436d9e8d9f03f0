"""The awkward mails of tests/payloads/rfc5322, each beside what its reader expects; the README there tells the keys.

Every difference of a mail is told at once, as `key: expected … found …`.
"""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from gateway.contract import Draft, Part, StoredMessage
from gateway.mail.identity import native_id
from normalizers.rfc5322 import normalize

FOLDER = Path(__file__).parent.parent / "payloads" / "rfc5322"
NAMES = sorted(path.stem for path in FOLDER.glob("*.eml"))
RECEIVED = datetime(2026, 11, 23, 9, tzinfo=UTC)
_ABSENT = object()
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # no database and no terminal is the better for it

Difference = Callable[[Any, Any], str | None]


def body(name: str) -> bytes:
    return (FOLDER / f"{name}.eml").read_bytes()


def reading(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return document


def ticket(name: str) -> dict[str, Any]:
    """What the normalizer makes of the mail, with its parts as `attachments`."""
    stored = StoredMessage(
        id="id",
        channel="mailbox",
        kind="rfc5322",
        body=body(name),
        content_type="message/rfc822",
        native_id=None,
        facts=reading(name).get("facts", {}),
        received_at=RECEIVED,
    )
    draft: Draft = normalize(stored)
    return draft.message.model_dump(mode="json") | {"attachments": [_attachment(part) for part in draft.parts]}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_read_as_its_reader_expects(name: str) -> None:
    document = reading(name)

    found = ticket(name)

    assert [text for text in _strings(found) if _UNFIT.search(text)] == []
    if differences := list(_differences(document["expected"], found)):
        pytest.fail("\n".join((document["why"], *differences)), pytrace=False)


@pytest.mark.parametrize("name", [name for name in NAMES if "identity" in reading(name)["expected"]])
def test_a_mail_is_known_again(name: str) -> None:
    known = reading(name)["expected"]["identity"]

    assert "same_as" not in known or native_id(body(name)) == native_id(body(known["same_as"]))
    assert "other_than" not in known or native_id(body(name)) != native_id(body(known["other_than"]))


def test_a_mail_and_its_reading_come_together() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == NAMES
    assert all({"why", "expected"} <= reading(name).keys() for name in NAMES)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _strings(one)


def _attachment(part: Part) -> dict[str, Any]:
    return {
        "filename": part.filename,
        "content_type": part.content_type,
        "size": len(part.content),
        "sha256": sha256(part.content).hexdigest(),
        "inline": part.inline,
        "content_id": part.content_id,
    }


def _differences(expected: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    for key, value in expected.items():
        base, _, relation = key.rpartition("_")
        if key in _OWN:
            difference = _OWN[key](value, found)
        elif relation in _RELATIONS:
            difference = _RELATIONS[relation](value, found[base] or "")
        else:
            difference = _unlike(value, found[key])
        if difference:
            yield f"{key}: {difference}"


def _unlike(expected: Any, found: Any) -> str | None:
    return None if _within(expected, found) else f"expected {expected!r}\n    found {found!r}"


def _within(expected: Any, found: Any) -> bool:
    """What an object does not name is not decided; lists are whole."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(_within(expected[key], found.get(key, _ABSENT)) for key in expected)
    if isinstance(expected, list):
        return isinstance(found, list) and len(expected) == len(found) and all(map(_within, expected, found))
    return bool(expected == found)


def _lines(text: str) -> str:
    """Blanks at the end of a line are nobody's words."""
    return "\n".join(line.rstrip() for line in text.split("\n"))


def _text(key: str) -> Difference:
    return lambda expected, found: _unlike(_lines(expected), _lines(found[key]))


def _contains(expected: list[str], found: str) -> str | None:
    """Every piece, in this order."""
    at = 0
    for piece in expected:
        at = found.find(piece, at)
        if at < 0:
            return f"expected {piece!r} after what is before it\n    found {found!r}"
        at += len(piece)
    return None


def _lacks(expected: list[str], found: str) -> str | None:
    there = [piece for piece in expected if piece in found]
    return f"not expected {there!r}\n    found {found!r}" if there else None


def _sent_at(expected: str | None, found: dict[str, Any]) -> str | None:
    moment = found["sent_at"]
    return _unlike(expected and datetime.fromisoformat(expected), moment and datetime.fromisoformat(moment))


def _auto(expected: str | list[str] | None, found: dict[str, Any]) -> str | None:
    """A list: any of them."""
    wanted = expected if isinstance(expected, list) else [expected]
    return None if found["auto"] in wanted else _unlike(expected, found["auto"])


def _recipients(expected: list[dict[str, Any]], found: dict[str, Any]) -> str | None:
    """In order within each role; no role named: none at all."""
    for role in {one["role"] for one in expected} or {one["role"] for one in found["recipients"]}:
        wanted = [one for one in expected if one["role"] == role]
        there = [one for one in found["recipients"] if one["role"] == role]
        if not _within(wanted, there):
            return _unlike(wanted, there)
    return None


def _attachments(expected: list[dict[str, Any]], found: dict[str, Any]) -> str | None:
    """In any order, none more and none less."""
    rest = list(found["attachments"])
    for wanted in expected:
        match = next((one for one in rest if _within(wanted, one)), None)
        if match is None:
            return f"expected {wanted!r}\n    found {rest!r}"
        rest.remove(match)
    return f"not expected {rest!r}" if rest else None


def _some(key: str) -> Difference:
    return lambda expected, found: _unlike(expected, bool(found[key]))


_RELATIONS: dict[str, Difference] = {"contains": _contains, "lacks": _lacks}
_OWN: dict[str, Difference] = {
    "text": _text("text"),
    "full_text": _text("full_text"),
    "sent_at": _sent_at,
    "auto": _auto,
    "recipients": _recipients,
    "attachments": _attachments,
    "warned": _some("warnings"),
    "omitted": _some("omissions"),
    "identity": lambda _expected, _found: None,  # a test of its own
}
