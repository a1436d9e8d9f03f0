"""Messages from apps and other programs.

Protocol: `POST /c/NAME` with JSON, or multipart with the same JSON and files beside it.
Authentication: `Authorization: Bearer KEY`, of which the configuration holds the SHA-256 only; or, for app builds that
    must not hold a bearer key, a signature over the raw body as in Standard Webhooks 1.0.0 (`webhook-id`,
    `webhook-timestamp`, `webhook-signature: v1,<base64 HMAC-SHA256>`). Several keys are valid at a time, each until its
    `expires_at`; a client rotates by a second key with the same `client`.
Redelivery: the caller's. `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header-07, quoted or bare), and for a
    signed request its `webhook-id`, is the native id within its client: again with the same content it gives 200 and
    the same id, with other content 422. The content of JSON is its bytes; of multipart its parts, by any boundary.
    Of two at once the second waits for the first, so there is no 409. Without a key every request is a new message.
Limits: `max_request_bytes`, `max_json_bytes`, `max_attachments`, `max_attachment_bytes`, and those of `apimessage.py`.
    Values at fault give 422 and a list of them all; what is too large gives 413.
Source: interface.md; the OpenAPI 3.1 document is served at `/c/NAME/openapi.json` (`api.openapi.json` and the models).
"""

import asyncio
import base64
import binascii
import hmac
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import AwareDatetime, Field, SecretStr, field_validator, model_validator

from gateway import apimessage, formdata
from gateway.apimessage import MAX_ATTACHMENTS, Message, fault, pointer
from gateway.contract import (
    Body,
    BodyFile,
    ChannelSettings,
    Context,
    RawMessage,
    Receipt,
    Reply,
    Request,
    Settings,
    WebhookConnector,
    accepted_reply,
    refusal,
)
from gateway.errors import Rejected
from gateway.idempotency import idempotency_key

JSON = "application/json"
MESSAGE = "message"  # the part of a multipart request that holds the JSON
DOCUMENT = "/openapi.json"
_ALLOWED = {"": "POST", DOCUMENT: "GET, HEAD"}

_CHARSET = re.compile(r";\s*charset\s*=\s*\"?([^\s;\"]*)", re.IGNORECASE)
_WEBHOOK_ID = r"[!-\-/-~]{1,255}"  # without a dot: the signed text must not be cuttable in two ways
_CHUNK = 1 << 20
_MAX_PARTS = 1000  # the most that is read to say which part is one too many
_MAX_VALUES = 100_000  # in JSON beyond max_json_bytes: more is made to cost memory, not to say something


# Settings


class Key(Settings):
    """What bearer and signing keys have in common."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="stands in the facts of every message it brought")
    client: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="whose key it is: keys of one client share idempotency keys and user ids; default: the key's name",
    )
    expires_at: AwareDatetime | None = Field(default=None, description="refused from then on; null: never")
    vouches_for: tuple[Literal["user_id", "email", "phone"], ...] = Field(
        default=(),
        description="what the holder has verified of its users: these identities become `verified`. Only for a key that"
        " stays on a server; an app's users can read theirs and claim anything",
    )


class BearerKey(Key):
    """A key that a program sends as it is."""

    sha256: str = Field(pattern=r"^[0-9a-fA-F]{64}$", description="hex SHA-256 of the key: printf %s KEY | sha256sum")


class SigningKey(Key):
    """A key that a program signs with."""

    secret: SecretStr = Field(description="whsec_ and 24 to 64 random bytes in base64")

    @field_validator("secret")
    @classmethod
    def _demand_form(cls, secret: SecretStr) -> SecretStr:
        if not 24 <= len(_secret_bytes(secret)) <= 64:
            raise ValueError('expected whsec_ and 24 to 64 bytes in base64: echo "whsec_$(openssl rand -base64 32)"')
        return secret


class ApiSettings(ChannelSettings):
    """The keys of an `api` channel."""

    type: Literal["api"]
    keys: tuple[BearerKey, ...] = Field(default=(), description="bearer keys")
    hmac: tuple[SigningKey, ...] = Field(default=(), description="signing keys")
    freshness_secs: int = Field(default=300, ge=1, le=86400, description="how far a signature's time may be from ours")
    max_attachments: int = Field(
        default=20, ge=0, le=MAX_ATTACHMENTS, description="files in the JSON, and as many beside it"
    )
    max_attachment_bytes: int = Field(default=10 << 20, ge=0, description="of one file, decoded")
    max_json_bytes: int = Field(default=1 << 20, ge=1024, description="of a message's JSON without its attachments")

    @model_validator(mode="after")
    def _demand_keys(self) -> "ApiSettings":
        names = [key.name for key in (*self.keys, *self.hmac)]
        if not names:
            raise ValueError("nobody could post here; add a key to keys or hmac")
        if len(set(names)) < len(names):
            raise ValueError("two keys have the same name")
        return self


def _secret_bytes(secret: SecretStr) -> bytes:
    """Empty when it is none."""
    prefix, _, encoded = secret.get_secret_value().partition("_")
    try:
        return base64.b64decode(encoded, validate=True) if prefix == "whsec" else b""
    except binascii.Error:
        return b""


# The channel


class Connector(WebhookConnector):
    """`api`: see the module."""

    Settings = ApiSettings
    redelivers = True
    methods = frozenset({"GET", "POST"})
    settings: ApiSettings

    def __init__(self, name: str, settings: ApiSettings, context: Context) -> None:
        super().__init__(name, settings, context)
        self._bearers = [(key, bytes.fromhex(key.sha256)) for key in settings.keys]
        self._signers = [(key, _secret_bytes(key.secret)) for key in settings.hmac]
        self._document = orjson.dumps(openapi(name, settings, context.public_url))
        self._unnamed = map((secrets.token_hex(16) + "-{:x}").format, count())  # ids for requests that bring none

    async def admit(self, request: Request) -> None:
        _route(request)
        if request.path == DOCUMENT:
            return
        if self._scheme(request) == "bearer":
            self._bearer(request)
        _demand_media_type(request)

    async def verify(self, request: Request) -> Mapping[str, Any]:
        """The key's name, its client, the scheme and what the key vouches for; nothing for the public document."""
        _route(request)
        if request.path == DOCUMENT:
            return {}
        scheme = self._scheme(request)
        key = self._bearer(request) if scheme == "bearer" else await self._signer(request)
        client, vouches_for = key.client or key.name, list(key.vouches_for)
        return {"key": key.name, "client": client, "scheme": scheme, "vouches_for": vouches_for}

    async def extract(self, request: Request, sender: Mapping[str, Any]) -> Reply | Sequence[RawMessage]:
        if request.path == DOCUMENT:
            return Reply(200, self._document, JSON, {"Cache-Control": "no-cache"})
        _demand_media_type(request)
        native_id = _native_id(request, sender) or next(self._unnamed)
        if isinstance(request.body, BodyFile):
            fingerprint = await asyncio.to_thread(self._check, request)
        else:
            fingerprint = self._check(request)
        content_type = request.headers["Content-Type"]
        return [RawMessage("api", request.body, native_id, content_type, sender, fingerprint, "refuse")]

    def reply(self, request: Request, receipts: Sequence[Receipt]) -> Reply:
        (receipt,) = receipts
        return accepted_reply(receipt)

    def refuse(self, request: Request, error: BaseException) -> Reply:
        return refusal(error, realm=self.name, allowed=_ALLOWED.get(request.path, "POST"))

    # Authentication. Every key is compared with, so that the time taken tells nothing about any of them.

    def _scheme(self, request: Request) -> Literal["bearer", "hmac"]:
        if "Authorization" in request.headers:
            return "bearer"
        if self._signers and "webhook-signature" in request.headers:
            return "hmac"
        other = ", or sign the request" if self._signers else ""
        raise Rejected("unauthenticated", f"send Authorization: Bearer KEY{other}")

    def _bearer(self, request: Request) -> Key:
        scheme, _, token = request.headers["Authorization"].partition(" ")
        digest = sha256(token.strip().encode("utf-8", "surrogatepass")).digest()
        found = [key for key, expected in self._bearers if hmac.compare_digest(digest, expected)]
        return self._valid(found if scheme.lower() == "bearer" else [], "the key is unknown")

    async def _signer(self, request: Request) -> Key:
        """Standard Webhooks 1.0.0: HMAC-SHA256 of `{id}.{timestamp}.{raw body}`; one of several signatures will do."""
        head = f"{_signed_id(request)}.{self._fresh_timestamp(request)}.".encode()
        secrets = [secret for _, secret in self._signers]
        if isinstance(request.body, BodyFile):
            expected = await asyncio.to_thread(_signatures, secrets, head, request.body)
        else:
            expected = _signatures(secrets, head, request.body)
        given = [one.encode("utf-8", "surrogatepass") for one in request.headers["webhook-signature"].split()]
        same = [[hmac.compare_digest(ours, one) for one in given] for ours in expected]
        found = [key for (key, _), matches in zip(self._signers, same, strict=True) if any(matches)]
        return self._valid(found, "the signature does not match")

    def _fresh_timestamp(self, request: Request) -> str:
        timestamp = request.headers.get("webhook-timestamp", "")
        if not re.fullmatch("[0-9]{1,12}", timestamp):
            raise Rejected("unauthenticated", "webhook-timestamp must be seconds since 1970")
        if abs(self.context.now().timestamp() - int(timestamp)) > self.settings.freshness_secs:
            raise Rejected("unauthenticated", "webhook-timestamp is too far from our time: sign every try anew")
        return timestamp

    def _valid(self, found: Sequence[Key], otherwise: str) -> Key:
        for key in found:
            if key.expires_at is None or key.expires_at > self.context.now():
                return key
        if found:
            raise Rejected("unauthenticated", "the key has expired", reason=f"key {found[0].name} has expired")
        raise Rejected("unauthenticated", otherwise)

    # Content: what passes here the normalizer can read. Each check returns the fingerprint, None for the body's own.

    def _check(self, request: Request) -> bytes | None:
        if request.content_type == formdata.MULTIPART:
            return self._check_multipart(request.body, request.headers["Content-Type"])
        body = request.body.path.read_bytes() if isinstance(request.body, BodyFile) else request.body
        self._demand_fits(self._message(body), [])
        return None

    def _check_multipart(self, body: Body, content_type: str) -> bytes:
        form = self._form(body, content_type, keep_content=False)
        if any(upload.name == MESSAGE and upload.size > len(upload.head) for upload in form.uploads):
            form = self._form(body, content_type, keep_content=True)
        document, files = _split(form)
        self._demand_fits(self._message(document), files)
        parts = [[file.name, file.filename, file.content_type, file.sha256] for file in files]
        return sha256(orjson.dumps([sha256(document).hexdigest(), parts])).digest()

    def _form(self, body: Body, content_type: str, *, keep_content: bool) -> formdata.FormData:
        limits = {"max_parts": _MAX_PARTS, "max_value_bytes": self.settings.max_json_bytes}
        return formdata.parse(body, content_type, keep_content=keep_content, **limits)

    def _message(self, document: bytes) -> Message:
        limit = self.settings.max_json_bytes
        if len(document) > limit and sum(map(document.count, (b",", b"[", b"{"))) > _MAX_VALUES:
            raise Rejected("too_large", "the JSON has too many values")
        message = apimessage.parse(document)
        if len(document) > limit and len(document) - _encoded_size(message) > limit:
            raise Rejected("too_large", f"the JSON without its attachments may have {limit} bytes")
        return message

    def _demand_fits(self, message: Message, files: Sequence[formdata.Upload]) -> None:
        if not message.attachments and not files:
            return
        most, limit = self.settings.max_attachments, self.settings.max_attachment_bytes
        within = [(f"/attachments/{n}", _decoded_size(one.content)) for n, one in enumerate(message.attachments or ())]
        beside = [(pointer([file.name]), file.size) for file in files]
        surplus = [one[most][0] for one in (within, beside) if len(one) > most]
        if surplus:
            raise apimessage.invalid([fault(at, "too_many", f"is one more than {most} files") for at in surplus])
        too_large = [at for at, size in (*within, *beside) if size > limit]
        if too_large:
            text = f"is larger than {limit} bytes"
            raise apimessage.invalid([fault(at, "too_large", text) for at in too_large], "too_large")


def _route(request: Request) -> None:
    allowed = _ALLOWED.get(request.path)
    if allowed is None:
        raise Rejected("not_found")
    if request.method not in allowed.split(", "):
        raise Rejected("method_not_allowed", f"use {allowed}")


def _demand_media_type(request: Request) -> None:
    if request.content_type not in {JSON, formdata.MULTIPART}:
        raise Rejected("unsupported_media_type", f"send {JSON} or {formdata.MULTIPART}")
    charset = _CHARSET.search(request.headers["Content-Type"])
    if charset and charset[1].lower() not in {"utf-8", "utf8"}:
        raise Rejected("unsupported_media_type", "send UTF-8")


def _signed_id(request: Request) -> str:
    id_ = request.headers.get("webhook-id", "")
    if not re.fullmatch(_WEBHOOK_ID, id_):
        raise Rejected("unauthenticated", "webhook-id must have 1 to 255 visible ASCII characters, none a dot")
    return id_


def _signatures(secrets: Iterable[bytes], head: bytes, body: Body) -> list[bytes]:
    """What each secret makes of the body, as it stands in the header."""
    macs = [hmac.new(secret, head, sha256) for secret in secrets]
    for chunk in _chunks(body):
        for mac in macs:
            mac.update(chunk)
    return [b"v1," + base64.b64encode(mac.digest()) for mac in macs]


def _chunks(body: Body) -> Iterator[bytes]:
    if not isinstance(body, BodyFile):
        yield body
        return
    with body.path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _native_id(request: Request, sender: Mapping[str, Any]) -> str | None:
    if sender["scheme"] == "hmac":  # signed, unlike an Idempotency-Key
        return f"{sender['client']}:{request.headers['webhook-id']}"
    if "Idempotency-Key" in request.headers:
        return f"{sender['client']}:{idempotency_key(request.headers.getall('Idempotency-Key'))}"
    return None


def _split(form: formdata.FormData) -> tuple[bytes, list[formdata.Upload]]:
    """The JSON and the files. The JSON may have a file name, as it has when a browser sends a Blob."""
    found = [value.encode("utf-8", "surrogatepass") for name, value in form.values if name == MESSAGE]
    found += [upload.content or upload.head for upload in form.uploads if upload.name == MESSAGE]
    text = "a file needs a file name, a value belongs into the JSON of `message`"
    faults = [fault(pointer([name]), "unknown", text) for name, _ in form.values if name != MESSAGE]
    if len(found) != 1:
        faults.append(fault("/message", "missing" if not found else "too_many", "send one part named `message`"))
    if faults:
        raise apimessage.invalid(faults)
    return found[0], [upload for upload in form.uploads if upload.name != MESSAGE]


def _encoded_size(message: Message) -> int:
    return sum(len(attachment.content) for attachment in message.attachments or ())


def _decoded_size(content: str) -> int:
    return len(content) // 4 * 3 - content.count("=", -2)


# The document


def openapi(name: str, settings: ApiSettings, public_url: str) -> dict[str, Any]:
    """OpenAPI 3.1 of one channel: the template beside this module, the models and the channel's own limits."""
    text = Path(__file__).with_suffix(".openapi.json").read_text("utf-8")
    document: dict[str, Any] = json.loads(text.replace("{channel}", name))
    document["servers"] = [{"url": public_url}]
    schemas = apimessage.schemas()
    schemas["Message"]["properties"]["attachments"]["anyOf"][0]["maxItems"] = settings.max_attachments
    document["components"]["schemas"] |= schemas
    post = document["paths"][f"/c/{name}"]["post"]
    multipart = post["requestBody"]["content"][formdata.MULTIPART]["schema"]
    multipart["properties"]["file"]["maxItems"] = settings.max_attachments
    schemes = document["components"]["securitySchemes"]
    usable = [[one for one in schemes if one == "bearer"]] * bool(settings.keys)
    usable += [[one for one in schemes if one != "bearer"]] * bool(settings.hmac)
    document["components"]["securitySchemes"] = {one: schemes[one] for group in usable for one in group}
    post["security"] = [{one: [] for one in group} for group in usable]
    return document
