"""Access tokens, from a token server of the test's own."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic import ValidationError

from gateway.contract import Briefly
from gateway.errors import Rejected, Unavailable
from gateway.mail.oauth import OAuth, Tokens


class TokenServer:
    """Answers what it is told to, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.answers: list[web.Response | dict[str, Any]] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append({name: str(value) for name, value in (await request.post()).items()})
        given: web.Response | dict[str, Any] = {"access_token": f"t{len(self.asked)}", "expires_in": 3600}
        if self.answers:
            given = self.answers.pop(0)
        return web.json_response(given) if isinstance(given, dict) else given


@pytest.fixture
async def server() -> AsyncIterator[TokenServer]:
    ours = TokenServer()
    app = web.Application()
    app.router.add_post("/token", ours.answer)
    async with TestServer(app) as running:
        ours.url = str(running.make_url("/token"))
        yield ours


def refusal(error: str, status: int = 400) -> web.Response:
    return web.json_response({"error": error, "error_description": "because\n" + "x" * 999}, status=status)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`at(seconds)`: the clock, from now on."""
    start = time.time()

    def move(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: start + seconds)

    return move


def settings(server: TokenServer, **more: Any) -> OAuth:
    given = {"provider": "other", "token_url": server.url, "client_id": "app", "client_secret": "the-client-secret"}
    return OAuth.model_validate(given | more)


async def test_client_credentials_of_microsoft(server: TokenServer) -> None:
    tokens = Tokens(settings(server, provider="microsoft", tenant="acme.cn"), Briefly())

    assert await tokens.access() == "t1"

    assert server.asked == [
        {
            "grant_type": "client_credentials",
            "client_id": "app",
            "client_secret": "the-client-secret",
            "scope": "https://outlook.office365.com/.default",
        }
    ]


async def test_a_refresh_token_of_google(server: TokenServer) -> None:
    tokens = Tokens(settings(server, provider="google", refresh_token="r1"), Briefly())

    await tokens.access()

    assert server.asked == [
        {
            "grant_type": "refresh_token",
            "refresh_token": "r1",
            "client_id": "app",
            "client_secret": "the-client-secret",
        }
    ]


async def test_a_token_is_kept_and_renewed_before_its_end(server: TokenServer, at: Callable[[float], None]) -> None:
    tokens = Tokens(settings(server), Briefly())
    at(0)
    assert [await tokens.access(), await tokens.access()] == ["t1", "t1"]
    assert tokens.expires_at == pytest.approx(time.time() + 3600)

    at(3200)
    assert await tokens.access() == "t1"
    at(3301)
    assert await tokens.access() == "t2"


async def test_a_token_that_the_mail_server_refused_is_not_used_again(server: TokenServer) -> None:
    tokens = Tokens(settings(server), Briefly())
    await tokens.access()

    tokens.forget()

    assert await tokens.access() == "t2"


async def test_a_refresh_token_that_is_exchanged_is_remembered_over_restarts(server: TokenServer) -> None:
    memory = Briefly()
    server.answers = [{"access_token": "t1", "refresh_token": "r2"}]
    await Tokens(settings(server, refresh_token="r1"), memory).access()

    await Tokens(settings(server, refresh_token="r1"), memory).access()
    await Tokens(settings(server, refresh_token="from-the-operator"), memory).access()

    assert [form["refresh_token"] for form in server.asked] == ["r1", "r2", "from-the-operator"]


async def test_when_the_remembered_one_is_refused_the_configured_one_is_tried(server: TokenServer) -> None:
    memory = Briefly()
    server.answers = [{"access_token": "t1", "refresh_token": "r2"}, refusal("invalid_grant")]
    await Tokens(settings(server, refresh_token="r1"), memory).access()

    await Tokens(settings(server, refresh_token="r1"), memory).access()

    assert [form["refresh_token"] for form in server.asked] == ["r1", "r2", "r1"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda: refusal("invalid_grant"), Rejected),
        (lambda: refusal("invalid_client", 401), Rejected),
        (lambda: refusal("temporarily_unavailable"), Unavailable),
        (lambda: web.Response(status=503, text="<html>"), Unavailable),
        (lambda: web.Response(status=429), Unavailable),
        (lambda: web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}), Unavailable),
        (lambda: web.json_response([1]), Unavailable),
        (lambda: web.json_response({"access_token": 7}), Unavailable),
        (lambda: web.Response(body=b"\xff" * (1 << 20)), Unavailable),
    ],
)
async def test_what_is_refused_for_good_is_told_from_a_fault(
    server: TokenServer, answer: Callable[[], web.Response], error: type[Exception]
) -> None:
    server.answers = [answer()]

    with pytest.raises(error) as caught:
        await Tokens(settings(server), Briefly()).access()

    assert "the-client-secret" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


async def test_a_token_server_that_is_away_is_a_fault(server: TokenServer) -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
        await Tokens(settings(server, token_url="http://127.0.0.1:1/token"), Briefly()).access()


@pytest.mark.parametrize(("life", "renewed_after"), [("3600", 3300), (60, 48), (None, 3300), ("soon", 3300), (-5, 0.8)])
async def test_odd_lives_of_tokens(
    server: TokenServer, at: Callable[[float], None], life: Any, renewed_after: float
) -> None:
    server.answers = [{"access_token": "odd", "expires_in": life}]
    tokens = Tokens(settings(server), Briefly())
    at(0)
    await tokens.access()

    at(renewed_after - 0.1)
    assert await tokens.access() == "odd"
    at(renewed_after + 0.1)
    assert await tokens.access() == "t2"


async def test_the_expiry_of_the_client_secret_is_the_one_that_counts(server: TokenServer) -> None:
    tokens = Tokens(settings(server, secret_expires_on="2027-06-30"), Briefly())

    assert tokens.expires_at == 1814313600


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"provider": "microsoft"}, "tenant"),
        ({"provider": "other"}, "token_url"),
        ({"provider": "google"}, "refresh_token"),
        ({"provider": "other", "token_url": "http://login.example.com/token"}, "https"),
        ({"provider": "other", "token_url": "https://login.example.com/token", "client_secret": None}, "client_secret"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        OAuth.model_validate({"client_id": "app", "client_secret": "the-client-secret"} | wrong)


def test_the_addresses_of_the_providers() -> None:
    made = {"client_id": "app", "client_secret": "x", "refresh_token": "r"}

    assert OAuth(provider="google", **made).address == "https://oauth2.googleapis.com/token"
    microsoft = OAuth(provider="microsoft", tenant="acme.cn/x", **made)
    assert microsoft.address == "https://login.microsoftonline.com/acme.cn%2Fx/oauth2/v2.0/token"
