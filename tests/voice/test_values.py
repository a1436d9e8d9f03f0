"""Numbers, times and durations as vendors write them."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.voice.numbers import Number, number
from gateway.voice.times import moment, seconds

SHANGHAI = ZoneInfo("Asia/Shanghai")


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        ("13800138000", "+8613800138000"),
        ("8613800138000", "+8613800138000"),
        ("+86 138-0013-8000", "+8613800138000"),
        ("008613800138000", "+8613800138000"),
        ("013800138000", "+8613800138000"),
        ("(010) 8888-6666", "+861088886666"),
        ("02188886666", "+862188886666"),
        ("+14158675309", "+14158675309"),
        ("0044 20 7946 0958", "+442079460958"),
        ('"张三" <13800138000>', "+8613800138000"),
        ("<sip:+8613800138000;user=phone@10.0.0.1>", "+8613800138000"),
        ("sip:13800138000@10.0.0.1", "+8613800138000"),
        ("tel:+86-10-88886666", "+861088886666"),
        ("400-800-1234", "4008001234"),
        ("8008101234", "8008101234"),
        ("+864008001234", "+864008001234"),
        ("95588", "95588"),
        ("9558812345", "9558812345"),
        ("96110", "96110"),
        ("10086", "10086"),
        ("10109888", "10109888"),
        ("12345", "12345"),
        ("12306", "12306"),
        ("110", "110"),
        ("1001", "1001"),
        ("88886666", "88886666"),  # without an area code it is nobody's in particular
        ("20015550123", "20015550123"),
        ("sip:alice@acme.example", "sip:alice@acme.example"),
        ("client:alice", "client:alice"),
    ],
)
def test_numbers_in_china(given_: str, text: str) -> None:
    assert number(given_, "CN") == Number(text)


def test_the_region_is_that_of_the_channel() -> None:
    assert number("415-867-5309", "US") == Number("+14158675309")
    assert number("4008001234", "US") == Number("+14008001234") or number("4008001234", "US") == Number("4008001234")


@pytest.mark.parametrize("given_", ["138****1234", "138xxxx1234", "+86138****1234", "138 **** 1234", "021****"])
def test_masked_numbers_are_kept_and_flagged(given_: str) -> None:
    assert number(given_, "CN") == Number(given_.replace(" ", ""), masked=True)


@pytest.mark.parametrize(
    "given_",
    ["anonymous", "Anonymous", "Restricted", "+266696687", "266696687", "sip:anonymous@anonymous.invalid", "未知号码"],
)
def test_hidden_callers_are_flagged(given_: str) -> None:
    assert number(given_, "CN") == Number(hidden=True)


def test_no_number_is_none() -> None:
    assert number("", "CN") == number(" - ", "CN") == Number()


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("1764000000", "2025-11-24T16:00:00"),
        ("1764000000.5", "2025-11-24T16:00:00.500000"),
        ("1764000000123", "2025-11-24T16:00:00.123000"),
        ("1764000000123456", "2025-11-24T16:00:00.123456"),
        ("2026-11-24 17:00:00", "2026-11-24T09:00:00"),
        ("2026/11/24 17:00:00", "2026-11-24T09:00:00"),
        ("2026-11-24 17:00:00.5", "2026-11-24T09:00:00.500000"),
        ("20261124170000", "2026-11-24T09:00:00"),
        ("2018-03-22 11:48:05 +0800", "2018-03-22T03:48:05"),
        ("2026-11-24T09:00:00Z", "2026-11-24T09:00:00"),
        ("2026-11-24 09:00:00 UTC", "2026-11-24T09:00:00"),
        ("Tue, 24 Nov 2026 09:00:00 +0000", "2026-11-24T09:00:00"),
        ("24.11.2026 17:00", "2026-11-24T09:00:00"),
    ],
)
def test_times(given_: str, expected: str) -> None:
    assert moment(given_, SHANGHAI, ["%d.%m.%Y %H:%M"]) == datetime.fromisoformat(expected).replace(tzinfo=UTC)


@pytest.mark.parametrize("given_", ["", " ", "0", "0.0", "0000-00-00 00:00:00", "1970-01-01 08:00:00", "null", "-"])
def test_zero_and_empty_are_no_time(given_: str) -> None:
    assert moment(given_, SHANGHAI) is None


@pytest.mark.parametrize(
    "given_",
    [
        "yesterday",
        "9",
        "123456789",
        "99999999999",
        "9" * 19,
        "9" * 60,
        "2026-13-01 00:00:00",
        "1, 2",
        "x" * 500,
        "٣" * 10,
    ],
)
def test_absurd_times_are_refused(given_: str) -> None:
    with pytest.raises(ValueError, match="time"):
        moment(given_, SHANGHAI)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("35", 35),
        ("35.2", 35.2),
        ("35s", 35),
        ("35秒", 35),
        ("1:05", 65),
        ("00:01:05", 65),
        ("0", 0),
        ("", None),
        ("-1", None),
    ],
)
def test_durations(given_: str, expected: float | None) -> None:
    assert seconds(given_) == expected


@pytest.mark.parametrize("given_", ["-3", "abc", "99999999", "1:2:3:4", "٣"])
def test_absurd_durations_are_refused(given_: str) -> None:
    with pytest.raises(ValueError, match=r"dur|longer"):
        seconds(given_)


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.text(max_size=80), st.text("0123456789-:/. +TZxX*#,<>sip@()", max_size=40)))
def test_nothing_but_a_value_error_escapes(text: str) -> None:
    number(text, "CN")
    for parse in (lambda: moment(text, SHANGHAI), lambda: seconds(text)):
        try:
            parse()
        except ValueError:
            continue
