"""What a push is to both kinds of accounts: its identity, whether it is a ticket, what is remembered of its sender.

What is asked before the answer gets ASK_SECS, of the five seconds after which WeChat gives up; without Redis a message
is taken all the same, and lacks what was remembered.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from hashlib import sha256
from ipaddress import ip_address
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit

import structlog
from pydantic import AfterValidator, Field, SecretStr

from gateway.contract import Context, Part, Profile, RawMessage, Wanted
from gateway.errors import Rejected, Unavailable
from gateway.text import one_line
from gateway.wechat import callback
from gateway.wechat.api import DEFAULT_URL, Api
from gateway.wechat.credentials import PushSettings
from gateway.wechat.push import Push
from gateway.wechat.recent import RECENT_SECS, Recent

ASK_SECS = 1.0
CONTENT_TYPES = {"xml": "text/xml", "json": "application/json"}
NO_SECRET = "the channel has no secret, so it cannot fetch this"  # noqa: S105 - says that there is none
_LONGEST_ID, _LONGEST_SOURCE = 128, 256
_MODES = {
    "compatible": "WeChat sends every message in clear too; choose the safe mode in its console and here",
    "plaintext": "nothing signs what a message says, and who sees a signed address can post for some minutes;"
    " choose the safe mode in WeChat's console and here",
}
log = structlog.get_logger()
_T = TypeVar("_T")


def _demand_base_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"give the address of a server, such as {DEFAULT_URL}")
    if parts.scheme == "http" and not _is_local(parts.hostname):
        raise ValueError("the AppSecret goes there: use https, or the address of a proxy in your own network")
    return url.rstrip("/")


def _is_local(host: str) -> bool:
    try:
        return not ip_address(host).is_global
    except ValueError:
        return host == "localhost"


class AccountSettings(PushSettings):
    """The keys of both kinds of accounts, beside those of the push."""

    secret: SecretStr | None = Field(
        default=None,
        min_length=1,
        description="the AppSecret, for whatever is asked of WeChat's server; null: nothing, and tickets say so",
    )
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
        default=48,
        gt=0,
        le=8760,
        description="how long the source that a user came from (a scanned QR code, a button) goes with their messages",
    )


def api_of(settings: AccountSettings, context: Context) -> Api | None:
    """None without a secret."""
    if settings.secret is None:
        return None
    secret = settings.secret.get_secret_value()
    return Api(context.http, context.shared, settings.api_base_url, settings.appid, secret, context.now)


def tell_mode(channel: str, settings: AccountSettings) -> None:
    """Warns, at the start, of a mode that is not safe."""
    if settings.mode != "safe":
        log.warning("wechat.mode_is_not_safe", channel=channel, mode=settings.mode, reason=_MODES[settings.mode])


async def probe(api: Api | None, settings: AccountSettings, context: Context, channel: str) -> None:
    """Are appid and secret good, and would the console's check of our address go well? Raises Unavailable.

    The second is not asked in the mode plaintext, where whoever saw that address could post with it.
    """
    if api is not None:
        await api.probe()
    if settings.mode != "plaintext":
        address, token = f"{context.public_url}/c/{channel}", settings.token.get_secret_value()
        await callback.probe(context.http, address, token, context.now)


class Conversations:
    """Of one account."""

    def __init__(self, settings: AccountSettings, context: Context) -> None:
        self._appid = settings.appid
        self._context = context
        self._source_secs = settings.source_hours * 3600
        self._replied: Recent[str] = Recent(context.now)
        self._events = {event.lower(): keys for event, keys in settings.events.items()}

    def native_id(self, push: Push) -> str:
        """MsgId as it is written; of an event, which has none, its time, name and key: seconds alone collide."""
        names = ("CreateTime", "Event", "EventKey") if is_event(push) else ("MsgId",)
        own = ":".join(line(push, name) for name in names)
        if not own.strip(":") or len(own) > _LONGEST_ID:
            own = sha256(push.plain).hexdigest()
        return f"{self._appid}:{line(push, 'FromUserName')}:{own}"

    def is_ticket(self, push: Push, source: str = "") -> bool:
        """Every message, and the events that the settings list. `source` is one more key of an event."""
        if not is_event(push):
            return True
        keys = self._events.get(line(push, "Event").lower(), ())
        return keys == "all" or line(push, "EventKey") in keys or (source != "" and source in keys)

    async def remember(self, push: Push, source: str) -> None:
        """Goes with what the sender says next."""
        if source:
            put = self._context.shared.put(self._key("source", push), source, ttl_secs=self._source_secs)
            await in_time(put)

    async def source(self, push: Push) -> str:
        """ "" when none is remembered. Raises Unavailable."""
        return await self._context.shared.get(self._key("source", push)) or ""

    async def claims_reply(self, push: Push, ttl_secs: float) -> bool:
        """Whether this message is the one that is replied to now: yes also when WeChat comes again with it.

        Raises Unavailable.
        """
        key, native_id = self._key("replied", push), self.native_id(push)
        held = self._replied.get(key)
        if held is None:
            held = await self._context.shared.claim(key, native_id, ttl_secs=ttl_secs)
            if ttl_secs >= RECENT_SECS:
                self._replied.put(key, held)
        return held == native_id

    def message(self, push: Push, *, fetch: bool, profile: Mapping[str, str] | None, source: str | None) -> RawMessage:
        """For the normalizer `wechat`, which says what the facts are."""
        facts = {"appid": self._appid, "encrypted": push.encrypted, "fetch": fetch, "profile": profile}
        facts |= {"source": source} if source else {}
        return RawMessage("wechat", push.plain, self.native_id(push), CONTENT_TYPES[push.form], facts)

    def _key(self, what: str, push: Push) -> str:
        return f"wechat:{self._appid}:{what}:{line(push, 'FromUserName')}"


def unreadable(push: Push) -> RawMessage:
    """Another try would be no better, and the customer would read that the account is out of order: it is kept."""
    return RawMessage("wechat", push.plain, facts={"unreadable": push.unreadable})


def is_event(push: Push) -> bool:
    return push.fields.get("MsgType") == "event"


def line(push: Push, name: str) -> str:
    """A field of the push in one line; "" when it is none or no text."""
    value = push.fields.get(name)
    return one_line(value) if isinstance(value, str) else ""


def source_of(push: Push, event: str, name: str, prefix: str = "") -> str:
    """Where the user came from, as this event says it in that field, behind a prefix; "" when it does not."""
    if not is_event(push) or line(push, "Event") != event or not line(push, name).startswith(prefix):
        return ""
    source = line(push, name).removeprefix(prefix)
    return source if len(source) <= _LONGEST_SOURCE else ""


async def in_time(asked: Awaitable[_T]) -> _T | None:
    """None when there is no answer soon."""
    try:
        async with asyncio.timeout(ASK_SECS):
            return await asked
    except (Unavailable, TimeoutError):
        return None


# What a message refers to


async def fetch(api: Api | None, context: Context, wanted: Wanted) -> Part | Profile:
    """By WeChat's server; a picture that it no longer has by the public address in the message. As Connector.fetch."""
    if api is None:
        raise Rejected("forbidden", NO_SECRET)
    if wanted.what == "profile":
        return await api.user(wanted.source)
    media_id, _, address = wanted.source.partition(" ")
    try:
        return await api.media(media_id)
    except Rejected:
        if not address:
            raise
        return await _picture(context, address)


async def _picture(context: Context, address: str) -> Part:
    response = await context.http(address)
    if response.status >= 500 or response.status == 429:
        raise Unavailable(reason=f"the picture's address answers {response.status}")
    if response.status != 200:
        raise Rejected("gone", "WeChat no longer has this file", reason=f"HTTP status {response.status}")
    return Part(response.content, content_type=response.headers.get("Content-Type", ""))
