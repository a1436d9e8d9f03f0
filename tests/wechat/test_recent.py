"""What was known a moment ago."""

from datetime import UTC, datetime, timedelta

import pytest

from gateway.wechat import recent
from gateway.wechat.recent import RECENT_SECS, Recent


def test_a_value_is_known_for_its_time() -> None:
    now = datetime(2026, 11, 24, tzinfo=UTC)
    known: Recent[str] = Recent(lambda: now)

    known.put("a", "1")

    assert known.get("a") == "1"
    assert known.get("b") is None
    now += timedelta(seconds=RECENT_SECS)
    assert known.get("a") is None


def test_the_oldest_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "_MOST", 2)
    known: Recent[int] = Recent(lambda: datetime(2026, 11, 24, tzinfo=UTC))

    for n, key in enumerate("abac"):
        known.put(key, n)

    assert [known.get(key) for key in "abc"] == [2, None, 3]
