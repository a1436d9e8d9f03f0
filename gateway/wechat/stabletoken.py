"""The account's access token, one for all gateways at one Redis (doc/service/api/base/api_getstableaccesstoken).

A token lives up to 7200 s. In its last 300 s the platform gives a new one to who asks, and the old one stays good until
its end: so it is asked for early in that overlap, by one process at a time, and nobody who holds the old one waits.
Asked for earlier, the platform gives the same token again; only `force_refresh` ends it, at most 20 times a day.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import orjson

from gateway.contract import Shared
from gateway.errors import Unavailable
from gateway.wechat.errcodes import TOKEN_REMEDIES, Trouble, error_of
from gateway.wechat.server import TIMEOUT_SECS, Server

_PATH = "/cgi-bin/stable_token"
_OVERLAP_SECS = 270  # 300 by the vendor's word, less what clocks and the way may differ by
_MARGIN_SECS = 10  # a token that ends so soon is not used any more
_MAX_LIFE_SECS = 7200
_PAUSE_SECS = 30  # after a failure, while the old token is good
_CLAIM_SECS = TIMEOUT_SECS + 5  # longer than an attempt lasts
_LOOK_SECS = 0.1  # how often who waits for another process looks
_FORCE_SECS = 86_400 / 20  # the vendor's limit a day, spread over it; it asks for 30 s at least
_TOKEN = re.compile(r"[!-~]{1,2048}")  # the vendor says 512 at least

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Held:
    """A token; times in seconds since the epoch."""

    token: str = field(repr=False)
    renew_at: float
    expires_at: float


_NOTHING = Held("", 0, 0)


class StableToken:
    """`give()` and `force()` raise Unavailable, Trouble when only the operator can help."""

    def __init__(self, server: Server, shared: Shared, appid: str, secret: str, now: Callable[[], datetime]) -> None:
        self._server = server
        self._shared = shared
        self._appid = appid
        self._secret = secret
        self._now = now
        self._held = _NOTHING
        self._refused = ""
        self._paused_until = 0.0
        self._failure: Unavailable | None = None
        self._lock = asyncio.Lock()

    @property
    def trouble(self) -> str:
        """What the operator has to do about it, from the last attempt; "" when that went well."""
        return self._failure.reason if isinstance(self._failure, Trouble) else ""

    async def give(self) -> str:
        """A token that is good by all we know."""
        if self._fresh(self._held) or (self._valid(self._held) and (self._lock.locked() or self._paused())):
            return self._held.token
        async with self._lock:  # a caller that is cancelled hands it to the next
            return (await self._newest()).token

    async def forget(self, token: str) -> None:
        """WeChat refused it."""
        self._refused = token
        if self._held.token == token:
            self._held, self._paused_until = _NOTHING, 0.0
        if _stored(await self._unless_away(self._shared.get(self._key("token")), None)).token == token:
            await self._unless_away(self._shared.delete(self._key("token")), None)

    async def force(self) -> str:
        """Another one than the platform gives when asked: the last resort, once in 72 minutes over all processes."""
        async with self._lock:
            await self._look()
            if self._valid(self._held) and self._held.token != self._refused:
                return self._held.token
            mine = secrets.token_hex(8)
            if await self._claimed("token:forced", mine, _FORCE_SECS, away="") != mine:
                raise Unavailable(reason="WeChat refuses the token it gives, and forbids to ask for another so soon")
            return (await self._asked(force=True)).token

    async def check(self) -> None:
        """Asks the platform, whatever is held: are appid and secret good, is our address let in?"""
        async with self._lock:
            await self._asked(force=False)

    async def _newest(self) -> Held:
        """Ours, another process', or one that is asked for now."""
        if not self._fresh(self._held):
            await self._look()
        if self._fresh(self._held):
            return self._held
        if self._paused() and self._failure and not self._valid(self._held):
            raise _again(self._failure)
        try:
            return await self._renewed()
        except Unavailable as error:
            if not self._valid(self._held):
                self._paused_until = self._seconds() + min(error.retry_after, _PAUSE_SECS)
                raise
            self._paused_until = self._seconds() + _PAUSE_SECS
            return self._held

    async def _renewed(self) -> Held:
        """By the one process that holds the claim; the others use what they have, or wait for what it gets."""
        mine = secrets.token_hex(8)
        patience = time.monotonic() + 2 * _CLAIM_SECS
        while await self._claimed("token:asking", mine, _CLAIM_SECS, away=mine) != mine:
            if self._valid(self._held):
                return self._held
            if time.monotonic() > patience:
                raise Unavailable(reason="another process has been asking for the token for too long")
            await asyncio.sleep(_LOOK_SECS)
            await self._look()
        try:
            await self._look()  # the one before us may have just put it there
            return self._held if self._fresh(self._held) else await self._asked(force=False)
        finally:
            await self._unless_away(self._shared.delete(self._key("token:asking")), None)

    async def _asked(self, force: bool) -> Held:
        asked_at = self._seconds()
        question = {"grant_type": "client_credential", "appid": self._appid, "secret": self._secret}
        try:
            answer = await self._server.ask(_PATH, {}, question | {"force_refresh": force})
            if answer.code:
                raise error_of(answer.code, answer.message, remedies=TOKEN_REMEDIES)
            self._held = _held(answer.document, asked_at)
        except Unavailable as error:
            self._failure = error
            raise
        self._failure, self._paused_until = None, 0.0
        stored = orjson.dumps([self._held.token, self._held.renew_at, self._held.expires_at]).decode()
        life = max(self._held.expires_at - asked_at, 1)
        await self._unless_away(self._shared.put(self._key("token"), stored, ttl_secs=life), None)
        return self._held

    async def _look(self) -> None:
        """Takes what another process has put there, if it is newer than ours."""
        stored = _stored(await self._unless_away(self._shared.get(self._key("token")), None))
        if stored.token != self._refused and stored.expires_at > self._held.expires_at:
            self._held = stored

    async def _claimed(self, name: str, mine: str, ttl_secs: float, away: str) -> str:
        return await self._unless_away(self._shared.claim(self._key(name), mine, ttl_secs=ttl_secs), away)

    async def _unless_away(self, asked: Awaitable[_T], else_: _T) -> _T:
        """Without Redis, this process has a token of its own: the platform gives it the same one."""
        try:
            return await asked
        except Unavailable:
            return else_

    def _key(self, name: str) -> str:
        return f"wechat:{self._appid}:{name}"

    def _seconds(self) -> float:
        return self._now().timestamp()

    def _fresh(self, held: Held) -> bool:
        return self._seconds() < held.renew_at

    def _valid(self, held: Held) -> bool:
        return self._seconds() < held.expires_at - _MARGIN_SECS

    def _paused(self) -> bool:
        return self._seconds() < self._paused_until


def _held(document: Mapping[str, Any], asked_at: float) -> Held:
    token, life = document.get("access_token"), document.get("expires_in")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise Unavailable(reason="WeChat's server gives no access_token", retry_after=60)
    if isinstance(life, bool) or not isinstance(life, int | float) or not 0 < life <= _MAX_LIFE_SECS:
        raise Unavailable(reason="WeChat's server gives an access_token without a sensible expires_in", retry_after=60)
    return Held(token, asked_at + max(life - _OVERLAP_SECS, life / 2), asked_at + life)


def _stored(text: str | None) -> Held:
    try:
        token, renew_at, expires_at = orjson.loads(text or "")
        return Held(str(token), float(renew_at), float(expires_at))
    except (ValueError, TypeError):
        return _NOTHING


def _again(failure: Unavailable) -> Unavailable:
    return type(failure)(failure.code, reason=failure.reason, retry_after=failure.retry_after)
