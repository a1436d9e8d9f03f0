"""What becomes of a call whose callbacks come in any order, twice, to two gateways, with Redis or without."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.contract import Apart, Briefly, Shared
from gateway.errors import Unavailable
from gateway.voice.call import Call, is_content, key_of
from gateway.voice.outcome import KEPT, Outcome, outcome
from gateway.voice.report import Recording, Report
from gateway.voice.rules import IN_PROGRESS, Rules
from gateway.voice.state import State

NOW = datetime(2026, 11, 24, 9, tzinfo=UTC)
KEEP = timedelta(hours=72)
DEFAULT = Rules()
CALLER, CALLEE = "+8613800138000", "4008001234"


class Flaky(Apart):
    """A Redis that is away when it is told so, and may come back empty."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False

    def forget(self) -> None:
        self._values.clear()
        self._hashes.clear()

    async def get(self, key: str, /) -> str | None:
        return await self._there(super().get(key))

    async def put(self, key: str, value: str, /, *, ttl_secs: float) -> None:
        await self._there(super().put(key, value, ttl_secs=ttl_secs))

    async def claim(self, key: str, value: str, /, *, ttl_secs: float) -> str:
        return await self._there(super().claim(key, value, ttl_secs=ttl_secs))

    async def merge(self, key: str, values: Mapping[str, str], /, *, ttl_secs: float) -> dict[str, str]:
        return await self._there(super().merge(key, values, ttl_secs=ttl_secs))

    async def _there(self, done: Any) -> Any:
        await asyncio.sleep(0)  # whoever else is there may come between
        if self.away:
            done.close()
            raise Unavailable
        return await done


@dataclass
class Stream:
    """What consumers get: of two tickets, or two of one update, the first."""

    ticket: Outcome | None = None
    updates: dict[str, Outcome] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    last: Call | None = None

    def publish(self, report: Report, found: Outcome) -> None:
        assert bool(found.ignored) != (found.ticket or found.update)
        if found.ignored:
            self.ignored.append(found.ignored)
        if found.ticket and self.ticket is None:
            self.ticket, self.last = found, found.call
        if found.update and key_of(report) not in self.updates:
            self.updates[key_of(report)] = found
            self.last = found.call

    def recordings(self) -> set[str]:
        ticket = {one.id for one in self.ticket.call.recordings} if self.ticket else set()
        return ticket.union(one.id for update in self.updates.values() for one in update.new)


def state(shared: Shared, memory: Briefly | None = None, now: datetime = NOW) -> State:
    return State(shared, memory or Briefly(), lambda: now, account="hotline", keep=KEEP)


def report(kind: str, event_id: str = "1", **more: Any) -> Report:
    return Report.model_validate({"call_id": "c-1", "kind": kind, "event_id": event_id, **more})


RING = report("ring", direction="inbound", caller=CALLER, callee=CALLEE, started_at=NOW, sequence=1)
CHOICE = report("gather", keys_pressed="2", sequence=2)
LEG = report("ended", leg="b", direction="outbound", caller=CALLER, callee="8001", result="busy", agent="8001")
MISSED = report(
    "ended",
    direction="inbound",
    caller=CALLER,
    callee=CALLEE,
    ring_seconds=18,
    result="missed",
    queue="售后",
    sequence=9,
)
ANSWERED = MISSED.model_copy(update={"result": "answered", "talk_seconds": 60.0})
RECORDED = report("recording", "r", recordings=(Recording(id="RE1", url="https://v.example/RE1"),))
VOICEMAIL = report("voicemail", "v", recordings=(Recording(id="VM1", url="https://v.example/VM1", kind="voicemail"),))
WORDS = report("voicemail", "t", transcription="请回电")
PIECES = (RING, CHOICE, LEG, MISSED, RECORDED, VOICEMAIL, WORDS)


async def tell(reports: Iterable[Report], states: Sequence[State], rules: Rules = DEFAULT) -> Stream:
    stream = Stream()
    for n, one in enumerate(reports):
        stream.publish(one, await outcome(one, states[n % len(states)], rules))
    return stream


def told(reports: Iterable[Report], rules: Rules = DEFAULT) -> Stream:
    return asyncio.run(tell(reports, [state(Flaky())], rules))


# The rules


@pytest.mark.parametrize(
    ("pieces", "rules", "ignored"),
    [
        ([MISSED], {}, ""),
        ([MISSED.model_copy(update={"result": "abandoned_in_ivr"})], {}, ""),
        ([MISSED.model_copy(update={"result": "abandoned_in_queue"})], {}, ""),
        ([MISSED.model_copy(update={"direction": "unknown"})], {}, ""),
        ([VOICEMAIL], {}, ""),
        ([MISSED.model_copy(update={"result": None})], {}, "unknown"),
        ([MISSED.model_copy(update={"result": None})], {"results": ["unknown"]}, ""),
        ([MISSED.model_copy(update={"result": "busy"})], {}, "busy"),
        ([ANSWERED], {}, "answered"),
        ([ANSWERED], {"results": ["answered"]}, ""),
        ([MISSED.model_copy(update={"direction": "outbound"})], {}, "outbound"),
        ([MISSED.model_copy(update={"direction": "outbound"})], {"outbound": True}, ""),
        ([RING], {}, IN_PROGRESS),
        ([LEG], {}, IN_PROGRESS),
        ([CHOICE], {}, IN_PROGRESS),
        ([CHOICE], {"choices": ["2"]}, ""),
        ([report("gather", ivr_choice="报修")], {"choices": ["报修"]}, ""),
        ([MISSED], {"results": []}, "missed"),
        ([RECORDED], {}, KEPT),
    ],
)
def test_which_call_becomes_a_ticket(pieces: list[Report], rules: dict[str, Any], ignored: str) -> None:
    stream = told(pieces, Rules.model_validate(rules))

    assert stream.ignored == ([ignored] if ignored else [])
    assert bool(stream.ticket) is not bool(ignored)
    assert not stream.updates


# One call in pieces


def test_a_recording_before_the_ticket_is_in_it() -> None:
    stream = told([RECORDED, MISSED])

    assert stream.ignored == [KEPT]
    assert stream.recordings() == {"RE1"}
    assert not stream.updates


def test_a_recording_after_the_ticket_is_an_update_with_its_conversation() -> None:
    stream = told([MISSED, RECORDED])

    (update,) = stream.updates.values()
    assert update.conversation == f"phone:{CALLER}"
    assert [one.id for one in update.new] == ["RE1"]
    assert update.call.result == "missed"


def test_a_recording_of_an_answered_call_is_ignored() -> None:
    assert told([ANSWERED, RECORDED]).ignored == ["answered", "answered"]
    assert told([RECORDED, ANSWERED]).ignored == [KEPT, "answered"]


def test_the_conversation_is_the_tickets_also_when_the_caller_is_known_later() -> None:
    stream = told([VOICEMAIL, MISSED])

    (update,) = stream.updates.values()
    assert update.conversation == "call:c-1"
    assert update.call.caller == CALLER


def test_a_ticket_stays_one_when_the_call_turns_out_to_be_answered() -> None:
    stream = told([MISSED, ANSWERED.model_copy(update={"event_id": "2"})])

    (update,) = stream.updates.values()
    assert update.call.result == "answered"


def test_a_second_leg_is_not_the_call() -> None:
    stream = told([LEG, MISSED])

    assert stream.ticket is not None
    call = stream.ticket.call
    assert (call.direction, call.callee, call.result, call.agent) == ("inbound", CALLEE, "missed", "8001")


ORDERS = st.permutations(PIECES).flatmap(
    lambda pieces: st.lists(st.sampled_from(pieces), max_size=4).flatmap(lambda again: _mixed(list(pieces), again))
)


def _mixed(pieces: list[Report], again: list[Report]) -> st.SearchStrategy[list[Report]]:
    return st.permutations(pieces + again)


@settings(max_examples=50, deadline=None)
@given(ORDERS, st.integers(1, 3), st.booleans())
def test_any_order_with_anything_twice_is_one_ticket_and_the_same_facts(
    order: list[Report], gateways: int, menu: bool
) -> None:
    shared, rules = Flaky(), Rules(choices=("2",) if menu else ())

    stream = asyncio.run(tell(order, [state(shared) for _ in range(gateways)], rules))

    assert stream.ticket is not None
    assert stream.last == told(PIECES, rules).last
    assert stream.recordings() == {"RE1", "VM1"}


@settings(max_examples=50, deadline=None)
@given(st.permutations(PIECES), st.randoms(use_true_random=False))
def test_all_at_once_at_two_gateways(order: list[Report], random: Any) -> None:
    """Whoever publishes first: nothing is in an absorbed ticket alone."""
    shared = Flaky()
    states = [state(shared), state(shared)]

    async def all_at_once() -> list[Outcome]:
        return await asyncio.gather(*(outcome(one, states[n % 2], Rules()) for n, one in enumerate(order)))

    found = list(zip(order, asyncio.run(all_at_once()), strict=True))
    random.shuffle(found)
    stream = Stream()
    for one, what in found:
        stream.publish(one, what)

    assert stream.ticket is not None
    assert stream.recordings() == {"RE1", "VM1"}
    _demand_everything_told(stream, order)


def _demand_everything_told(stream: Stream, pieces: Sequence[Report]) -> None:
    """Each piece is in the ticket or in an update: no matter which of them is the last."""
    assert stream.ticket is not None
    calls = [stream.ticket.call, *(update.call for update in stream.updates.values())]
    if MISSED in pieces:
        assert any(call.ring_seconds == 18 for call in calls)
    if WORDS in pieces:
        assert any(call.transcription == "请回电" for call in calls)


# When something is lost


@settings(max_examples=50, deadline=None)
@given(st.permutations(PIECES), st.lists(st.booleans(), min_size=len(PIECES), max_size=len(PIECES)))
def test_without_redis_now_and_then(order: list[Report], away: list[bool]) -> None:
    shared = Flaky()
    memory, stream = Briefly(), Stream()

    async def run() -> None:
        for one, gone in zip(order, away, strict=True):
            shared.away = gone
            one_state = state(shared, memory)  # the gateway has been restarted
            stream.publish(one, await outcome(one, one_state, Rules()))

    asyncio.run(run())

    assert stream.ticket is not None
    assert "VM1" in stream.recordings()
    assert "RE1" in stream.recordings() or KEPT in stream.ignored


@settings(max_examples=50, deadline=None)
@given(st.permutations(PIECES), st.integers(0, len(PIECES)))
def test_redis_comes_back_empty(order: list[Report], when: int) -> None:
    shared, memory = Flaky(), Briefly()
    one_state = state(shared, memory)
    stream = Stream()

    async def run() -> None:
        for n, one in enumerate(order):
            if n == when:
                shared.forget()
            stream.publish(one, await outcome(one, one_state, Rules()))

    asyncio.run(run())

    assert stream.ticket is not None
    assert "VM1" in stream.recordings()
    assert "RE1" in stream.recordings() or KEPT in stream.ignored


@pytest.mark.parametrize("restart", [False, True])
def test_a_recording_that_is_kept_survives_redis(restart: bool) -> None:
    """The vendor was told yes, so it is on disk (R1)."""
    shared, memory = Flaky(), Briefly()

    async def run() -> Outcome:
        ours = state(shared, memory)
        assert (await outcome(RECORDED, ours, Rules())).ignored == KEPT
        shared.forget()
        return await outcome(MISSED, state(shared, memory) if restart else ours, Rules())

    missed = asyncio.run(run())

    assert missed.ticket
    assert [one.id for one in missed.call.recordings] == ["RE1"]


def test_what_is_kept_is_forgotten_in_the_end() -> None:
    memory = Briefly()

    async def run() -> Mapping[str, str]:
        shared = Flaky()
        await outcome(RECORDED, state(shared, memory), Rules())
        later = state(shared, memory, NOW + KEEP + timedelta(hours=1))
        await outcome(RECORDED.model_copy(update={"call_id": "c-2"}), later, Rules())
        return await memory.recall()

    kept = [value for name, value in asyncio.run(run()).items() if name.startswith("voice_kept:")]

    assert len(kept) == 1
    assert "c-2" in kept[0]


def test_a_disk_that_takes_nothing_is_told_to_the_vendor() -> None:
    class Full(Briefly):
        async def memorise(self, values: Mapping[str, str | None], /) -> None:
            if any(name.startswith("voice_kept:") for name in values):
                raise Unavailable("spool_failed")
            await super().memorise(values)

    with pytest.raises(Unavailable):
        asyncio.run(outcome(RECORDED, state(Flaky(), Full()), Rules()))


def test_a_recording_after_redis_was_emptied_is_not_kept_for_a_ticket_that_is_out() -> None:
    shared = Flaky()
    one_state = state(shared)

    async def run() -> list[Outcome]:
        first = await outcome(MISSED, one_state, Rules())
        shared.forget()
        return [first, await outcome(RECORDED, one_state, Rules()), await outcome(VOICEMAIL, one_state, Rules())]

    missed, recorded, voicemail = asyncio.run(run())

    assert missed.ticket
    assert (recorded.ticket, recorded.update) == (False, True)
    assert (voicemail.ticket, voicemail.update) == (True, True)


def test_a_recording_after_redis_was_away_is_not_kept_either() -> None:
    shared, memory = Flaky(), Briefly()

    async def run() -> Outcome:
        shared.away = True
        assert (await outcome(MISSED, state(shared, memory), Rules())).ticket
        shared.away = False
        return await outcome(RECORDED, state(shared, memory), Rules())

    assert asyncio.run(run()).update


def test_a_call_too_old_to_be_remembered() -> None:
    old = RECORDED.model_copy(update={"started_at": NOW - KEEP - timedelta(hours=1)})

    assert told([old]).updates


def test_who_claimed_the_ticket_and_died_has_not_taken_it_along() -> None:
    shared = Flaky()

    async def run() -> Outcome:
        await outcome(MISSED, state(shared), Rules())  # and it was never accepted
        return await outcome(RECORDED, state(shared), Rules())

    found = asyncio.run(run())

    assert (found.ticket, found.update) == (True, True)
    assert found.call.result == "missed"


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300))
def test_whatever_is_in_redis(content: str) -> None:
    class Strange(Flaky):
        async def merge(self, key: str, values: Mapping[str, str], /, *, ttl_secs: float) -> dict[str, str]:
            return {**dict(values), "ticket": content, "0" * 24: content}

        async def claim(self, key: str, value: str, /, *, ttl_secs: float) -> str:
            return content

    assert asyncio.run(outcome(MISSED, state(Strange()), Rules())).ticket


def test_content() -> None:
    assert [one for one in PIECES if is_content(one)] == [RECORDED, VOICEMAIL, WORDS]
