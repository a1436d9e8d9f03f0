"""From the spool to the stream, on a real Redis: every message, once, or in quarantine with a reason."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from jsonschema import Draft202012Validator

from gateway.contract import ChannelSettings
from gateway.envelope import Envelope
from gateway.errors import Unavailable
from gateway.identity import conflict_id, reference
from gateway.schema import envelope_schema
from tests.core.rig import PNG, Rig
from tests.core.samples import audit, waiting

MakeRig = Callable[..., Rig]


# --- the envelope -----------------------------------------------------------------------------------------------------


async def test_a_message_becomes_a_ticket(rig: Rig) -> None:
    receipt = await rig.accept("n1", "打印机坏了".encode(), facts={"with": "张三"})

    await rig.publish_all()

    (event,) = await rig.tickets()
    data = event.pop("data")
    assert event == {
        "specversion": "1.0",
        "id": receipt.id,
        "source": "/acme/shop",
        "type": "huiru.message.v1",
        "time": "2026-11-23T09:00:00.000Z",
        "subject": "张三",
        "datacontenttype": "application/json",
        "dataschema": "urn:huiru:message:v1",
    }
    assert (data["text"], data["conversation"], data["native_id"]) == ("打印机坏了", "张三", "n1")
    assert (data["reference"], data["received_at"]) == (receipt.reference, event["time"])
    assert data["channel"] == {"name": "shop", "type": "echo"}
    assert data["sender"]["identities"] == [{"kind": "user_id", "value": "u1", "verified": True, "account": None}]
    assert data["raw"]["size"] == len("打印机坏了".encode())
    assert rig.ledger() == {"accepted": 1, "published": 1}


async def test_the_stream_entry_has_the_fields_to_filter_by(rig: Rig) -> None:
    receipt = await rig.accept("n1", facts={"with": "张三"})

    await rig.publish_all()

    async with rig.redis.client() as client:
        ((_, fields),) = await client.xrange("tickets")
    fields.pop("event")
    assert fields == {"id": receipt.id, "type": "huiru.message.v1", "channel": "shop", "conversation": "张三"}


@pytest.mark.parametrize("kind", ["note", "album", "tagged"])
async def test_every_event_is_what_it_promises_to_be(rig: Rig, kind: str) -> None:
    await rig.accept("n1", kind=kind)
    await rig.publish_all()
    (event,) = await rig.events()

    # ours
    assert json.loads(Envelope.model_validate_json(event).model_dump_json()) == json.loads(event)
    # by its JSON Schema
    Draft202012Validator(envelope_schema(), format_checker=Draft202012Validator.FORMAT_CHECKER).validate(
        json.loads(event)
    )
    # by the CloudEvents SDK
    message = HTTPMessage({"content-type": "application/cloudevents+json"}, event)
    cloud_event = from_http_event(message)
    assert cloud_event.get_specversion() == "1.0"
    assert cloud_event.get_data() == json.loads(event)["data"]


async def test_without_a_conversation_a_message_is_one_of_its_own(rig: Rig) -> None:
    receipt = await rig.accept("n1")

    await rig.publish_all()

    assert (await rig.tickets())[0]["subject"] == receipt.id


async def test_a_channels_routing_goes_to_its_tickets(rig: Rig) -> None:
    rig.channels["shop"] = ChannelSettings(type="echo", queue="sales", tags=("shop", "web"), priority="low")
    await rig.accept("n1")
    await rig.accept("n2", kind="tagged")

    await rig.publish_all()

    plain, own = [ticket["data"] for ticket in await rig.tickets()]
    assert (plain["queue"], plain["tags"], plain["priority"]) == ("sales", ["shop", "web"], "low")
    assert (own["queue"], own["tags"], own["priority"]) == ("own queue", ["shop", "web", "vip"], "high")


async def test_what_came_by_a_channel_that_is_gone_is_published_all_the_same(rig: Rig) -> None:
    await rig.accept("n1")
    rig.channels.clear()

    await rig.publish_all()

    assert (await rig.tickets())[0]["data"]["channel"] == {"name": "shop", "type": "note"}


async def test_attachments_are_stored_and_described_by_their_bytes(rig: Rig) -> None:
    await rig.accept("n1", kind="album")

    await rig.publish_all()

    picture, words = (await rig.tickets())[0]["data"]["attachments"]
    assert (picture["filename"], picture["content_type"], picture["size"]) == ("打印机.txt", "image/png", len(PNG))
    assert (words["filename"], words["content_type"]) == ("attachment-2", "text/plain")
    stored = rig.blobs_folder / picture["sha256"][:2] / picture["sha256"][2:]
    assert stored.read_bytes() == PNG


# --- what cannot be published -----------------------------------------------------------------------------------------


async def test_a_message_that_can_never_be_normalised_is_put_into_quarantine_at_once(rig: Rig) -> None:
    await rig.accept("n1")
    await rig.accept("bad", b"\xff", kind="rejected")
    await rig.accept("n2")

    await rig.publish_all()

    assert [ticket["data"]["native_id"] for ticket in await rig.tickets()] == ["n1", "n2"]
    (row,) = await rig.spool.quarantined(None, 10, 0)
    assert (row.code, row.reason, row.tries) == ("malformed", "byte 7", 0)
    assert rig.ledger() == {"accepted": 3, "published": 2, "quarantined": 1, "quarantined_total:malformed": 1}


async def test_an_unknown_error_is_tried_again_ever_later_and_then_quarantined(rig: Rig) -> None:
    # given
    await rig.accept("bad", kind="defective")
    await rig.accept("n1")
    start = rig.now

    # when: the neighbour does not wait for it
    await rig.publish_all()
    assert len(await rig.tickets()) == 1

    # then: after 1 and 2 seconds
    tries = []
    for seconds in (0.9, 1, 2.9, 3):
        rig.now = start + seconds
        await rig.publish_all()
        tries.append(rig.spool.waiting("shop"))
    assert tries == [1, 1, 1, 0]
    (row,) = await rig.spool.quarantined(None, 10, 0)
    assert (row.code, row.reason, row.tries) == ("internal", "ZeroDivisionError: a defect of ours", 3)


async def test_a_kind_that_nobody_normalises_is_quarantined_in_the_end(make_rig: MakeRig) -> None:
    rig = make_rig(max_tries=1)
    await rig.accept("n1", kind="pigeon")

    await rig.publish_all()

    (row,) = await rig.spool.quarantined(None, 10, 0)
    assert row.code == "internal"
    assert "pigeon" in str(row.reason)


async def test_a_body_that_cannot_be_read_is_quarantined(rig: Rig) -> None:
    receipt = await rig.accept("n1", b"x" * 100_000)
    path = rig.spool.folder / "raw" / receipt.id
    content = path.read_bytes()
    path.unlink()

    await rig.publish_all()

    (row,) = await rig.spool.quarantined(None, 10, 0)
    assert row.code == "unreadable"
    path.write_bytes(content)


async def test_a_retried_message_is_published(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.accept("n1", kind="rejected")
    await rig.publish_all()
    (row,) = await rig.spool.quarantined(None, 10, 0)
    monkeypatch.setitem(rig.pipeline._normalizers, "rejected", rig.pipeline._normalizer("note"))

    await rig.spool.retry(row.seq)
    await rig.publish_all()

    assert len(await rig.tickets()) == 1
    assert rig.ledger() == {"accepted": 1, "published": 1, "quarantined_total:malformed": 1}


async def test_a_blob_store_that_is_away_is_waited_for_without_counting(rig: Rig) -> None:
    # given: a file lies where the folder was
    shutil.rmtree(rig.blobs_folder)
    rig.blobs_folder.write_bytes(b"")
    await rig.accept("n1", kind="album")
    await rig.accept("n2")

    # when
    for _ in range(5):
        await rig.publish_all()
        rig.now += 10

    # then
    assert [ticket["data"]["native_id"] for ticket in await rig.tickets()] == ["n2"]
    (row,) = await waiting(rig.spool)
    assert row.tries == 0

    # when it is back
    rig.blobs_folder.unlink()
    rig.blobs_folder.mkdir()
    await rig.publish_all()
    assert len(await rig.tickets()) == 2


# --- what is there already --------------------------------------------------------------------------------------------


async def test_what_another_spool_has_published_is_a_duplicate(make_rig: MakeRig) -> None:
    one, other = make_rig("one"), make_rig("other", spool_id="s2")
    await one.accept("n1")
    await one.publish_all()

    await other.accept("n1")
    await other.publish_all()

    assert len(await one.tickets()) == 1
    assert other.ledger() == {"accepted": 1, "duplicate": 1}


async def test_other_content_under_a_known_id_is_published_as_a_conflict(make_rig: MakeRig) -> None:
    # given: a fresh spool, and the same Redis
    one, other = make_rig("one"), make_rig("other", spool_id="s2")
    first = await one.accept("n1", b"first")
    await one.publish_all()

    # when
    await other.accept("n1", b"other content")
    await other.publish_all()

    # then
    ticket, conflict = await one.tickets()
    assert ticket["id"] == first.id
    assert conflict["id"] != first.id
    assert conflict["data"]["conflict_with"] == first.id
    assert (conflict["data"]["text"], conflict["data"]["native_id"]) == ("other content", "n1")
    assert conflict["data"]["reference"] == reference(conflict["id"])
    assert other.ledger() == {"accepted": 1, "published": 1}


async def test_a_conflict_has_the_same_id_wherever_it_is_found(make_rig: MakeRig) -> None:
    one, other = make_rig("one"), make_rig("other", spool_id="s2")
    await one.accept("n1", b"first")
    told = await one.accept("n1", b"other content")
    await one.publish_all()
    await other.accept("n1", b"other content")

    await other.publish_all()

    first, conflict = await one.tickets()
    assert conflict["id"] == told.id == conflict_id(first["id"], (await one.spool.find(told.id)).fingerprint)
    assert other.ledger() == {"accepted": 1, "duplicate": 1}


async def test_what_was_published_before_a_crash_counts_as_published(make_rig: MakeRig, tmp_path: Path) -> None:
    # given: a spool as it was when Redis had the messages and it did not know yet
    rig = make_rig("one")
    for n in range(3):
        await rig.accept(f"n{n}")
    shutil.copytree(rig.spool.folder, tmp_path / "crashed" / "spool")
    await rig.publish_all()

    # when
    again = make_rig("crashed")
    await again.publish_all()

    # then
    assert len(await again.tickets()) == 3
    assert again.ledger() == {"accepted": 3, "published": 3}


# --- what Redis has lost ----------------------------------------------------------------------------------------------


async def test_what_redis_has_lost_is_published_again_to_the_byte(rig: Rig) -> None:
    # given
    for n in range(5):
        await rig.accept(f"n{n}", kind="album" if n == 3 else "note")
    await rig.publish_all()
    before, ledger = await rig.events(), rig.ledger()

    # when
    await rig.redis.ask("FLUSHALL")
    rig.now += 100
    await rig.publisher.look()
    await rig.publish_all()

    # then
    assert await rig.events() == before
    assert rig.ledger() == ledger
    assert rig.metrics.republished._value.get() == 5


async def test_a_loss_under_load_is_made_good(rig: Rig) -> None:
    # given
    for n in range(5):
        await rig.accept(f"n{n}")
    await rig.publish_all()

    # when: nobody looked in between
    await rig.redis.ask("FLUSHALL")
    await rig.accept("new")
    await rig.publish_all()

    # then
    natives = {ticket["data"]["native_id"] for ticket in await rig.tickets()}
    assert natives == {"new", *(f"n{n}" for n in range(5))}
    assert len(await rig.tickets()) == 6


async def test_what_is_lost_and_what_is_new_take_turns(make_rig: MakeRig) -> None:
    rig = make_rig(batch=2)
    for n in range(4):
        await rig.accept(f"old{n}")
    await rig.publish_all()
    await rig.redis.ask("FLUSHALL")
    await rig.publisher.look()
    for n in range(4):
        await rig.accept(f"new{n}")

    await rig.pipeline.step()

    assert [t["data"]["native_id"] for t in await rig.tickets()] == ["new0", "new1", "old0", "old1"]


async def test_a_restart_in_the_midst_of_a_replay_begins_anew(make_rig: MakeRig) -> None:
    # given: two of six are back in Redis, and something new is there too
    rig = make_rig("one", batch=2)
    for n in range(6):
        await rig.accept(f"n{n}")
    await rig.publish_all()
    await rig.redis.ask("FLUSHALL")
    await rig.accept("new")
    await rig.pipeline.step()
    assert len(await rig.tickets()) < 7

    # when
    bookmark = (await rig.spool.recall())["newest"]
    await rig.close()
    rig = make_rig("one", bookmark=bookmark)
    await rig.publisher.look()
    await rig.publish_all()

    # then
    assert len(await rig.tickets()) == 7
    after = (await rig.spool.recall())["newest"]
    assert after != bookmark
    assert after == rig.publisher.bookmark


async def test_nothing_is_published_again_without_need_after_a_restart(make_rig: MakeRig) -> None:
    rig = make_rig("one")
    await rig.accept("n1")
    await rig.publish_all()
    bookmark = (await rig.spool.recall())["newest"]
    await rig.close()

    rig = make_rig("one", bookmark=bookmark)
    await rig.publisher.look()

    assert not rig.publisher.lost_data
    assert not await rig.pipeline.step()


async def test_an_operator_may_ask_for_a_replay_of_a_time(rig: Rig) -> None:
    # given: marks and stream are gone, and nobody but the operator knows
    for n in range(4):
        await rig.accept(f"n{n}")
        await rig.publish_all()
        rig.now += 100
    origin = await rig.redis.ask("GET", "{tickets}:origin")
    await rig.redis.ask("FLUSHALL")
    await rig.redis.ask("SET", "{tickets}:origin", str(origin))

    # when
    rig.pipeline.replay(rig.now - 250)
    await rig.publish_all()

    # then
    assert [ticket["data"]["native_id"] for ticket in await rig.tickets()] == ["n2", "n3"]


async def test_a_replay_of_what_is_there_adds_nothing(rig: Rig) -> None:
    for n in range(4):
        await rig.accept(f"n{n}")
    await rig.publish_all()

    rig.pipeline.replay(0)
    await rig.publish_all()

    assert len(await rig.tickets()) == 4
    assert rig.ledger() == {"accepted": 4, "published": 4}


async def test_a_replay_is_not_held_up_by_a_message_that_cannot_be_normalised_any_more(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        await rig.accept(f"n{n}", kind="album" if n == 1 else "note")
    await rig.publish_all()
    monkeypatch.setitem(rig.pipeline._normalizers, "album", rig.pipeline._normalizer("defective"))
    await rig.redis.ask("FLUSHALL")
    await rig.publisher.look()

    await rig.publish_all()

    assert [ticket["data"]["native_id"] for ticket in await rig.tickets()] == ["n0", "n2"]


# --- the loop ---------------------------------------------------------------------------------------------------------


async def until_tickets(rig: Rig, n: int) -> None:
    async with asyncio.timeout(10):
        while len(await rig.events()) < n:
            await asyncio.sleep(0.005)


@pytest.fixture
async def running(rig: Rig) -> Any:
    task = asyncio.create_task(rig.pipeline.run())
    yield rig
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_arrives_is_published_without_being_waited_for(
    running: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.pipeline._IDLE_SECS", 3600.0)

    for n in range(3):
        await running.accept(f"n{n}")
        await until_tickets(running, n + 1)


async def test_a_spool_that_fails_for_a_while_does_not_end_the_loop(
    running: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    await running.pipeline.drained()
    claim, failures = running.spool.claim, [Unavailable("spool_failed")] * 2

    async def failing(*limits: int) -> Any:
        if failures:
            raise failures.pop()
        return await claim(*limits)

    monkeypatch.setattr("gateway.pipeline._IDLE_SECS", 0.01)
    monkeypatch.setattr(running.spool, "claim", failing)

    # when, then
    await running.accept("n1")
    await until_tickets(running, 1)
    assert failures == []


async def test_what_is_in_the_stream_is_settled_as_soon_as_the_spool_can(
    running: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: the disk is full when the outcome is to be written
    settle, failures = running.spool.settle, [Unavailable("spool_failed")] * 3

    async def failing(*args: Any, **options: Any) -> None:
        if failures:
            raise failures.pop()
        await settle(*args, **options)

    monkeypatch.setattr("gateway.pipeline._IDLE_SECS", 0.01)
    monkeypatch.setattr(running.spool, "settle", failing)

    # when
    await running.accept("n1")
    await running.pipeline.drained()

    # then
    assert running.ledger() == {"accepted": 1, "published": 1}
    assert len(await running.events()) == 1


async def test_drained_waits_for_what_is_due_and_not_for_what_is_not(running: Rig) -> None:
    await running.accept("bad", kind="defective")
    for n in range(20):
        await running.accept(f"n{n}")

    await asyncio.wait_for(running.pipeline.drained(), 10)

    assert len(await running.events()) == 20
    assert running.spool.waiting("shop") == 1


async def test_a_load_of_messages_goes_through_in_batches(make_rig: MakeRig) -> None:
    rig = make_rig(batch=50)
    await asyncio.gather(*(rig.accept(f"n{n}") for n in range(333)))

    await rig.publish_all()

    assert sorted(t["data"]["native_id"] for t in await rig.tickets()) == sorted(f"n{n}" for n in range(333))
    assert rig.ledger() == {"accepted": 333, "published": 333}
    await audit(rig.spool)


async def test_the_lag_is_measured(rig: Rig) -> None:
    await rig.accept("n1")
    rig.now += 7

    await rig.publish_all()

    lag = rig.metrics.registry.get_sample_value("huiru_publish_lag_seconds_sum", {"channel": "shop"})
    assert lag == pytest.approx(7)
