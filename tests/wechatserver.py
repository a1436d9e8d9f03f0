"""A server on loopback that stands in for api.weixin.qq.com.

It answers as the vendor's pages say, and notes what it was asked. `async with WeChatServer() as wechat`: then
`wechat.url` is the `api_base_url`, and `fail_once(MEDIA, 40001)` and its neighbours make it fail, in their order.
"""

import asyncio
import json
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self
from urllib.parse import quote

from aiohttp import web
from aiohttp.test_utils import TestServer

APPID, SECRET = "wx0123456789abcdef", "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
STABLE_TOKEN, MEDIA, USER = "/cgi-bin/stable_token", "/cgi-bin/media/get", "/cgi-bin/user/info"
SESSION, PHONE, VIDEO = "/sns/jscode2session", "/wxa/business/getuserphonenumber", "/video"

_TOKEN_SECS, _OVERLAP_SECS = 7200, 300
_FORCED_A_DAY, _BETWEEN_FORCED_SECS = 20, 30
_MEDIA_SECS = 3 * 86_400
_CODE_SECS = 300

_MESSAGES = {
    -1: "system error",
    40001: "invalid credential, access_token is invalid or not latest",
    40003: "invalid openid",
    40007: "invalid media_id",
    40013: "invalid appid",
    40014: "invalid access_token",
    40029: "invalid code",
    40125: "invalid appsecret, view more at http://t.cn/RAEkdVq",
    40163: "code been used",
    40164: "invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist",
    40226: "code blocked",
    41001: "access_token missing",
    42001: "access_token expired",
    43002: "require POST method",
    44002: "empty post data",
    45009: "reach max api daily quota limit",
    45011: "api minute-quota reach limit must slower retry next minute",
    47001: "data format error",
    48001: "api unauthorized",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Asked(NamedTuple):
    path: str
    query: dict[str, str]
    document: Any


class Media(NamedTuple):
    content: bytes
    content_type: str
    disposition: str
    is_video: bool
    expires_at: float


@dataclass
class Code:
    """What `wx.login` or `getPhoneNumber` gave a mini-program."""

    answer: dict[str, Any]
    expires_at: float
    used: bool = False


@dataclass
class WeChatServer:
    """`now` is its clock, in seconds since the epoch. `unauthorised` holds the paths that the account may not call."""

    appid: str = APPID
    secret: str = SECRET
    now: Callable[[], float] = time.time
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    unauthorised: set[str] = field(default_factory=set)
    is_address_allowed: bool = True

    def __post_init__(self) -> None:
        self._tokens: dict[str, float] = {}  # and when they end
        self._current = ""
        self._forced: list[float] = []
        self._media: dict[str, Media] = {}
        self._codes: dict[str, dict[str, Code]] = {SESSION: {}, PHONE: {}}
        self._instead: defaultdict[str, deque[Handler]] = defaultdict(deque)
        self._server: TestServer | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._note])
        app.router.add_post(STABLE_TOKEN, self._stable_token)
        app.router.add_get(MEDIA, self._media_get)
        app.router.add_get(f"{VIDEO}/{{id}}", self._video)
        app.router.add_get(USER, self._user)
        app.router.add_get(SESSION, self._session)
        app.router.add_post(PHONE, self._phone)
        self._server = TestServer(app, host="127.0.0.1")
        await self._server.start_server()
        self.url = str(self._server.make_url("")).rstrip("/")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await self._server.close()

    # What the account has

    def add_media(
        self, media_id: str, content: bytes, content_type: str, filename: str = "", *, disposition: str | None = None
    ) -> None:
        """A file that a user has sent now; a video is given by an address."""
        told = f'attachment; filename="{filename}"' if disposition is None else disposition
        is_video = content_type.startswith("video/")
        self._media[media_id] = Media(content, content_type, told, is_video, self.now() + _MEDIA_SECS)

    def login(self, openid: str, unionid: str | None = None) -> str:
        """The code that `wx.login` gives a user."""
        answer = {"openid": openid, "session_key": "dGhlLXNlc3Npb24ta2V5IQ=="} | (
            {"unionid": unionid} if unionid else {}
        )
        return self._new_code(SESSION, answer)

    def phone_code(self, number: str, country: str = "86") -> str:
        """The code that `getPhoneNumber` gives a user."""
        info = {
            "phoneNumber": number if country == "86" else f"+{country}{number}",
            "purePhoneNumber": number,
            "countryCode": country,
            "watermark": {"timestamp": int(self.now()), "appid": self.appid},
        }
        return self._new_code(PHONE, {"errcode": 0, "errmsg": "ok", "phone_info": info})

    def revoke(self) -> None:
        """No token is good any more, and the platform does not know it: it goes on giving the last one."""
        self._tokens = dict.fromkeys(self._tokens, 0.0)

    def reset(self) -> None:
        """No token is good any more, and the next to ask is given a new one."""
        self.revoke()
        self._current = ""

    # What goes wrong, once, in this order

    def answer_once(self, path: str, handler: Handler) -> None:
        self._instead[path].append(handler)

    def fail_once(self, path: str, errcode: int, message: str | None = None) -> None:
        async def fail(_: web.Request) -> web.StreamResponse:
            return _error(errcode, message)

        self.answer_once(path, fail)

    def say_once(self, path: str, body: bytes, content_type: str = "application/json", status: int = 200) -> None:
        async def say(_: web.Request) -> web.StreamResponse:
            return web.Response(body=body, content_type=content_type, status=status)

        self.answer_once(path, say)

    def cut_once(self, path: str) -> None:
        async def cut(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        self.answer_once(path, cut)

    def redirect_once(self, path: str, target: str) -> None:
        async def redirect(_: web.Request) -> web.StreamResponse:
            return web.Response(status=302, headers={"Location": target})

        self.answer_once(path, redirect)

    def flood_once(self, path: str, size: int) -> None:
        """A body of that many bytes, whose length is not told before."""

        async def flood(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "image/jpeg"})
            await response.prepare(request)
            for _ in range(0, size, 1 << 16):
                await response.write(b"\xff" * (1 << 16))
            return response

        self.answer_once(path, flood)

    def hold_once(self, path: str) -> tuple[asyncio.Event, asyncio.Event]:
        """It has come; it may go on, as if nothing had been."""
        come, go = asyncio.Event(), asyncio.Event()

        async def hold(request: web.Request) -> web.StreamResponse:
            come.set()
            await go.wait()
            return await request.match_info.handler(request)

        self.answer_once(path, hold)
        return come, go

    def times(self, path: str) -> int:
        """How often that was asked."""
        return sum(asked.path == path for asked in self.asked)

    # The calls

    @web.middleware
    async def _note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        path = VIDEO if request.path.startswith(f"{VIDEO}/") else request.path
        self.asked.append(Asked(path, dict(request.query), _document(await request.read())))
        if instead := self._instead[path]:
            return await instead.popleft()(request)
        return await handler(request)

    async def _stable_token(self, request: web.Request) -> web.StreamResponse:
        document = _document(await request.read())
        if not isinstance(document, dict) or document.get("grant_type") != "client_credential":
            return _error(47001)
        if refused := self._refused_account(document):
            return refused
        if document.get("force_refresh") is True:
            return self._force()
        if self._current not in self._tokens or self._left() <= _OVERLAP_SECS:
            self._issue()
        return self._token_answer()

    def _refused_account(self, given: Any) -> web.StreamResponse | None:
        if given.get("appid") != self.appid:
            return _error(40013)
        if given.get("secret") != self.secret:
            return _error(40125)
        return None if self.is_address_allowed else _error(40164)

    def _force(self) -> web.StreamResponse:
        now = self.now()
        self._forced = [moment for moment in self._forced if moment > now - 86_400]
        if len(self._forced) >= _FORCED_A_DAY:
            return _error(45009)
        if not self._forced or now - self._forced[-1] >= _BETWEEN_FORCED_SECS:
            self._forced.append(now)
            self._tokens = {}
            self._issue()
        return self._token_answer()

    def _issue(self) -> None:
        self._given = self.now()
        self._current = f"T{len(self.asked)}_{secrets.token_urlsafe(96)}"
        self._tokens[self._current] = self._given + _TOKEN_SECS

    def _left(self) -> float:
        return self._given + _TOKEN_SECS - self.now()

    def _token_answer(self) -> web.StreamResponse:
        return _json({"access_token": self._current, "expires_in": int(self._left())})

    def _refused(self, request: web.Request) -> web.StreamResponse | None:
        token = request.query.get("access_token", "")
        if not token:
            return _error(41001)
        if token not in self._tokens:
            return _error(40014 if len(token) < 32 else 40001)
        if self._tokens[token] <= self.now():
            return _error(42001)
        return _error(48001) if request.path in self.unauthorised else None

    async def _media_get(self, request: web.Request) -> web.StreamResponse:
        if refused := self._refused(request):
            return refused
        media_id = request.query.get("media_id", "")
        media = self._media.get(media_id)
        if media is None or media.expires_at <= self.now():
            return _error(40007)
        if media.is_video:
            return _json({"video_url": f"{self.url}{VIDEO}/{quote(media_id)}?vkey=0123456789ABCDEF"})
        return _file(media)

    async def _video(self, request: web.Request) -> web.StreamResponse:
        return _file(self._media[request.match_info["id"]])

    async def _user(self, request: web.Request) -> web.StreamResponse:
        if refused := self._refused(request):
            return refused
        openid = request.query.get("openid", "")
        known = self.users.get(openid)
        return _error(40003) if known is None else _json({"subscribe": 1, "openid": openid, **known})

    async def _session(self, request: web.Request) -> web.StreamResponse:
        if refused := self._refused_account(request.query):
            return refused
        return self._redeem(SESSION, request.query.get("js_code", ""))

    async def _phone(self, request: web.Request) -> web.StreamResponse:
        if refused := self._refused(request):
            return refused
        document = _document(await request.read())
        if not isinstance(document, dict):
            return _error(44002 if document is None else 47001)
        return self._redeem(PHONE, str(document.get("code", "")))

    def _new_code(self, path: str, answer: dict[str, Any]) -> str:
        code = secrets.token_hex(16)
        self._codes[path][code] = Code(answer, self.now() + _CODE_SECS)
        return code

    def _redeem(self, path: str, code: str) -> web.StreamResponse:
        known = self._codes[path].get(code)
        if known is None or known.expires_at <= self.now():
            return _error(40029)
        if known.used:
            return _error(40163)
        known.used = True
        return _json(known.answer)


def _document(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return body.decode("utf-8", "replace")


def _json(document: dict[str, Any]) -> web.StreamResponse:
    # Their own way of saying it.
    headers = {"Content-Type": "application/json; encoding=utf-8"}
    return web.Response(body=json.dumps(document, ensure_ascii=False).encode(), headers=headers)


def _error(errcode: int, message: str | None = None) -> web.StreamResponse:
    told = message if message is not None else f"{_MESSAGES.get(errcode, 'error')} rid: 6704-{errcode}"
    return _json({"errcode": errcode, "errmsg": told})


def _file(media: Media) -> web.StreamResponse:
    headers = {"Content-Type": media.content_type}
    if media.disposition:
        headers["Content-disposition"] = media.disposition
    return web.Response(body=media.content, headers=headers)
