"""Telephone systems that report a missed call: one for each way in which they can prove who they are.

Twilio's way needs to know the public address; see tests/connectors/test_voice_live.py.
"""

import base64
import hmac
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from tests.contract.driver import ROOT, Answer, Call, WebhookDriver

SECRET = "the-secret-path-of-the-contract"
PASSWORD = "the-password-of-the-contract"
KEY = "the-signing-key-of-the-contract"


class _System(WebhookDriver):
    preset = "generic"
    env = {"VOICE_SECRET": SECRET}

    @property
    def example(self) -> Path:
        return ROOT / f"config/channels/voice-{self.preset}.example.yaml"

    def message(self, native_id: str) -> Call:
        record = {"call_id": native_id, "direction": "inbound", "caller": "13800138000", "result": "missed"}
        return Call(headers={"Content-Type": "application/json"}, body=orjson.dumps(record))

    def reference(self, answer: Answer) -> str:
        """Beside what the vendor wants to hear."""
        return answer.headers["huiru-reference"]


class Knowing(_System):
    """Knows the secret address."""

    def authenticated(self, call: Call) -> Call:
        return replace(call, path=f"/{SECRET}{call.path}")

    def forged(self, call: Call) -> Call:
        return replace(call, path=f"/a-secret-path-that-was-guessed{call.path}")

    def is_unauthenticated(self, answer: Answer) -> bool:
        """There is nothing at any other address."""
        return answer.status == 404


class Signing(_System):
    """Signs the body."""

    def overrides(self) -> dict[str, Any]:
        return {"authentication": {"scheme": "hmac", "secret": KEY, "header": "X-Signature", "prefix": "sha256="}}

    def authenticated(self, call: Call) -> Call:
        return _signed(call, KEY)

    def forged(self, call: Call) -> Call:
        return _signed(call, "a-signing-key-that-was-guessed")


class Basic(_System):
    """The call centre of a vendor, with a password."""

    preset = "tccc"
    env = {"TCCC_PASSWORD": PASSWORD}
    secrets = (base64.b64encode(f"tccc:{PASSWORD}".encode()).decode(),)

    def message(self, native_id: str) -> Call:
        record = {"SdkAppId": 1400, "SessionId": native_id, "Caller": "13800138000", "Direction": 0, "EndStatus": 104}
        headers = {"Content-Type": "application/json;charset=utf8"}
        return Call(path="?action=cdr&version=1", headers=headers, body=orjson.dumps(record))

    def authenticated(self, call: Call) -> Call:
        return _with_password(call, PASSWORD)

    def forged(self, call: Call) -> Call:
        return _with_password(call, "a-password-that-was-guessed")


def _signed(call: Call, key: str) -> Call:
    return call.having(X_Signature=f"sha256={hmac.digest(key.encode(), call.body, 'sha256').hex()}")


def _with_password(call: Call, password: str) -> Call:
    return call.having(Authorization=f"Basic {base64.b64encode(f'tccc:{password}'.encode()).decode()}")
