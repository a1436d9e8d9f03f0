"""A push of WeChat, authenticated over its raw bytes and read; the answers to it.

Protocol: to the address in the console WeChat sends `GET ?signature&timestamp&nonce&echostr` once, to see that it is
    ours, and then `POST ?timestamp&nonce&…` for every message, in XML or (mini-programs, where chosen) in JSON.
    In the mode safe the body holds `Encrypt`, and `msg_signature` covers it; in compatible the same beside the plain
    fields; in plaintext there are the fields alone, and `signature` covers the timestamp and the nonce but no body.
    So the plain fields beside an `Encrypt` are never read, and a body without it only where the settings say plaintext.
Authentication: the signature under the token; the appid at the end of what was encrypted; a time within
    `freshness_secs` of ours; one body per nonce. Two keys are tried, since WeChat changes over while it pushes.
Redelivery: three times within some seconds, unless the answer within five is `success`, nothing, or a passive reply;
    after the third the customer reads that the account is out of order.
Limits: MAX_PUSH_BYTES; those of `document.py`.
Source: developers.weixin.qq.com/doc/service/guide/dev/push/ and …/push/encryption,
    /miniprogram/dev/framework/server-ability/message-push.html
"""

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

import orjson

from gateway.contract import Body, BodyFile, Reply, Request, Shared, body_size
from gateway.errors import Rejected
from gateway.nonces import Nonces
from gateway.wechat.credentials import PushSettings
from gateway.wechat.crypto import Key, is_signature, signature
from gateway.wechat.document import Form, form_of, read
from gateway.wechat.replies import text_reply, transfer_reply

MAX_PUSH_BYTES = 64 << 10  # a text has 2 KiB, encrypted and beside its plain fields 6
SUCCESS = Reply(200, b"success")  # taken, nothing to say; needs no encryption in any mode

_TIMESTAMP = re.compile(r"[0-9]{10}")
# The signed texts are not set apart from each other: the narrower they are, the fewer other ways there are to cut them.
_NONCE = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Nothing signs the echostr, so whoever knows an address in time can have us echo it: no markup, no words.
_ECHOSTR = re.compile(r"[A-Za-z0-9+/=_.~-]{1,256}")
_CONTENT_TYPES: Mapping[Form, str] = {"xml": "text/xml; charset=utf-8", "json": "application/json"}
_ENVELOPE = (
    "<xml><Encrypt><![CDATA[{Encrypt}]]></Encrypt><MsgSignature><![CDATA[{MsgSignature}]]></MsgSignature>"
    "<TimeStamp>{TimeStamp}</TimeStamp><Nonce><![CDATA[{Nonce}]]></Nonce></xml>"
)


@dataclass(frozen=True, slots=True)
class Push:
    """An authentic push. `fields` as `document.read` gives them, of the bytes `plain`.

    `unreadable` says why there are no fields, where WeChat sent what we cannot read: that is to be kept and answered
    with `success`. `form` is the body's, and so its answer's; `key` the one that deciphered it, counted from the
    current one.
    """

    fields: Mapping[str, Any]
    plain: bytes
    form: Form
    encrypted: bool
    key: int = 0
    unreadable: str = ""


class Account:
    """An official account or a mini-program, as WeChat calls on its behalf."""

    def __init__(self, settings: PushSettings, shared: Shared, now: Callable[[], datetime]) -> None:
        self._token = settings.token.get_secret_value()
        self._plaintext = settings.mode == "plaintext"
        self._freshness_secs = settings.freshness_secs
        keys = (settings.aes_key, settings.previous_aes_key)
        self._keys = [Key(key.get_secret_value(), settings.appid) for key in keys if key]
        self._nonces = Nonces(f"wechat:{settings.appid}:nonce:", shared, now)
        self._now = now

    def echo(self, request: Request) -> Reply:
        """The answer to the console's check of our address. Raises Rejected("forbidden" or "malformed")."""
        timestamp, nonce = self._signed(request)
        self._demand_signature(request, "signature", timestamp, nonce)
        self._demand_fresh(timestamp)
        echostr = _parameter(request, "echostr", _ECHOSTR)
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        return Reply(200, echostr.encode(), headers=headers)

    async def verify(self, request: Request) -> Push:
        """Raises Rejected: "too_large", "malformed", or "forbidden" for all that is not proven to come from WeChat."""
        body = await _read(request.body)
        timestamp, nonce = self._signed(request)
        if self._plaintext and not (self._keys and "msg_signature" in request.query):
            return await self._verify_plain(request, body, timestamp, nonce)
        return await self._verify_encrypted(request, body, timestamp, nonce)

    async def _verify_encrypted(self, request: Request, body: bytes, timestamp: str, nonce: str) -> Push:
        form, encrypted = form_of(body), _encrypted(read(body))
        self._demand_signature(request, "msg_signature", timestamp, nonce, encrypted)
        self._demand_fresh(timestamp)
        plain, key = self._decrypt(encrypted)
        # By the plain bytes: a retry may be encrypted anew. In this process alone: only WeChat can sign another body.
        await self._demand_unused(timestamp, nonce, plain, everywhere=False)
        try:
            return Push(read(plain), plain, form, True, key)
        except Rejected as error:
            return Push({}, plain, form, True, key, error.reason)

    async def _verify_plain(self, request: Request, body: bytes, timestamp: str, nonce: str) -> Push:
        self._demand_signature(request, "signature", timestamp, nonce)
        self._demand_fresh(timestamp)
        form, fields = form_of(body), read(body)  # nothing proves who wrote it: what cannot be read is not kept
        if "Encrypt" in fields and "MsgType" not in fields:
            raise Rejected("forbidden", "the body is encrypted, and this channel has no aes_key")
        await self._demand_unused(timestamp, nonce, body, everywhere=True)
        return Push(fields, body, form, False)

    def answer(self, push: Push, reply: bytes) -> Reply:
        """A passive reply in the push's own form, encrypted with its key if the push was."""
        if push.encrypted:
            nonce = str(secrets.randbelow(10**10))
            reply = seal(reply, push.form, self._keys[push.key], self._token, int(self._now().timestamp()), nonce)
        return Reply(200, reply, _CONTENT_TYPES[push.form])

    def say(self, push: Push, text: str) -> Reply:
        """A passive reply that the customer reads. Raises Rejected when the push names nobody."""
        return self.answer(push, text_reply(push.fields, push.form, text, self._now()))

    def transfer(self, push: Push) -> Reply:
        """The passive reply that hands the message to the agents in WeChat's own tool. Raises Rejected likewise."""
        return self.answer(push, transfer_reply(push.fields, push.form, self._now()))

    # Authentication

    def _signed(self, request: Request) -> tuple[str, str]:
        return _parameter(request, "timestamp", _TIMESTAMP), _parameter(request, "nonce", _NONCE)

    def _demand_signature(self, request: Request, name: str, *signed: str) -> None:
        given = request.query.getall(name, [])
        if len(given) != 1 or not is_signature(given[0], self._token, *signed):
            raise Rejected("forbidden", f"{name} does not match: is the token the one in WeChat's console?")

    def _demand_fresh(self, timestamp: str) -> None:
        off = self._now().timestamp() - int(timestamp)
        if abs(off) > self._freshness_secs:
            raise Rejected("forbidden", "the timestamp is not of now", reason=f"it is {off:.0f} s behind our clock")

    async def _demand_unused(self, timestamp: str, nonce: str, plain: bytes, *, everywhere: bool) -> None:
        ttl_secs = int(timestamp) + self._freshness_secs - self._now().timestamp() + 1
        digest = sha256(plain).hexdigest()
        await self._nonces.claim(f"{timestamp}:{nonce}", digest, ttl_secs, everywhere=everywhere)

    def _decrypt(self, encrypted: str) -> tuple[bytes, int]:
        reasons = []
        for number, key in enumerate(self._keys):
            try:
                return key.decrypt(encrypted), number
            except Rejected as error:
                reasons.append(error.reason)
        raise Rejected("forbidden", "this cannot be decrypted for this account", reason="; ".join(reasons))


def seal(message: bytes, form: Form, key: Key, token: str, timestamp: int, nonce: str) -> bytes:
    """A reply encrypted and signed as WeChat does with what it sends."""
    encrypted = key.encrypt(message)
    envelope = {
        "Encrypt": encrypted,
        "MsgSignature": signature(token, str(timestamp), nonce, encrypted),
        "TimeStamp": timestamp,
        "Nonce": nonce,
    }
    return orjson.dumps(envelope) if form == "json" else _ENVELOPE.format_map(envelope).encode()


async def _read(body: Body) -> bytes:
    if body_size(body) > MAX_PUSH_BYTES:
        raise Rejected("too_large", f"a push has at most {MAX_PUSH_BYTES} bytes")
    return await asyncio.to_thread(body.path.read_bytes) if isinstance(body, BodyFile) else body


def _encrypted(fields: Mapping[str, Any]) -> str:
    encrypted = fields.get("Encrypt")
    if not encrypted:
        raise Rejected("forbidden", "the body is not encrypted: choose the safe mode in WeChat's console")
    if not isinstance(encrypted, str):
        raise Rejected("malformed", "Encrypt is no text")
    return encrypted


def _parameter(request: Request, name: str, form: re.Pattern[str]) -> str:
    given = request.query.getall(name, [])
    if len(given) != 1:
        raise Rejected("forbidden", f"the address needs one {name}")
    if not form.fullmatch(given[0]):
        raise Rejected("malformed", f"{name} is none of WeChat's")
    return given[0]
