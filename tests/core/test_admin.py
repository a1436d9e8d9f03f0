"""What operators and their tools are told, and what they can do, by HTTP."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from gateway import __version__
from gateway.admin import AdminApi, health_application
from gateway.errors import ConfigError, Unavailable
from gateway.identity import reference
from gateway.outbox import Outbox
from tests.core.rig import Rig

Ask = Callable[..., Awaitable[tuple[int, Any]]]


class Daemon:
    """What the composition root tells the admin side."""

    name = "acme"
    redis_url = "redis://127.0.0.1:6379/0"
    stream_name = "tickets"
    started = 0.0

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.refusal: Exception | None = None

    def troubles(self) -> list[str]:
        return self.reasons

    def channels(self) -> dict[str, tuple[str, bool, str]]:
        return {"shop": ("echo", True, ""), "mailbox": ("imap", False, "no network")}

    async def reload(self) -> list[str]:
        if self.refusal:
            raise self.refusal
        return ["http"]


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
async def ask(rig: Rig, daemon: Daemon, aiohttp_client: Any) -> Ask:
    """`await ask("GET", "/api/status")`: the status and the document."""
    outbox = Outbox(rig.spool, lambda: None, lambda: rig.channels, b"k" * 32)
    api = AdminApi(daemon, rig.spool, rig.publisher, rig.pipeline, outbox)
    client: TestClient[Any, Any] = await aiohttp_client(api.application())

    async def send(method: str, path: str, **options: Any) -> tuple[int, Any]:
        async with client.request(method, path, **options) as response:
            is_json = "json" in response.content_type
            return response.status, await (response.json(content_type=None) if is_json else response.read())

    return send


async def quarantined(rig: Rig, *names: str) -> list[str]:
    """The ids of messages in quarantine."""
    ids = [(await rig.accept(name, f"bytes of {name}".encode(), kind="rejected")).id for name in names]
    await rig.publish_all()
    return ids


# --- health -----------------------------------------------------------------------------------------------------------


async def test_it_is_alive_and_ready_or_says_why_not(rig: Rig, daemon: Daemon, aiohttp_client: Any) -> None:
    client = await aiohttp_client(health_application(daemon, rig.metrics))

    async def get(path: str) -> tuple[int, Any]:
        async with client.get(path) as response:
            return response.status, await response.json()

    assert await get("/healthz") == (200, {"status": "alive"})
    assert await get("/readyz") == (200, {"ready": True, "reasons": []})
    daemon.reasons.append("the spool is full")
    assert await get("/readyz") == (503, {"ready": False, "reasons": ["the spool is full"]})
    assert (await get("/healthz"))[0] == 200


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("*/*", "text/plain"), ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text")],
)
async def test_metrics_are_what_prometheus_asks_for(
    rig: Rig, daemon: Daemon, aiohttp_client: Any, accept: str, content_type: str
) -> None:
    client = await aiohttp_client(health_application(daemon, rig.metrics))

    async with client.get("/metrics", headers={"Accept": accept}) as response:
        text = await response.text()

    assert response.headers["Content-Type"].startswith(content_type)
    assert "huiru_redis_up 0.0" in text


async def test_the_health_listener_shows_no_message(rig: Rig, daemon: Daemon, aiohttp_client: Any) -> None:
    client = await aiohttp_client(health_application(daemon, rig.metrics))

    for path in ("/api/status", "/api/quarantine", "/api/reload"):
        async with client.get(path) as response:
            assert response.status == 404


# --- status -----------------------------------------------------------------------------------------------------------


async def test_the_status_tells_all_counts(rig: Rig, ask: Ask) -> None:
    await rig.accept("n1")
    await rig.accept("n1")
    await rig.publish_all()
    await quarantined(rig, "bad")
    await rig.accept("waiting")

    status, document = await ask("GET", "/api/status")

    assert status == 200
    assert (document["gateway"], document["version"], document["ready"]) == ("acme", __version__, True)
    assert document["redis"] == {"up": True, "url": "redis://127.0.0.1:6379/0", "trouble": ""}
    assert document["stream"] == {"name": "tickets", "length": 1, "replaying": False}
    assert document["spool"] == {"bytes": rig.spool.bytes, "damaged": False}
    mailbox, shop = document["channels"]
    assert shop == {
        "name": "shop",
        "type": "echo",
        "up": True,
        "trouble": "",
        "accepted": 4,
        "published": 1,
        "duplicate": 1,
        "quarantined": 1,
        "discarded": 0,
        "waiting": 1,
        "last_message_at": "2026-11-23T09:00:00.000Z",
    }
    assert (mailbox["up"], mailbox["trouble"]) == (False, "no network")
    assert (mailbox["accepted"], mailbox["last_message_at"]) == (0, None)


async def test_the_status_comes_also_without_redis(rig: Rig, ask: Ask) -> None:
    rig.redis.kill()
    await rig.publisher.look()

    status, document = await asyncio.wait_for(ask("GET", "/api/status"), 5)

    assert status == 200
    assert document["stream"]["length"] is None
    assert document["redis"]["up"] is False
    assert "ConnectionError" in document["redis"]["trouble"]


# --- quarantine -------------------------------------------------------------------------------------------------------


async def test_the_quarantine_is_listed(rig: Rig, ask: Ask) -> None:
    (id_,) = await quarantined(rig, "bad")

    status, document = await ask("GET", "/api/quarantine")

    assert (status, document["total"]) == (200, 1)
    assert document["items"] == [
        {
            "id": id_,
            "reference": reference(id_),
            "channel": "shop",
            "kind": "rejected",
            "code": "malformed",
            "reason": "byte 7",
            "received_at": "2026-11-23T09:00:00.000Z",
            "tries": 0,
            "size": len("bytes of bad"),
        }
    ]


async def test_the_quarantine_is_listed_by_pages_and_channels(rig: Rig, ask: Ask) -> None:
    ids = await quarantined(rig, *(f"n{n}" for n in range(5)))

    _, page = await ask("GET", "/api/quarantine?limit=2&offset=3")
    _, other = await ask("GET", "/api/quarantine?channel=other")

    assert (page["total"], [item["id"] for item in page["items"]]) == (5, ids[3:])
    assert other == {"total": 0, "items": []}


@pytest.mark.parametrize("query", ["limit=x", "offset=-1", "limit=1e3", "limit=%EF%BC%91", "offset=99999999999"])
async def test_a_number_that_is_none_is_refused(ask: Ask, query: str) -> None:
    status, document = await ask("GET", f"/api/quarantine?{query}")

    assert (status, document["code"]) == (400, "malformed")


async def test_a_message_is_shown_by_its_reference(rig: Rig, ask: Ask) -> None:
    (id_,) = await quarantined(rig, "bad")

    status, document = await ask("GET", f"/api/quarantine/{reference(id_)}")

    assert status == 200
    assert (document["id"], document["native_id"], document["facts"]) == (id_, "bad", {})


async def test_the_bytes_are_had_as_they_came(rig: Rig, ask: Ask) -> None:
    (id_,) = await quarantined(rig, "bad")

    assert await ask("GET", f"/api/quarantine/{id_}/raw") == (200, b"bytes of bad")


async def test_bytes_that_cannot_be_read_are_gone(rig: Rig, ask: Ask) -> None:
    receipt = await rig.accept("n1", b"x" * 100_000, kind="rejected")
    await rig.publish_all()
    path = rig.spool.folder / "raw" / receipt.id
    content = path.read_bytes()
    path.unlink()

    status, document = await ask("GET", f"/api/quarantine/{receipt.id}/raw")

    assert (status, document["code"]) == (410, "gone")
    path.write_bytes(content)


async def test_a_message_is_retried(rig: Rig, ask: Ask) -> None:
    one, _ = await quarantined(rig, "one", "other")
    rig.intake.arrived.clear()

    assert await ask("POST", f"/api/quarantine/{one}/retry") == (200, {"retried": 1})

    assert rig.spool.waiting("shop") == 1
    assert rig.intake.arrived.is_set()


async def test_all_are_retried(rig: Rig, ask: Ask) -> None:
    await quarantined(rig, "one", "other")

    assert await ask("POST", "/api/quarantine/retry") == (200, {"retried": 2})
    assert await ask("POST", "/api/quarantine/retry") == (200, {"retried": 0})


async def test_a_message_is_discarded(rig: Rig, ask: Ask) -> None:
    (id_,) = await quarantined(rig, "bad")

    assert await ask("POST", f"/api/quarantine/{id_}/discard") == (200, {"discarded": id_})

    assert rig.ledger() == {"accepted": 1, "discarded": 1, "quarantined_total:malformed": 1}
    assert (await ask("POST", f"/api/quarantine/{id_}/discard"))[0] == 404


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("GET", "/raw"), ("POST", "/retry"), ("POST", "/discard")])
async def test_what_is_not_in_quarantine_cannot_be_touched(rig: Rig, ask: Ask, method: str, path: str) -> None:
    receipt = await rig.accept("n1")

    for id_ in (receipt.id, "0000", "%ED%A0%80", "é"):
        status, document = await ask(method, f"/api/quarantine/{id_}{path}")
        assert (status, document["code"]) == (404, "not_found")
    assert rig.spool.waiting("shop") == 1


# --- replay and reload ------------------------------------------------------------------------------------------------


async def test_a_replay_is_scheduled(rig: Rig, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.admin.time.time", lambda: rig.now)
    for n in range(3):
        await rig.accept(f"n{n}")
        await rig.publish_all()
        rig.now += 100
    await rig.redis.ask("DEL", "tickets", *await rig.redis.ask("KEYS", "*:seen:*"))

    assert await ask("POST", "/api/replay", json={"since_seconds": 250}) == (200, {"scheduled": 2})

    await rig.publish_all()
    assert [ticket["data"]["native_id"] for ticket in await rig.tickets()] == ["n1", "n2"]


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b'"x"', b'{"since_seconds": "long"}', b'{"since_seconds": null}'])
async def test_a_replay_of_no_time_is_refused(ask: Ask, body: bytes) -> None:
    status, document = await ask("POST", "/api/replay", data=body)

    assert (status, document["code"]) == (400, "malformed")
    assert "since_seconds" in document["detail"]


async def test_a_reload_tells_what_waits_for_a_restart(ask: Ask) -> None:
    assert await ask("POST", "/api/reload") == (200, {"status": "reloaded", "needs_restart": ["http"]})


async def test_a_reload_of_a_wrong_file_tells_what_is_wrong(ask: Ask, daemon: Daemon) -> None:
    daemon.refusal = ConfigError("gateway.yaml:3: channels.shop.typ: unknown key")

    status, document = await ask("POST", "/api/reload")

    assert status == 422
    assert document["detail"] == "gateway.yaml:3: channels.shop.typ: unknown key"


async def test_a_spool_that_fails_is_a_temporary_answer(rig: Rig, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(*args: object, **options: object) -> None:
        raise Unavailable("spool_failed")

    monkeypatch.setattr(rig.spool, "quarantined", failing)

    status, document = await ask("GET", "/api/quarantine")

    assert (status, document["code"]) == (503, "spool_failed")
