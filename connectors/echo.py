"""The template: a small real channel, and what `huiru new-channel NAME` copies.

Protocol: the vendor posts JSON, `{"id": "m-1", "from": "user", "text": "hello"}`, to `/c/NAME`.
Authentication: `X-Echo-Signature: sha256=<hex HMAC-SHA256 of the raw body>` under the secret shared with the vendor.
Redelivery: the vendor posts again, with the same `id`, until it gets a 200.
Limits: `max_request_bytes`.
Source: the vendor's documentation; put its address here, and where it turned out to be wrong.
"""

import asyncio
import hmac
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field, SecretStr, ValidationError

from gateway.contract import (
    BodyFile,
    ChannelSettings,
    RawMessage,
    Receipt,
    Reply,
    Request,
    WebhookConnector,
    json_reply,
)
from gateway.errors import Rejected

SIGNATURE = "X-Echo-Signature"


class EchoSettings(ChannelSettings):
    """The keys of an `echo` channel."""

    type: Literal["echo"]
    secret: SecretStr = Field(min_length=16, description="shared with the sender, who signs with it")


class EchoMessage(BaseModel):
    """What of a message we rely on. Unknown keys are let through: vendors add some."""

    id: str = Field(min_length=1, max_length=255)
    text: str


class Connector(WebhookConnector):
    """`echo`: see the module."""

    Settings = EchoSettings
    redelivers = True
    settings: EchoSettings

    async def verify(self, request: Request) -> Mapping[str, Any]:
        if request.path:
            raise Rejected("not_found")
        body = await _read(request)
        key = self.settings.secret.get_secret_value().encode()
        expected = "sha256=" + hmac.digest(key, body, "sha256").hex()
        given = request.headers.get(SIGNATURE, "")
        # As bytes: the time taken tells nothing of how much was right, and no character is an error.
        if not hmac.compare_digest(expected.encode(), given.encode("utf-8", "surrogatepass")):
            raise Rejected("unauthenticated", f"{SIGNATURE} does not match")
        return {}

    async def extract(self, request: Request, sender: Mapping[str, Any]) -> Sequence[RawMessage]:
        try:
            message = EchoMessage.model_validate_json(await _read(request))
        except ValidationError as error:
            raise Rejected(
                "malformed", "the body is no message", reason=str(error.errors(include_input=False))
            ) from None
        return [RawMessage("echo", request.body, message.id, request.headers.get("Content-Type", ""))]

    def reply(self, request: Request, receipts: Sequence[Receipt]) -> Reply:
        (receipt,) = receipts
        return json_reply({"ok": True, "reference": receipt.reference})


async def _read(request: Request) -> bytes:
    body = request.body
    return await asyncio.to_thread(body.path.read_bytes) if isinstance(body, BodyFile) else body
