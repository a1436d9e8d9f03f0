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

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, Self

from jinja2 import StrictUndefined
from jinja2 import Template as Compiled
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, model_validator

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
from gateway.errors import Rejected
from gateway.wechat.conversation import (
    AccountSettings,
    Conversations,
    api_of,
    fetch,
    in_time,
    line,
    probe,
    source_of,
    tell_mode,
    unreadable,
)
from gateway.wechat.push import MAX_PUSH_BYTES, SUCCESS, Account, Push
from gateway.wechat.replies import text_reply

MAX_REPLY_BYTES = 2048
QR_PREFIX = "qrscene_"
_SECONDS = re.compile(r"[0-9]{1,10}", re.ASCII)
_REPLY = {
    "zh": "您好，我们已经收到您的消息，受理编号 {{ reference }}，会尽快回复您。",
    "en": "Hello, we have received your message and will reply as soon as we can. Your reference is {{ reference }}.",
}
_SAMPLE = {"reference": "7K3M-9QX2-4WPD", "channel": "wechat-main"}
# Codes of huiru_messages_ignored_total; whatever else WeChat comes up with is `event_other`.
_EVENTS = {
    *("subscribe", "unsubscribe", "scan", "click", "view", "view_miniprogram", "location", "location_select"),
    *("scancode_push", "scancode_waitmsg", "pic_sysphoto", "pic_photo_or_album", "pic_weixin"),
    *("templatesendjobfinish", "masssendjobfinish", "kf_create_session", "kf_close_session", "kf_switch_session"),
}


@dataclass(slots=True)
class _Known:
    """What the gateways know of a sender; a profile that is None is to be asked for. `replies`: tell the reference."""

    source: str
    profile: Profile | None
    replies: bool = False


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


class WechatSettings(AccountSettings):
    """The keys of a `wechat` channel."""

    type: Literal["wechat"]
    profiles: bool = Field(default=True, description="ask for the sender's unionid, language and name")
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
        self._api = api_of(settings, context)
        self._asks_profiles = self._api is not None and settings.profiles
        self._conversations = Conversations(settings, context)
        reply = settings.reply
        self._texts = {language: _compiled(reply, language) for language in ("zh", "en")} if reply else {}
        tell_mode(name, settings)

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
            return [unreadable(push)]
        scene = _scene(push)
        await self._conversations.remember(push, scene)
        if not self._conversations.is_ticket(push, scene):
            return replace(SUCCESS, ignored=(_code(push),))
        return [await self._message(request, push, scene)]

    async def _message(self, request: Request, push: Push, scene: str) -> RawMessage:
        known = _Known(scene, None if self._asks_profiles else Profile())
        await in_time(self._recall(push, known))
        if known.replies:
            request.notes["language"] = self._language(known.profile)
        profile = _as_fact(known.profile) if known.profile is not None else None
        return self._conversations.message(push, fetch=self._api is not None, profile=profile, source=known.source)

    async def _recall(self, push: Push, known: _Known) -> None:
        """One question after the other, without a task for each: that would cost more than Redis does."""
        known.source = known.source or await self._conversations.source(push)
        if known.profile is None and self._api is not None:
            known.profile = await self._api.cached_user(line(push, "FromUserName"))
        if self._may_reply(push) and self.settings.reply:
            ttl_secs = self.settings.reply.every_minutes * 60
            known.replies = await self._conversations.claims_reply(push, ttl_secs)

    def _may_reply(self, push: Push) -> bool:
        """Nobody reads an answer who has left, or whom the push does not name."""
        return line(push, "Event") != "unsubscribe" and all(line(push, name) for name in ("ToUserName", "FromUserName"))

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

    async def fetch(self, wanted: Wanted) -> Part | Profile:
        return await fetch(self._api, self.context, wanted)

    async def probe(self) -> None:
        await probe(self._api, self.settings, self.context, self.name)


# Pushes


def _code(push: Push) -> str:
    """Of an event that is no ticket: few, whatever WeChat thinks of."""
    event = line(push, "Event").lower()
    return f"event_{event if event in _EVENTS else 'other'}"


def _scene(push: Push) -> str:
    """Of the QR code that was followed or scanned; "" when there is none."""
    return source_of(push, "subscribe", "EventKey", QR_PREFIX) or source_of(push, "SCAN", "EventKey")


def _sent_at(push: Push) -> datetime:
    seconds = line(push, "CreateTime")
    return datetime.fromtimestamp(int(seconds) if _SECONDS.fullmatch(seconds) else 0, UTC)


def _as_fact(profile: Profile) -> dict[str, str]:
    unionid = next((one.value for one in profile.identities if one.kind == "wechat_unionid"), None)
    known = {"name": profile.name, "unionid": unionid, "language": profile.language}
    return {name: value for name, value in known.items() if value}


# Elsewhere


def _compiled(reply: PassiveReply, language: str) -> Compiled:
    # StrictUndefined: a name that is written wrong is a fault when the file is read, not a gap in every reply.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
    return environment.from_string(getattr(reply.text, language) or _REPLY[language])
