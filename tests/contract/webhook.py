"""What every webhook channel has to do. A check is a coroutine function; its name is what a waiver names.

Each gets a running rig of its own, whose audit follows: the books balance, no defect was logged, nothing secret shown.
"""

import asyncio
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import chain, product

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gateway.contract import WebhookConnector
from gateway.errors import HuiruError
from tests.contract.driver import Answer, Call, WebhookDriver
from tests.contract.rig import STOP_SECS, Check, Rig

PROBE_SECS = 10
PHASES = tuple(Phase)
_MAX_BYTES = 100_000
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW")
_TOKEN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
_UNRESERVED = _TOKEN + "~!$&'()*+,;=:@%/?"
# Headers that decide something somewhere, and values that are awkward in one of them.
_HEADERS = (
    *("Accept", "Accept-Language", "Authorization", "Content-Type", "Cookie", "Expect", "Forwarded", "Host"),
    *("Idempotency-Key", "Origin", "Referer", "User-Agent", "X-Forwarded-For", "X-HTTP-Method-Override"),
)
_VALUES = (
    *("", '"', "\xff", "a" * 5000, "*/*;q=x", "Bearer", "Bearer ", "Basic Og==", "null", "http://[", "https://[::1]:x"),
    *("application/json", "application/json; charset=gbk", "application/x-www-form-urlencoded", "text/xml"),
    *("multipart/form-data", "multipart/form-data; boundary=b", "100-continue", "zh;q=9,en;q="),
)


def driver_of(rig: Rig) -> WebhookDriver:
    assert isinstance(rig.driver, WebhookDriver)
    return rig.driver


# Messages


async def a_good_message_is_one_ticket(rig: Rig) -> None:
    driver = driver_of(rig)
    call = driver.good("m-1")

    answer = await rig.send(call)

    assert driver.is_yes(answer), answer
    ticket = await rig.only_ticket()
    event, data = ticket["event"], ticket["event"].data
    assert (ticket["id"], ticket["type"], ticket["channel"]) == (event.id, event.type, rig.channel)
    assert (event.subject, ticket["conversation"]) == (data.conversation, data.conversation)
    assert (data.channel.name, data.channel.type) == (rig.channel, driver.type)
    raw = driver.raw(call)
    assert raw is None or (data.raw.sha256, data.raw.size) == (sha256(raw).hexdigest(), len(raw))
    assert event.source == f"/rig/{rig.channel}"
    assert data.native_id


async def the_answer_names_the_ticket(rig: Rig) -> None:
    driver = driver_of(rig)

    answers = [await rig.send(driver.good(native_id)) for native_id in ("m-1", "m-2")]

    tickets = await rig.tickets()
    assert [driver.reference(answer) for answer in answers] == [ticket["event"].data.reference for ticket in tickets]


async def a_message_again_is_the_same_ticket(rig: Rig) -> None:
    driver = driver_of(rig)

    first = await rig.send(driver.good("m-1"))
    await rig.tickets()
    again = await rig.send(driver.good("m-1"))

    await _demand_one_ticket(rig, first, again)


async def a_message_twice_at_once_is_one_ticket(rig: Rig) -> None:
    driver = driver_of(rig)

    both = await asyncio.gather(*(rig.send(driver.good("m-1")) for _ in range(2)))

    await _demand_one_ticket(rig, *both)


async def a_message_in_a_file_is_the_same_ticket(rig: Rig) -> None:
    """A body is a BodyFile when it is large; the message does not change with that."""
    driver = driver_of(rig)
    with rig.bodies_as_files():
        first = await rig.send(driver.good("m-1"))
        again = await rig.send(driver.good("m-1"), chunked=True)
        refused = await rig.send(driver.forged(driver.message("m-2")))

    in_memory = await rig.send(driver.good("m-1"))

    assert driver.is_unauthenticated(refused), refused
    await _demand_one_ticket(rig, first, again, in_memory)


async def _demand_one_ticket(rig: Rig, *answers: Answer) -> None:
    driver = driver_of(rig)
    assert all(map(driver.is_yes, answers)), answers
    assert len({driver.reference(answer) for answer in answers}) == 1, answers
    await rig.only_ticket()
    assert rig.count("accepted") == len(answers)
    assert rig.count("duplicate") == len(answers) - 1


# Refusals


async def a_forged_message_is_refused(rig: Rig) -> None:
    driver = driver_of(rig)

    answer = await rig.send(driver.forged(driver.message("m-1")))

    assert driver.is_unauthenticated(answer), answer
    assert rig.nothing_was_accepted()


async def a_message_without_proof_is_refused(rig: Rig) -> None:
    driver = driver_of(rig)

    answer = await rig.send(driver.message("m-1"))

    assert driver.is_unauthenticated(answer), answer
    assert rig.nothing_was_accepted()


async def a_malformed_message_is_refused(rig: Rig) -> None:
    driver = driver_of(rig)

    answer = await rig.send(driver.malformed())

    assert driver.is_no(answer), answer
    assert rig.nothing_was_accepted()


async def an_oversized_message_is_refused(rig: Rig) -> None:
    driver = driver_of(rig)
    rig.limit_requests(_MAX_BYTES)
    call = driver.authenticated(replace(driver.message("m-1"), body=bytes(_MAX_BYTES + 1)))

    answers = [await rig.send(call), await rig.send(call, chunked=True)]

    assert all(map(driver.is_no, answers)), answers
    assert rig.nothing_was_accepted()


async def another_method_is_refused(rig: Rig) -> None:
    connector = rig.connector
    assert isinstance(connector, WebhookConnector)
    others = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - connector.methods

    for method in others:
        answer = await rig.send(Call(method))

        assert answer.status == 405
        allowed = set(answer.headers["allow"].split(", "))
        assert allowed <= connector.methods | {"HEAD"}
        assert allowed - {method} == allowed != set()
    assert rig.nothing_was_accepted()


# Hard times


async def a_full_spool_is_a_temporary_answer(rig: Rig) -> None:
    with rig.full_spool():
        await _demand_later(rig)
        assert not await rig.is_ready()

    await _demand_recovery(rig)


async def a_failing_spool_is_a_temporary_answer(rig: Rig) -> None:
    with rig.failing_spool():
        await _demand_later(rig)

    await _demand_recovery(rig)


async def _demand_later(rig: Rig) -> None:
    driver = driver_of(rig)
    answer = await rig.send(driver.good("m-1"))

    assert driver.is_later(answer), answer
    assert not driver.is_yes(answer)
    assert not driver.is_no(answer)
    assert rig.nothing_was_accepted()


async def _demand_recovery(rig: Rig) -> None:
    """The message that was put off is taken when it comes again."""
    driver = driver_of(rig)
    answer = await rig.send(driver.good("m-1"))

    assert driver.is_yes(answer), answer
    await rig.only_ticket()


async def damaged_headers_are_refused(rig: Rig) -> None:
    """A key is in one of them, and must not get into the log with the complaint."""
    good = driver_of(rig).good("m-0")

    for name, value in good.headers.items():
        answer = await rig.shout(replace(good, headers={**good.headers, name: f"{value}\x7f"}))

        assert answer is not None
        assert answer.status == 400
    rig.answers.clear()  # they are aiohttp's own, and tell the sender alone what they sent


async def awkward_headers_get_an_answer(rig: Rig) -> None:
    driver = driver_of(rig)
    good = driver.good("m-0")

    for name, value in product({*_HEADERS, *good.headers}, _VALUES):
        await _demand_answer(rig, replace(good, headers={**good.headers, name: value}))


async def random_requests_get_an_answer(rig: Rig) -> None:
    driver = driver_of(rig)
    loop = asyncio.get_running_loop()

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
    @given(call=_calls(driver))
    def ask(call: Call) -> None:
        asyncio.run_coroutine_threadsafe(_demand_answer(rig, call), loop).result()

    await asyncio.to_thread(ask)
    assert driver.is_yes(await rig.send(driver.good("m-1")))


async def _demand_answer(rig: Rig, call: Call) -> None:
    answer = await rig.shout(call)

    assert answer is not None, f"no answer to {call}"
    assert answer.status < 500, (call, answer)
    if answer.body.startswith(b"Invalid method encountered"):
        rig.answers.remove(answer)  # aiohttp's own: it shows a secret path to the sender alone, who sent it


def _calls(driver: WebhookDriver) -> st.SearchStrategy[Call]:
    """Requests that are odd in one respect, or in all; some of them well authenticated."""
    good = driver.message("m-0")
    methods = st.sampled_from(_METHODS) | st.text(_TOKEN, min_size=1, max_size=9)
    targets = st.tuples(_targets("/"), _targets("?")).map("".join)
    headers = _headers(good, driver.authenticated(good))
    bodies = _bodies(good.body)
    calls = st.one_of(
        methods.map(lambda method: replace(good, method=method)),
        targets.map(lambda target: replace(good, path=target)),
        headers.map(lambda headers: replace(good, headers=headers)),
        bodies.map(lambda body: replace(good, body=body)),
        st.builds(Call, methods, targets, headers, bodies),
    )
    return st.booleans().flatmap(lambda proven: calls.map(driver.authenticated) if proven else calls)


def _targets(start: str) -> st.SearchStrategy[str]:
    return st.sampled_from(("", start)) | st.text(_UNRESERVED, max_size=30).map(lambda text: f"{start}{text}")


def _headers(*calls: Call) -> st.SearchStrategy[dict[str, str]]:
    names = {*_HEADERS, *chain.from_iterable(call.headers for call in calls)}
    values = {*_VALUES, *chain.from_iterable(call.headers.values() for call in calls)}
    printable = st.characters(codec="latin-1", categories=("L", "P", "S", "Zs"))
    odd = st.one_of(st.sampled_from(sorted(values)), st.text(printable, max_size=40))
    some = st.dictionaries(st.sampled_from(sorted(names)), odd, max_size=3)
    return some.map(lambda some: {**calls[0].headers, **some})


def _bodies(good: bytes) -> st.SearchStrategy[bytes]:
    spliced = st.builds(_spliced, st.just(good), st.integers(0, len(good)), st.integers(0, 9), st.binary(max_size=9))
    return spliced | st.binary(max_size=300)


def _spliced(body: bytes, at: int, gone: int, new: bytes) -> bytes:
    return body[:at] + new + body[at + gone :]


# Operations


async def the_counters_move(rig: Rig) -> None:
    driver = driver_of(rig)
    await rig.send(driver.good("m-1"))
    await rig.send(driver.good("m-2"))
    await rig.send(driver.good("m-2"))
    await rig.send(driver.malformed())
    await rig.tickets()

    metrics = await rig.metrics()

    of_channel = partial(_value, metrics, rig.channel)
    assert of_channel("messages_accepted_total") == 3
    assert of_channel("messages_published_total") == 2
    assert of_channel("messages_duplicate_total") == 1
    assert of_channel("messages_waiting") == 0
    assert of_channel("messages_refused_total") == 1
    assert of_channel("accept_seconds_count") == 3
    assert of_channel("publish_lag_seconds_count") == 2
    assert of_channel("last_message_timestamp_seconds") > 0
    assert of_channel("channel_up") == 1
    assert metrics["huiru_redis_up"] == 1


def _value(metrics: dict[str, float], channel: str, name: str) -> float:
    """Of all codes together."""
    return sum(n for key, n in metrics.items() if key.startswith(f"huiru_{name}{{") and f'channel="{channel}"' in key)


async def the_probe_ends_in_time(rig: Rig) -> None:
    async with asyncio.timeout(PROBE_SECS):
        with suppress(HuiruError, OSError):  # what is wrong there is not ours
            await rig.connector.probe()


async def a_stop_ends_in_time(rig: Rig) -> None:
    """Also when a client does not come to its end."""
    driver = driver_of(rig)
    loop = asyncio.get_running_loop()
    async with rig.half_sent(driver.good("m-1")):
        started = loop.time()
        await rig.stop()

    assert loop.time() - started < STOP_SECS + 2


CHECKS: tuple[Check, ...] = (
    a_good_message_is_one_ticket,
    the_answer_names_the_ticket,
    a_message_again_is_the_same_ticket,
    a_message_twice_at_once_is_one_ticket,
    a_message_in_a_file_is_the_same_ticket,
    a_forged_message_is_refused,
    a_message_without_proof_is_refused,
    a_malformed_message_is_refused,
    an_oversized_message_is_refused,
    another_method_is_refused,
    a_full_spool_is_a_temporary_answer,
    a_failing_spool_is_a_temporary_answer,
    damaged_headers_are_refused,
    awkward_headers_get_an_answer,
    random_requests_get_an_answer,
    the_counters_move,
    the_probe_ends_in_time,
    a_stop_ends_in_time,
)
