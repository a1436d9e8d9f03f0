"""Programs that post to an `api` channel, by each of its two kinds of keys."""

import hmac
import time
from base64 import b64decode, b64encode
from hashlib import sha256

import orjson

from tests.contract.driver import Call, WebhookDriver

KEY = "the-bearer-key-of-the-contract"
SECRET = f"whsec_{b64encode(b'the signing key of the contract.').decode()}"
OTHER_SECRET = f"whsec_{b64encode(b'a signing key that was guessed..').decode()}"


class _Program(WebhookDriver):
    env = {"SHOP_API_KEY_SHA256": sha256(KEY.encode()).hexdigest(), "SHOP_APP_SECRET": SECRET}
    secrets = (KEY,)

    def _json(self, native_id: str, **headers: str) -> Call:
        body = orjson.dumps({"text": f"你好 {native_id}", "sender": {"user_id": "u-1"}})
        return Call(headers={"Content-Type": "application/json"}, body=body).having(**headers)


class Bearer(_Program):
    """A server's program."""

    def message(self, native_id: str) -> Call:
        return self._json(native_id, Idempotency_Key=f'"{native_id}"')

    def authenticated(self, call: Call) -> Call:
        return call.having(Authorization=f"Bearer {KEY}")

    def forged(self, call: Call) -> Call:
        return call.having(Authorization="Bearer a-key-that-was-guessed")


class Signed(_Program):
    """An app, which signs each request."""

    def message(self, native_id: str) -> Call:
        return self._json(native_id, webhook_id=native_id)

    def authenticated(self, call: Call) -> Call:
        return _signed(call, SECRET)

    def forged(self, call: Call) -> Call:
        return _signed(call, OTHER_SECRET)


def _signed(call: Call, secret: str) -> Call:
    id_, timestamp = call.headers.get("webhook-id", "none"), str(int(time.time()))
    text = f"{id_}.{timestamp}.".encode() + call.body
    signature = b64encode(hmac.digest(b64decode(secret.removeprefix("whsec_")), text, "sha256")).decode()
    return call.having(webhook_id=id_, webhook_timestamp=timestamp, webhook_signature=f"v1,{signature}")
