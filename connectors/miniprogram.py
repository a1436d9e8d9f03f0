"""Messages from a WeChat mini-program (小程序): its customer service chat, and a form inside it.

Protocol: WeChat posts the messages of the chat to `/c/NAME`, see `gateway/wechat/push.py`, in XML or JSON as chosen in
    its console, and is answered in the same; its cloud hosting asks `{"action": "CheckContainerPath"}` there, and wants
    `success`. Who opens the chat is an event, whose `SessionFrom` goes with their messages as `fields.source`.
    The form is a page of the mini-program, see `gateway/miniform.py`: it posts the code of `wx.login` to
    `/c/NAME/session` and gets a session, a file to `/c/NAME/attachments` (multipart) and gets its id, the values with
    the ids to `/c/NAME/messages` (JSON) and gets `{"id", "reference", "status"}`. Errors are problem documents
    (RFC 9457); one with `"action": "login"` asks for another login.
Authentication: of the chat as in `gateway/wechat/push.py`. Of the form a session, `Authorization: Bearer SESSION`:
    whose it is we have from WeChat's server; an openid that the mini-program sends is believed nowhere.
Redelivery: the chat's as in `gateway/wechat/push.py`; what is authentic and cannot be read is kept in quarantine. Of
    the form, the `Idempotency-Key` that every message has: again with the same content it gives 200 and the same id,
    with other content 422.
Identity: the appid, FromUserName and MsgId kept as text (it may have letters), of events CreateTime, Event and
    EventKey; of the form the openid and the key. Both belong to the conversation `wechat:APPID:OPENID`.
Limits: MAX_PUSH_BYTES; of the form `max_request_bytes`, for a file and for a message with all its files, those of
    `gateway/fields.py`, and `rate`. The form needs Redis: while that is away it answers 503, and the chat goes on.
Source: developers.weixin.qq.com/miniprogram/dev/framework/server-ability/message-push.html (also of the check),
    …/framework/open-ability/customer-message/customer-message.html
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from gateway.contract import (
    Body,
    Context,
    Part,
    Profile,
    RawMessage,
    Receipt,
    Reply,
    Request,
    Wanted,
    WebhookConnector,
    accepted_reply,
    refusal,
)
from gateway.errors import Rejected
from gateway.miniform import ATTACHMENTS, MESSAGES, SESSION, Form, MiniForm
from gateway.wechat import document
from gateway.wechat.conversation import (
    AccountSettings,
    Conversations,
    api_of,
    fetch,
    in_time,
    is_event,
    line,
    probe,
    source_of,
    tell_mode,
    unreadable,
)
from gateway.wechat.push import SUCCESS, Account, Push

PUSH = ""
_ALLOWED = {PUSH: "GET, POST", SESSION: "POST", ATTACHMENTS: "POST", MESSAGES: "POST"}
_CHECK = {"action": "CheckContainerPath"}
_MAX_CHECK_BYTES = 256
_OPENED = "user_enter_tempsession"
# Codes of huiru_messages_ignored_total; whatever else WeChat comes up with is `event_other`.
_EVENTS = {_OPENED, "kf_create_session", "kf_close_session", "kf_switch_session", "wxa_media_check"}


class MiniProgramSettings(AccountSettings):
    """The keys of a `miniprogram` channel."""

    type: Literal["miniprogram"]
    format: Literal["xml", "json"] | None = Field(
        default=None, description="the data format chosen in the console: a push in the other is refused; null: either"
    )
    transfer_customer_service: bool = Field(
        default=False, description="hand every chat message on to the agents in WeChat's own customer service tool"
    )
    form: MiniForm | None = Field(
        default=MiniForm(), description="the form inside the mini-program, which needs `secret`; null: there is none"
    )

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.form is None:
            return self
        if self.secret is None:
            if "form" not in self.model_fields_set:
                return self
            raise ValueError("form needs secret, the AppSecret of WeChat's console: by it we learn who logs in")
        for one in self.form.file_fields:
            if one.max_bytes >= self.max_request_bytes:
                raise ValueError(f"max_bytes of {one.name} does not fit into max_request_bytes; raise the latter")
        return self


class Connector(WebhookConnector):
    """`miniprogram`: see the module."""

    Settings = MiniProgramSettings
    redelivers = True
    methods = frozenset({"GET", "POST"})
    settings: MiniProgramSettings

    def __init__(self, name: str, settings: MiniProgramSettings, context: Context) -> None:
        super().__init__(name, settings, context)
        self._account = Account(settings, context.shared, context.now)
        self._conversations = Conversations(settings, context)
        self._api = api = api_of(settings, context)
        self._form: Form | None = None
        if settings.form and api:
            self._form = Form(settings.form, settings.appid, settings.max_request_bytes, api, context)
        tell_mode(name, settings)

    @property
    def trouble(self) -> str:
        return self._api.trouble if self._api else ""

    async def admit(self, request: Request) -> None:
        """Who is not logged in to the form is told so before a file is read."""
        _route(request)
        if request.path == SESSION:
            self._open_form.admit_login(request)
        elif request.path != PUSH:
            request.notes["visitor"] = await self._open_form.visitor(request)

    async def verify(self, request: Request) -> Mapping[str, Any]:
        """Leaves what it found in the notes: a push, or the visitor of the form. A login proves itself in `extract`."""
        _route(request)
        if request.path == PUSH:
            await self._verify_push(request)
        elif request.path != SESSION and "visitor" not in request.notes:
            request.notes["visitor"] = await self._open_form.visitor(request)
        return {}

    async def extract(self, request: Request, sender: Mapping[str, Any]) -> Reply | Sequence[RawMessage]:
        if request.path == PUSH:
            return await self._pushed(request)
        if request.path == SESSION:
            return await self._open_form.log_in(request)
        if request.path == ATTACHMENTS:
            return await self._open_form.upload(request, request.notes["visitor"])
        return [await self._open_form.message(request, request.notes["visitor"])]

    def reply(self, request: Request, receipts: Sequence[Receipt]) -> Reply:
        (receipt,) = receipts
        if request.path == PUSH:
            return self._answer(request.notes["push"])
        return accepted_reply(receipt)

    def refuse(self, request: Request, error: BaseException) -> Reply:
        """WeChat looks at the status alone: a 503 brings it back."""
        return refusal(error, realm=self.name, allowed=_ALLOWED.get(request.path, "POST"))

    async def fetch(self, wanted: Wanted) -> Part | Profile:
        return await fetch(self._api, self.context, wanted)

    async def probe(self) -> None:
        await probe(self._api, self.settings, self.context, self.name)

    @property
    def _open_form(self) -> Form:
        if self._form is None:
            raise Rejected("not_found")
        return self._form

    # The chat

    async def _verify_push(self, request: Request) -> None:
        if request.method != "POST":
            request.notes["answer"] = self._account.echo(request)
        elif _is_check(request.body):  # nobody signs it, and it gets nothing but this
            request.notes["answer"] = SUCCESS
        else:
            request.notes["push"] = push = await self._account.verify(request)
            if self.settings.format not in (None, push.form):
                raise Rejected("unsupported_media_type", f"this channel takes {self.settings.format}, as configured")

    async def _pushed(self, request: Request) -> Reply | Sequence[RawMessage]:
        if "answer" in request.notes:
            answer: Reply = request.notes["answer"]
            return answer
        push: Push = request.notes["push"]
        if push.unreadable:
            return [unreadable(push)]
        came_from = source_of(push, _OPENED, "SessionFrom")
        await self._conversations.remember(push, came_from)
        if not self._conversations.is_ticket(push, came_from):
            return replace(SUCCESS, ignored=(_code(push),))
        source = came_from or await in_time(self._conversations.source(push))
        # Of a mini-program's users WeChat's server tells nothing: an empty profile is not asked for.
        return [self._conversations.message(push, fetch=self._api is not None, profile={}, source=source)]

    def _answer(self, push: Push) -> Reply:
        if not self.settings.transfer_customer_service or push.unreadable or is_event(push):
            return SUCCESS
        try:
            return self._account.transfer(push)
        except Rejected:  # it says nobody's name: that is the normalizer's to complain of
            return SUCCESS


def _route(request: Request) -> None:
    allowed = _ALLOWED.get(request.path)
    if allowed is None:
        raise Rejected("not_found")
    if request.method not in allowed.split(", ") and not (request.method == "HEAD" and request.path == PUSH):
        raise Rejected("method_not_allowed", f"use {allowed}")


def _is_check(body: Body) -> bool:
    if not isinstance(body, bytes) or len(body) > _MAX_CHECK_BYTES:
        return False
    try:
        return document.read(body) == _CHECK
    except Rejected:
        return False


def _code(push: Push) -> str:
    """Of an event that is no ticket: few, whatever WeChat thinks of."""
    event = line(push, "Event").lower()
    return f"event_{event if event in _EVENTS else 'other'}"
