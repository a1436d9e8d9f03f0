"""Token buckets: a burst, then a rate, for each client alone, in bounded memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import Rate
from gateway.ratelimit import TokenBuckets


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_and_then_a_rate() -> None:
    clock = Clock()
    buckets = TokenBuckets(Rate(per_minute=30, burst=3), clock=clock)

    assert [buckets.take("1.2.3.4") for _ in range(4)] == [0, 0, 0, pytest.approx(2)]
    clock.now += 1
    assert buckets.take("1.2.3.4") == pytest.approx(1)
    clock.now += 1
    assert buckets.take("1.2.3.4") == 0
    assert buckets.take("1.2.3.4") == pytest.approx(2)


def test_a_refusal_costs_nothing() -> None:
    clock = Clock()
    buckets = TokenBuckets(Rate(per_minute=60, burst=1), clock=clock)
    buckets.take("1.2.3.4")

    for _ in range(50):
        buckets.take("1.2.3.4")
    clock.now += 1

    assert buckets.take("1.2.3.4") == 0


def test_a_bucket_holds_no_more_than_its_burst() -> None:
    clock = Clock()
    buckets = TokenBuckets(Rate(per_minute=60, burst=2), clock=clock)
    buckets.take("1.2.3.4")
    clock.now += 86_400

    assert [buckets.take("1.2.3.4") > 0 for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1.2.3.4", "1.2.3.5", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),  # one customer's network
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:1.2.3.4", "::ffff:1.2.3.5", False),
        ("", "no address", False),
    ],
)
def test_who_shares_a_bucket(one: str, other: str, same: bool) -> None:
    buckets = TokenBuckets(Rate(per_minute=1, burst=1), clock=Clock())
    buckets.take(one)

    assert (buckets.take(other) > 0) == same


def test_memory_is_bounded_and_the_longest_unused_goes_first() -> None:
    buckets = TokenBuckets(Rate(per_minute=1, burst=1), max_clients=3, clock=Clock())
    for client in ("a", "b", "c"):
        buckets.take(client)
    buckets.take("a")  # used again: b is the oldest now

    buckets.take("d")

    assert len(buckets._buckets) == 3
    assert buckets.take("a") > 0
    assert buckets.take("b") == 0


@given(st.lists(st.floats(0, 30), max_size=60))
def test_no_one_gets_more_than_the_burst_and_the_rate(pauses: list[float]) -> None:
    clock = Clock()
    buckets = TokenBuckets(Rate(per_minute=12, burst=4), clock=clock)
    start, passed = clock.now, 0

    for pause in pauses:
        clock.now += pause
        passed += buckets.take("1.2.3.4") == 0

    assert passed <= 4 + (clock.now - start) * 12 / 60 + 1e-6
