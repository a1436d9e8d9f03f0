"""Fetching from real servers on loopback, which is no public address, so it has to be allowed."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import HuiruError, Rejected, Unavailable
from gateway.fetch import Fetcher, _is_public
from gateway.settings import MediaSettings

Serve = Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[str]]
LOOPBACK = ("127.0.0.0/8", "::1/128")


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`await serve(handler)`: the address of a server whose every path it is."""
    runners: list[web.ServerRunner] = []

    async def start(handler: Callable[[Any], Awaitable[web.StreamResponse]]) -> str:
        runner = web.ServerRunner(web.Server(handler, access_log=None), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        runners.append(runner)
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def make_fetch() -> AsyncIterator[Callable[..., Fetcher]]:
    made: list[Fetcher] = []

    def make(**settings: Any) -> Fetcher:
        made.append(Fetcher(MediaSettings.model_validate({"allow_networks": LOOPBACK, **settings})))
        return made[-1]

    yield make
    for fetcher in made:
        await fetcher.close()


async def hello(request: web.Request) -> web.Response:
    return web.Response(body=await request.read() or b"hello", headers={"X-Method": request.method})


async def test_it_gets_and_posts(serve: Serve, make_fetch: Callable[..., Fetcher]) -> None:
    base, fetch = await serve(hello), make_fetch()

    got = await fetch(f"{base}/a?b=%E5%BC%A0")
    posted = await fetch(base, method="POST", body=b"{}", headers={"Content-Type": "application/json"})

    assert (got.status, got.content, got.headers["x-method"]) == (200, b"hello", "GET")
    assert (posted.content, posted.headers["X-METHOD"]) == (b"{}", "POST")


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "2130706433", "0x7f.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"),
        *("10.1.2.3", "169.254.169.254", "100.64.0.1", "192.168.1.1", "224.0.0.1"),
        *("[fd00::1]", "[fe80::1]", "[64:ff9b::7f00:1]"),
    ],
)
async def test_an_address_that_is_not_public_is_refused(
    serve: Serve, make_fetch: Callable[..., Fetcher], host: str
) -> None:
    asked: list[str] = []

    async def note(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response()

    port = (await serve(note)).rpartition(":")[2]
    fetch = make_fetch(allow_networks=[])

    with pytest.raises(Rejected) as refusal:
        await fetch(f"http://{host}:{port}/secret")

    assert refusal.value.code == ("malformed" if host in {"127.1", "2130706433"} else "forbidden")
    assert "secret" not in str(refusal.value)
    assert asked == []


async def test_a_name_is_asked_once_and_what_is_checked_is_connected_to(
    serve: Serve, make_fetch: Callable[..., Fetcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that first says what is public, and then what is not, gains nothing."""
    port = int((await serve(hello)).rpartition(":")[2])
    answers = iter(["127.0.0.1", "10.0.0.1"])

    async def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)

    answer = await make_fetch()(f"http://media.example:{port}/")

    assert answer.content == b"hello"
    assert next(answers) == "10.0.0.1"


async def test_a_redirect_into_our_network_is_refused(serve: Serve, make_fetch: Callable[..., Fetcher]) -> None:
    inside = await serve(hello)

    async def lead(request: web.Request) -> web.Response:
        raise web.HTTPFound(inside.replace("127.0.0.1", "127.0.0.2"))

    outside, fetch = await serve(lead), make_fetch(allow_networks=["127.0.0.1/32"])

    with pytest.raises(Rejected, match=r"127\.0\.0\.2 is not a public address"):
        await fetch(outside)


async def test_a_redirect_is_followed_without_our_headers(serve: Serve, make_fetch: Callable[..., Fetcher]) -> None:
    seen: list[str | None] = []

    async def end(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response(body=b"there")

    target = await serve(end)

    async def lead(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        raise web.HTTPFound(f"{target}/x")

    start = await serve(lead)

    answer = await make_fetch()(start, headers={"Authorization": "Basic s3cret"})

    assert answer.content == b"there"
    assert answer.url == f"{target}/x"
    assert seen == ["Basic s3cret", None]


async def test_redirects_end(serve: Serve, make_fetch: Callable[..., Fetcher]) -> None:
    count: list[None] = []

    async def round_and_round(request: web.Request) -> web.Response:
        count.append(None)
        raise web.HTTPFound("/again")

    with pytest.raises(Rejected, match="too often"):
        await make_fetch(max_redirects=2)(await serve(round_and_round))
    assert len(count) == 3


async def test_what_is_configured_is_trusted_but_not_what_it_leads_to(
    serve: Serve, make_fetch: Callable[..., Fetcher]
) -> None:
    async def lead(request: web.Request) -> web.Response:
        raise web.HTTPFound("http://10.0.0.1/")

    fetch = make_fetch(allow_networks=[])

    assert (await fetch(await serve(hello), trusted=True)).content == b"hello"
    assert (await fetch(await serve(lead), trusted=True)).status == 302


@pytest.mark.parametrize("told", [True, False])
async def test_a_file_that_is_too_large_is_not_read(
    serve: Serve, make_fetch: Callable[..., Fetcher], told: bool
) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        if told:
            answer.content_length = 1 << 40
        await answer.prepare(request)
        while True:
            await answer.write(bytes(4096))

    with pytest.raises(Rejected) as refusal:
        await make_fetch(max_bytes=10_000)(await serve(endless))
    assert refusal.value.code == "too_large"


async def test_a_server_that_does_not_answer_is_left(serve: Serve, make_fetch: Callable[..., Fetcher]) -> None:
    over = asyncio.Event()

    async def silent(request: web.Request) -> web.Response:
        await over.wait()
        return web.Response()

    base, fetch = await serve(silent), make_fetch(timeout_secs=0.2)

    with pytest.raises(Unavailable, match="no answer in time") as failure:
        await fetch(f"{base}/?key=s3cret")
    over.set()
    assert "s3cret" not in failure.value.reason


async def test_nobody_there(make_fetch: Callable[..., Fetcher]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable) as failure:
            await make_fetch()(f"http://127.0.0.1:{closed.getsockname()[1]}/?key=s3cret")
    assert "s3cret" not in str(failure.value)


@pytest.mark.parametrize(
    "url", ["", "x", "ftp://a.example/", "file:///etc/passwd", "http://", "//a.example/", "http://u:p@a.example/"]
)
async def test_what_is_no_address_is_refused(make_fetch: Callable[..., Fetcher], url: str) -> None:
    with pytest.raises(Rejected, match="not an address"):
        await make_fetch()(url)


@given(st.text(max_size=40), st.sampled_from(["", "http://", "https://", "http://127.0.0.1:1/"]))
def test_any_text_is_an_answer_or_an_error_of_ours(text: str, before: str) -> None:
    async def ask() -> None:
        fetch = Fetcher(MediaSettings(timeout_secs=0.05))
        try:
            async with asyncio.timeout(5):
                await fetch(before + "\x00" + text if before.endswith("/") else text)
        except HuiruError:
            pass
        finally:
            await fetch.close()

    asyncio.run(ask())


def test_what_is_public() -> None:
    allowed = [ip_network("10.9.0.0/16")]
    assert _is_public(ip_address("8.8.8.8"), [])
    assert _is_public(ip_address("2400:3200::1"), [])
    assert _is_public(ip_address("10.9.1.1"), allowed)
    assert not _is_public(ip_address("10.8.1.1"), allowed)
    assert not _is_public(ip_address("2002:7f00:1::"), [])
