"""What becomes of a message of the template channel."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.contract import Draft, StoredMessage
from gateway.envelope import Identity, Message, Sender
from gateway.errors import Rejected
from normalizers.echo import normalize


def stored(body: bytes) -> StoredMessage:
    received = datetime(2026, 11, 23, 9, tzinfo=UTC)
    return StoredMessage("id", "echo", "echo", body, "application/json", "m-1", {}, received)


def message(**document: Any) -> Message:
    return normalize(stored(json.dumps(document).encode())).message


def test_everything_finds_its_place() -> None:
    raw = stored(b'{"id": "m-1", "from": "user", "text": "hello\\r\\nthere"}')

    assert normalize(raw) == Draft(
        Message(
            conversation="user",
            sender=Sender(identities=(Identity(kind="user_id", value="user", verified=True, account="echo"),)),
            text="hello\nthere",
            full_text="hello\nthere",
        )
    )


@pytest.mark.parametrize("sender", [None, "", True, {"name": "user"}])
def test_an_unknown_sender_is_nobody(sender: Any) -> None:
    found = message(text="hello", **{"from": sender})

    assert (found.sender, found.conversation) == (Sender(), None)


def test_a_sender_may_be_a_number() -> None:
    assert message(text="hello", **{"from": 7}).conversation == "7"


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"text": 1}'])
def test_what_cannot_be_read_is_rejected(body: bytes) -> None:
    with pytest.raises(Rejected) as caught:
        normalize(stored(body))

    assert caught.value.code == "malformed"
