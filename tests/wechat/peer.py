"""WeChat's side of a push, written a second time: with `cryptography` and hashlib, and nothing of what is tested."""

import base64
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7
from multidict import CIMultiDict, MultiDict

from gateway.contract import Request

NOW = 1_760_000_000  # seconds since the epoch
TOKEN = "hKc6dTokenOfTests"
AES_KEY = "Zq7W0bL2sXn5RkU8vYt3CjH6mPf9DaGe1oIiKlMwNx4"
OTHER_AES_KEY = "b3Jx9TzQ1mVn4YcK7hLs0WfR6pDg2XuE8aIoMkNlPyC"
APPID = "wx5a1e0f7c33d94b26"

TEXT = (
    "<xml><ToUserName><![CDATA[gh_aa11]]></ToUserName><FromUserName><![CDATA[oUser01]]></FromUserName>"
    "<CreateTime>1760000000</CreateTime><MsgType><![CDATA[text]]></MsgType>"
    "<Content><![CDATA[订单 7788 未到货]]></Content><MsgId>24500000000000001</MsgId></xml>"
).encode()


def sign(*texts: str) -> str:
    return hashlib.sha1("".join(sorted(texts)).encode()).hexdigest()


def call(query: Mapping[str, str], body: bytes = b"", method: str = "POST") -> Request:
    return Request(method, "", "https://x.example/c/wechat", MultiDict(query), CIMultiDict(), "203.0.113.5", body)


@dataclass(frozen=True)
class Peer:
    """WeChat, as it knows one account."""

    token: str = TOKEN
    aes_key: str = AES_KEY
    appid: str = APPID

    def cipher(self) -> Cipher[modes.CBC]:
        key = base64.b64decode(self.aes_key + "=")
        return Cipher(algorithms.AES(key), modes.CBC(key[:16]))

    def encrypt_blocks(self, padded: bytes) -> str:
        """Whatever bytes these are."""
        encryptor = self.cipher().encryptor()
        return base64.b64encode(encryptor.update(padded) + encryptor.finalize()).decode()

    def encrypt(self, message: bytes, *, random: bytes = b"0123456789abcdef", length: int | None = None) -> str:
        padder = PKCS7(256).padder()
        content = random + struct.pack(">I", len(message) if length is None else length)
        content += message + self.appid.encode()
        return self.encrypt_blocks(padder.update(content) + padder.finalize())

    def decrypt(self, encrypted: str) -> bytes:
        decryptor, unpadder = self.cipher().decryptor(), PKCS7(256).unpadder()
        padded = decryptor.update(base64.b64decode(encrypted)) + decryptor.finalize()
        content = unpadder.update(padded) + unpadder.finalize()
        (length,) = struct.unpack(">I", content[16:20])
        assert content[20 + length :] == self.appid.encode()
        return content[20 : 20 + length]

    def echo(self, echostr: str, *, at: int = NOW, nonce: str = "1514711492") -> Request:
        return call(self.query(at, nonce) | {"echostr": echostr}, method="GET")

    def push(self, message: bytes = TEXT, *, form: str = "xml", at: int = NOW, nonce: str = "415670741") -> Request:
        """In the safe mode."""
        return self.sealed(self.encrypt(message), form=form, at=at, nonce=nonce)

    def sealed(self, encrypted: str, *, form: str = "xml", at: int = NOW, nonce: str = "415670741") -> Request:
        """A body with this for its `Encrypt`, well signed."""
        return call(self.sealed_query(encrypted, at, nonce), envelope(encrypted, form))

    def compatible(self, message: bytes, beside: bytes) -> Request:
        """`beside`: an XML document whose fields stand in clear beside the encrypted message."""
        encrypted = self.encrypt(message)
        body = beside.replace(b"</xml>", f"<Encrypt><![CDATA[{encrypted}]]></Encrypt></xml>".encode())
        return call(self.sealed_query(encrypted, NOW, "415670741"), body)

    def plain(self, message: bytes = TEXT, *, at: int = NOW, nonce: str = "486452656") -> Request:
        """In the plaintext mode."""
        return call(self.query(at, nonce), message)

    def query(self, at: int, nonce: str) -> dict[str, str]:
        return {"signature": sign(self.token, str(at), nonce), "timestamp": str(at), "nonce": nonce}

    def sealed_query(self, encrypted: str, at: int, nonce: str) -> dict[str, str]:
        signature = sign(self.token, str(at), nonce, encrypted)
        return self.query(at, nonce) | {"encrypt_type": "aes", "msg_signature": signature}

    def read(self, answer: bytes) -> bytes:
        """The passive reply in an encrypted answer, whose signature is checked."""
        found = fields(answer)
        signed = (self.token, str(found["TimeStamp"]), found["Nonce"], found["Encrypt"])
        assert found["MsgSignature"] == sign(*signed)
        return self.decrypt(found["Encrypt"])


def envelope(encrypted: Any, form: str = "xml") -> bytes:
    if form == "json":
        return json.dumps({"ToUserName": "gh_aa11", "Encrypt": encrypted}).encode()
    to = "<ToUserName><![CDATA[gh_aa11]]></ToUserName>"
    return f"<xml>{to}<Encrypt><![CDATA[{encrypted}]]></Encrypt></xml>".encode()


def fields(answer: bytes) -> dict[str, Any]:
    """What WeChat finds in an answer."""
    if answer.startswith(b"{"):
        found: dict[str, Any] = json.loads(answer)
        return found
    return {child.tag: child.text or "" for child in ElementTree.fromstring(answer)}
