"""What becomes of a call, in both languages."""

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.contract import Draft, StoredMessage, Wanted
from gateway.envelope import Identity
from gateway.errors import Rejected
from normalizers.call import normalize

CALL = {
    "id": "c-1",
    "ended": True,
    "direction": "inbound",
    "caller": "+8613800138000",
    "caller_name": "张三",
    "callee": "4008001234",
    "started_at": "2026-11-24T09:00:00Z",
    "ended_at": "2026-11-24T09:01:18Z",
    "ring_seconds": 78.0,
    "result": "missed",
    "their_result": "104",
    "keys_pressed": "1,2",
    "queue": "售后",
    "hangup_by": "customer",
    "fields": {"order_no": "7788"},
}
FACTS = {"conversation": "phone:+8613800138000", "utc_offset_secs": 28_800}
VOICEMAIL = {"id": "VM1", "url": "https://v.example/VM1", "kind": "voicemail", "seconds": 35}


def draft(call: dict[str, Any] | None = None, **facts: Any) -> Draft:
    given = {**FACTS, "call": CALL | (call or {}), **facts}
    stored = StoredMessage("id", "hotline", "call", b"{}", "", "call:c-1", given, datetime(2026, 11, 24, tzinfo=UTC))
    return normalize(stored)


def test_a_missed_call() -> None:
    message = draft().message

    assert (message.kind, message.conversation) == ("call", "phone:+8613800138000")
    assert message.subject == "未接来电 13800138000 → 4008001234"
    assert message.text.splitlines() == [
        "未接来电 13800138000 → 4008001234",
        "来电时间：2026-11-24 17:00:00 UTC+08:00",
        "振铃：1 分 18 秒",
        "按键：1,2",
        "队列：售后",
        "挂机方：客户",
    ]
    assert message.sender.name == "张三"
    assert message.sender.identities == (Identity(kind="phone", value="+8613800138000", verified=False),)
    assert [(one.kind, one.value, one.role) for one in message.recipients] == [("phone", "4008001234", "to")]
    assert message.call is not None
    assert (message.call.result, message.call.ring_seconds, message.call.queue) == ("missed", 78, "售后")
    assert message.fields == {"order_no": "7788", "call_id": "c-1", "their_result": "104"}
    assert message.sent_at == datetime(2026, 11, 24, 9, tzinfo=UTC)


def test_in_english() -> None:
    message = draft({"caller": "+14158675309"}, language="en", region="US", utc_offset_secs=0).message

    assert message.subject == "Missed call (415) 867-5309 → 4008001234"
    assert message.text.splitlines()[1:3] == ["Called at: 2026-11-24 09:00:00 UTC", "Rang for: 1 min 18 s"]
    assert message.language == "en"


def test_a_voicemail_with_its_words() -> None:
    found = draft({"result": "voicemail"}, recordings=[VOICEMAIL], transcription="请回电。\r\n谢谢")

    text = found.message.text
    assert text.startswith("请回电。\n谢谢\n\n语音留言 13800138000")
    assert text.endswith("留言：35 秒")
    (wanted,) = found.wanted
    assert isinstance(wanted, Wanted)
    assert (wanted.what, orjson.loads(wanted.source)["url"]) == ("voicemail", "https://v.example/VM1")
    assert "v.example" not in found.message.model_dump_json()


def test_addresses_only_where_they_are_asked_for_and_no_files_where_not() -> None:
    found = draft(recordings=[VOICEMAIL], recording_urls=True, fetch=False)

    assert found.message.fields["recording_urls"] == ["https://v.example/VM1"]
    assert found.wanted == ()


def test_an_update() -> None:
    found = draft(kind="recording", updates="call:c-1", recordings=[VOICEMAIL | {"kind": "recording"}])

    assert found.updates == "call:c-1"
    assert found.message.subject == "通话录音 13800138000 → 4008001234"
    assert found.message.call is not None
    assert found.message.call.result == "missed"


@pytest.mark.parametrize(
    ("call", "more", "subject"),
    [
        ({"caller": None, "caller_hidden": True}, {}, "未接来电 号码隐藏 → 4008001234"),
        ({"caller": None}, {}, "未接来电 号码未知 → 4008001234"),
        ({"caller": "138****8000", "caller_masked": True}, {}, "未接来电 138****8000 → 4008001234"),
        ({"caller": "+861012345678"}, {}, "未接来电 010 1234 5678 → 4008001234"),
        ({"caller": "+14158675309"}, {}, "未接来电 +14158675309 → 4008001234"),
        ({"caller": None, "callee": None}, {}, "未接来电"),
        ({"result": "abandoned_in_ivr"}, {}, "来电在语音菜单中挂断 13800138000 → 4008001234"),
        ({"result": "abandoned_in_queue"}, {}, "来电在排队中挂断 13800138000 → 4008001234"),
        ({"result": "answered"}, {"chosen": "9"}, "自助选择 9 13800138000 → 4008001234"),
        ({"result": "missed"}, {"chosen": "9"}, "未接来电 13800138000 → 4008001234"),
        ({}, {"updates": "call:c-1"}, "通话记录 13800138000 → 4008001234"),
        ({}, {"updates": "call:c-1", "kind": "answered"}, "通话补充信息 13800138000 → 4008001234"),
    ],
)
def test_the_subject(call: dict[str, Any], more: dict[str, Any], subject: str) -> None:
    assert draft(call, **more).message.subject == subject


def test_an_outbound_call_is_about_who_was_called() -> None:
    message = draft({"direction": "outbound", "caller": "4008001234", "callee": "+8613900139000"}).message

    assert message.subject == "呼出电话未接 4008001234 → 13900139000"
    assert [one.value for one in message.sender.identities] == ["+8613900139000"]
    assert (message.sender.name, message.recipients) == (None, ())


def test_a_record_that_could_not_be_read() -> None:
    facts = {"unreadable": "the record has no call id"}
    stored = StoredMessage("id", "hotline", "call", b"17", "", None, facts, datetime(2026, 11, 24, tzinfo=UTC))

    with pytest.raises(Rejected) as caught:
        normalize(stored)

    assert (caught.value.code, caught.value.reason) == ("malformed", "the record has no call id")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values, max_size=3),
    max_leaves=4,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(CALL)), _JSON), st.dictionaries(st.sampled_from(sorted(FACTS)), _JSON))
def test_whatever_the_facts_are(call: dict[str, Any], facts: dict[str, Any]) -> None:
    try:
        found = draft(call, **facts)
    except Rejected:
        return
    found.message.model_dump_json()
