"""What the core, the connectors and the normalizers agree on. A connector or a normalizer needs nothing else.

A webhook connector writes `verify`, `extract` and `reply`; the core calls them in that order (R10).
A running connector is given `accept(raw) -> Receipt`, and acknowledges after it returned; its context lends it a memory
of its own and a lease (R11).
A normalizer is a pure function `RawMessage -> Draft` (R12).
"""

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

import orjson
from multidict import MultiMapping
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gateway.envelope import Identity, Message
from gateway.errors import HuiruError, Rejected, Unavailable, problem, wire_error


class Settings(BaseModel):
    """Base of every settings model: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Rate(Settings):
    """A token bucket per client address."""

    per_minute: float = Field(gt=0, description="tokens added per minute")
    burst: int = Field(ge=1, description="tokens the bucket holds")


class Wording(Settings):
    """A template in one language or in both."""

    zh: str | None = Field(default=None, max_length=20_000, description="in Chinese; null: the built-in one")
    en: str | None = Field(default=None, max_length=20_000, description="in English; null: the built-in one")


def _in_both(given: Any) -> Any:
    return {"zh": given, "en": given} if isinstance(given, str) else given


Template = Annotated[Wording, BeforeValidator(_in_both, json_schema_input_type=str | Wording)]


class Acknowledge(Settings):
    """The mail that tells a customer that their message has come, and under which reference.

    Templates are Jinja's. They know `reference`, `subject` and `name` (what the customer wrote, both may be empty),
    `channel` and `sender` (the name in `from`, else its address).
    """

    sender: str = Field(
        alias="from",
        max_length=320,
        description="who it is from: `support@acme.cn` or `ACME Support <support@acme.cn>`",
    )
    reply_to: str | None = Field(
        default=None,
        max_length=320,
        description="where answers go: an address, or `signed`: the address in `from` with the reference behind a plus,"
        " by which an answer is known; null: the address in `from`",
    )
    language: Literal["zh", "en"] = Field(default="zh", description="where the message's own is neither or unknown")
    subject: Template = Field(default=Wording(), description="template of the subject")
    text: Template = Field(default=Wording(), description="template of the plain text")
    html: Template = Field(default=Wording(), description="template of the HTML; null: made of the plain text")
    max_per_sender_per_hour: int = Field(default=5, ge=1, description="a sender is sent no more by this gateway")
    max_per_domain_per_hour: int = Field(
        default=100, ge=1, description="nor are all senders of a domain together: what ends a loop of two robots"
    )


class ChannelSettings(Settings):
    """The keys every channel has."""

    type: str = Field(description="which connector receives this channel")
    queue: str | None = Field(default=None, description="goes to the ticket's `queue`")
    tags: tuple[str, ...] = Field(default=(), description="go to the ticket's `tags`")
    priority: str | None = Field(default=None, description="goes to the ticket's `priority`")
    max_request_bytes: int = Field(default=32 << 20, ge=1024, description="larger requests are refused with 413")
    rate: Rate | None = Field(default=None, description="requests per client address; null: unlimited")
    acknowledge: Acknowledge | None = Field(
        default=None, description="a mail to the customer with the reference; null: none is sent"
    )

    @property
    def where(self) -> str:
        """Where a channel that is not called by HTTP is reached or reads, for people; "" says nothing."""
        return ""

    def receives(self, address: str) -> bool:
        """Whether mail to this address (in lower case) comes to this channel: then nobody is written to there."""
        return False


@dataclass(frozen=True, slots=True)
class BodyFile:
    """A body too large for memory: a file that the spool takes over when the message is accepted."""

    path: Path
    size: int
    sha256: bytes


Body = bytes | BodyFile


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A message as it came.

    `facts` is what the connector knows beside the bytes (a verified identity, the form's field types), JSON-able; it is
    stored with them, so that a message gives the same envelope whenever it is normalised.
    `fingerprint` is a digest of the content that must not differ between two deliveries of one message; without it, the
    body's SHA-256. `on_conflict` says what happens to other content under a known native id: `keep` accepts it as a
    message of its own, marked; `refuse` raises Rejected("idempotency_mismatch").
    `memo` goes into the channel's memory in the commit that holds the message, or finds it there already: a position in
    a mailbox is never ahead of the messages, nor lost behind them.
    """

    kind: str
    body: Body
    native_id: str | None = None
    content_type: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: bytes | None = None
    on_conflict: Literal["keep", "refuse"] = "keep"
    memo: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Receipt:
    """The spool has the message on disk. `duplicate`: it had it before."""

    id: str
    reference: str
    duplicate: bool = False


Accept = Callable[[RawMessage], Awaitable[Receipt]]


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A raw message as the spool gives it to a normalizer."""

    id: str
    channel: str
    kind: str
    body: bytes
    content_type: str
    native_id: str | None
    facts: Mapping[str, Any]
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Part:
    """A file found in a message. The core stores it and turns it into an Attachment."""

    content: bytes
    filename: str = ""
    content_type: str = ""
    inline: bool = False
    content_id: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Something that a message refers to, and that its channel can fetch: see Connector.fetch.

    `what` names it in an omission: `image`, `voice`, `recording`, `profile`. `source` is the channel's own: a media id,
    an address. `filename` and `content_type` are what the message says of a file, where the server does not.
    """

    what: str
    source: str
    filename: str = ""
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a channel's server knows of a sender. It fills what the message leaves open."""

    name: str | None = None
    identities: tuple[Identity, ...] = ()
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """What a normalizer makes: the message, the files it carries, and what of it has to be fetched.

    `updates` is the native id of an earlier message of this channel: then this is no ticket but an addition to that
    one, an event of the type `huiru.message.update.v1`.
    """

    message: Message
    parts: tuple[Part, ...] = ()
    wanted: tuple[Wanted, ...] = ()
    updates: str | None = None


class Normalizer(Protocol):
    """Raises Rejected when the message can never be normalised; anything else it raises counts as a try."""

    def __call__(self, raw: StoredMessage, /) -> Draft: ...


class Memory(Protocol):
    """What a channel remembers over restarts, for itself alone: see also RawMessage.memo."""

    async def recall(self) -> Mapping[str, str]:
        """All of it. Raises Unavailable."""

    async def memorise(self, values: Mapping[str, str | None], /) -> None:
        """Returns when it is on disk; None deletes. Raises Unavailable."""


class Briefly:
    """A memory that ends with the process, for a connector that is made only to be probed."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    async def recall(self) -> Mapping[str, str]:
        return dict(self._values)

    async def memorise(self, values: Mapping[str, str | None], /) -> None:
        kept = {key: value for key, value in (self._values | dict(values)).items() if value is not None}
        self._values = kept


class Hold(Protocol):
    """A lease that is held. `number` is its fencing number: higher every time the lease is taken."""

    number: int

    def check(self) -> None:
        """Raises Unavailable when the lease may be another's by now: to be called before every irrevocable act."""

    async def recall(self) -> Mapping[str, str]:
        """What this and earlier holders, of whatever gateway, have memorised here; empty when Redis lost it."""

    async def memorise(self, values: Mapping[str, str], /) -> None:
        """For the holders to come. Raises Unavailable, and changes nothing, when another holds the lease by now."""


class Lease(Protocol):
    """By which one process in the world does the channel's work."""

    def hold(self, waiting: Callable[[str], None]) -> AbstractAsyncContextManager[Hold]:
        """Waits until it has the lease, saying why by `waiting`; gives it back at the end of the block.

        When the lease is lost, or cannot be renewed for so long that it would be, the block is cancelled and
        Unavailable is raised.
        """


class Sole(Lease, Hold):
    """Of a connector that has no rivals: one that is made only to be probed."""

    number = 0

    @asynccontextmanager
    async def hold(self, waiting: Callable[[str], None]) -> AsyncIterator[Hold]:
        yield self

    def check(self) -> None: ...

    async def recall(self) -> Mapping[str, str]:
        return {}

    async def memorise(self, values: Mapping[str, str], /) -> None: ...


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An answer of a server that we asked. `url` is where it came from, behind redirects."""

    status: int
    headers: MultiMapping[str]  # names in any case
    content: bytes
    url: str


class Http(Protocol):
    """Asks a server, within the limits of the settings `media`.

    Addresses that are not public are refused, also behind a name or a redirect, unless `trusted` says that the address
    is the operator's own: then no redirect is followed. `headers` go to the first server alone.
    """

    async def __call__(
        self,
        url: str,
        *,
        method: Literal["GET", "POST"] = "GET",
        headers: Mapping[str, str] = {},
        body: bytes = b"",
        trusted: bool = False,
        timeout_secs: float | None = None,
    ) -> HttpResponse:
        """Whatever the status. Raises Rejected("forbidden" or "too_large"), and Unavailable when there is no answer."""


class Shared(Protocol):
    """What all gateways at one stream share, in Redis, for a time. Everything raises Unavailable, and soon.

    Who names a key begins it with the account it belongs to.
    """

    async def get(self, key: str, /) -> str | None: ...

    async def put(self, key: str, value: str, /, *, ttl_secs: float) -> None: ...

    async def claim(self, key: str, value: str, /, *, ttl_secs: float) -> str:
        """Sets the key if it is free, in one step; returns what it holds: `value`, or another's."""

    async def merge(self, key: str, values: Mapping[str, str], /, *, ttl_secs: float) -> dict[str, str]:
        """Adds to a hash, renews its time, and returns all of it, in one step."""

    async def delete(self, key: str, /) -> None: ...


class Apart(Shared):
    """Of a connector that shares nothing: one that is made only to be probed. Ends with the process."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._hashes: dict[str, dict[str, str]] = {}

    async def get(self, key: str, /) -> str | None:
        return self._values.get(key)

    async def put(self, key: str, value: str, /, *, ttl_secs: float) -> None:
        self._values[key] = value

    async def claim(self, key: str, value: str, /, *, ttl_secs: float) -> str:
        return self._values.setdefault(key, value)

    async def merge(self, key: str, values: Mapping[str, str], /, *, ttl_secs: float) -> dict[str, str]:
        self._hashes[key] = self._hashes.get(key, {}) | dict(values)
        return dict(self._hashes[key])

    async def delete(self, key: str, /) -> None:
        self._values.pop(key, None)
        self._hashes.pop(key, None)


class Uploads(Protocol):
    """Files that come before the message they belong to. They are kept as long as attachments are."""

    async def keep(self, content: bytes, /) -> str:
        """The hex SHA-256, once it is stored. Raises Unavailable."""

    async def get(self, digest: str, /) -> bytes:
        """Raises Rejected("gone") when it is no longer kept, and Unavailable."""


class _NoUploads(Uploads):
    async def keep(self, content: bytes, /) -> str:
        raise Unavailable(reason="there is no store")

    async def get(self, digest: str, /) -> bytes:
        raise Unavailable(reason="there is no store")


async def no_http(url: str, **_: Any) -> HttpResponse:
    raise Unavailable(reason="there is no network")


def _scratch() -> Path:
    descriptor, path = tempfile.mkstemp(prefix="huiru-")
    os.close(descriptor)
    return Path(path)


@dataclass(frozen=True, slots=True)
class Context:
    """What the core lends a connector. `secret(purpose)` is a 32-byte key, stable over restarts, one per purpose.

    `scratch()` is a path for the file of a large body, where the spool can take it over; who does not hand it to
    `accept` deletes it.
    """

    gateway: str
    public_url: str
    secret: Callable[[str], bytes]
    now: Callable[[], datetime]
    memory: Memory = field(default_factory=Briefly)
    lease: Lease = field(default_factory=Sole)
    scratch: Callable[[], Path] = _scratch
    shared: Shared = field(default_factory=Apart)
    http: Http = no_http
    uploads: Uploads = field(default_factory=_NoUploads)


@dataclass(slots=True)
class Request:
    """An HTTP request to `/c/<channel><path>`. `remote`: the client behind trusted proxies; `url`: the public one.

    `notes` are the connector's own, from one of its methods to the next.
    """

    method: str
    path: str
    url: str
    query: MultiMapping[str]
    headers: MultiMapping[str]  # names in any case
    remote: str
    body: Body = b""
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def content_type(self) -> str:
        """The media type in lower case, without its parameters."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer.

    `ignored` has a code for each thing that was understood, and is no message by the channel's settings: it is counted.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    ignored: Sequence[str] = ()


def json_reply(document: object, status: int = 200, **headers: str) -> Reply:
    return Reply(status, orjson.dumps(document), "application/json", headers)


def problem_reply(error: BaseException, **headers: str) -> Reply:
    """Any error as `application/problem+json` (RFC 9457); what is not ours gives a 503 that tells nothing."""
    known: HuiruError = wire_error(error)
    if isinstance(known, Unavailable):
        headers["Retry-After"] = str(known.retry_after)
    document = problem(known)
    return Reply(document["status"], orjson.dumps(document, default=str), "application/problem+json", headers)


def accepted_reply(receipt: Receipt, **headers: str) -> Reply:
    """What a program is told of its message: 202, or 200 when it was there before."""
    document = {"id": receipt.id, "reference": receipt.reference, "status": "accepted"}
    return json_reply(document, 200 if receipt.duplicate else 202, **headers)


def refusal(error: BaseException, *, realm: str, allowed: str) -> Reply:
    """A problem for a program that comes with a bearer token, and what it has to know to mend it: how to prove who it
    is, which methods there are (RFC 9110, 11.6.1 and 10.2.1)."""
    code = error.code if isinstance(error, HuiruError) else ""
    if code == "unauthenticated":
        return problem_reply(error, **{"WWW-Authenticate": f'Bearer realm="{realm}"'})
    return problem_reply(error, Allow=allowed) if code == "method_not_allowed" else problem_reply(error)


class Connector(ABC):
    """Base of both kinds. A connector module defines one class named `Connector` and its `Settings`."""

    Settings: ClassVar[type[ChannelSettings]]
    redelivers: ClassVar[bool]  # will the sender try again when we do not acknowledge? (R13)

    def __init__(self, name: str, settings: Any, context: Context) -> None:
        self.name = name
        self.settings = settings
        self.context = context

    @property
    def credential_expires_at(self) -> float | None:
        """When the channel's credential (a certificate, a token) expires, in seconds since the epoch; None: it does
        not, or that is not known. Read whenever the metrics are asked for, so it must be quick."""
        return None

    @property
    def trouble(self) -> str:
        """Why the channel does not receive, or not all of it; "" when all is well. For `huiru status`: no secrets."""
        return ""

    @property
    def missing(self) -> int | None:
        """How many messages the channel's server holds that should have been accepted and were not; None: not known."""
        return None

    async def fetch(self, wanted: Wanted) -> Part | Profile:
        """What a message of this channel refers to, from the channel's server.

        Raises Rejected when it can never be had: its public text goes into the ticket's `omissions`. Anything else that
        is raised means another try, later.
        """
        raise Rejected("not_found", "this channel fetches nothing")

    async def probe(self) -> None:  # noqa: B027 - a channel that only listens has nothing to reach
        """Tests the channel's credentials and its server without consuming a message; raises what is wrong."""


class WebhookConnector(Connector):
    """A channel that is called by HTTP. Everything raised becomes the answer of `refuse`."""

    methods: ClassVar[frozenset[str]] = frozenset({"POST"})

    async def admit(self, request: Request) -> None:
        """Refuses early, before the body is read (`request.body` is empty here)."""

    @abstractmethod
    async def verify(self, request: Request) -> Mapping[str, Any]:
        """Authenticates the sender over the raw bytes and returns what is known of them; raises Rejected."""

    @abstractmethod
    async def extract(self, request: Request, sender: Mapping[str, Any]) -> Reply | Sequence[RawMessage]:
        """The messages in the request, or the reply to a request that carries none (a page, a handshake)."""

    @abstractmethod
    def reply(self, request: Request, receipts: Sequence[Receipt]) -> Reply:
        """The answer when every message is durable."""

    def refuse(self, request: Request, error: BaseException) -> Reply:
        """The answer to an error; a channel with a vendor's own form overrides it."""
        return problem_reply(error)


class RunningConnector(Connector):
    """A channel that runs on its own: a listener or a reader."""

    @abstractmethod
    async def run(self, accept: Accept, up: Callable[[bool], None]) -> None:
        """Receives until cancelled. `up(True)` once it may receive, `up(False)` when it cannot.

        Whatever it raises is logged; the supervisor starts it again with back-off.
        """


def body_digest(body: Body) -> bytes:
    """SHA-256 of a body."""
    return body.sha256 if isinstance(body, BodyFile) else sha256(body).digest()


def body_size(body: Body) -> int:
    return body.size if isinstance(body, BodyFile) else len(body)
