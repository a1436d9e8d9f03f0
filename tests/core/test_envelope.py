"""The envelope: what is promised to consumers, and nothing that is not JSON."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.envelope import Call, Envelope, Identity, Message, Oddity, Omission, Sender, Ticket, event, rfc3339

NOON_IN_SHANGHAI = datetime(2026, 11, 23, 12, 0, 0, 123999, timezone(timedelta(hours=8)))
# Integers as the channels let them in: not every consumer could read larger ones.
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def made(message: Message, **ticket: Any) -> bytes:
    return event(
        "id",
        "/acme/shop",
        message,
        conversation="c1",
        received_at=NOON_IN_SHANGHAI,
        **{
            "reference": "7K3M-9QX2-4WPD",
            "channel": {"name": "shop", "type": "echo"},
            "native_id": None,
            "attachments": [],
            "conflict_with": None,
            "updates": None,
            "raw": {"sha256": "00", "size": 0, "url": "http://127.0.0.1/"},
            **ticket,
        },
    )


def test_times_are_utc_to_the_millisecond() -> None:
    assert rfc3339(NOON_IN_SHANGHAI) == "2026-11-23T04:00:00.123Z"
    assert rfc3339(datetime(2026, 1, 2, tzinfo=UTC)) == "2026-01-02T00:00:00.000Z"


def test_a_time_without_offset_is_none() -> None:
    with pytest.raises(ValidationError, match="offset from UTC"):
        Message(sent_at=datetime(2026, 11, 23))  # noqa: DTZ001 - that is the point


def test_what_the_schema_does_not_name_is_an_error() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        Identity(kind="email", value="a@b.c", colour="red")  # type: ignore[call-arg]  # that is the point


def test_a_message_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Message().text = "other"  # type: ignore[misc]  # that is the point


def test_an_event_is_what_its_model_says() -> None:
    message = Message(
        kind="call",
        sender=Sender(name="张三", identities=(Identity(kind="phone", value="+8613800138000"),)),
        sent_at=NOON_IN_SHANGHAI,
        fields={"订单": [1, 2.5, None, {"a": True}]},
        call=Call(direction="inbound", started_at=NOON_IN_SHANGHAI, ring_seconds=3.5),
        omissions=(Omission(what="attachment", reason="too large", size=7),),
        warnings=(Oddity(code="odd"),),
        tags=("a", "b"),
    )

    content = made(message)

    envelope = Envelope.model_validate_json(content)
    assert json.loads(envelope.model_dump_json()) == json.loads(content)
    assert envelope.data.call is not None
    assert json.loads(content)["data"]["call"]["started_at"] == "2026-11-23T04:00:00.123Z"


def test_an_event_names_every_field_of_a_ticket() -> None:
    data = json.loads(made(Message()))["data"]

    assert data.keys() == Ticket.model_fields.keys()


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=4), st.text(), st.text())
def test_whatever_a_customer_writes_arrives(fields: dict[str, Any], text: str, subject: str) -> None:
    content = made(Message(fields=fields, text=text, subject=subject))

    data = json.loads(content)["data"]
    assert (data["fields"], data["text"], data["subject"]) == (fields, text, subject)
    Envelope.model_validate_json(content)
