"""The `api` channel of a real daemon, from the request to the stream and back to the files."""

import asyncio
import hmac
import io
import json
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import schemathesis

from gateway.envelope import Envelope
from tests.daemon import Daemon

StartDaemon = Callable[..., Awaitable[Daemon]]
Answer = tuple[int, dict[str, Any]]

KEY = "the-key-of-the-live-tests"
BEARER = {"Authorization": f"Bearer {KEY}"}
SECRET = b64encode(b"the signing key of the live tests").decode()
PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 800  # large enough to go through a file


def bearer_key(name: str, key: str, **more: str) -> dict[str, str]:
    return {"name": name, "sha256": sha256(key.encode()).hexdigest(), **more}


SHOP = {
    "type": "api",
    "keys": [bearer_key("shop", KEY)],
    "hmac": [{"name": "app", "secret": f"whsec_{SECRET}"}],
    "max_attachments": 3,
}


@pytest.fixture
async def daemon(start_daemon: StartDaemon) -> Daemon:
    return await start_daemon({"shop": SHOP})


@pytest.fixture
def post(daemon: Daemon, http: aiohttp.ClientSession) -> Callable[..., Awaitable[Answer]]:
    """`await post(json={…}, headers={…})`: with the key, unless it is told otherwise."""

    async def post(headers: dict[str, str] = BEARER, **content: Any) -> Answer:
        async with http.post(f"{daemon.url}/c/shop", headers=headers, **content) as response:
            return response.status, await response.json(content_type=None)

    return post


Post = Callable[..., Awaitable[Answer]]


async def fetch(http: aiohttp.ClientSession, url: str) -> bytes:
    async with http.get(url) as response:
        assert response.status == 200
        return await response.read()


# Messages


async def test_json_becomes_a_ticket(daemon: Daemon, post: Post, http: aiohttp.ClientSession) -> None:
    message = {
        "subject": "打印机坏了",
        "text": "开机以后一直闪红灯。",
        "sender": {"name": "张三", "email": "zhang@Example.com", "phone": "+86 138 0013 8000", "user_id": "u-1024"},
        "conversation": "printer-7788",
        "fields": {"order_no": "7788"},
        "sent_at": "2026-11-23T17:00:00.123+08:00",
        "language": "zh-CN",
    }
    body = json.dumps(message, ensure_ascii=False).encode()

    status, answer = await post(data=body, headers={**BEARER, "Content-Type": "application/json"})

    assert (status, answer["status"]) == (202, "accepted")
    (event,) = await daemon.until_tickets(1)
    data = Envelope.model_validate(event).data
    assert (event["id"], data.reference) == (answer["id"], answer["reference"])
    assert (data.subject, data.text, data.language) == ("打印机坏了", "开机以后一直闪红灯。", "zh-CN")
    assert {(one.kind, one.value) for one in data.sender.identities} == {
        ("email", "zhang@example.com"),
        ("phone", "+8613800138000"),
        ("user_id", "u-1024"),
    }
    assert (data.conversation, data.fields) == ("printer-7788", {"order_no": "7788"})
    assert event["data"]["sent_at"] == "2026-11-23T09:00:00.123Z"
    assert await fetch(http, data.raw.url) == body


async def test_files_come_back_byte_for_byte(daemon: Daemon, post: Post, http: aiohttp.ClientSession) -> None:
    form = aiohttp.FormData(quote_fields=False)  # file names as browsers send them
    form.add_field("message", '{"text": "看图"}', content_type="application/json")
    form.add_field("photo", PICTURE, filename="红灯.png", content_type="application/octet-stream")
    form.add_field("log", b"0 errors\n", filename="app.log", content_type="text/plain")

    status, _ = await post(data=form)

    assert status == 202
    (event,) = await daemon.until_tickets(1)
    picture, text = event["data"]["attachments"]
    assert (picture["filename"], picture["content_type"], picture["size"]) == ("红灯.png", "image/png", len(PICTURE))
    assert (text["filename"], text["content_type"]) == ("app.log", "text/plain")
    assert await fetch(http, picture["url"]) == PICTURE
    assert await fetch(http, text["url"]) == b"0 errors\n"


async def test_files_within_the_json_come_back_too(daemon: Daemon, post: Post, http: aiohttp.ClientSession) -> None:
    attachment = {"filename": "a.png", "content": b64encode(PICTURE).decode()}

    status, _ = await post(json={"text": "看图", "attachments": [attachment]})

    assert status == 202
    (event,) = await daemon.until_tickets(1)
    (picture,) = event["data"]["attachments"]
    assert picture["sha256"] == sha256(PICTURE).hexdigest()
    assert await fetch(http, picture["url"]) == PICTURE


async def test_an_idempotency_key(daemon: Daemon, post: Post) -> None:
    headers = {**BEARER, "Idempotency-Key": '"order-7788"'}

    first = await post(json={"text": "one"}, headers=headers)
    await daemon.until_tickets(1)
    again = await post(json={"text": "one"}, headers=headers)
    other = await post(json={"text": "two"}, headers=headers)

    assert (first[0], again[0], other[0]) == (202, 200, 422)
    assert again[1] == first[1]
    assert other[1]["code"] == "idempotency_mismatch"
    assert [event["id"] for event in await daemon.tickets()] == [first[1]["id"]]


async def test_a_signed_request(daemon: Daemon, post: Post) -> None:
    def signed(body: bytes) -> dict[str, str]:
        timestamp = str(int(time.time()))
        mac = hmac.digest(b64decode(SECRET), f"m-1.{timestamp}.".encode() + body, "sha256")
        signature = f"v1,{b64encode(mac).decode()}"
        headers = {"webhook-id": "m-1", "webhook-timestamp": timestamp, "webhook-signature": signature}
        return {**headers, "Content-Type": "application/json"}

    good, other = b'{"text": "signed"}', b'{"text": "forged"}'

    accepted = await post(data=good, headers=signed(good))
    replayed = await post(data=good, headers=signed(good))
    forged = await post(data=other, headers=signed(good))

    assert (accepted[0], replayed[0], forged[0]) == (202, 200, 401)
    assert replayed[1]["id"] == accepted[1]["id"]
    assert [event["data"]["text"] for event in await daemon.until_tickets(1)] == ["signed"]


async def test_a_key_is_rotated_without_a_restart(daemon: Daemon, post: Post) -> None:
    new = {"Authorization": "Bearer the-new-key", "Idempotency-Key": "k-1"}
    old = {**BEARER, "Idempotency-Key": "k-1"}

    async def reload(*keys: dict[str, str]) -> None:
        daemon.config["channels"]["shop"] = {**SHOP, "keys": list(keys)}
        daemon.write_config()
        assert (await daemon.admin("POST", "/api/reload"))["status"] == "reloaded"

    both = bearer_key("shop", KEY), bearer_key("shop-2027", "the-new-key", client="shop")
    answers = [await post(json={"text": "x"}, headers=headers) for headers in (old, new)]
    await reload(*both)
    answers += [await post(json={"text": "x"}, headers=headers) for headers in (old, new)]
    await reload(both[1])
    answers += [await post(json={"text": "x"}, headers=headers) for headers in (old, new)]

    assert [status for status, _ in answers] == [202, 401, 200, 200, 401, 200]
    assert len({answer["id"] for status, answer in answers if status != 401}) == 1


# Refusals

JSON = {**BEARER, "Content-Type": "application/json"}
REFUSALS: list[tuple[int, str, str, str, dict[str, str], bytes]] = [
    (400, "malformed", "POST", "", JSON, b'{"text": '),
    (401, "unauthenticated", "POST", "", {**JSON, "Authorization": "Bearer guessed"}, b'{"text": "x"}'),
    (401, "unauthenticated", "POST", "", {"Content-Type": "application/json"}, b'{"text": "x"}'),
    (404, "not_found", "POST", "/more", JSON, b'{"text": "x"}'),
    (405, "method_not_allowed", "GET", "", BEARER, b""),
    (413, "too_large", "POST", "", JSON, b'{"text": "%s"}' % (b"x" * (2 << 20))),
    (415, "unsupported_media_type", "POST", "", {**BEARER, "Content-Type": "text/plain"}, b"x"),
    (422, "invalid", "POST", "", JSON, b'{"txet": "x"}'),
]


async def test_every_refusal_is_a_problem_document(daemon: Daemon, http: aiohttp.ClientSession) -> None:
    for status, code, method, path, headers, body in REFUSALS:
        async with http.request(
            method, f"{daemon.url}/c/shop{path}", headers=headers, data=io.BytesIO(body)
        ) as response:
            problem = await response.json()

        assert (response.status, response.content_type) == (status, "application/problem+json")
        assert (problem["status"], problem["code"]) == (status, code)
        assert KEY not in json.dumps(problem)
    assert (await daemon.metrics())['huiru_messages_accepted_total{channel="shop"}'] == 0


async def test_a_rate(start_daemon: StartDaemon, http: aiohttp.ClientSession) -> None:
    daemon = await start_daemon({"shop": {**SHOP, "rate": {"per_minute": 1, "burst": 2}}})
    waits = []

    for _ in range(3):
        async with http.post(f"{daemon.url}/c/shop", headers=BEARER, json={"text": "x"}) as response:
            waits.append((response.status, response.headers.get("Retry-After")))

    assert [status for status, _ in waits] == [202, 202, 429]
    assert 30 < int(str(waits[2][1])) <= 60
    assert len(await daemon.until_tickets(2)) == 2


async def test_a_full_spool(start_daemon: StartDaemon, http: aiohttp.ClientSession) -> None:
    daemon = await start_daemon({"shop": SHOP}, spool={"max_bytes": 1 << 20})
    message = {"text": "x" * 400_000}
    statuses = []

    for _ in range(3):
        async with http.post(f"{daemon.url}/c/shop", headers=BEARER, json=message) as response:
            statuses.append(response.status)
            retry_after = response.headers.get("Retry-After")

    assert statuses == [202, 202, 503]
    assert int(str(retry_after)) > 0
    assert len(await daemon.until_tickets(2)) == 2
    assert (await daemon.metrics())['huiru_messages_refused_total{channel="shop",code="spool_full"}'] == 1


# The OpenAPI document, and what schemathesis makes of it

HOOKS = """
import re
import uuid
import schemathesis

VALID = re.compile('"([ !#-\\[\\]-~]|\\\\["\\\\]){1,255}"|[!#-~]{1,255}')

@schemathesis.hook
def before_call(context, case, kwargs):
    # A key of its own for every message: two messages with one key are refused, as they should be.
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and VALID.fullmatch(key):
        case.headers["Idempotency-Key"] = str(uuid.uuid4())
"""


async def test_the_document_is_valid(daemon: Daemon, http: aiohttp.ClientSession) -> None:
    document = json.loads(await fetch(http, f"{daemon.url}/c/shop/openapi.json"))

    assert document["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(document).validate()
    assert document["servers"] == [{"url": daemon.url}]


@pytest.mark.long
async def test_schemathesis_with_a_key(daemon: Daemon, tmp_path: Path) -> None:
    output = await schemathesis_run(daemon, tmp_path, KEY, "examples,coverage,fuzzing")

    assert "No issues found" in output
    status = await daemon.until_status(lambda status: status["channels"][0]["waiting"] == 0)
    (channel,) = status["channels"]
    assert channel["quarantined"] == 0
    assert channel["accepted"] == channel["published"] + channel["duplicate"] > 20
    for event in await daemon.tickets():
        Envelope.model_validate(event)
    assert "Traceback" not in daemon.log()
    assert KEY not in daemon.log()


@pytest.mark.long
async def test_schemathesis_with_a_wrong_key(daemon: Daemon, tmp_path: Path) -> None:
    await schemathesis_run(daemon, tmp_path, "guessed", "examples,fuzzing")

    metrics = await daemon.metrics()
    assert metrics['huiru_messages_accepted_total{channel="shop"}'] == 0
    assert metrics['huiru_messages_refused_total{channel="shop",code="unauthenticated"}'] > 10
    assert "Traceback" not in daemon.log()


async def schemathesis_run(daemon: Daemon, folder: Path, key: str, phases: str) -> str:
    """The report of all its checks, which have to find nothing; ignored_auth tries no key and a wrong one."""
    (folder / "hooks.py").write_text(HOOKS)
    (folder / "schemathesis.toml").write_text('hooks = "hooks"\n')
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{daemon.url}/c/shop/openapi.json"),
        *("--header", f"Authorization: Bearer {key}", "--checks", "all", "--phases", phases),
        *("--max-examples", "20", "--generation-deterministic", "--no-color"),
        cwd=folder,
        env={"PYTHONPATH": str(folder), "HOME": str(folder)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()
