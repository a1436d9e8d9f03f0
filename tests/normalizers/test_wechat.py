"""What becomes of WeChat's pushes: those of tests/payloads/wechat, each beside what its reader expects.

An expectation is written by reading the push, never by running the normalizer. `message` is the whole message but for
what is at its default; `wanted` all that is to be fetched.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.contract import Draft, StoredMessage
from gateway.errors import Rejected
from normalizers.wechat import normalize

FOLDER = Path(__file__).parent.parent / "payloads" / "wechat"
PUSHES = sorted(path for path in FOLDER.iterdir() if not path.name.endswith(".expected.json"))
FACTS = {"appid": "wx00aa", "encrypted": True, "fetch": True}


def stored(body: bytes, **facts: Any) -> StoredMessage:
    received = datetime(2026, 11, 23, 9, tzinfo=UTC)
    return StoredMessage("id", "wechat-main", "wechat", body, "text/xml", "n", facts, received)


def push(**fields: str) -> bytes:
    named = {"FromUserName": "oUser01", "MsgType": "text", **fields}
    return f"<xml>{''.join(f'<{name}>{value}</{name}>' for name, value in named.items())}</xml>".encode()


def read(body: bytes, **facts: Any) -> Draft:
    return normalize(stored(body, **FACTS | facts))


@pytest.mark.parametrize("path", PUSHES, ids=lambda path: path.stem)
def test_it_is_read_as_its_reader_expects(path: Path) -> None:
    expected = json.loads((FOLDER / f"{path.stem}.expected.json").read_text("utf-8"))

    draft = normalize(stored(path.read_bytes(), **expected["facts"]))

    assert draft.message.model_dump(mode="json", exclude_defaults=True) == expected["message"], expected["why"]
    wanted = [{"what": one.what, "source": one.source, "content_type": one.content_type} for one in draft.wanted]
    assert wanted == expected["wanted"], expected["why"]
    assert (draft.parts, draft.updates) == ((), None)


def test_every_push_has_its_expectation() -> None:
    assert {path.stem for path in PUSHES} == {path.name.split(".")[0] for path in FOLDER.glob("*.expected.json")}


def test_a_push_that_could_not_be_read_says_why() -> None:
    with pytest.raises(Rejected) as caught:
        read(b"<xml>", unreadable="no element found")

    assert (caught.value.code, caught.value.reason) == ("unreadable", "no element found")


@pytest.mark.parametrize("body", [b"", b"<xml/>", b"<xml>", push(FromUserName=""), b"\xff", b"<xml><a>b</a></xml>"])
def test_a_push_of_nobody_is_rejected(body: bytes) -> None:
    with pytest.raises(Rejected):
        read(body)


def test_a_place_is_where_numbers_say() -> None:
    at = {"MsgType": "location", "Label": ""}

    assert read(push(Location_X="91", Location_Y="0", **at)).message.location is None
    assert read(push(Location_X="0", Location_Y="180.1", **at)).message.location is None
    assert read(push(Location_X="90", Location_Y="-180", **at)).message.location is not None
