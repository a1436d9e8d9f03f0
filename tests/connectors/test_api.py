"""The `api` channel behind the real web server and the real spool, and alone against hostile input."""

import asyncio
import base64
import hmac
import io
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp.test_utils import RawTestServer
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from multidict import CIMultiDict, MultiDict
from pydantic import ValidationError
from ruamel.yaml import YAML

from connectors.api import Connector
from gateway.apimessage import MAX_FIELD_DEPTH, MAX_FIELDS
from gateway.blobs import Blobs
from gateway.contract import BodyFile, Context, RawMessage, Reply, Request, StoredMessage
from gateway.errors import Rejected
from gateway.intake import Intake
from gateway.settings import HttpSettings
from gateway.spool import Spool
from gateway.telemetry import Metrics
from gateway.web import Web, WebChannel
from normalizers.api import normalize

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 23, 9, tzinfo=UTC)
PUBLIC_URL = "https://support.example"
JSON = {"Content-Type": "application/json"}
HELLO = {"text": "你好"}
SECRET = b"a secret of 32 bytes for an app."


def key(name: str, secret: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "sha256": sha256(secret.encode()).hexdigest(), **more}


def whsec(secret: bytes) -> str:
    return f"whsec_{base64.b64encode(secret).decode()}"


SETTINGS: dict[str, Any] = {
    "type": "api",
    "keys": [key("shop", "shop-key", vouches_for=["user_id"]), key("till", "till-key")],
    "hmac": [{"name": "app-3", "client": "app", "secret": whsec(SECRET)}],
}
SHOP = {"Authorization": "Bearer shop-key"}


def make_connector(now: Callable[[], datetime] = lambda: NOW, **settings: Any) -> Connector:
    context = Context("acme", PUBLIC_URL, lambda purpose: sha256(purpose.encode()).digest(), now)
    return Connector("app", Connector.Settings.model_validate(SETTINGS | settings), context)


class Answer:
    """What came back."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.document: dict[str, Any] = json.loads(body)

    @property
    def faults(self) -> list[str]:
        return [f"{fault['field']} {fault['code']}" for fault in self.document["errors"]]

    def is_problem(self, status: int, code: str) -> bool:
        assert self.headers["Content-Type"] == "application/problem+json"
        assert self.document["status"] == self.status
        return (self.status, self.document["code"]) == (status, code)


class Gateway:
    """One channel named `app`, its clock, and the spool behind it."""

    def __init__(self, folder: Path, *, max_bytes: int = 1 << 30, **settings: Any) -> None:
        self.now = NOW
        self.spool = Spool(folder / "spool")
        intake = Intake(self.spool, Metrics(), gateway="acme", max_bytes=max_bytes, min_free_bytes=0)
        blobs = Blobs(folder / "blobs", None, public_url=PUBLIC_URL, key=b"k" * 32, url_ttl_hours=1)
        web = Web(HttpSettings(), intake, self.spool, blobs, PUBLIC_URL)
        web.channels = {"app": WebChannel.of(make_connector(lambda: self.now, **settings))}
        self.server = RawTestServer(web.handle)

    async def start(self) -> "Gateway":
        self.spool.open()
        await self.server.start_server()
        self.http = aiohttp.ClientSession()
        return self

    async def close(self) -> None:
        await self.http.close()
        await self.server.close()
        await self.spool.close()

    async def request(self, method: str, path: str = "", **options: Any) -> Answer:
        async with self.http.request(method, self.server.make_url(f"/c/app{path}"), **options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def post(self, body: Any, headers: Mapping[str, str] = SHOP, **more: str) -> Answer:
        """JSON, unless the body is bytes or a form already; `Idempotency_Key="k"` adds a header."""
        extra = {name.replace("_", "-"): value for name, value in more.items()}
        if isinstance(body, aiohttp.FormData):
            return await self.request("POST", data=body, headers={**headers, **extra})
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.request("POST", data=io.BytesIO(data), headers={**JSON, **headers, **extra})

    async def messages(self) -> list[StoredMessage]:
        return [row.message for row in await self.spool.claim(100, 1 << 30)]


Make = Callable[..., Awaitable[Gateway]]


@pytest.fixture
async def make_gateway(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[Gateway] = []

    async def make(**options: Any) -> Gateway:
        made.append(Gateway(tmp_path / str(len(made)), **options))
        return await made[-1].start()

    yield make
    for gateway in made:
        await gateway.close()


@pytest.fixture
async def gateway(make_gateway: Make) -> Gateway:
    return await make_gateway()


def form(message: Any, *files: tuple[str, str, bytes], boundary: str = "b") -> tuple[bytes, dict[str, str]]:
    """A multipart body and its Content-Type. A file is (part, file name, content)."""
    document = message if isinstance(message, bytes) else json.dumps(message).encode()
    parts = [(b'name="message"', document)]
    parts += [(f'name="{name}"; filename="{filename}"'.encode(), content) for name, filename, content in files]
    head, end = f"--{boundary}\r\nContent-Disposition: form-data; ".encode(), f"--{boundary}--\r\n".encode()
    body = b"".join(head + names + b"\r\n\r\n" + content + b"\r\n" for names, content in parts) + end
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def signed(body: bytes, id_: str = "m-1", at: datetime = NOW, secret: bytes = SECRET) -> dict[str, str]:
    """Standard Webhooks, written down a second time."""
    timestamp = str(int(at.timestamp()))
    mac = hmac.new(secret, id_.encode() + b"." + timestamp.encode() + b"." + body, "sha256").digest()
    signature = "v1," + base64.b64encode(mac).decode()
    return {"webhook-id": id_, "webhook-timestamp": timestamp, "webhook-signature": signature}


# Acceptance


async def test_a_message_is_accepted(gateway: Gateway) -> None:
    answer = await gateway.post(HELLO)

    (message,) = await gateway.messages()
    assert answer.status == 202
    assert answer.document == {"id": message.id, "reference": answer.document["reference"], "status": "accepted"}
    assert (message.kind, message.content_type) == ("api", "application/json")
    assert message.facts == {"key": "shop", "client": "shop", "scheme": "bearer", "vouches_for": ["user_id"]}
    assert normalize(message).message.text == "你好"


async def test_without_a_key_every_request_is_a_message_of_its_own(gateway: Gateway) -> None:
    answers = [await gateway.post(HELLO) for _ in range(2)]

    assert [answer.status for answer in answers] == [202, 202]
    assert len(await gateway.messages()) == 2


@pytest.mark.parametrize("again", ["order-1", '"order-1"'])
async def test_the_same_key_and_content_give_the_same_id(gateway: Gateway, again: str) -> None:
    first = await gateway.post(HELLO, Idempotency_Key="order-1")

    second = await gateway.post(HELLO, Idempotency_Key=again)

    assert (first.status, second.status) == (202, 200)
    assert second.document == first.document
    assert [message.native_id for message in await gateway.messages()] == ["shop:order-1"]


async def test_the_same_key_with_other_content_is_refused(gateway: Gateway) -> None:
    await gateway.post(HELLO, Idempotency_Key="k")

    answer = await gateway.post({"text": "other"}, Idempotency_Key="k")

    assert answer.is_problem(422, "idempotency_mismatch")
    assert len(await gateway.messages()) == 1


async def test_of_two_at_once_the_second_gets_the_id_of_the_first(gateway: Gateway) -> None:
    answers = await asyncio.gather(*(gateway.post(HELLO, Idempotency_Key="k") for _ in range(5)))

    assert sorted(answer.status for answer in answers) == [200, 200, 200, 200, 202]
    assert len({answer.document["id"] for answer in answers}) == 1


async def test_keys_of_two_clients_do_not_meet(gateway: Gateway) -> None:
    first = await gateway.post(HELLO, SHOP, Idempotency_Key="k")
    second = await gateway.post(HELLO, {"Authorization": "Bearer till-key"}, Idempotency_Key="k")

    assert (first.status, second.status) == (202, 202)


async def test_a_client_rotates_its_key(make_gateway: Make) -> None:
    old, new = (key(f"shop-{n}", f"key-{n}", client="shop") for n in (1, 2))
    gateway = await make_gateway(keys=[old, new])
    first = await gateway.post(HELLO, {"Authorization": "Bearer key-1"}, Idempotency_Key="k")

    second = await gateway.post(HELLO, {"Authorization": "Bearer key-2"}, Idempotency_Key="k")

    assert (first.status, second.status) == (202, 200)
    assert second.document["id"] == first.document["id"]


@pytest.mark.parametrize("header", ["", '""', '"open', "a b", "ключ", '"a"; b=1', "a" * 256, '"\\x"'])
async def test_a_malformed_idempotency_key_is_refused(gateway: Gateway, header: str) -> None:
    answer = await gateway.post(HELLO, Idempotency_Key=header)

    assert answer.is_problem(400, "malformed")
    assert await gateway.messages() == []


async def test_two_idempotency_keys_are_refused(gateway: Gateway) -> None:
    headers = [*(JSON | SHOP).items(), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]

    answer = await gateway.request("POST", data=b'{"text": "x"}', headers=headers)

    assert answer.is_problem(400, "malformed")


# Multipart


async def test_files_beside_the_message_are_accepted(gateway: Gateway) -> None:
    body, headers = form(HELLO, ("photo", "a.png", b"png"), ("log", "b.txt", b"text"))

    answer = await gateway.post(body, SHOP | headers)

    (message,) = await gateway.messages()
    parts = normalize(message).parts
    assert answer.status == 202
    assert [(part.filename, part.content) for part in parts] == [("a.png", b"png"), ("b.txt", b"text")]


async def test_a_large_file_goes_through_a_file(gateway: Gateway) -> None:
    body, headers = form(HELLO, ("photo", "a.bin", bytes(1 << 20)))

    answer = await gateway.post(body, SHOP | headers)

    (message,) = await gateway.messages()
    assert answer.status == 202
    assert [len(part.content) for part in normalize(message).parts] == [1 << 20]


@pytest.mark.parametrize("size", [10, 10_000, 100_000])
async def test_the_message_may_be_a_file_itself(gateway: Gateway, size: int) -> None:
    data = aiohttp.FormData()  # what a browser makes of a Blob
    data.add_field("message", json.dumps({"text": "x" * size}), content_type="application/json", filename="blob")

    answer = await gateway.post(data)

    (message,) = await gateway.messages()
    assert answer.status == 202
    assert normalize(message).message.text == "x" * size


async def test_a_retry_may_have_another_boundary(gateway: Gateway) -> None:
    bodies = [form(HELLO, ("photo", "a.png", b"png"), boundary=boundary) for boundary in ("one", "two")]

    answers = [await gateway.post(body, SHOP | headers, Idempotency_Key="k") for body, headers in bodies]

    assert [answer.status for answer in answers] == [202, 200]


@pytest.mark.parametrize("file", [("photo", "a.png", b"other"), ("photo", "b.png", b"png"), ("pic", "a.png", b"png")])
async def test_a_retry_with_another_file_is_refused(gateway: Gateway, file: tuple[str, str, bytes]) -> None:
    bodies = [form(HELLO, one) for one in (("photo", "a.png", b"png"), file)]

    answers = [await gateway.post(body, SHOP | headers, Idempotency_Key="k") for body, headers in bodies]

    assert [answer.status for answer in answers] == [202, 422]


async def test_a_value_beside_the_message_is_refused(gateway: Gateway) -> None:
    data = aiohttp.FormData({"text": "hello"})
    data.add_field("photo", b"png", filename="a.png")

    answer = await gateway.post(data)

    assert answer.is_problem(422, "invalid")
    assert answer.faults == ["/text unknown", "/message missing"]


async def test_two_messages_in_one_form_are_refused(gateway: Gateway) -> None:
    body, headers = form(HELLO, ("message", "m.json", b'{"text": "again"}'))

    answer = await gateway.post(body, SHOP | headers)

    assert answer.faults == ["/message too_many"]


# Authentication


@pytest.mark.parametrize(
    "authorization",
    ["Bearer wrong", "Bearer", "Bearer ", "Basic shop-key", "shop-key", "Bearer SHOP-KEY", "Bearer клю"],
)
async def test_an_unknown_key_is_refused(gateway: Gateway, authorization: str) -> None:
    answer = await gateway.post(HELLO, {"Authorization": authorization})

    assert answer.is_problem(401, "unauthenticated")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="app"'
    assert await gateway.messages() == []


async def test_no_key_at_all_is_refused(gateway: Gateway) -> None:
    answer = await gateway.post(HELLO, {})

    assert answer.is_problem(401, "unauthenticated")
    assert await gateway.messages() == []


async def test_the_scheme_is_read_in_any_case(gateway: Gateway) -> None:
    assert (await gateway.post(HELLO, {"Authorization": "bearer  shop-key"})).status == 202


async def test_a_key_expires(make_gateway: Make) -> None:
    gateway = await make_gateway(keys=[key("shop", "shop-key", expires_at=NOW.isoformat())])
    gateway.now = NOW - timedelta(seconds=1)
    before = await gateway.post(HELLO)

    gateway.now = NOW
    after = await gateway.post(HELLO)

    assert before.status == 202
    assert after.is_problem(401, "unauthenticated")


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
async def test_a_stranger_is_refused_before_the_body_is_read(headers: dict[str, str]) -> None:
    request = Request("POST", "", "", MultiDict(), CIMultiDict(JSON | headers), "192.0.2.1")

    with pytest.raises(Rejected) as caught:
        await make_connector().admit(request)

    assert caught.value.code == "unauthenticated"


# Signatures


async def test_a_signed_message_is_accepted(gateway: Gateway) -> None:
    body = json.dumps(HELLO).encode()

    answer = await gateway.post(body, signed(body))

    (message,) = await gateway.messages()
    assert answer.status == 202
    assert message.native_id == "app:m-1"
    assert message.facts == {"key": "app-3", "client": "app", "scheme": "hmac", "vouches_for": []}


async def test_a_replay_is_the_same_message(gateway: Gateway) -> None:
    body = json.dumps(HELLO).encode()
    first = await gateway.post(body, signed(body))

    gateway.now += timedelta(seconds=299)
    replay = await gateway.post(body, signed(body))
    retry = await gateway.post(body, signed(body, at=gateway.now))

    assert (first.status, replay.status, retry.status) == (202, 200, 200)
    assert first.document == replay.document == retry.document


async def test_other_content_under_the_same_id_is_refused(gateway: Gateway) -> None:
    for text in ("one", "two"):
        body = json.dumps({"text": text}).encode()
        answer = await gateway.post(body, signed(body))

    assert answer.is_problem(422, "idempotency_mismatch")


@pytest.mark.parametrize("seconds", [-301, 301])
async def test_a_signature_ages(gateway: Gateway, seconds: int) -> None:
    body = json.dumps(HELLO).encode()

    answer = await gateway.post(body, signed(body, at=NOW + timedelta(seconds=seconds)))

    assert answer.is_problem(401, "unauthenticated")
    assert await gateway.messages() == []


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("webhook-id", "m-2"),
        ("webhook-id", "m.1"),
        ("webhook-id", ""),
        ("webhook-timestamp", str(int(NOW.timestamp()) + 1)),
        ("webhook-timestamp", "now"),
        ("webhook-timestamp", "9" * 400),
        ("webhook-signature", "v1,AAAA"),
        ("webhook-signature", "v1"),
        ("webhook-signature", ""),
    ],
)
async def test_a_signature_covers_all_of_it(gateway: Gateway, header: str, value: str) -> None:
    body = json.dumps(HELLO).encode()

    answer = await gateway.post(body, signed(body) | {header: value})

    assert answer.is_problem(401, "unauthenticated")
    assert await gateway.messages() == []


async def test_a_signature_covers_the_body(gateway: Gateway) -> None:
    answer = await gateway.post(b'{"text": "forged"}', signed(b'{"text": "said"}'))

    assert answer.is_problem(401, "unauthenticated")


async def test_one_of_several_signatures_is_enough(gateway: Gateway) -> None:
    body = json.dumps(HELLO).encode()
    headers = signed(body)

    answer = await gateway.post(
        body, headers | {"webhook-signature": f"v1,AAAA v1a,BBBB {headers['webhook-signature']}"}
    )

    assert answer.status == 202


async def test_a_large_body_is_signed_like_a_small_one(gateway: Gateway) -> None:
    body = json.dumps({"text": "x" * 200_000}).encode()

    good = await gateway.post(body, signed(body))
    bad = await gateway.post(body, signed(body[:-1], "m-2"))

    assert good.status == 202
    assert bad.is_problem(401, "unauthenticated")


async def test_the_public_vector_of_standard_webhooks() -> None:
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    secret = {"name": "vector", "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
    connector = make_connector(lambda: datetime.fromtimestamp(1614265330, UTC), hmac=[secret])
    request = Request("POST", "", "", MultiDict(), CIMultiDict(JSON | headers), "", b'{"test": 2432232314}')

    assert (await connector.verify(request))["key"] == "vector"


async def test_an_unsigned_idempotency_key_does_not_stand_in_for_the_signed_id(gateway: Gateway) -> None:
    body = json.dumps(HELLO).encode()

    await gateway.post(body, signed(body), Idempotency_Key="k")

    assert [message.native_id for message in await gateway.messages()] == ["app:m-1"]


async def test_signatures_are_refused_where_none_are_configured(make_gateway: Make) -> None:
    gateway = await make_gateway(hmac=[])
    body = json.dumps(HELLO).encode()

    assert (await gateway.post(body, signed(body, secret=b""))).is_problem(401, "unauthenticated")


# Routes and media types


@pytest.mark.parametrize(("method", "path"), [("POST", "/"), ("GET", "/x"), ("POST", "/openapi.json/")])
async def test_there_is_nothing_else(gateway: Gateway, method: str, path: str) -> None:
    answer = await gateway.request(method, path, data=b"{}", headers=JSON | SHOP)

    assert answer.is_problem(404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("GET", "", "POST"), ("PUT", "", "POST"), ("POST", "/openapi.json", "GET, HEAD")]
)
async def test_each_path_has_its_methods(gateway: Gateway, method: str, path: str, allowed: str) -> None:
    answer = await gateway.request(method, path, headers=JSON | SHOP)

    assert answer.is_problem(405, "method_not_allowed")
    assert answer.headers["Allow"] == allowed


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=gbk", "nonsense"]
)
async def test_an_unknown_media_type_is_refused(gateway: Gateway, content_type: str) -> None:
    answer = await gateway.post(b'{"text": "x"}', SHOP | {"Content-Type": content_type})

    assert answer.is_problem(415, "unsupported_media_type")
    assert await gateway.messages() == []


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'])
async def test_utf_8_may_be_named(gateway: Gateway, content_type: str) -> None:
    assert (await gateway.post(b'{"text": "x"}', SHOP | {"Content-Type": content_type})).status == 202


# Content

MALFORMED = [
    b"",
    b"{",
    b'{"text": "x"} y',
    b'{"text": "\xff"}',
    b'{"text": "\\ud800"}',
    b'{"text": "a\x00b"}',
    b"\xef\xbb\xbf{}",
    b'{"text": "x", "fields": {"a": ' + b"[" * 5000,
    b'{"text": "x", "fields": {"a": ' + b"9" * 5000 + b"}}",
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
async def test_what_is_no_json_is_refused(gateway: Gateway, body: bytes) -> None:
    answer = await gateway.post(body)

    assert answer.is_problem(400, "malformed")


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels else "deep"


FAULTS: list[tuple[Any, list[str]]] = [
    ([], [" wrong_type"]),
    ({}, ["/text missing"]),
    ({"text": ""}, ["/text wrong_format"]),
    ({"text": " \n\t"}, ["/text wrong_format"]),
    ({"text": None}, ["/text wrong_type"]),
    ({"text": 5, "subject": [], "fields": "x"}, ["/text wrong_type", "/subject wrong_type", "/fields wrong_type"]),
    ({"text": "x", "subject": "x" * 1001}, ["/subject too_long"]),
    ({"text": "x", "txet": 1}, ["/txet unknown"]),
    ({"text": "x", "a/b~c": 1}, ["/a~1b~0c unknown"]),
    ({"text": "x", "sender": "me"}, ["/sender wrong_type"]),
    (
        {"text": "x", "sender": {"email": "nobody", "phone": 1}},
        ["/sender/email wrong_format", "/sender/phone wrong_type"],
    ),
    ({"text": "x", "sender": {"mail": "a@b.cn"}}, ["/sender/mail unknown"]),
    ({"text": "x", "sent_at": "2026-11-23T09:00:00"}, ["/sent_at wrong_format"]),
    ({"text": "x", "sent_at": "2026-02-29T09:00:00Z"}, ["/sent_at wrong_format"]),
    ({"text": "x", "sent_at": 1_700_000_000}, ["/sent_at wrong_type"]),
    ({"text": "x", "sent_at": "1700000000"}, ["/sent_at wrong_format"]),
    ({"text": "x", "fields": {"": 1}}, ["/fields/ wrong_format"]),
    ({"text": "x", "fields": {"a\0": 1}}, ["/fields/a\0 wrong_format"]),
    ({"text": "x", "fields": {"a": {"\nb": 1}}}, ["/fields/a wrong_format"]),
    (
        {"text": "x", "fields": {"a": 2**63, "b": 1e300, "c": -(2**63) - 1}},
        ["/fields/a out_of_range", "/fields/b out_of_range", "/fields/c out_of_range"],
    ),
    (
        {"text": "x", "fields": {"a": [float("nan")], "b": float("inf")}},
        ["/fields/a out_of_range", "/fields/b out_of_range"],
    ),
    ({"text": "x", "fields": {"a": nested(MAX_FIELD_DEPTH + 1)}}, ["/fields/a too_deep"]),
    ({"text": "x", "fields": {f"f{n}": n for n in range(MAX_FIELDS + 1)}}, ["/fields too_many"]),
    ({"text": "x", "attachments": [{"filename": "a"}]}, ["/attachments/0/content missing"]),
    (
        {"text": "x", "attachments": [{"content": "YQ"}, {"content": "Y Q=="}]},
        ["/attachments/0/content wrong_format", "/attachments/1/content wrong_format"],
    ),
    ({"text": "x", "attachments": [{"content": ""}] * 21}, ["/attachments/20 too_many"]),
]


@pytest.mark.parametrize(("document", "faults"), FAULTS, ids=range(len(FAULTS)))
async def test_every_fault_is_listed(gateway: Gateway, document: Any, faults: list[str]) -> None:
    answer = await gateway.post(document)

    assert answer.is_problem(422, "invalid")
    assert answer.faults == faults
    assert await gateway.messages() == []


@pytest.mark.parametrize(
    ("document", "hint"),
    [
        ({"text": "x", "sujbect": 1}, 'did you mean "subject"?'),
        ({"text": "x", "sender": {"emial": 1}}, 'did you mean "email"?'),
        ({"text": "x", "attachments": [{"contents": "", "content": ""}]}, 'did you mean "content"?'),
        ({"text": "x", "zzzzz": 1}, "the keys here are text, subject,"),
    ],
)
async def test_an_unknown_key_gets_a_hint(gateway: Gateway, document: Any, hint: str) -> None:
    (fault,) = (await gateway.post(document)).document["errors"]

    assert hint in fault["message"]


async def test_a_refusal_does_not_repeat_what_was_sent(gateway: Gateway) -> None:
    secret = "never to be seen"

    answer = await gateway.post({"text": 1, "subject": secret * 100, "sender": {"email": secret}, "sent_at": secret})

    assert answer.status == 422
    assert secret not in json.dumps(answer.document)


async def test_more_faults_than_anybody_reads_are_counted_only(gateway: Gateway) -> None:
    answer = await gateway.post({"text": "x"} | {f"unknown{n}": n for n in range(101)})

    assert answer.is_problem(422, "invalid")
    assert answer.document["detail"] == "101 values are not valid: too many to list"


@pytest.mark.parametrize(
    "document",
    [
        {"text": "x", "subject": None, "sender": None, "fields": None, "attachments": None, "sent_at": None},
        {"text": "x", "subject": "", "sender": {"email": "", "phone": ""}, "sent_at": "", "language": ""},
        {"text": "x", "fields": {"a": nested(MAX_FIELD_DEPTH), "b": [2**63 - 1, -(2**63), 0.5, None, True]}},
        {"text": "\0\ud83d\ude00" + "\r\n\x1b", "fields": {"a": "\0"}},
        {
            "text": "x",
            "attachments": [{"content": "aGVsbG8="}, {"content": "", "filename": "../a", "content_type": "x"}],
        },
        {"text": "x", "sent_at": "2024-02-29T23:59:59.123456789-11:30"},
    ],
)
async def test_what_is_unusual_but_right_is_accepted(gateway: Gateway, document: Any) -> None:
    answer = await gateway.post(document)

    (message,) = await gateway.messages()
    assert answer.status == 202
    assert normalize(message).message.text


# Limits


async def test_a_request_has_a_size(make_gateway: Make) -> None:
    gateway = await make_gateway(max_request_bytes=2000)

    answer = await gateway.post({"text": "x" * 2000})

    assert answer.is_problem(413, "too_large")


@pytest.mark.parametrize("size", [1500, 150_000])
async def test_the_json_has_a_size_without_its_attachments(make_gateway: Make, size: int) -> None:
    gateway = await make_gateway(max_json_bytes=1024)
    content = base64.b64encode(bytes(size)).decode()

    too_large = await gateway.post({"text": "x" * size})
    attached = await gateway.post({"text": "x", "attachments": [{"content": content}]})

    assert too_large.is_problem(413, "too_large")
    assert attached.status == 202


async def test_json_made_to_fill_the_memory_is_not_parsed(gateway: Gateway) -> None:
    bomb = b'{"text": "x", "fields": {"a": [' + b"[],".join([b""] * 1_000_000) + b"[]]}}"

    answer = await gateway.post(bomb)

    assert answer.is_problem(413, "too_large")
    assert "values" in answer.document["detail"]


async def test_a_file_has_a_size(make_gateway: Make) -> None:
    gateway = await make_gateway(max_attachment_bytes=3)
    content = base64.b64encode(b"four").decode()
    body, headers = form(HELLO, ("ok", "a", b"abc"), ("photo", "b", b"four"))

    inside = await gateway.post({"text": "x", "attachments": [{"content": "YWJj"}, {"content": content}]})
    beside = await gateway.post(body, SHOP | headers)

    assert inside.is_problem(413, "too_large")
    assert inside.faults == ["/attachments/1 too_large"]
    assert beside.is_problem(413, "too_large")
    assert beside.faults == ["/photo too_large"]


async def test_there_may_be_so_many_files(make_gateway: Make) -> None:
    gateway = await make_gateway(max_attachments=1)
    one, headers = form(HELLO, ("a", "a", b"1"))
    two, _ = form(HELLO, ("a", "a", b"1"), ("b", "b", b"2"))

    answers = [await gateway.post(body, SHOP | headers) for body in (one, two)]

    assert answers[0].status == 202
    assert answers[1].is_problem(422, "invalid")
    assert answers[1].faults == ["/b too_many"]


async def test_an_address_has_a_rate(make_gateway: Make) -> None:
    gateway = await make_gateway(rate={"per_minute": 1, "burst": 1})

    answers = [await gateway.post(HELLO) for _ in range(2)]

    assert answers[0].status == 202
    assert answers[1].is_problem(429, "rate_limited")
    assert int(answers[1].headers["Retry-After"]) > 0


async def test_a_full_spool_is_temporary(make_gateway: Make) -> None:
    gateway = await make_gateway(max_bytes=1)

    answer = await gateway.post(HELLO)

    assert answer.is_problem(503, "spool_full")
    assert int(answer.headers["Retry-After"]) > 0


# Settings


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"keys": [], "hmac": []}, "add a key"),
        ({"keys": [key("a", "1"), key("a", "2")]}, "same name"),
        ({"keys": [{"name": "a", "sha256": "abc"}]}, "sha256"),
        ({"keys": [key("a:b", "1")]}, "name"),
        ({"keys": [key("a", "1", vouches_for=["openid"])]}, "vouches_for"),
        ({"keys": [key("a", "1", expires_at="2026-11-23T09:00:00")]}, "expires_at"),
        ({"hmac": [{"name": "a", "secret": "whsec_short"}]}, "openssl rand -base64 32"),
        ({"hmac": [{"name": "a", "secret": "f" * 40}]}, "openssl rand -base64 32"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Connector.Settings.model_validate(SETTINGS | settings)


def test_the_example_is_valid() -> None:
    example = YAML(typ="safe").load(ROOT / "config/channels/api.example.yaml")["channels"]["shop-api"]
    example["keys"][0]["sha256"] = "0" * 64
    example["hmac"][0]["secret"] = whsec(SECRET)

    assert Connector.Settings.model_validate(example).keys[0].client == "backend"


# The document


@pytest.fixture
async def document(gateway: Gateway) -> dict[str, Any]:
    answer = await gateway.request("GET", "/openapi.json")
    assert answer.status == 200
    return answer.document


async def test_it_says_where_the_channel_is(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    assert document["servers"] == [{"url": PUBLIC_URL}]
    assert set(document["paths"]) == {"/c/app", "/c/app/openapi.json"}


async def test_it_names_what_is_configured_only(document: dict[str, Any], make_gateway: Make) -> None:
    plain = (await (await make_gateway(hmac=[], max_attachments=3)).request("GET", "/openapi.json")).document

    post, plain_post = document["paths"]["/c/app"]["post"], plain["paths"]["/c/app"]["post"]
    signature: dict[str, list[str]] = {"webhook-id": [], "webhook-timestamp": [], "webhook-signature": []}
    assert post["security"] == [{"bearer": []}, signature]
    assert plain_post["security"] == [{"bearer": []}]
    assert set(plain["components"]["securitySchemes"]) == {"bearer"}
    assert plain["components"]["schemas"]["Message"]["properties"]["attachments"]["anyOf"][0]["maxItems"] == 3


def references(node: Any) -> Iterator[str]:
    items = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and isinstance(node.get("$ref"), str):
        yield node["$ref"]
    for item in items:
        yield from references(item)


async def test_its_references_lead_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))

    assert found
    for reference in found:
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


async def test_its_schemas_are_schemas_that_agree_with_the_channel(document: dict[str, Any], gateway: Gateway) -> None:
    schema = {"$ref": "#/components/schemas/Message", "components": document["components"]}
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)

    for wrong, faults in FAULTS:
        beyond_words = "/fields/a too_deep" in faults
        assert beyond_words or not validator.is_valid(wrong), wrong
    for example in document["paths"]["/c/app"]["post"]["requestBody"]["content"]["application/json"][
        "examples"
    ].values():
        assert validator.is_valid(example["value"])
        assert (await gateway.post(example["value"])).status == 202


async def test_it_lists_every_answer(document: dict[str, Any]) -> None:
    listed = set(document["paths"]["/c/app"]["post"]["responses"])

    assert listed == {"200", "202", "400", "401", "404", "405", "408", "413", "415", "422", "429", "503"}


HOOKS = '''
import uuid
import schemathesis

@schemathesis.hook
def before_call(context, case, kwargs):
    """A key of its own for every message: two messages with one key are refused, as they should be."""
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and key.strip('"').isalnum() and key.isascii():
        case.headers["Idempotency-Key"] = f'"{uuid.uuid4()}"'
'''


@pytest.mark.long
async def test_schemathesis_finds_nothing(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    (tmp_path / "schemathesis.toml").write_text('hooks = "hooks"\n[auth.openapi.bearer]\nbearer = "shop-key"\n')
    url = gateway.server.make_url
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", str(url("/c/app/openapi.json")), "--url", str(url("/"))),
        *("--max-examples", "50", "--seed", "1", "--generation-database", "none", "--no-color"),
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()

    assert process.returncode == 0, output.decode()
    assert b"No issues found" in output


# Hostile input: whatever comes, the answer is a message or a refusal, and what is accepted can be read and written.

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=4),
    max_leaves=8,
)
TEXTS = (
    st.none() | st.text() | st.sampled_from(["", "a@b.cn", "+8613800138000", "zh_CN", "2026-11-23T09:00:00Z", "YQ=="])
)
SENDERS = st.fixed_dictionaries({}, optional=dict.fromkeys(("name", "email", "phone", "user_id"), TEXTS))
ATTACHMENTS = st.fixed_dictionaries({"content": TEXTS}, optional={"filename": TEXTS, "content_type": TEXTS})
MESSAGES = st.fixed_dictionaries(
    {"text": st.text()},
    optional={
        **dict.fromkeys(("subject", "html", "conversation", "sent_at", "language"), TEXTS),
        "sender": SENDERS,
        "fields": st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=4),
        "attachments": st.lists(ATTACHMENTS, max_size=3),
        "other": JSON_VALUES,
    },
)
DOCUMENTS = (MESSAGES | JSON_VALUES).map(json.dumps).map(str.encode)
CONNECTOR = make_connector()


def hand_in(body: bytes | BodyFile, headers: Mapping[str, str]) -> list[RawMessage]:
    """What the connector makes of a request; nothing when it refuses."""
    return asyncio.run(_hand_in(Request("POST", "", "", MultiDict(), CIMultiDict(headers), "192.0.2.1", body)))


async def _hand_in(request: Request) -> list[RawMessage]:
    try:
        await CONNECTOR.admit(request)
        found = await CONNECTOR.extract(request, await CONNECTOR.verify(request))
    except Rejected:
        return []
    assert not isinstance(found, Reply)
    return list(found)


def assert_publishable(raw: RawMessage) -> None:
    assert isinstance(raw.body, bytes)
    stored = StoredMessage("id", "app", "api", raw.body, raw.content_type, raw.native_id, raw.facts, NOW)
    draft = normalize(stored)
    assert normalize(stored) == draft
    assert orjson.dumps(draft.message.model_dump(mode="json"))


@given(st.binary() | DOCUMENTS)
def test_no_body_makes_it_fail(body: bytes) -> None:
    for raw in hand_in(body, SHOP | JSON):
        assert_publishable(raw)


@given(DOCUMENTS, st.lists(st.tuples(st.text(), st.none() | st.text(), st.binary()), max_size=4), st.data())
def test_no_form_makes_it_fail(
    document: bytes, parts: list[tuple[str, str | None, bytes]], data: st.DataObject
) -> None:
    names = [f'name="{name}"' + ("" if filename is None else f'; filename="{filename}"') for name, filename, _ in parts]
    every = [('name="message"', document), *zip(names, (content for *_, content in parts), strict=True)]
    whole = b"".join(
        b"--b\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (name.encode("utf-8", "replace"), content)
        for name, content in every
    )
    body = whole + b"--b--\r\n"
    if data.draw(st.booleans()):
        body = body[: data.draw(st.integers(0, len(body)))]

    for raw in hand_in(body, SHOP | {"Content-Type": "multipart/form-data; boundary=b"}):
        assert_publishable(raw)


@given(
    st.dictionaries(
        st.sampled_from(
            ["Authorization", "Content-Type", "Idempotency-Key", "webhook-id", "webhook-timestamp", "webhook-signature"]
        ),
        st.text() | st.sampled_from(["Bearer shop-key", "application/json", "multipart/form-data", "v1,YQ==", "1"]),
    )
)
def test_no_header_makes_it_fail(headers: dict[str, str]) -> None:
    for raw in hand_in(b'{"text": "x"}', headers):
        assert_publishable(raw)
