"""What every channel that runs on its own has to do: see `webhook.py`, its sibling."""

import asyncio

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.driver import RunningDriver
from tests.contract.rig import STOP_SECS, Check, Rig
from tests.contract.webhook import the_probe_ends_in_time

_RECOVERY_SECS = 20


def driver_of(rig: Rig) -> RunningDriver:
    assert isinstance(rig.driver, RunningDriver)
    return rig.driver


async def a_good_message_is_one_ticket(rig: Rig) -> None:
    await rig.until_up()

    verdict = await driver_of(rig).deliver("m1")

    assert verdict == "yes"
    assert rig.count("accepted") == 1, "acknowledged before it was accepted"
    ticket = await rig.only_ticket()
    data = ticket["event"].data
    assert (ticket["id"], ticket["channel"]) == (ticket["event"].id, rig.channel)
    assert (data.channel.name, data.channel.type) == (rig.channel, rig.driver.type)


async def a_message_again_is_the_same_ticket(rig: Rig) -> None:
    await rig.until_up()

    verdicts = [await driver_of(rig).deliver("m1") for _ in range(2)]

    assert verdicts == ["yes", "yes"]
    await rig.only_ticket()


async def a_forged_message_is_refused(rig: Rig) -> None:
    await rig.until_up()

    verdict = await driver_of(rig).deliver_forged()

    assert verdict == "no"
    assert rig.nothing_was_accepted()


async def a_full_spool_is_a_temporary_answer(rig: Rig) -> None:
    """That also shows that nothing is acknowledged before its receipt."""
    await rig.until_up()
    with rig.full_spool():
        await _demand_later(rig)

    await _demand_recovery(rig)


async def a_failing_spool_is_a_temporary_answer(rig: Rig) -> None:
    await rig.until_up()
    with rig.failing_spool():
        await _demand_later(rig)

    await _demand_recovery(rig)


async def _demand_later(rig: Rig) -> None:
    assert await driver_of(rig).deliver("m1") == "later"
    assert rig.nothing_was_accepted()


async def _demand_recovery(rig: Rig) -> None:
    async with asyncio.timeout(_RECOVERY_SECS):  # its server may come again a little later
        while await driver_of(rig).deliver("m1") != "yes":
            await rig.until_up()
    await rig.only_ticket()


async def noise_does_no_harm(rig: Rig) -> None:
    driver = driver_of(rig)
    loop = asyncio.get_running_loop()
    await rig.until_up()

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(noise=st.binary(max_size=300) | st.text().map(str.encode))
    def say(noise: bytes) -> None:
        asyncio.run_coroutine_threadsafe(driver.babble(noise), loop).result()

    await asyncio.to_thread(say)
    assert rig.is_up
    assert await driver.deliver("m1") == "yes"


async def the_counters_move(rig: Rig) -> None:
    await rig.until_up()
    await driver_of(rig).deliver("m1")
    await driver_of(rig).deliver("m1")
    await rig.tickets()

    metrics = await rig.metrics()

    of_channel = f'{{channel="{rig.channel}"}}'
    assert metrics[f"huiru_messages_accepted_total{of_channel}"] >= 1
    assert metrics[f"huiru_messages_published_total{of_channel}"] == 1
    assert metrics[f"huiru_messages_waiting{of_channel}"] == 0
    assert metrics[f"huiru_channel_up{of_channel}"] == 1


# Life


async def it_runs_again_after_a_failure(rig: Rig) -> None:
    """The supervisor starts the same object a second time; what the first run left must not be in its way."""
    await rig.until_up()
    await driver_of(rig).deliver("m1")

    await rig.break_connector()
    await rig.until_up()

    assert await driver_of(rig).deliver("m2") == "yes"
    assert len(await rig.tickets()) == 2


async def a_stop_ends_in_time(rig: Rig) -> None:
    """Also when a peer is in the middle of something; afterwards the channel is down."""
    await rig.until_up()
    loop = asyncio.get_running_loop()
    async with driver_of(rig).dawdling():
        started = loop.time()
        await rig.stop()

    assert loop.time() - started < STOP_SECS + 2
    assert not rig.is_up


CHECKS: tuple[Check, ...] = (
    a_good_message_is_one_ticket,
    a_message_again_is_the_same_ticket,
    a_forged_message_is_refused,
    a_full_spool_is_a_temporary_answer,
    a_failing_spool_is_a_temporary_answer,
    noise_does_no_harm,
    the_counters_move,
    the_probe_ends_in_time,
    it_runs_again_after_a_failure,
    a_stop_ends_in_time,
)
