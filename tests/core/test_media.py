"""What messages refer to: fetched before the ticket goes out, or left out with a reason, and what is late follows."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from gateway.contract import Part, Profile, Wanted
from gateway.envelope import Envelope, Identity
from gateway.errors import Rejected, Unavailable
from tests.core.rig import PNG, Rig
from tests.core.samples import NOW, query

MakeRig = Callable[..., Rig]


class Station:
    """A channel's server: gives what it has, and raises what it is told to."""

    def __init__(self) -> None:
        self.files: dict[str, Part | Profile | Exception] = {}
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.busy = self.most_busy = 0

    async def fetch(self, wanted: Wanted) -> Part | Profile:
        self.asked.append(wanted.source)
        self.busy += 1
        self.most_busy = max(self.busy, self.most_busy)
        try:
            await self.gate.wait()
        finally:
            self.busy -= 1
        found = self.files.get(wanted.source, Rejected("not_found", "there is no such picture"))
        if isinstance(found, Exception):
            raise found
        return found


def station(rig: Rig) -> Station:
    rig.connectors["shop"] = Station()
    return rig.connectors["shop"]


async def settle(rig: Rig) -> None:
    """All tries that are due, and then all that can be published."""
    await rig.publish_all()
    while True:
        await rig.media.step()
        if not (tasks := rig.media.in_work()):
            break
        await asyncio.gather(*tasks)
    await rig.publish_all()


async def test_a_ticket_goes_out_with_what_it_refers_to(rig: Rig) -> None:
    server = station(rig)
    server.files = {"a": Part(PNG, "打印机.png"), "b": Part(b"words", content_type="text/plain")}

    await rig.accept("n1", b"look\na\nb", kind="letterhead")
    await settle(rig)

    (ticket,) = await rig.tickets()
    Envelope.model_validate(ticket)
    first, second = ticket["data"]["attachments"]
    assert (first["id"], first["filename"], first["content_type"]) == ("1", "打印机.png", "image/png")
    assert (second["id"], second["filename"], second["size"]) == ("2", "b.png", 5)
    assert ticket["data"]["omissions"] == []
    assert await rig.blobs.get(first["sha256"]) == PNG


async def test_others_do_not_wait(rig: Rig) -> None:
    station(rig).files = {"a": Unavailable(reason="away")}

    await rig.accept("n1", b"look\na", kind="letterhead")
    await rig.accept("n2", b"only words")
    await settle(rig)

    (ticket,) = await rig.tickets()
    assert ticket["data"]["text"] == "only words"
    assert rig.ledger() == {"accepted": 2, "published": 1}


async def test_what_can_never_be_had_is_an_omission(rig: Rig) -> None:
    server = station(rig)
    server.files = {"a": Part(PNG)}

    await rig.accept("n1", b"look\na\ngone", kind="letterhead")
    await settle(rig)

    (ticket,) = await rig.tickets()
    assert [one["filename"] for one in ticket["data"]["attachments"]] == ["a.png"]
    assert ticket["data"]["omissions"] == [
        {"what": "image", "reason": "there is no such picture", "filename": "gone.png", "size": None}
    ]
    assert server.asked == ["a", "gone"]


async def test_what_is_larger_than_allowed_is_an_omission(make_rig: MakeRig) -> None:
    rig = make_rig(media={"max_bytes": 1024})
    station(rig).files = {"a": Part(bytes(1025))}

    await rig.accept("n1", b"look\na", kind="letterhead")
    await settle(rig)

    (ticket,) = await rig.tickets()
    assert ticket["data"]["omissions"][0]["reason"] == "the file has 1025 bytes, 1024 are allowed"


async def test_it_is_tried_again_later_each_time(rig: Rig) -> None:
    # given
    server = station(rig)
    server.files = {"a": Unavailable(reason="away", retry_after=1)}
    await rig.accept("n1", b"look\na", kind="letterhead")

    # when
    waits: list[float] = []
    for _ in range(6):
        await settle(rig)
        ((due,),) = await query(rig.spool, "SELECT due FROM media")
        waits.append(due - rig.now)
        rig.now = due
    server.files = {"a": Part(PNG)}
    await settle(rig)

    # then
    assert all(1.4 < later / earlier < 2.7 for earlier, later in pairwise(waits)), waits
    (ticket,) = await rig.tickets()
    assert len(ticket["data"]["attachments"]) == 1


async def test_a_ticket_that_waits_no_longer_is_followed_by_an_update(rig: Rig) -> None:
    # given: it waited for ten minutes
    server = station(rig)
    server.files = {"a": Unavailable(reason="away"), "b": Part(b"b")}
    receipt = await rig.accept("n1", b"look\na\nb", kind="letterhead")
    await settle(rig)
    assert await rig.tickets() == []
    rig.now += 600
    await settle(rig)
    (ticket,) = await rig.tickets()
    assert ticket["id"] == receipt.id
    assert [one["filename"] for one in ticket["data"]["attachments"]] == ["b.png"]
    assert "follows as an update" in ticket["data"]["omissions"][0]["reason"]

    # when: the server is back
    server.files = {"a": Part(PNG)}
    rig.now += 3600
    await settle(rig)

    # then
    _, update = await rig.tickets()
    Envelope.model_validate(update)
    assert update["type"] == "huiru.message.update.v1"
    assert update["data"]["updates"] == {"id": receipt.id, "reference": receipt.reference}
    assert update["subject"] == ticket["subject"] == "c1"
    assert [one["filename"] for one in update["data"]["attachments"]] == ["a.png"]
    assert rig.ledger() == {"accepted": 2, "published": 2}
    assert await rig.spool.media.next_due() is None


async def test_what_is_late_for_an_update_updates_the_ticket_itself(rig: Rig) -> None:
    server = station(rig)
    server.files = {"a": Unavailable(reason="away")}
    ticket = await rig.accept("n1", b"the call")
    await rig.accept("n1:recording", b"\na", kind="letterhead", facts={"updates": "n1"})
    await settle(rig)

    rig.now += 600
    await settle(rig)
    server.files = {"a": Part(PNG)}
    rig.now += 3600
    await settle(rig)

    _, first, second = await rig.tickets()
    assert first["data"]["updates"]["id"] == second["data"]["updates"]["id"] == ticket.id
    assert len(second["data"]["attachments"]) == 1


async def test_it_is_given_up_in_the_end(rig: Rig) -> None:
    server = station(rig)
    server.files = {"a": Unavailable(reason="away")}
    await rig.accept("n1", b"look\na", kind="letterhead")
    await settle(rig)

    rig.now += 72 * 3600 + 1
    await settle(rig)

    (ticket,) = await rig.tickets()
    assert [one["what"] for one in ticket["data"]["omissions"]] == ["image"]
    assert await rig.spool.media.next_due() is None


async def test_a_defect_is_not_tried_for_ever(rig: Rig) -> None:
    server = station(rig)
    server.files = {"a": ZeroDivisionError()}
    await rig.accept("n1", b"look\na", kind="letterhead")

    for _ in range(3):
        await settle(rig)
        rig.now += 60

    (ticket,) = await rig.tickets()
    assert ticket["data"]["omissions"][0]["reason"] == "it could not be fetched"
    assert len(server.asked) == 3


async def test_a_profile_fills_what_the_message_leaves_open(rig: Rig) -> None:
    union = Identity(kind="wechat_unionid", value="o6", verified=True)
    station(rig).files = {"name": Profile("张三", (union,), "zh-CN")}

    await rig.accept("n1", b"hello\nname", kind="letterhead")
    await settle(rig)

    (ticket,) = await rig.tickets()
    assert ticket["data"]["sender"]["name"] == "张三"
    assert [one["kind"] for one in ticket["data"]["sender"]["identities"]] == ["user_id", "wechat_unionid"]
    assert ticket["data"]["language"] == "zh-CN"


async def test_a_profile_is_not_worth_a_wait(rig: Rig) -> None:
    station(rig).files = {"name": Unavailable(reason="away")}
    await rig.accept("n1", b"hello\nname", kind="letterhead")
    await settle(rig)

    rig.now += 10
    await settle(rig)

    (ticket,) = await rig.tickets()
    assert ticket["data"]["sender"]["name"] is None
    assert ticket["data"]["omissions"] == []


async def test_a_replay_gives_the_same_and_fetches_nothing(rig: Rig) -> None:
    server = station(rig)
    server.files = {"a": Part(PNG)}
    await rig.accept("n1", b"look\na\ngone", kind="letterhead")
    await settle(rig)
    (before,) = await rig.events()
    await rig.redis.ask("FLUSHALL")
    asked = len(server.asked)

    await rig.publisher.look()
    await settle(rig)

    assert await rig.events() == [before]
    assert len(server.asked) == asked


async def test_a_restart_goes_on(make_rig: MakeRig) -> None:
    # given
    first = make_rig("state")
    station(first).files = {"a": Unavailable(reason="away")}
    await first.accept("n1", b"look\na", kind="letterhead")
    await settle(first)
    await first.close()

    # when
    second = make_rig("state")
    station(second).files = {"a": Part(PNG)}
    second.now += 60
    await settle(second)

    # then
    (ticket,) = await second.tickets()
    assert len(ticket["data"]["attachments"]) == 1


async def test_few_at_a_time_and_channels_take_turns(make_rig: MakeRig) -> None:
    # given: a flood in one channel
    rig = make_rig(media={"concurrency": 2})
    server, other = station(rig), Station()
    rig.connectors["desk"] = other
    rig.channels["desk"] = rig.channels["shop"]
    server.gate.clear()
    for n in range(6):
        await rig.accept(f"n{n}", f"look\n{n}".encode(), kind="letterhead")
    await rig.intake.accept("desk", rig.raw("d1", b"look\nmine", kind="letterhead"))
    await rig.publish_all()

    # when
    await rig.media.step()
    await asyncio.sleep(0)
    assert (server.busy, other.busy) == (2, 0)
    server.gate.set()
    await asyncio.gather(*rig.media.in_work())
    server.gate.clear()
    await rig.media.step()
    await asyncio.sleep(0)

    # then
    assert other.asked == ["mine"] or server.most_busy == 2
    server.gate.set()
    await settle(rig)
    assert len(await rig.tickets()) == 7
    assert server.most_busy == 2


async def test_it_runs_by_itself(make_rig: MakeRig) -> None:
    rig = make_rig()
    server = station(rig)
    server.files = {"a": Part(PNG)}
    tasks = [asyncio.create_task(rig.media.run()), asyncio.create_task(rig.pipeline.run())]

    await rig.accept("n1", b"look\na", kind="letterhead")

    async with asyncio.timeout(10):
        while not await rig.events():
            await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert server.asked == ["a"]


async def test_an_unknown_ticket_is_told_by_its_native_id(rig: Rig) -> None:
    """The ticket may have been published by another gateway, or long ago."""
    station(rig)
    first: dict[str, Any] = {"facts": {"updates": "n1"}}

    await rig.accept("n1:more", b"more", kind="letterhead", **first)
    receipt = await rig.accept("n1", b"the ticket")
    await settle(rig)

    update, ticket = await rig.tickets()
    assert update["data"]["updates"]["id"] == ticket["id"] == receipt.id
    assert ticket["data"]["updates"] is None
    assert ticket["time"] == NOW.isoformat(timespec="milliseconds").replace("+00:00", "Z")
