"""Requests by their bytes: which format, which records, and what hostile ones may cost."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.contract import BodyFile
from gateway.errors import Rejected
from gateway.voice.preset import Preset, names, preset
from gateway.voice.reading import MAX_BYTES, MAX_DEPTH, MAX_ELEMENTS, MAX_RECORDS, Record, read
from gateway.voice.translation import reports
from tests.voice.callbacks import request

EVERYTHING = ["query", "form", "json", "array", "xml", "wrapped"]


def whole(formats: Sequence[str] = EVERYTHING, **overrides: Any) -> Preset:
    base = {"name": "x", "map": {"call_id": "id"}, "events": [{"then": "ended"}]}
    return preset({**base, "formats": formats, **overrides})


def one(body: bytes, content_type: str = "", **overrides: Any) -> Record:
    (record,) = read(whole(**overrides), request(body, content_type))
    return record


@pytest.mark.parametrize(
    ("body", "content_type", "data"),
    [
        (b'{"id": 1}', "application/x-www-form-urlencoded", {"id": 1}),
        (b'\xef\xbb\xbf\r\n {"id": 1}', "text/plain", {"id": 1}),
        ('{"id": "号"}'.encode("gbk"), "application/json", {"id": "号"}),
        (
            b'{"id": 12345678901234567890, "f": 0.1, "e": 1e999}',
            "",
            {"id": "12345678901234567890", "f": 0.1, "e": "1e999"},
        ),
        (b"<r><id>1</id></r>", "text/plain", {"id": "1"}),
        ('<?xml version="1.0" encoding="GBK"?><r><id>号</id></r>'.encode("gbk"), "text/plain", {"id": "号"}),
        ('<?xml version="1.0" encoding="utf-8"?><r><id>号</id></r>'.encode("gbk"), "", {"id": "号"}),
        (b"<r a='1'><id>1</id><id>2</id>x</r>", "text/xml", {"@a": "1", "id": ["1", "2"], "#text": "x"}),
        (b"<r><id><![CDATA[<&>]]></id></r>", "text/xml", {"id": "<&>"}),
        (b"<r><id>\x01a</id></r>", "text/xml", {"id": "a"}),
        (b"id=1&id=2&x=%E5%8F%B7+y&z", "", {"id": ["1", "2"], "x": "号 y", "z": ""}),
        ("id=1&x=号".encode("gbk"), "application/x-www-form-urlencoded", {"id": "1", "x": "号"}),
        (b"cdr=<r><id>a&amp;b=c</id></r>", "", {"id": "a&b=c"}),
        (b"cdr=%7B%22id%22%3A+1%7D", "", {"id": 1}),
        (b"cdr=eyJpZCI6MX0=", "", {"id": 1}),
        (b"cdr=eyJpZCI6MX0%3D", "", {"id": 1}),
        (b"cdr=eyJp\r\nZCI6MX0", "", {"id": 1}),
        (
            b'--b\r\nContent-Disposition: form-data; name="id"\r\n\r\n7\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            {"id": "7"},
        ),
    ],
)
def test_the_bytes_say_what_they_are(body: bytes, content_type: str, data: dict[str, Any]) -> None:
    found = one(body, content_type)

    assert (found.data, found.raw, found.fault) == (data, body, "")


def test_an_empty_body_leaves_the_address() -> None:
    (record,) = read(whole(), request(address="/c/hotline?id=%BA%C5&x=1", method="GET"))

    assert (record.data, record.raw) == ({"id": "号", "x": "1"}, b"id=%BA%C5&x=1")


def test_a_body_in_a_file_is_read(tmp_path: Any) -> None:
    called = request()
    (tmp_path / "body").write_bytes(b'{"id": 1}')
    called.body = BodyFile(tmp_path / "body", 9, b"")

    assert read(whole(), called)[0].data == {"id": 1}


@pytest.mark.parametrize(
    ("formats", "body"),
    [
        (["form"], b"{}"),
        (["json"], b"[]"),
        (["json"], b"<a/>"),
        (["array"], b"{}"),
        (["json"], b""),
        (["json"], b"a=1"),
    ],
)
def test_a_format_that_the_preset_does_not_allow_is_refused(formats: list[str], body: bytes) -> None:
    with pytest.raises(Rejected) as refused:
        read(whole(formats), request(body))

    assert refused.value.code == "unsupported_media_type"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "malformed"),
        (b'{"a": NaN}', "malformed"),
        (b'{"a": 1} x', "malformed"),
        (b'[{"a": 1}', "malformed"),
        (b"<a>", "malformed"),
        (b"<a>text</a>", "malformed"),
        (b'<!DOCTYPE a [<!ENTITY x "y">]><a><b>&x;</b></a>', "malformed"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a><b/></a>', "malformed"),
        (b"<a><b>&x;</b></a>", "malformed"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "too_large"),
        (b"[" * 100_000, "malformed"),
        (b'{"a":' * 100_000, "too_large"),
        (b"<a>" * (MAX_DEPTH + 1), "too_large"),
        (b"<a>" + b"<b/>" * (MAX_ELEMENTS + 1) + b"</a>", "too_large"),
        (b"[" + b"{}," * MAX_RECORDS + b"{}]", "too_large"),
        (b"a=1&" * 2000, "too_large"),
        (b"cdr=" + b"%" * 400_000, "too_large"),
        (b"{" + b" " * MAX_BYTES + b"}", "too_large"),
    ],
)
def test_what_is_damaged_or_too_large_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(Rejected) as refused:
        read(whole(), request(body))

    assert refused.value.code == code


def test_a_damaged_element_spoils_no_other() -> None:
    body = b'[{"id": 1}, {"id": }, 5, "a,]b", null, {"id": [1, {"x": "\\"}]"}]}, {"id"  ]'

    found = read(whole(), request(body))

    assert [record.data.get("id") for record in found] == [1, None, None, None, None, [1, {"x": '"}]'}], None]
    assert [bool(record.fault) for record in found] == [False, True, True, True, True, False, True]
    assert found[5].raw == b'{"id": [1, {"x": "\\"}]"}]}'


def test_an_empty_array_has_no_records() -> None:
    assert read(whole(), request(b" [ ] ")) == []


def test_records_within_an_object() -> None:
    found = read(whole(records="data.list"), request(b'{"data": {"list": [{"id": 1}, 2]}}'))

    assert [(record.raw, record.fault) for record in found] == [(b'{"id": 1}', ""), (b"2", "the element is no object")]
    with pytest.raises(Rejected):
        read(whole(records="data.list"), request(b'{"data": []}'))


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": "' + b'\\"' * 500_000,
        b'["' + b'\\"' * 500_000 + b"]",
        b"cdr=" + b"%" * 299_000,
        b"cdr=" + b"A" * 1_000_000,
        b"<a b='" + b"x" * 1_000_000,
        b"<?xml " + b" " * 1_000_000,
        b"<" * 1_000_000,
        b"{" + b'"' * 1_000_000,
        b'{"a": ' + b"9" * 1_000_000 + b"}",
        b"=" * 1_000_000,
    ],
)
def test_hostile_bodies_cost_time_in_proportion(body: bytes) -> None:
    start = time.process_time()
    with suppress(Rejected):
        reports(whole(), request(body))

    assert time.process_time() - start < 5


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12))
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
PRESETS = [preset(name) for name in names()]


def used_names(given_: Preset) -> list[str]:
    paths = [path for name in type(given_.map).model_fields for path in getattr(given_.map, name)]
    paths += [path for rule in (*given_.events, *given_.results) for path in rule.when]
    return sorted({path.partition(".")[0] for path in paths} | {"variables", "callflow", "fields", "RecordingUrl"})


NAMES = sorted({name for one_ in PRESETS for name in used_names(one_)})


@settings(max_examples=100, deadline=None)
@given(
    which=st.sampled_from(PRESETS),
    data=st.dictionaries(st.sampled_from(NAMES), TREES, max_size=12),
    query=st.text(max_size=20),
)
def test_whatever_a_record_holds_it_becomes_a_report_or_a_fault(
    which: Preset, data: dict[str, Any], query: str
) -> None:
    called = request(json.dumps(data).encode(), "", "/c/hotline?action=cdr")
    called.url = f"https://h/c/hotline?{query}"
    try:
        found = reports(which, called)
    except Rejected:
        return

    assert reports(which, called) == found
    for one_ in found:
        assert (one_.report is None) is bool(one_.fault)
        if one_.report is not None:
            one_.report.model_dump_json().encode("utf-8")


@settings(max_examples=200, deadline=None)
@given(
    which=st.sampled_from(PRESETS),
    body=st.one_of(
        st.binary(max_size=80),
        st.text("<>&;!?[]{}\"'=%+,:\\/acdr01 \n号\ud800", max_size=60).map(
            lambda text: text.encode("utf-8", "replace")
        ),
        st.binary(max_size=60).map(lambda raw: b"cdr=" + raw),
        st.binary(max_size=60).map(lambda raw: b"[" + raw + b"]"),
        st.binary(max_size=60).map(lambda raw: b"<a>" + raw + b"</a>"),
    ),
    content_type=st.sampled_from(["", "application/json", "multipart/form-data; boundary=a", "multipart/form-data"]),
)
def test_nothing_but_a_refusal_escapes(which: Preset, body: bytes, content_type: str) -> None:
    with suppress(Rejected):
        reports(which, request(body, content_type))
