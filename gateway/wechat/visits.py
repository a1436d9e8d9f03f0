"""Who has logged in from inside a mini-program, and the files they have uploaded: kept in Redis, for a time.

`wx.login` gives the mini-program a code, WeChat's server gives us the user behind it, and we give the mini-program a
random token. Of that only the SHA-256 is kept, of the session_key nothing. Files and telephone numbers are kept under
the same digest, so that they serve nobody else.
Source: developers.weixin.qq.com/miniprogram/dev/framework/open-ability/login.html
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import orjson

from gateway.contract import Shared
from gateway.errors import Rejected
from gateway.wechat.api import Api

LOGIN = {"action": "login"}  # in a problem document: call wx.login, and begin a new session
_TOKEN = re.compile("[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class Visitor:
    """A user in a session. `key` is what their things are kept under."""

    key: str
    openid: str
    unionid: str | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """A file that was uploaded. `digest` is its hex SHA-256, by which Context.uploads has it."""

    digest: str
    filename: str
    content_type: str
    size: int


class Visits:
    """Of one mini-program. Everything raises Unavailable when Redis is away."""

    def __init__(self, api: Api, shared: Shared, appid: str, ttl_secs: float) -> None:
        self._api = api
        self._shared = shared
        self._prefix = f"wechat:{appid}:visit:"
        self._ttl_secs = ttl_secs

    async def begin(self, code: str) -> str:
        """A new session's token, for a code of `wx.login`. Raises Rejected as Api.session does."""
        user = await self._api.session(code)
        token = secrets.token_urlsafe(32)
        await self._put(_key(token), "user", {"openid": user.openid, "unionid": user.unionid})
        return token

    async def find(self, token: str) -> Visitor:
        """Raises Rejected("unauthenticated")."""
        found = await self._get(_key(token), "user") if _TOKEN.fullmatch(token) else None
        if found is None:
            raise Rejected("unauthenticated", "there is no such session, or no longer: log in again", extra=LOGIN)
        return Visitor(_key(token), found["openid"], found["unionid"])

    async def files(self, visitor: Visitor) -> Mapping[str, Kept]:
        """What they have uploaded in this session, by id."""
        return await self._files(visitor, {})

    async def add(self, visitor: Visitor, file: Kept) -> str:
        """The file's id: the same for the same content, so that an upload that is tried again is one."""
        id_ = file_id(file.digest)
        about = [file.digest, file.filename, file.content_type, file.size]
        await self._files(visitor, {id_: orjson.dumps(about).decode()})
        return id_

    async def phone(self, visitor: Visitor, code: str) -> str:
        """The number (E.164) for a code of `getPhoneNumber`. Raises Rejected as Api.phone does.

        WeChat takes a code once, a visitor whose message was lost on the way sends it again: so the number is kept.
        """
        place = f"phone:{sha256(code.encode('utf-8', 'surrogatepass')).hexdigest()}"
        known = await self._get(visitor.key, place)
        if known is not None:
            return str(known["number"])
        number = await self._api.phone(code)
        await self._put(visitor.key, place, {"number": number})
        return number

    async def _files(self, visitor: Visitor, more: Mapping[str, str]) -> dict[str, Kept]:
        found = await self._shared.merge(self._place(visitor.key, "files"), more, ttl_secs=self._ttl_secs)
        return {id_: Kept(*orjson.loads(about)) for id_, about in found.items()}

    async def _put(self, key: str, name: str, document: Mapping[str, Any]) -> None:
        await self._shared.put(self._place(key, name), orjson.dumps(document).decode(), ttl_secs=self._ttl_secs)

    async def _get(self, key: str, name: str) -> dict[str, Any] | None:
        found = await self._shared.get(self._place(key, name))
        document: dict[str, Any] | None = orjson.loads(found) if found else None
        return document

    def _place(self, key: str, name: str) -> str:
        return f"{self._prefix}{key}:{name}"


def file_id(digest: str) -> str:
    return digest[:32]


def _key(token: str) -> str:
    return sha256(token.encode()).hexdigest()
