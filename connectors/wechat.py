"""Messages to a WeChat official account (公众号, 服务号).

Protocol: WeChat posts every message and event to `/c/NAME`, see `gateway/wechat/push.py`. Events are no tickets unless
    `events` lists them; the scene of a QR code that somebody follows or scans is remembered, and goes with their next
    messages as `fields.source`. What else belongs to a message (files, the sender's name) is fetched from WeChat's
    server after the answer, never before it.
Authentication: as in `gateway/wechat/push.py`, in the mode safe unless the settings say otherwise.
Redelivery: WeChat gives up an answer after 5 seconds and comes again, three times in all, with the same MsgId: one
    ticket, and the same reply. `success`, or a passive reply with the reference, is said once the message is on disk;
    when that fails, a 503 brings WeChat back. An authentic push that cannot be read is kept in quarantine and answered
    with `success`: another try would be no better, and the customer would read that the account is out of order. What
    Redis is asked before the answer takes at most ASK_SECS; without it there is no passive reply and no source, and the
    message is taken all the same.
Identity: the appid, FromUserName and MsgId, kept as text; of events, which have none, CreateTime, Event and EventKey
    (doc: "FromUserName + CreateTime", which two events of one second share).
Limits: MAX_PUSH_BYTES; a reply has MAX_REPLY_BYTES.
Source: developers.weixin.qq.com/doc/service/guide/dev/push/ (the push, its events, passive replies),
    /doc/service/api/material/temporary/api_getmedia.
"""

import asyncio
import re
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

import structlog
from jinja2 import StrictUndefined
from jinja2 import Template as Compiled
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import AfterValidator, Field, SecretStr, model_validator

from gateway.contract import (
    Context,
    Part,
    Profile,
    RawMessage,
    Receipt,
    Reply,
    Request,
    Settings,
    Template,
    Wanted,
    WebhookConnector,
    Wording,
)
from gateway.errors import Rejected, Unavailable
from gateway.text import one_line
from gateway.wechat import callback
from gateway.wechat.api import DEFAULT_URL, Api
from gateway.wechat.credentials import PushSettings
from gateway.wechat.push import MAX_PUSH_BYTES, SUCCESS, Account, Push
from gateway.wechat.replies import text_reply

log = structlog.get_logger()
_T = TypeVar("_T")

ASK_SECS = 1.0  # of the five seconds after which WeChat gives up
MAX_REPLY_BYTES = 2048
QR_PREFIX = "qrscene_"
_LONGEST_ID, _LONGEST_SCENE = 128, 256
_SECONDS = re.compile(r"[0-9]{1,10}", re.ASCII)
_REPLY = {
    "zh": "您好，我们已经收到您的消息，受理编号 {{ reference }}，会尽快回复您。",
    "en": "Hello, we have received your message and will reply as soon as we can. Your reference is {{ reference }}.",
}
NO_SECRET = "the channel has no secret, so it cannot fetch this"  # noqa: S105 - says that there is none
_MODES = {
    "compatible": "WeChat sends every message in clear too; choose the safe mode in its console and here",
    "plaintext": "nothing signs what a message says, and who sees a signed address can post for some minutes;"
    " choose the safe mode in WeChat's console and here",
}
_CONTENT_TYPES = {"xml": "text/xml", "json": "application/json"}
_SAMPLE = {"reference": "7K3M-9QX2-4WPD", "channel": "wechat-main"}
# Codes of huiru_messages_ignored_total; whatever else WeChat comes up with is `event_other`.
_EVENTS = {
    *("subscribe", "unsubscribe", "scan", "click", "view", "view_miniprogram", "location", "location_select"),
    *("scancode_push", "scancode_waitmsg", "pic_sysphoto", "pic_photo_or_album", "pic_weixin"),
    *("templatesendjobfinish", "masssendjobfinish", "kf_create_session", "kf_close_session", "kf_switch_session"),
}


# Settings


class PassiveReply(Settings):
    """What a customer reads at once, under their own message."""

    text: Template = Field(
        default=Wording(), description="template (Jinja); it knows `reference` and `channel`, and may have 2048 bytes"
    )
    language: Literal["zh", "en"] = Field(default="zh", description="where the customer's is neither or not known")
    every_minutes: float = Field(
        default=60, gt=0, le=43_200, description="a customer is told a reference no more often than that"
    )

    @model_validator(mode="after")
    def _demand_usable(self) -> Self:
        for language in ("zh", "en"):
            try:
                text = _compiled(self, language).render(_SAMPLE)
            except Exception as error:  # it may do anything
                names = ", ".join(sorted(_SAMPLE))
                raise ValueError(f"text.{language} cannot be used: {error}; it may use {names}") from error
            if not text.strip() or len(text.encode()) > MAX_REPLY_BYTES:
                raise ValueError(f"text.{language} must make a text of 1 to {MAX_REPLY_BYTES} bytes")
        return self


def _demand_base_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"give the address of a server, such as {DEFAULT_URL}")
    return url.rstrip("/")


class WechatSettings(PushSettings):
    """The keys of a `wechat` channel."""

    type: Literal["wechat"]
    secret: SecretStr | None = Field(
        default=None,
        min_length=1,
        description="the AppSecret, for files and the senders' names; null: they are left out, and tickets say so",
    )
    profiles: bool = Field(default=True, description="ask for the sender's unionid, language and name")
    api_base_url: Annotated[str, AfterValidator(_demand_base_url)] = Field(
        default=DEFAULT_URL, description="WeChat's server, or a proxy with an address of the account's IP whitelist"
    )
    events: Mapping[str, Literal["all"] | tuple[str, ...]] = Field(
        default={},
        max_length=100,
        description="the events that become tickets: `CLICK: [KEY, …]` those with one of these keys, `subscribe: all`"
        " each of them; the others are counted",
    )
    source_hours: float = Field(
        default=48, gt=0, le=8760, description="how long a scanned QR code's scene goes with its user's messages"
    )
    reply: PassiveReply | None = Field(default=None, description="a passive reply with the reference; null: none")
    max_request_bytes: int = Field(
        default=MAX_PUSH_BYTES, ge=1024, le=MAX_PUSH_BYTES, description="larger requests are refused with 413"
    )


# The channel


class Connector(WebhookConnector):
    """`wechat`: see the module."""

    Settings = WechatSettings
    redelivers = True
    methods = frozenset({"GET", "POST"})
    settings: WechatSettings

    def __init__(self, name: str, settings: WechatSettings, context: Context) -> None:
        super().__init__(name, settings, context)
        self._account = Account(settings, context.shared, context.now)
        self._api = _api(settings, context)
        self._events = {event.lower(): keys for event, keys in settings.events.items()}
        reply = settings.reply
        self._texts = {language: _compiled(reply, language) for language in ("zh", "en")} if reply else {}
        if settings.mode != "safe":
            log.warning("wechat.mode_is_not_safe", channel=name, mode=settings.mode, reason=_MODES[settings.mode])

    @property
    def trouble(self) -> str:
        return self._api.trouble if self._api else ""

    # What comes

    async def admit(self, request: Request) -> None:
        if request.path:
            raise Rejected("not_found")

    async def verify(self, request: Request) -> Mapping[str, Any]:
        """Leaves the push, or the answer to the console's check of our address, in the notes."""
        if request.path:
            raise Rejected("not_found")
        if request.method == "POST":
            request.notes["push"] = await self._account.verify(request)
        else:
            request.notes["echo"] = self._account.echo(request)
        return {}

    async def extract(self, request: Request, sender: Mapping[str, Any]) -> Reply | Sequence[RawMessage]:
        if "echo" in request.notes:
            echo: Reply = request.notes["echo"]
            return echo
        push: Push = request.notes["push"]
        if push.unreadable:
            return [RawMessage("wechat", push.plain, facts={"unreadable": push.unreadable})]
        scene = _scene(push)
        if scene:
            await self._remember(push, scene)
        if not self._is_ticket(push, scene):
            return replace(SUCCESS, ignored=(_code(push),))
        return [await self._message(request, push, scene)]

    async def _message(self, request: Request, push: Push, scene: str) -> RawMessage:
        native_id = self._native_id(push)
        source, profile, replies = await asyncio.gather(
            self._source(push, scene), self._profile(push), self._replies(push, native_id)
        )
        if replies:
            request.notes["language"] = self._language(profile)
        facts: dict[str, Any] = {"appid": self.settings.appid, "encrypted": push.encrypted}
        facts |= {"fetch": self._api is not None, "profile": profile and _as_fact(profile)}
        if source:
            facts["source"] = source
        return RawMessage("wechat", push.plain, native_id, _CONTENT_TYPES[push.form], facts)

    def _native_id(self, push: Push) -> str:
        names = ("CreateTime", "Event", "EventKey") if _is_event(push) else ("MsgId",)
        own = ":".join(_line(push, name) for name in names)
        if not own or len(own) > _LONGEST_ID:
            own = sha256(push.plain).hexdigest()
        return f"{self.settings.appid}:{_line(push, 'FromUserName')}:{own}"

    def _is_ticket(self, push: Push, scene: str) -> bool:
        if not _is_event(push):
            return True
        keys = self._events.get(_line(push, "Event").lower(), ())
        return keys == "all" or _line(push, "EventKey") in keys or (scene != "" and scene in keys)

    # What the gateways know together. Who asks is answered in time, or goes on without.

    async def _remember(self, push: Push, scene: str) -> None:
        ttl_secs = self.settings.source_hours * 3600
        await _in_time(self.context.shared.put(self._key("source", push), scene, ttl_secs=ttl_secs))

    async def _source(self, push: Push, scene: str) -> str | None:
        return scene or await _in_time(self.context.shared.get(self._key("source", push)))

    async def _profile(self, push: Push) -> Profile | None:
        """What is known of the sender; None: to be asked for, after the answer."""
        if self._api is None or not self.settings.profiles:
            return Profile()
        return await _in_time(self._api.cached_user(_line(push, "FromUserName")))

    async def _replies(self, push: Push, native_id: str) -> bool:
        """Whether the customer is told the reference now. Yes also when WeChat comes again with the same message."""
        reply = self.settings.reply
        if reply is None or _line(push, "Event") == "unsubscribe" or not _names_both(push):
            return False
        key, ttl_secs = self._key("replied", push), reply.every_minutes * 60
        return await _in_time(self.context.shared.claim(key, native_id, ttl_secs=ttl_secs)) == native_id

    def _key(self, what: str, push: Push) -> str:
        return f"wechat:{self.settings.appid}:{what}:{_line(push, 'FromUserName')}"

    # The answer

    def reply(self, request: Request, receipts: Sequence[Receipt]) -> Reply:
        (receipt,) = receipts
        push: Push = request.notes["push"]
        language = request.notes.get("language")
        if language is None:
            return SUCCESS
        text = self._texts[language].render(reference=receipt.reference, channel=self.name)
        # The same for every try of the same message, and so with its time.
        return self._account.answer(push, text_reply(push.fields, push.form, text, _sent_at(push)))

    def _language(self, profile: Profile | None) -> str:
        reply, theirs = self.settings.reply, (profile.language or "") if profile else ""
        default = reply.language if reply else "zh"
        return theirs[:2] if theirs[:2] in self._texts else default

    # What a message refers to

    async def fetch(self, wanted: Wanted) -> Part | Profile:
        """By WeChat's server; a picture that it no longer has by the public address in the message."""
        if self._api is None:
            raise Rejected("forbidden", NO_SECRET)
        if wanted.what == "profile":
            return await self._api.user(wanted.source)
        media_id, _, address = wanted.source.partition(" ")
        try:
            return await self._api.media(media_id)
        except Rejected:
            if not address:
                raise
            return await self._picture(address)

    async def _picture(self, address: str) -> Part:
        response = await self.context.http(address)
        if response.status >= 500 or response.status == 429:
            raise Unavailable(reason=f"the picture's address answers {response.status}")
        if response.status != 200:
            raise Rejected("gone", "WeChat no longer has this file", reason=f"HTTP status {response.status}")
        return Part(response.content, content_type=response.headers.get("Content-Type", ""))

    # Is it set up?

    async def probe(self) -> None:
        """Are appid and secret good, and would the console's check of our address go well?

        The second is asked of `http.public_url`, with a signature as WeChat makes it; not in the mode plaintext, where
        whoever saw that address could post with it.
        """
        if self._api is not None:
            await self._api.probe()
        if self.settings.mode != "plaintext":
            address, token = f"{self.context.public_url}/c/{self.name}", self.settings.token.get_secret_value()
            await callback.probe(self.context.http, address, token, self.context.now)


# Pushes


def _is_event(push: Push) -> bool:
    return push.fields.get("MsgType") == "event"


def _code(push: Push) -> str:
    """Of an event that is no ticket: few, whatever WeChat thinks of."""
    event = _line(push, "Event").lower()
    return f"event_{event if event in _EVENTS else 'other'}"


def _scene(push: Push) -> str:
    """Of the QR code that was followed or scanned; "" when there is none."""
    event, key = _line(push, "Event"), _line(push, "EventKey")
    found = {"subscribe": key[len(QR_PREFIX) :] if key.startswith(QR_PREFIX) else "", "SCAN": key}
    scene = found.get(event, "") if _is_event(push) else ""
    return scene if len(scene) <= _LONGEST_SCENE else ""


def _sent_at(push: Push) -> datetime:
    seconds = _line(push, "CreateTime")
    return datetime.fromtimestamp(int(seconds) if _SECONDS.fullmatch(seconds) else 0, UTC)


def _names_both(push: Push) -> bool:
    return all(_line(push, name) for name in ("ToUserName", "FromUserName"))


def _line(push: Push, name: str) -> str:
    value = push.fields.get(name)
    return one_line(value) if isinstance(value, str) else ""


def _as_fact(profile: Profile) -> dict[str, str]:
    unionid = next((one.value for one in profile.identities if one.kind == "wechat_unionid"), None)
    known = {"name": profile.name, "unionid": unionid, "language": profile.language}
    return {name: value for name, value in known.items() if value}


# Elsewhere


def _api(settings: WechatSettings, context: Context) -> Api | None:
    if settings.secret is None:
        return None
    secret = settings.secret.get_secret_value()
    return Api(context.http, context.shared, settings.api_base_url, settings.appid, secret, context.now)


def _compiled(reply: PassiveReply, language: str) -> Compiled:
    # StrictUndefined: a name that is written wrong is a fault when the file is read, not a gap in every reply.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
    return environment.from_string(getattr(reply.text, language) or _REPLY[language])


async def _in_time(asked: Awaitable[_T]) -> _T | None:
    try:
        async with asyncio.timeout(ASK_SECS):
            return await asked
    except (Unavailable, TimeoutError):
        return None
