"""What mod_json_cdr and mod_xml_cdr send, in each of their encodings, with their traps."""

from typing import Any

import pytest

from gateway.errors import Rejected
from gateway.voice.preset import preset
from gateway.voice.report import Report
from gateway.voice.translation import reports
from tests.voice import freeswitch as fs
from tests.voice.callbacks import request

ADDRESS = f"/c/hotline?uuid=a_{fs.A_LEG}"
JSON_ENCODINGS, XML_ENCODINGS = ("false", "true", "base64"), ("false", "true", "base64", "textxml")


def report(record: str, encode: str, address: str = ADDRESS, **overrides: Any) -> Report:
    body, content_type = fs.sent(record, encode)
    (found,) = reports(preset({"use": "freeswitch", **overrides}), request(body, content_type, address))
    assert found.report is not None
    assert found.record.raw == body
    return found.report


@pytest.mark.parametrize(
    ("record", "encode"),
    [(fs.json_cdr(fs.VARIABLES, [fs.PROFILE]), encode) for encode in JSON_ENCODINGS]
    + [(fs.xml_cdr(fs.VARIABLES, [fs.PROFILE]), encode) for encode in XML_ENCODINGS],
)
def test_every_encoding_gives_the_same_report(record: str, encode: str) -> None:
    found = report(record, encode)

    assert found.model_dump(mode="json", exclude_defaults=True) == {
        "call_id": fs.A_LEG,
        "kind": "ended",
        "event_id": "ended",
        "direction": "inbound",
        "caller": "+8613800138000",
        "caller_name": "张三",
        "callee": "4008001234",
        "started_at": "2025-11-24T16:00:00.000Z",
        "ended_at": "2025-11-24T16:00:20.000Z",
        "ring_seconds": 20.0,
        "talk_seconds": 0.0,
        "result": "missed",
        "their_result": "ORIGINATOR_CANCEL",
        "hangup_by": "customer",
        "fields": {"sip_call_id": "a+b/c==@10.0.0.1", "switch": "pbx"},
    }


def test_json_under_a_form_type_as_when_disable_100_continue_replaces_the_headers() -> None:
    body, _ = fs.sent(fs.json_cdr(fs.VARIABLES, [fs.PROFILE]), "false")

    (found,) = reports(preset("freeswitch"), request(body, fs.FORM, ADDRESS))

    assert found.report is not None
    assert found.report.call_id == fs.A_LEG


def test_base64_with_a_plus_that_is_a_plus() -> None:
    variables = fs.VARIABLES | {"note": "~~~>>>???" * 20}
    body, _ = fs.sent(fs.json_cdr(variables, [fs.PROFILE], encode_values=False), "base64")
    assert b"+" in body

    assert report(fs.json_cdr(variables, [fs.PROFILE], encode_values=False), "base64").call_id == fs.A_LEG


def test_a_value_encoded_throughout_lacks_half_a_character_in_json_and_is_not_taken_for_gbk() -> None:
    fields = {"name": "variables.name"}
    variables = fs.VARIABLES | {"name": "张三"}

    assert report(fs.json_cdr(variables, [fs.PROFILE]), "false", fields=fields).fields["name"] == "张"
    assert report(fs.xml_cdr(variables, [fs.PROFILE]), "textxml", fields=fields).fields["name"] == "张三"


def test_values_are_decoded_once_and_only_when_they_are_encoded() -> None:
    record = fs.json_cdr(fs.VARIABLES | {"note": "%41 + b"}, [fs.PROFILE])
    bare = fs.json_cdr(fs.VARIABLES | {"note": "%41 + b"}, [fs.PROFILE], encode_values=False)
    fields = {"note": "variables.note"}

    assert report(record, "true", fields=fields).fields["note"] == "%41 + b"
    assert report(bare, "true", fields=fields, percent_encoded=False).fields["note"] == "%41 + b"


def test_a_transferred_call_keeps_the_number_that_was_dialled() -> None:
    profiles = [fs.PROFILE | {"destination_number": "1001"}, fs.PROFILE]  # the newest first

    assert report(fs.json_cdr(fs.VARIABLES, profiles), "false").callee == "4008001234"
    assert report(fs.xml_cdr(fs.VARIABLES, profiles), "textxml").callee == "4008001234"


@pytest.mark.parametrize("form", ["json", "xml"])
def test_a_second_leg_belongs_to_the_call_of_the_first(form: str) -> None:
    variables = fs.VARIABLES | {"uuid": fs.B_LEG, "direction": "outbound"}
    if form == "json":
        originator: dict[str, Any] = {"originator_caller_profiles": [fs.PROFILE]}
        record = fs.json_cdr(variables, [fs.PROFILE | {"uuid": fs.B_LEG, "originator": originator}])
    else:
        originator = {"originator_caller_profile": fs.PROFILE}
        record = fs.xml_cdr(variables, [fs.PROFILE | {"uuid": fs.B_LEG, "originator": originator}])

    found = report(record, "true", f"/c/hotline?uuid={fs.B_LEG}")

    assert (found.leg, found.call_id, found.event_id) == ("b", fs.A_LEG, f"ended:b:{fs.B_LEG}")


@pytest.mark.parametrize("address", [f"/c/hotline?site=bj?uuid=a_{fs.A_LEG}", f"/c/hotline?site=bj&uuid={fs.A_LEG}"])
def test_parameters_of_the_operators_own_survive_what_is_appended_to_them(address: str) -> None:
    variables = {name: value for name, value in fs.VARIABLES.items() if name != "uuid"}
    profile = {name: value for name, value in fs.PROFILE.items() if name != "uuid"}
    record = fs.json_cdr(variables, [profile])

    found = report(record, "false", address, fields={"site": "$query.site"})

    assert (found.call_id, found.fields["site"]) == (fs.A_LEG, "bj")


@pytest.mark.parametrize(
    ("changed", "result"),
    [
        ({"cc_queue": "support", "cc_cause": "cancel", "answer_epoch": "1764000001"}, "abandoned_in_queue"),
        ({"cc_queue_answered_epoch": "1764000009", "hangup_cause": "NORMAL_CLEARING"}, "answered"),
        ({"bridge_epoch": "1764000009", "hangup_cause": "NORMAL_CLEARING"}, "answered"),
        ({"last_app": "ivr", "answer_epoch": "1764000001", "hangup_cause": "NORMAL_CLEARING"}, "abandoned_in_ivr"),
        ({"hangup_cause": "USER_BUSY"}, "busy"),
        ({"hangup_cause": "NO_ROUTE_DESTINATION"}, "failed"),
        ({"hangup_cause": "SOMETHING_NEW"}, "unknown"),
        ({"voicemail_message_len": "12", "answer_epoch": "1764000001"}, "voicemail"),
    ],
)
def test_results(changed: dict[str, str], result: str) -> None:
    found = report(fs.json_cdr(fs.VARIABLES | changed, [fs.PROFILE]), "false")

    assert found.result == result
    assert found.their_result == (fs.VARIABLES | changed)["hangup_cause"]


@pytest.mark.parametrize("body", [b"cdr=", b"cdr=%3Ccdr", b"cdr=!!!", b"cdr=AAAA", b"cdr=A", b"x=1", b"cdr=<a>&b;</a>"])
def test_what_is_no_record_is_refused(body: bytes) -> None:
    with pytest.raises(Rejected) as refused:
        reports(preset("freeswitch"), request(body, fs.FORM))

    assert refused.value.code == "malformed"
