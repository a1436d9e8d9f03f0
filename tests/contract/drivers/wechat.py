"""WeChat, which pushes to a `wechat` channel in the mode safe, and in plaintext."""

import re
import secrets
import time
from dataclasses import replace
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode

from tests.contract.driver import Answer, Call, WebhookDriver
from tests.wechat.peer import AES_KEY, TOKEN, Peer, envelope, fields

_ENCRYPTED = re.compile(rb"<Encrypt><!\[CDATA\[([^\]<]*)\]\]></Encrypt>")
_MESSAGE = (
    "<xml><ToUserName><![CDATA[gh_aa11]]></ToUserName><FromUserName><![CDATA[o{id}]]></FromUserName>"
    "<CreateTime>1760000000</CreateTime><MsgType><![CDATA[text]]></MsgType>"
    "<Content><![CDATA[订单 7788 未到货]]></Content><MsgId>{id}</MsgId></xml>"
)


class _WeChat(WebhookDriver):
    """Every message is another user's, so that each is told its reference. The example's account, without its secret:
    its server is not on loopback."""

    env = {"WECHAT_TOKEN": TOKEN, "WECHAT_AES_KEY": AES_KEY, "WECHAT_SECRET": "the-app-secret-of-the-contract"}
    kept = frozenset({"unreadable", "malformed"})
    peer = Peer(appid="wx0123456789abcdef")
    guesser = Peer(token="a-token-that-was-guessed", appid="wx0123456789abcdef")

    def overrides(self) -> dict[str, Any]:
        return {"secret": None}

    def plain(self, native_id: str) -> bytes:
        return _MESSAGE.format(id=native_id).encode()

    def malformed(self) -> Call:
        """A push that is no document at all; what WeChat itself sends is kept, whatever it is."""
        return replace(self.authenticated(self.message("malformed")), body=b"\xff{")


class Safe(_WeChat):
    """What it sends is encrypted, and signed as it is."""

    def message(self, native_id: str) -> Call:
        plain = self.plain(native_id)
        encrypted = self.peer.encrypt(plain, random=sha256(plain).digest()[:16])
        return Call(headers={"Content-Type": "text/xml"}, body=envelope(encrypted))

    def authenticated(self, call: Call) -> Call:
        return _signed(call, self.peer)

    def forged(self, call: Call) -> Call:
        return _signed(call, self.guesser)

    def raw(self, call: Call) -> bytes:
        found = _ENCRYPTED.search(call.body)
        assert found
        return self.peer.decrypt(found[1].decode())

    def reference(self, answer: Answer) -> str:
        return super().reference(replace(answer, body=self.peer.read(answer.body)))


class Plaintext(_WeChat):
    """What it sends is in clear, and only the time and the nonce are signed."""

    def overrides(self) -> dict[str, Any]:
        return {**super().overrides(), "mode": "plaintext", "aes_key": None}

    def message(self, native_id: str) -> Call:
        return Call(headers={"Content-Type": "text/xml"}, body=self.plain(native_id))

    def authenticated(self, call: Call) -> Call:
        return _with(call, self.peer.query(*_now()))

    def forged(self, call: Call) -> Call:
        return _with(call, self.guesser.query(*_now()))

    def reference(self, answer: Answer) -> str:
        return super().reference(replace(answer, body=fields(answer.body)["Content"].encode()))


def _signed(call: Call, peer: Peer) -> Call:
    found = _ENCRYPTED.search(call.body)
    return _with(call, peer.sealed_query(found[1].decode("utf-8", "replace") if found else "", *_now()))


def _now() -> tuple[int, str]:
    return int(time.time()), secrets.token_hex(8)


def _with(call: Call, query: dict[str, str]) -> Call:
    return replace(call, path=f"{call.path.partition('?')[0]}?{urlencode(query)}")
