"""The Date of a mail, in the forms that mailers give it."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.dates import parse


@pytest.mark.parametrize(
    ("raw", "moment"),
    [
        ("Tue, 05 Mar 2024 10:11:12 +0800", "2024-03-05T02:11:12"),
        ("Tue, 05 Mar 2024 10:11:12 +0000 (UTC)", "2024-03-05T10:11:12"),
        ("5 Mar 24 10:11 EST", "2024-03-05T15:11:00"),
        ("Tue, 5 Mar 124 10:11:12 GMT", "2024-03-05T10:11:12"),
        ("Tue Mar  5 10:11:12 2024", "2024-03-05T10:11:12"),
        ("2024-03-05T10:11:12+08:00", "2024-03-05T02:11:12"),
        ("2024年3月5日 下午3:11", "2024-03-05T15:11:00"),
        ("星期二, 05 三月 2024 10:11:12 +0800", "2024-03-05T02:11:12"),
        ("Tue, 5 3月 2024 10:11:12 +0800", "2024-03-05T02:11:12"),
        ("Tue, 05 Mar 2024 10:11:12 GMT+8", "2024-03-05T02:11:12"),
        ("Tue, 05 Mar 2024 10:11:12 (GMT+08:00)", "2024-03-05T02:11:12"),
        ("Tue, 05-Mar-2024 10.11.12 +0100", "2024-03-05T09:11:12"),
        ("Di, 05 Mär 2024 10:11:12 +0100", "2024-03-05T09:11:12"),
        ("25/3/2024 1:00 PM", "2024-03-25T13:00:00"),
        ("Tue, 05 Mar 2024", "2024-03-05T00:00:00"),
        ("Tue, 05 Mar 2024 10:11:60 +0000", "2024-03-05T10:11:59"),
        ("3/5/2024 10:11", None),  # March or May
        ("Wed, 31 Feb 2024 10:00:00 +0000", None),
        ("Mon, 1 Jan 0000 00:00:00 +0000", None),
        ("Fri, 01 Jan 2300 00:00:00 +0000", None),
        ("Thu, 01 Jan 1970 00:00:00 +0100", None),
        ("Tue, 05 Mar 2024 10:11:12 +9999", None),
        ("99 Foo 99999 99:99:99 +9999", None),
        ("soon", None),
        ("", None),
    ],
)
def test_the_moment(raw: str, moment: str | None) -> None:
    assert parse(raw.encode()) == (moment and datetime.fromisoformat(moment).replace(tzinfo=UTC))


def test_no_date_is_none() -> None:
    assert parse(None) is None


@given(raw=st.binary(max_size=60) | st.text("0123456789 :-+/,年月日MarTueGMTpm午", max_size=40).map(str.encode))
def test_whatever_comes_is_a_moment_or_none(raw: bytes) -> None:
    moment = parse(raw)

    assert moment is None or (moment.tzinfo is UTC and 1970 <= moment.year < 2200)
