"""The web listener, by real HTTP: every answer of the table, every limit, and nothing left behind."""

import asyncio
import gzip
import json
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import RawTestServer
from yarl import URL

from gateway.contract import (
    BodyFile,
    ChannelSettings,
    Context,
    Rate,
    RawMessage,
    Receipt,
    Reply,
    Request,
    WebhookConnector,
    json_reply,
)
from gateway.errors import ANSWERS, PERMANENT, TEMPORARY, Rejected, Unavailable
from gateway.web import WebChannel
from tests.core.redis_process import RedisProcess
from tests.core.rig import PNG, Rig
from tests.core.samples import audit, waiting

MakeRig = Callable[..., Rig]
Serve = Callable[..., Awaitable["Listener"]]
Answer = tuple[int, Any, Mapping[str, str]]
SECRET = "something private"


class Probe(WebhookConnector):
    """A channel that does as it is told, and remembers what it was shown."""

    Settings = ChannelSettings
    redelivers = True
    methods = frozenset({"GET", "POST"})

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            "shop",
            ChannelSettings(type="probe", **settings),
            Context("acme", "", lambda _: b"", lambda: None),  # type: ignore[arg-type,return-value]  # not used
        )
        self.failing: dict[str, BaseException] = {}
        self.requests: list[Request] = []
        self.bodies: list[bytes] = []

    def _fail_in(self, phase: str) -> None:
        if phase in self.failing:
            raise self.failing[phase]

    async def admit(self, request: Request) -> None:
        self._fail_in("admit")

    async def verify(self, request: Request) -> Mapping[str, Any]:
        body = request.body
        self.requests.append(replace(request))
        self.bodies.append(body.path.read_bytes() if isinstance(body, BodyFile) else body)
        self._fail_in("verify")
        return {}

    async def extract(self, request: Request, sender: Mapping[str, Any]) -> Reply | Sequence[RawMessage]:
        self._fail_in("extract")
        if request.method in ("GET", "HEAD"):
            return Reply(200, b"a page", "text/html; charset=utf-8", {"X-Page": "1"})
        return [RawMessage("note", request.body, native) for native in request.query.getall("id", ["n1"])]

    def reply(self, request: Request, receipts: Sequence[Receipt]) -> Reply:
        self._fail_in("reply")
        return json_reply([receipt.id for receipt in receipts], 202)

    def refuse(self, request: Request, error: BaseException) -> Reply:
        self._fail_in("refuse")
        return super().refuse(request, error)


class Listener:
    """A rig that is served, one channel `shop` of it being `probe`."""

    def __init__(self, rig: Rig, probe: Probe, server: RawTestServer, http: ClientSession) -> None:
        self.rig, self.probe, self.server, self.http = rig, probe, server, http
        self.url = str(server.make_url("")).rstrip("/")

    async def ask(self, method: str = "POST", path: str = "/c/shop", **options: Any) -> Answer:
        """Status, body, headers."""
        async with self.http.request(method, self.url + path, **options) as response:
            content = await response.read()
            is_json = "json" in response.content_type and content
            return response.status, json.loads(content) if is_json else content, response.headers

    async def refused(self) -> dict[str, float]:
        """How many were refused, by code."""
        (metric,) = self.rig.metrics.refused.collect()
        return {s.labels["code"]: s.value for s in metric.samples if s.name.endswith("_total")}

    def left(self) -> list[str]:
        """Files of requests in work."""
        return [path.name for path in self.rig.spool.incoming.iterdir()]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)


@pytest.fixture
def redis(server: Path, tmp_path: Path) -> Iterator[RedisProcess]:
    """A server that is started when something is to be published."""
    process = RedisProcess(server, tmp_path / "redis")
    yield process
    process.kill()


@pytest.fixture
async def serve(make_rig: MakeRig, http: ClientSession) -> AsyncIterator[Serve]:
    """`await serve(channel={…}, body_timeout_secs=…)`."""
    servers: list[RawTestServer] = []

    async def start(channel: dict[str, Any] | None = None, **options: Any) -> Listener:
        rig = make_rig(**options)
        probe = Probe(**(channel or {}))
        rig.web.channels = {"shop": WebChannel.of(probe)}
        server = RawTestServer(rig.web.handle)
        await server.start_server()
        servers.append(server)
        return Listener(rig, probe, server, http)

    yield start
    for server in servers:
        await server.close()


@pytest.fixture
async def listener(serve: Serve) -> Listener:
    return await serve()


# --- a request that is accepted ---------------------------------------------------------------------------------------


async def test_a_message_is_durable_when_it_is_answered(listener: Listener) -> None:
    status, ids, _ = await listener.ask(data=b"hello")

    (row,) = await waiting(listener.rig.spool)
    assert (status, ids) == (202, [row.message.id])
    assert row.message.body == b"hello"


async def test_a_request_may_hold_several_messages(listener: Listener) -> None:
    status, ids, _ = await listener.ask(path="/c/shop?id=a&id=b&id=c", data=b"hello")

    assert status == 202
    assert [row.message.native_id for row in await waiting(listener.rig.spool)] == ["a", "b", "c"]
    assert len(set(ids)) == 3


async def test_of_several_messages_none_is_acknowledged_when_one_is_not_durable(listener: Listener) -> None:
    await listener.ask(path="/c/shop?id=a", data=b"first")
    listener.rig.spool._journal._closing = True

    status, _, _ = await listener.ask(path="/c/shop?id=b&id=c", data=b"hello")

    assert status == 503
    listener.rig.spool._journal._closing = False


async def test_the_connector_sees_the_request_as_it_came(listener: Listener) -> None:
    await listener.ask(path="/c/shop/sub/path?a=1&a=2&名=值", data=b"{}", headers={"Content-Type": "Text/PLAIN; x=y"})

    (request,) = listener.probe.requests
    assert (request.method, request.path, request.remote) == ("POST", "/sub/path", "127.0.0.1")
    assert request.query.getall("a") == ["1", "2"]
    assert request.query["名"] == "值"
    assert request.url.startswith("http://127.0.0.1:8080/c/shop/sub/path?a=1&a=2&")
    assert (request.content_type, request.headers["content-type"]) == ("text/plain", "Text/PLAIN; x=y")


@pytest.mark.parametrize(("path", "seen"), [("/c/shop", ""), ("/c/shop/", "/"), ("/c/shop/a%2Fb", "/a/b")])
async def test_the_path_is_what_stands_behind_the_channel(listener: Listener, path: str, seen: str) -> None:
    async with listener.http.post(URL(listener.url + path, encoded=True), data=b"x"):
        pass

    assert listener.probe.requests[0].path == seen


async def test_a_large_body_goes_through_a_file(serve: Serve) -> None:
    listener = await serve(memory_body_bytes=1024)
    body = bytes(range(256)) * 3_000

    status, (id_,), _ = await listener.ask(data=body)

    (row,) = await waiting(listener.rig.spool)
    assert status == 202
    assert isinstance(listener.probe.requests[0].body, BodyFile)
    assert listener.probe.bodies == [body]
    assert (row.message.id, row.message.body) == (id_, body)
    assert listener.left() == []


@pytest.mark.parametrize("size", [1023, 1024, 1025, 200_000])
async def test_a_body_without_length_is_read_to_its_end(serve: Serve, size: int) -> None:
    listener = await serve(memory_body_bytes=1024)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, size, 700):
            yield b"x" * min(700, size - start)

    status, _, _ = await listener.ask(data=chunks())

    assert status == 202
    assert listener.probe.bodies == [b"x" * size]
    assert isinstance(listener.probe.requests[0].body, BodyFile) == (size > 1024)


async def test_a_page_is_served_without_anything_being_accepted(listener: Listener) -> None:
    status, page, headers = await listener.ask("GET")

    assert (status, page) == (200, b"a page")
    assert (headers["Content-Type"], headers["X-Page"]) == ("text/html; charset=utf-8", "1")
    assert await waiting(listener.rig.spool) == []


async def test_head_is_get_without_a_body(listener: Listener) -> None:
    status, page, headers = await listener.ask("HEAD")

    assert (status, page) == (200, b"")
    assert headers["X-Page"] == "1"
    assert listener.probe.requests[0].method == "HEAD"


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [code for code in PERMANENT if code != "method_not_allowed"])
async def test_every_permanent_error_has_its_answer(listener: Listener, code: str) -> None:
    listener.probe.failing["verify"] = Rejected(code, "in public", reason=SECRET, extra={"more": [1]})

    status, document, headers = await listener.ask(data=b"x")

    assert status == ANSWERS[code].http
    assert headers["Content-Type"] == "application/problem+json"
    assert document == {
        "type": f"urn:huiru:problem:{code}",
        "title": ANSWERS[code].title,
        "status": status,
        "detail": "in public",
        "code": code,
        "more": [1],
    }
    assert "Retry-After" not in headers
    assert await listener.refused() == {code: 1}


@pytest.mark.parametrize("code", TEMPORARY)
async def test_every_temporary_error_has_its_answer(listener: Listener, code: str) -> None:
    listener.probe.failing["extract"] = Unavailable(code, reason=SECRET, retry_after=17)

    status, document, headers = await listener.ask(data=b"x")

    assert (status, document["code"]) == (ANSWERS[code].http, code)
    assert (headers["Retry-After"], document["retry_after"]) == ("17", 17)
    assert SECRET not in json.dumps(document)
    assert await listener.refused() == {code: 1}


@pytest.mark.parametrize("phase", ["admit", "verify", "extract", "reply", "refuse"])
async def test_a_defect_in_a_connector_is_a_temporary_answer_that_tells_nothing(listener: Listener, phase: str) -> None:
    # given
    listener.probe.failing[phase] = RuntimeError(SECRET)
    if phase == "refuse":
        listener.probe.failing["verify"] = Rejected("invalid")

    # when: the body comes after the headers
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x" * 100_000

    status, document, headers = await listener.ask(data=chunks())

    # then
    assert status == (422 if phase == "refuse" else 503)
    assert SECRET not in json.dumps(document) + str(headers)
    assert listener.left() == []
    assert len(await waiting(listener.rig.spool)) == (1 if phase == "reply" else 0)


async def test_a_refusal_that_the_intake_counted_is_not_counted_twice(serve: Serve) -> None:
    listener = await serve()
    listener.rig.intake._max_bytes = 10

    status, document, headers = await listener.ask(data=b"x")

    assert (status, document["code"], headers["Retry-After"]) == (503, "spool_full", "30")
    assert await listener.refused() == {"spool_full": 1}


async def test_a_connector_is_told_only_errors_that_may_cross_the_wire(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[BaseException] = []

    def refuse(request: Request, error: BaseException) -> Reply:
        told.append(error)
        return Reply(500)

    monkeypatch.setattr(listener.probe, "refuse", refuse)
    listener.probe.failing["verify"] = KeyError(SECRET)

    await listener.ask(data=b"x")

    (error,) = told
    assert isinstance(error, Unavailable)
    assert SECRET not in error.public


async def test_other_content_under_a_key_is_answered_so_and_the_rest_stays(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = RawMessage("note", b"first", "n1", on_conflict="refuse")

    async def extract(request: Request, sender: Mapping[str, Any]) -> Sequence[RawMessage]:
        return [replace(raw, body=request.body)]

    monkeypatch.setattr(listener.probe, "extract", extract)
    await listener.ask(data=b"first")

    status, document, _ = await listener.ask(data=b"other")

    assert (status, document["code"]) == (422, "idempotency_mismatch")
    assert await listener.refused() == {"idempotency_mismatch": 1}


# --- where there is nothing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/c", "/c/", "/c/other", "/c/other/x", "/x", "/files", "/files/", "/c//shop", "/%00", "/c/%ff"]
)
async def test_elsewhere_there_is_nothing(listener: Listener, path: str) -> None:
    status, document, headers = await listener.ask(path=path, data=b"x")

    assert (status, document["code"]) == (404, "not_found")
    assert headers["Content-Type"] == "application/problem+json"


async def test_a_method_that_is_not_served_says_which_are(listener: Listener) -> None:
    status, document, headers = await listener.ask("DELETE")

    assert (status, document["code"], headers["Allow"]) == (405, "method_not_allowed", "GET, POST")


async def test_head_is_no_method_where_get_is_none(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener.probe, "methods", frozenset({"POST"}))

    status, _, headers = await listener.ask("HEAD")

    assert (status, headers["Allow"]) == (405, "POST")


async def test_channels_can_be_exchanged_while_it_serves(listener: Listener) -> None:
    assert (await listener.ask(data=b"x"))[0] == 202

    listener.rig.web.channels = {}

    assert (await listener.ask(data=b"x"))[0] == 404


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_a_body_that_says_it_is_too_large_is_not_read(serve: Serve) -> None:
    listener = await serve({"max_request_bytes": 2048})

    status, document, _ = await listener.ask(data=b"x" * 2049)

    assert (status, document["code"]) == (413, "too_large")
    assert "2048" in document["detail"]
    assert listener.probe.requests == []


@pytest.mark.parametrize("memory", [1024, 1 << 20], ids=["in a file", "in memory"])
async def test_a_body_that_turns_out_too_large_is_refused_and_gone(serve: Serve, memory: int) -> None:
    listener = await serve({"max_request_bytes": 5000}, memory_body_bytes=memory)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(6):
            yield b"x" * 1000

    status, document, _ = await listener.ask(data=chunks())

    assert (status, document["code"]) == (413, "too_large")
    assert listener.left() == []
    assert (await listener.ask(data=b"x" * 5000))[0] == 202


async def test_a_refused_large_body_is_gone(serve: Serve) -> None:
    listener = await serve(memory_body_bytes=1024)
    listener.probe.failing["verify"] = Rejected("unauthenticated")

    status, _, _ = await listener.ask(data=b"x" * 100_000)

    assert status == 401
    assert listener.left() == []
    assert await waiting(listener.rig.spool) == []


async def test_a_body_that_the_connector_wrote_goes_with_the_refusal(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = await serve()

    async def write(_: Request, __: Mapping[str, Any]) -> Sequence[RawMessage]:
        path = listener.rig.spool.scratch()
        path.write_bytes(b"files and values")
        return [RawMessage("note", BodyFile(path, 16, sha256(b"files and values").digest()), "n1")]

    async def refuse(_: str, __: RawMessage) -> Receipt:
        raise Unavailable("spool_full")

    monkeypatch.setattr(listener.probe, "extract", write)
    monkeypatch.setattr(listener.rig.intake, "accept", refuse)

    status, _, _ = await listener.ask()

    assert status == 503
    assert listener.left() == []


async def test_a_body_that_unpacks_to_too_much_is_refused(serve: Serve) -> None:
    listener = await serve({"max_request_bytes": 5000})
    packed = gzip.compress(b"x" * 1_000_000)
    assert len(packed) < 5000

    status, document, _ = await listener.ask(data=packed, headers={"Content-Encoding": "gzip"})

    assert (status, document["code"]) == (413, "too_large")


async def test_a_body_that_does_not_unpack_is_malformed(listener: Listener) -> None:
    status, document, _ = await listener.ask(data=b"no gzip at all", headers={"Content-Encoding": "gzip"})

    assert (status, document["code"]) == (400, "malformed")


async def test_a_body_that_does_not_come_in_time_is_answered(serve: Serve) -> None:
    listener = await serve(body_timeout_secs=1)
    reader, writer = await raw_request(listener, b"Content-Length: 1000\r\n\r\nhalf of it")

    answer = await asyncio.wait_for(reader.readuntil(b'"retry_after"'), 10)

    writer.transport.abort()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"timeout"' in answer
    assert await waiting(listener.rig.spool) == []


async def raw_request(listener: Listener, rest: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A POST whose end is up to the test."""
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.server.port)
    writer.write(b"POST /c/shop HTTP/1.1\r\nHost: shop\r\n" + rest)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize("sent", [b"x" * 10, b"x" * 300_000], ids=["in memory", "in a file"])
async def test_a_client_that_goes_away_leaves_nothing(serve: Serve, sent: bytes) -> None:
    # given: half a request
    listener = await serve(memory_body_bytes=1024)
    _, writer = await raw_request(listener, b"Content-Length: 1000000\r\n\r\n" + sent)
    await listener.until(lambda: listener.rig.web._inflight == 1)
    if len(sent) > 1024:
        await listener.until(lambda: len(listener.left()) == 1)

    # when
    writer.transport.abort()

    # then
    await listener.until(lambda: listener.rig.web._inflight == 0)
    assert listener.left() == []
    assert await waiting(listener.rig.spool) == []
    await audit(listener.rig.spool)


async def test_an_early_refusal_does_not_wait_for_the_body(listener: Listener) -> None:
    listener.probe.failing["admit"] = Rejected("unauthenticated")
    reader, writer = await raw_request(listener, b"Content-Length: 1000000\r\n\r\n")

    answer = await asyncio.wait_for(reader.readline(), 5)

    writer.transport.abort()
    assert answer.startswith(b"HTTP/1.1 401 ")


async def test_more_requests_at_a_time_than_allowed_are_told_to_come_back(serve: Serve) -> None:
    # given: two requests that wait for the end of their bodies
    listener = await serve(max_inflight=2)
    held = [await raw_request(listener, b"Content-Length: 1000\r\n\r\nx") for _ in range(2)]
    await listener.until(lambda: listener.rig.web._inflight == 2)

    # when
    status, document, headers = await listener.ask(data=b"x")

    # then
    assert (status, document["code"]) == (503, "busy")
    assert int(headers["Retry-After"]) > 0
    for _, writer in held:
        writer.transport.abort()
    await listener.until(lambda: listener.rig.web._inflight == 0)
    assert (await listener.ask(data=b"x"))[0] == 202


async def test_before_the_end_requests_in_work_are_finished_and_new_ones_refused(listener: Listener) -> None:
    # given: half a request
    reader, writer = await raw_request(listener, b"Content-Length: 10\r\n\r\nhalf ")
    await listener.until(lambda: listener.rig.web._inflight == 1)

    # when
    finished = asyncio.create_task(listener.rig.web.finish())
    await asyncio.sleep(0)
    status, document, headers = await listener.ask(data=b"x")

    # then
    assert (status, document["code"]) == (503, "stopping")
    assert "Retry-After" in headers
    assert not finished.done()
    writer.write(b"of it")
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 202 ")
    await asyncio.wait_for(finished, 5)
    writer.transport.abort()
    assert [row.message.body for row in await waiting(listener.rig.spool)] == [b"half of it"]


async def test_without_a_request_in_work_the_end_is_at_once(listener: Listener) -> None:
    await asyncio.wait_for(listener.rig.web.finish(), 1)


async def test_one_client_may_not_ask_too_often(serve: Serve) -> None:
    listener = await serve({"rate": Rate(per_minute=1, burst=2)})
    statuses = [(await listener.ask(data=b"x"))[0] for _ in range(2)]

    status, document, headers = await listener.ask(data=b"x")

    assert statuses == [202, 202]
    assert (status, document["code"]) == (429, "rate_limited")
    assert 50 <= int(headers["Retry-After"]) <= 61
    assert (await listener.ask("GET"))[0] == 200


# --- who is asking ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trusted", "forwarded", "remote"),
    [
        ([], ["203.0.113.9"], "127.0.0.1"),
        (["10.0.0.0/8"], ["203.0.113.9"], "127.0.0.1"),
        (["127.0.0.1/32"], ["203.0.113.9"], "203.0.113.9"),
        (["127.0.0.1/32"], [], "127.0.0.1"),
        (["127.0.0.1/32"], ["1.1.1.1, 203.0.113.9"], "203.0.113.9"),  # only our own proxy's word counts
        (["127.0.0.1/32", "10.0.0.0/8"], ["1.1.1.1, 203.0.113.9, 10.0.0.7"], "203.0.113.9"),
        (["127.0.0.1/32", "10.0.0.0/8"], ["1.1.1.1, 203.0.113.9", "10.0.0.7"], "203.0.113.9"),
        (["127.0.0.1/32", "10.0.0.0/8"], ["10.0.0.7"], "10.0.0.7"),
        (["127.0.0.1/32"], ["2001:db8::1"], "2001:db8::1"),
        (["127.0.0.1/32"], ["[2001:DB8::1]"], "2001:db8::1"),
        (["127.0.0.1/32"], ["unknown"], "127.0.0.1"),
        (["127.0.0.1/32"], ["203.0.113.9, <script>"], "127.0.0.1"),
        (["127.0.0.1/32"], [""], "127.0.0.1"),
    ],
)
async def test_a_client_is_whom_our_own_proxies_saw(
    serve: Serve, trusted: list[str], forwarded: list[str], remote: str
) -> None:
    listener = await serve(trusted_proxies=trusted)

    await listener.ask(data=b"x", headers=[("X-Forwarded-For", value) for value in forwarded])

    assert listener.probe.requests[0].remote == remote


async def test_clients_behind_a_proxy_have_their_own_rates(serve: Serve) -> None:
    listener = await serve({"rate": Rate(per_minute=1, burst=1)}, trusted_proxies=["127.0.0.1"])

    async def from_(address: str) -> int:
        return (await listener.ask(data=b"x", headers={"X-Forwarded-For": address}))[0]

    assert [await from_("203.0.113.1"), await from_("203.0.113.2"), await from_("203.0.113.1")] == [202, 202, 429]


# --- files ------------------------------------------------------------------------------------------------------------


async def published(listener: Listener, kind: str = "album", body: bytes = b"raw bytes") -> dict[str, Any]:
    """The data of a ticket with files; addresses lead to the test's server."""
    await listener.rig.redis.start()
    await listener.rig.accept("n1", body, kind=kind)
    await listener.rig.publish_all()
    (ticket,) = await listener.rig.tickets()
    data: dict[str, Any] = ticket["data"]
    return data


def path_of(url: str) -> str:
    assert url.startswith("http://127.0.0.1:8080/files/")
    return url.removeprefix("http://127.0.0.1:8080")


async def fetch(listener: Listener, url: str, method: str = "GET") -> Answer:
    async with listener.http.request(method, URL(listener.url + path_of(url), encoded=True)) as response:
        content = await response.read()
        is_problem = response.content_type == "application/problem+json" and content
        return response.status, json.loads(content) if is_problem else content, response.headers


async def test_an_attachment_is_had_at_its_address(listener: Listener) -> None:
    picture, _ = (await published(listener))["attachments"]

    status, content, headers = await fetch(listener, picture["url"])

    assert (status, content) == (200, PNG)
    assert (headers["Content-Type"], headers["Content-Length"]) == ("image/png", str(len(PNG)))
    assert headers["Content-Disposition"] == (
        "attachment; filename=\"___.txt\"; filename*=UTF-8''" + quote("打印机.txt")
    )
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert "no-store" in headers["Cache-Control"]


async def test_the_head_of_an_attachment_is_its_headers(listener: Listener) -> None:
    picture, _ = (await published(listener))["attachments"]

    status, content, headers = await fetch(listener, picture["url"], "HEAD")

    assert (status, content, headers["Content-Length"]) == (200, b"", str(len(PNG)))


async def test_the_bytes_as_they_came_are_had_at_their_address(listener: Listener) -> None:
    raw = (await published(listener, "note", b"<script>alert(1)</script>"))["raw"]

    status, content, headers = await fetch(listener, raw["url"])

    assert (status, content) == (200, b"<script>alert(1)</script>")
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["Content-Disposition"].startswith("attachment;")
    assert headers["X-Content-Type-Options"] == "nosniff"


async def test_addresses_expire(listener: Listener) -> None:
    data = await published(listener)
    urls = [data["raw"]["url"], data["attachments"][0]["url"]]

    listener.rig.now += 3599
    assert [(await fetch(listener, url))[0] for url in urls] == [200, 200]
    listener.rig.now += 1
    answers = [await fetch(listener, url) for url in urls]

    assert [(status, document["code"]) for status, document, _ in answers] == [(410, "gone")] * 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"signature=[^&]+", "signature=AAAAAAAAAAAAAAAAAAAAAAAA"),
        (r"&signature=[^&]+", ""),
        (r"signature=[^&]+", "signature=%ff%fe"),
        (r"expires=\d+", "expires=99999999999"),
        (r"expires=\d+", "expires=never"),
        (r"&?expires=\d+", ""),
        (r"type=[^&]*", "type=text%2Fhtml"),
        (r"files/[0-9a-f]{8}", "files/00000000"),
        (r"files/[0-9a-f]{64}", "files/../../etc/passwd"),
    ],
)
async def test_an_address_that_was_altered_gives_nothing(listener: Listener, old: str, new: str) -> None:
    picture, _ = (await published(listener))["attachments"]
    altered = re.sub(old, new, picture["url"])
    assert altered != picture["url"]

    status, document, _ = await fetch(listener, altered)

    assert (status, document["code"]) in {(403, "forbidden"), (404, "not_found")}


async def test_one_message_s_address_does_not_give_another_s_bytes(listener: Listener) -> None:
    one = await listener.rig.accept("n1")
    other = await listener.rig.accept("n2")
    url = listener.rig.blobs.raw_url(one.id, listener.rig.moment())

    status, _, _ = await fetch(listener, url.replace(one.id, other.id))

    assert status == 403


async def test_the_name_in_an_address_is_anybodys(listener: Listener) -> None:
    # given: it is not signed, so it must be harmless whatever it is
    picture, _ = (await published(listener))["attachments"]
    name = quote("打印机.txt", safe="")

    for other in ("a%22%0d%0aX-Evil:%201", "%ff%fe", "%00", "x" * 300, "..", "%2e%2e%2fx", ""):
        status, _, headers = await fetch(listener, picture["url"].replace(name, other))
        assert status == 200
        assert "X-Evil" not in headers
        assert headers["Content-Disposition"].startswith("attachment; ")


async def test_what_is_no_longer_kept_is_gone(listener: Listener) -> None:
    data = await published(listener)
    await listener.rig.spool.purge(float("inf"))
    for path in listener.rig.blobs_folder.rglob("*"):
        if path.is_file():
            path.unlink()

    answers = [await fetch(listener, url) for url in (data["raw"]["url"], data["attachments"][0]["url"])]

    assert [(status, document["code"]) for status, document, _ in answers] == [(410, "gone")] * 2


async def test_bytes_that_cannot_be_read_are_gone(listener: Listener) -> None:
    receipt = await listener.rig.accept("n1", b"x" * 100_000)
    path: Path = listener.rig.spool.folder / "raw" / receipt.id
    content = path.read_bytes()
    path.unlink()

    status, document, _ = await fetch(listener, listener.rig.blobs.raw_url(receipt.id, listener.rig.moment()))

    assert (status, document["code"]) == (410, "gone")
    path.write_bytes(content)


async def test_a_blob_store_that_fails_is_a_temporary_answer(listener: Listener) -> None:
    picture, _ = (await published(listener))["attachments"]
    shutil.rmtree(listener.rig.blobs_folder)
    listener.rig.blobs_folder.write_bytes(b"no folder")

    status, document, headers = await fetch(listener, picture["url"])

    assert (status, document["code"]) == (503, "unavailable")
    assert str(listener.rig.blobs_folder) not in str(document) + str(headers)


async def test_files_can_only_be_read(listener: Listener) -> None:
    picture, _ = (await published(listener))["attachments"]

    assert (await fetch(listener, picture["url"], "POST"))[0] == 404


async def test_a_broken_request_is_no_message(listener: Listener) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.server.port)
    both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"  # how requests are smuggled: RFC 9112, 6.3
    writer.write(b"POST /c/shop HTTP/1.1\r\nHost: x\r\n" + both + b"\r\n0\r\n\r\n")

    answer = await asyncio.wait_for(reader.read(), 5)

    writer.close()
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert await waiting(listener.rig.spool) == []


async def test_a_connection_is_good_for_many_requests(listener: Listener) -> None:
    for n in range(5):
        assert (await listener.ask(path=f"/c/shop?id=n{n}", data=b"x" * 100))[0] == 202
    assert len(await waiting(listener.rig.spool)) == 5
