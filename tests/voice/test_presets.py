"""Payload files, each with the reports it gives; presets by name, with overrides, and an operator's own."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.voice.preset import names, preset
from gateway.voice.report import Report
from gateway.voice.translation import reports
from tests.voice.callbacks import PAYLOADS, recorded, request

FILES = sorted(PAYLOADS.glob("*/*.http"))


def said(found: Any) -> dict[str, Any]:
    if found.report is None:
        return {"fault": found.fault}
    dumped: dict[str, Any] = found.report.model_dump(mode="json", exclude_defaults=True)
    return dumped


def report(given: Any, body: bytes, content_type: str = "application/json", address: str = "/c/hotline") -> Report:
    (found,) = reports(preset(given), request(body, content_type, address))
    assert found.report is not None
    return found.report


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_payload_gives_its_reports(file: Path) -> None:
    found = reports(preset(file.parent.name), recorded(file))

    assert [said(one) for one in found] == json.loads(file.with_suffix(".reports.json").read_text())
    assert all(
        one.report is None or Report.model_validate_json(one.report.model_dump_json()) == one.report for one in found
    )


def test_every_preset_has_payloads_and_says_what_was_verified() -> None:
    folder = Path(__file__).parents[2] / "gateway" / "voice" / "presets"
    shown = {file.parent.name for file in FILES} | {"freeswitch"}  # which has bodies made as its source makes them

    assert shown == set(names())
    for name in set(names()) - {"generic"}:
        assert "Not verified" in (folder / f"{name}.yaml").read_text(), name


def test_an_array_keeps_the_bytes_of_each_element() -> None:
    body = b'[ {"call_id": "1", "x": 1.50} , {"call_id":"2"}]'

    found = reports(preset("generic"), request(body))

    assert [one.record.raw for one in found] == [b'{"call_id": "1", "x": 1.50}', b'{"call_id":"2"}']


def test_a_key_of_a_built_in_preset_is_overridden_and_its_neighbours_stay() -> None:
    given = {"use": "tccc", "zone": "Asia/Singapore", "map": {"agent": "SeatUser.Id"}, "fields": {"vip": "Vip"}}
    body = (
        b'{"SessionId":"s","Caller":"13800138000","StartTimestamp":"2026-11-24 17:00:00","SeatUser":{"Id":7},"Vip":"y"}'
    )

    found = report(given, body, address="/c/hotline?action=cdr")

    assert (found.agent, found.caller) == ("7", "+8613800138000")
    assert found.fields == {"vip": "y"}
    assert str(found.started_at) == "2026-11-24 09:00:00+00:00"


def test_an_operators_own_preset_needs_no_code() -> None:
    given = {
        "name": "ours",
        "formats": ["xml"],
        "records": "calls.call",
        "zone": "UTC",
        "time_formats": ["%d.%m.%Y %H:%M"],
        "map": {"call_id": "@id", "caller": "from", "started_at": "at"},
        "events": [{"then": "ended"}],
        "results": [{"then": "missed", "when": {"code": [1, 2]}}, {"then": "answered", "when": {"code": True}}],
        "recordings": [{"each": "files.file", "url": "{@base}/{name}", "seconds": "secs"}],
    }
    body = (
        b"<push><calls><call id='1'><from>13800138000</from><at>24.11.2026 09:00</at><code>2</code>"
        b"<files><file base='https://r'><name>a.mp3</name><secs>7</secs></file></files></call>"
        b"<call id='2'><code>true</code></call></calls></push>"
    )

    first, second = (one.report for one in reports(preset(given), request(body, "text/plain")))

    assert first is not None
    assert second is not None
    assert (first.call_id, first.caller, first.result) == ("1", "+8613800138000", "missed")
    assert str(first.started_at) == "2026-11-24 09:00:00+00:00"
    assert [(one.url, one.seconds) for one in first.recordings] == [("https://r/a.mp3", 7.0)]
    assert (second.call_id, second.result) == ("2", "answered")


@pytest.mark.parametrize(
    ("condition", "says", "agrees"),
    [
        ({"a": "<present>"}, {"a": "0"}, True),
        ({"a": "<present>"}, {"a": ""}, False),
        ({"a": "<present>"}, {"a": {"b": 1}}, True),
        ({"a": "<present>"}, {"a": "none"}, False),
        ({"a": "<absent>"}, {}, True),
        ({"a": "<absent>"}, {"a": {"b": 1}}, False),
        ({"a": "<positive>"}, {"a": 0.5}, True),
        ({"a": "<positive>"}, {"a": "0"}, False),
        ({"a": "<positive>"}, {"a": "-1"}, False),
        ({"a": "<zero>"}, {"a": "x"}, True),
        ({"a": ["1", "2"]}, {"a": 2}, True),
        ({"a": "1", "b": "1"}, {"a": 1, "b": 2}, False),
        ({"a.-1": "z"}, {"a": ["x", "z"]}, True),
        ({"a.0": "x"}, {"a": "x"}, True),
        ({"a.b": "2"}, {"a": [{"b": 1}, {"b": 2}]}, True),
        ({"a.b": "1"}, {"a.b": 1}, True),
        ({"$query.k": "v"}, {}, True),
        ({"$header.X-Key": "h"}, {}, True),
    ],
)
def test_conditions(condition: dict[str, Any], says: dict[str, Any], agrees: bool) -> None:
    given = {
        "name": "x",
        "formats": ["json"],
        "nothing": ["none"],
        "map": {"call_id": "id"},
        "events": [{"then": "ring", "when": condition}],
    }
    called = request(json.dumps({"id": 1, **says}).encode(), "", "/c/hotline?k=v", X_Key="h")

    (found,) = reports(preset(given), called)

    assert found.report is not None
    assert (found.report.kind == "ring") is agrees


@pytest.mark.parametrize(
    "given",
    [
        "nobody",
        "../../x",
        {"use": "nobody"},
        {"use": "tccc", "zone": "Mars/Olympus"},
        {"use": "tccc", "zone": "../../etc/passwd"},
        {"use": "tccc", "map": {"call_id": []}},
        {"use": "tccc", "colour": "red"},
        {"name": "x"},
    ],
)
def test_a_preset_that_cannot_be_is_refused(given: Any) -> None:
    with pytest.raises((ValueError, ValidationError)):
        preset(given)


def test_ids_beyond_reason_are_told_by_their_digest() -> None:
    first, second = (report("generic", json.dumps({"call_id": "x" * 5000 + end}).encode()) for end in "ab")

    assert len(first.call_id) == 64
    assert first.call_id != second.call_id


def test_controls_do_not_get_through_and_lengths_are_bounded() -> None:
    body = json.dumps({"call_id": "1\u0000\n2", "agent": "a\u202e\ud800" + "b" * 5000, "n": {"deep": [1]}}).encode()

    found = report("generic", body)

    assert found.call_id == "1 2"
    assert found.agent is not None
    assert len(found.agent) <= 1000
    assert found.fields == {"n": '{"deep": [1]}'}
    found.model_dump_json().encode()


def test_more_recordings_and_fields_than_there_may_be_are_cut_and_said() -> None:
    given = {"use": "generic", "recordings": [{"each": "files"}]}
    files = [f"https://r/{number}" for number in range(60)]

    found = report(given, json.dumps({"call_id": 1, "files": files, **{f"k{n}": n + 1 for n in range(300)}}).encode())

    assert (len(found.recordings), len(found.fields)) == (50, 200)
    assert {one.code for one in found.warnings} == {"too_many_recordings", "too_many_fields"}
