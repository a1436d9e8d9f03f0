"""WeChat, which pushes the chat of a mini-program as JSON and as XML, and a user who fills in its form."""

import re
import secrets
import time
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode

import orjson

from tests.contract.driver import Answer, Call, Send, WebhookDriver
from tests.wechat.peer import AES_KEY, TOKEN, Peer, envelope
from tests.wechatserver import APPID, SECRET, WeChatServer

_ENCRYPTED = re.compile(rb'"Encrypt": ?"([^"]*)"|<Encrypt><!\[CDATA\[([^\]<]*)\]\]></Encrypt>')
_NO_REFERENCE = "WeChat is answered `success`: nothing else than a reply of its own kind could be said to the customer"


class _MiniProgram(WebhookDriver):
    """The example's account, at a server of our own."""

    env = {"MINI_TOKEN": TOKEN, "MINI_AES_KEY": AES_KEY, "MINI_SECRET": SECRET}

    def __init__(self, type_: str) -> None:
        super().__init__(type_)
        self.wechat = WeChatServer()

    @asynccontextmanager
    async def world(self) -> AsyncIterator[None]:
        async with self.wechat:
            yield

    def overrides(self) -> dict[str, Any]:
        return {"api_base_url": self.wechat.url}


class _Push(_MiniProgram):
    kept = frozenset({"unreadable", "malformed"})
    waivers = {"the_answer_names_the_ticket": _NO_REFERENCE}
    peer = Peer(appid=APPID)
    guesser = Peer(token="a-token-that-was-guessed", appid=APPID)
    form = "json"

    @abstractmethod
    def plain(self, native_id: str) -> bytes:
        """What WeChat says, once it is decrypted."""

    def overrides(self) -> dict[str, Any]:
        return {**super().overrides(), "format": self.form}

    def message(self, native_id: str) -> Call:
        plain = self.plain(native_id)
        encrypted = self.peer.encrypt(plain, random=sha256(plain).digest()[:16])
        return Call(body=envelope(encrypted, self.form))

    def authenticated(self, call: Call) -> Call:
        return _signed(call, self.peer)

    def forged(self, call: Call) -> Call:
        return _signed(call, self.guesser)

    def malformed(self) -> Call:
        """A push that is no document at all; what WeChat itself sends is kept, whatever it is."""
        return replace(self.authenticated(self.message("malformed")), body=b"\xff{")

    def raw(self, call: Call) -> bytes:
        return self.peer.decrypt(_encrypted(call.body))

    def reference(self, answer: Answer) -> str:
        assert answer.body == b"success"
        return ""


class Json(_Push):
    def plain(self, native_id: str) -> bytes:
        message = {"ToUserName": "gh_aa11", "FromUserName": "oUser01", "CreateTime": 1760000000, "MsgType": "text"}
        return orjson.dumps({**message, "Content": "订单 7788 未到货", "MsgId": native_id})


class Xml(_Push):
    form = "xml"

    def plain(self, native_id: str) -> bytes:
        return (
            "<xml><ToUserName><![CDATA[gh_aa11]]></ToUserName><FromUserName><![CDATA[oUser01]]></FromUserName>"
            "<CreateTime>1760000000</CreateTime><MsgType><![CDATA[text]]></MsgType>"
            f"<Content><![CDATA[订单 7788 未到货]]></Content><MsgId>{native_id}</MsgId></xml>"
        ).encode()


class Form(_MiniProgram):
    """A user's mini-program, logged in."""

    def overrides(self) -> dict[str, Any]:
        label = {"label": "a label"}
        fields = [{"name": "text", "type": "textarea", "required": True}, {"name": "photo", "type": "file"}]
        return {**super().overrides(), "form": {"fields": [field | label for field in fields], "rate": None}}

    async def prepare(self, send: Send) -> None:
        code = self.wechat.login("oUser01", "uUser01")
        answer = await send(Call(path="/session", body=orjson.dumps({"code": code})))
        self._session = orjson.loads(answer.body)["session"]

    def message(self, native_id: str) -> Call:
        headers = {"Content-Type": "application/json", "Idempotency-Key": native_id}
        return Call(path="/messages", headers=headers, body=orjson.dumps({"text": f"坏了 {native_id}"}))

    def authenticated(self, call: Call) -> Call:
        return call.having(Authorization=f"Bearer {self._session}")

    def forged(self, call: Call) -> Call:
        return call.having(Authorization=f"Bearer {secrets.token_urlsafe(32)}")

    def raw(self, call: Call) -> None:
        """A multipart body, of a boundary that nobody can know before."""


def _encrypted(body: bytes) -> str:
    found = _ENCRYPTED.search(body)
    return (found[1] or found[2] or b"").decode("utf-8", "replace") if found else ""


def _signed(call: Call, peer: Peer) -> Call:
    query = peer.sealed_query(_encrypted(call.body), int(time.time()), secrets.token_hex(8))
    return replace(call, path=f"{call.path.partition('?')[0]}?{urlencode(query)}")
