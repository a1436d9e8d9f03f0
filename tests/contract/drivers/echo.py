"""The sender of an `echo` channel."""

import hmac

import orjson

from tests.contract.driver import Call, WebhookDriver


class Driver(WebhookDriver):
    """The vendor, who has the secret."""

    env = {"ECHO_SECRET": "the-echo-secret-of-the-contract"}

    def message(self, native_id: str) -> Call:
        body = orjson.dumps({"id": native_id, "from": "zhang", "text": "你好"})
        return Call(headers={"Content-Type": "application/json"}, body=body)

    def authenticated(self, call: Call) -> Call:
        return _signed(call, self.env["ECHO_SECRET"])

    def forged(self, call: Call) -> Call:
        return _signed(call, "a-secret-that-was-guessed")


def _signed(call: Call, secret: str) -> Call:
    return call.having(X_Echo_Signature=f"sha256={hmac.digest(secret.encode(), call.body, 'sha256').hex()}")
