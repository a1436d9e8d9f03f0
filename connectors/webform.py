"""Hosted web forms: one page per channel, made from the configuration alone. No script, nothing from a third party.

Protocol        GET /c/NAME         the page (`?lang=zh|en`, `?source=` a declared one); for `Accept: application/json`
                                    the fields and a form token
                POST /c/NAME        urlencoded, multipart, or a flat JSON object of field names and values
                GET /c/NAME/thanks  where a browser lands afterwards, so that a refresh does not post again
Authentication  None, a form is open to everybody. Against abuse: a signed, expiring form token; an Origin that must be
                our own or a listed one; a token bucket per address; a hidden field that only robots fill; a least time
                to fill the form in. The last two mark a message `suspected-spam`, they never drop it.
Identity        The form token's random nonce is the native id: a double click, a refresh or a retry is one message.
                Without a token, a program's JSON has its Idempotency-Key, or else is a message of its own; a plain HTML
                form on a listed site is the same message as an equal one from the same client within ten minutes (a
                double click), and later or from elsewhere a new one.
Redelivery      A browser does not try again by itself: a refused page keeps what was typed and asks to submit it again.
Limits          `max_request_bytes`, `max_files`, and each field's own, see `gateway/fields.py`.
Source          HTML Living Standard, "Form submission"; RFC 7578; RFC 6454 (Origin); CSP Level 3; WCAG 2.2;
                draft-ietf-httpapi-idempotency-key-header-07.
"""

import asyncio
import re
import secrets
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, urlencode, urlsplit

import orjson
import segno
from itsdangerous import BadData, URLSafeSerializer
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from gateway.contract import (
    BodyFile,
    ChannelSettings,
    Context,
    Rate,
    RawMessage,
    Receipt,
    Reply,
    Request,
    Settings,
    WebhookConnector,
    accepted_reply,
    json_reply,
    problem_reply,
)
from gateway.errors import ANSWERS, ConfigError, Rejected, Unavailable, wire_error
from gateway.fields import (
    JSON,
    LANGUAGES,
    Bilingual,
    Checked,
    FieldError,
    FileField,
    FormFields,
    Given,
    Language,
    Words,
    accepted_language,
    check,
    read_body,
    size_text,
)
from gateway.idempotency import idempotency_key
from gateway.text import file_name, one_line, plain_text

TOKEN = "form_token"  # noqa: S105 - the name of a form field
HONEYPOT = "homepage"
SAME_CLICK_SECS = 600
HTML = "text/html; charset=utf-8"
_RESERVED = {TOKEN, HONEYPOT, "source"}
_PORTS = {"http": 80, "https": 443}
_REFILLED = {429: "rate_limited", 503: "unavailable"}  # answers after which to submit again


class Source(Settings):
    """A place that a form is opened from, such as a poster with its QR code."""

    name: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="the value of `?source=`")
    label: Words | None = Field(default=None, description="shown on the page")


def _named(given: Any) -> Any:
    return {"name": given} if isinstance(given, str) else given


def _is_origin(text: str) -> str:
    if origin_of(text) != text.lower():
        raise ValueError("give an origin: scheme, host and port alone, for example https://www.example.com")
    return text.lower()


def _is_ancestor(text: str) -> str:
    if not re.fullmatch(r"https?://(\*\.)?[a-z0-9.-]+(:[0-9]{1,5})?", text):
        raise ValueError("give an origin such as https://www.example.com or https://*.example.com")
    return text


class FormSettings(ChannelSettings):
    """The keys of a `webform` channel."""

    type: Literal["webform"]
    rate: Rate | None = Field(
        default=Rate(per_minute=30, burst=20), description="requests per client address; null: unlimited"
    )
    title: Words = Field(description="the page's heading")
    intro: Words | None = Field(default=None, description="below the heading")
    fields: FormFields = Field(description="in their order on the page")
    submit: Words = Field(default=Bilingual(zh="提交", en="Submit"), description="the button")
    thanks: Words = Field(
        default=Bilingual(
            zh="我们已经收到，会尽快回复您。", en="We have received it and will reply as soon as we can."
        ),
        description="shown with the reference number",
    )
    language: Language = Field(default="zh", description="for readers who prefer neither Chinese nor English")
    sources: tuple[Annotated[Source, BeforeValidator(_named, json_schema_input_type=str | Source)], ...] = Field(
        default=(), max_length=10_000, description="the allowed values of `?source=`: texts, or name and label"
    )
    allowed_origins: tuple[Annotated[str, AfterValidator(_is_origin)], ...] = Field(
        default=(), max_length=100, description="other sites whose pages may post here"
    )
    frame_ancestors: tuple[Annotated[str, AfterValidator(_is_ancestor)], ...] = Field(
        default=(), max_length=100, description="other sites that may show the page in a frame"
    )
    token_ttl_minutes: int = Field(default=240, ge=1, le=43_200, description="how long an opened page can be submitted")
    min_fill_seconds: float = Field(default=2, ge=0, le=60, description="faster submissions are marked, not refused")
    max_files: int = Field(default=20, ge=0, le=100, description="files of one submission, all fields together")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for one in self.fields:
            if one.name in _RESERVED:
                raise ValueError(f"no field can be called {one.name}: the form uses that name itself")
            if isinstance(one, FileField) and one.max_bytes >= self.max_request_bytes:
                raise ValueError(f"max_bytes of {one.name} does not fit into max_request_bytes; raise the latter")
        return self

    def source(self, name: str) -> Source | None:
        return next((source for source in self.sources if source.name == name), None)


@dataclass(frozen=True, slots=True)
class Token:
    """What a page carries. Times are Unix seconds."""

    nonce: str
    opened: float
    expires: float
    source: str


class Tokens:
    """Signs what leaves with a page and comes back. A token whose time is over still tells its nonce."""

    def __init__(self, key: bytes, ttl_secs: int) -> None:
        options = {"key_derivation": "hmac", "digest_method": sha256}
        self._pages = URLSafeSerializer(key, salt="page", signer_kwargs=options)
        self._references = URLSafeSerializer(key, salt="reference", signer_kwargs=options)
        self._ttl_secs = ttl_secs

    def fresh(self, now: datetime, source: str) -> Token:
        return Token(secrets.token_urlsafe(16), now.timestamp(), now.timestamp() + self._ttl_secs, source)

    def renewed(self, token: Token, now: datetime) -> Token:
        """The same submission with more time: its nonce stays, and with it the reference it will get."""
        return replace(token, expires=now.timestamp() + self._ttl_secs)

    def sign(self, token: Token) -> str:
        return str(self._pages.dumps(astuple(token)))

    def read(self, text: str) -> Token | None:
        """None when we have not signed it."""
        try:
            return Token(*self._pages.loads(one_line(text)))
        except (BadData, TypeError):
            return None

    def sign_reference(self, reference: str) -> str:
        return str(self._references.dumps(reference))

    def read_reference(self, text: str) -> str:
        try:
            return str(self._references.loads(one_line(text)))
        except BadData:
            raise Rejected("not_found") from None


@dataclass(frozen=True, slots=True)
class Filled:
    """A form as its sender last saw it."""

    given: Given = field(default_factory=Given)
    token: Token | None = None
    notice: str = ""  # a key of the words: why it was not taken
    errors: Mapping[str, str] = field(default_factory=dict)


class FormRejected(Rejected):
    """The form goes back to its sender with everything in it."""

    def __init__(self, filled: Filled, errors: Sequence[FieldError], language: Language) -> None:
        listed = [one.to(language) for one in errors]
        super().__init__("invalid", reason=", ".join(f"{e.field}: {e.code}" for e in errors), extra={"errors": listed})
        self.filled = filled


EXPIRED = FieldError(
    TOKEN, "expired", Bilingual(zh="表单令牌缺失、无效或已过期", en="The form token is missing, not valid, or expired")
)


class Connector(WebhookConnector):
    """A hosted form."""

    Settings = FormSettings
    settings: FormSettings
    redelivers = False
    methods = frozenset({"GET", "HEAD", "POST", "OPTIONS"})

    def __init__(self, name: str, settings: FormSettings, context: Context) -> None:
        super().__init__(name, settings, context)
        self._tokens = Tokens(context.secret(f"webform:{name}"), settings.token_ttl_minutes * 60)
        self._pages = Pages(settings)

    async def admit(self, request: Request) -> None:
        self._listed_origin(request)

    async def verify(self, request: Request) -> Mapping[str, Any]:
        return {"origin": self._listed_origin(request)}

    async def extract(self, request: Request, sender: Mapping[str, Any]) -> Reply | Sequence[RawMessage]:
        if request.method == "OPTIONS":
            return Reply(204, headers=self._cors(request))
        if request.method != "POST":
            return self._shown(request)
        if request.path.strip("/"):
            raise Rejected("not_found")
        given = await self._given(request)
        token = self._tokens.read(given.first(TOKEN))
        self._demand_token(request, given, token, sender["origin"])
        checked = check(self.settings.fields, given, max_files=self.settings.max_files)
        if checked.errors:
            language = self._language(request)
            by_name = {one.field: one.text.to(language) for one in checked.errors}
            raise FormRejected(Filled(given, token, errors=by_name), checked.errors, language)
        return [self._message(request, given, token, checked, sender["origin"])]

    def reply(self, request: Request, receipts: Sequence[Receipt]) -> Reply:
        receipt = receipts[0]
        if _wants_json(request):
            return accepted_reply(receipt, **self._json_headers(request))
        language = self._language(request)
        page = self._pages.message(language, self._link(request, "", language), 303, receipt.reference)
        location = self._link(request, "/thanks", language, ref=self._tokens.sign_reference(receipt.reference))
        return replace(page, headers={**page.headers, "Location": location})

    def refuse(self, request: Request, error: BaseException) -> Reply:
        known = wire_error(error)
        status = ANSWERS[known.code].http
        if _wants_json(request):
            return problem_reply(error, **self._json_headers(request))
        filled = error.filled if isinstance(error, FormRejected) else self._salvaged(request, status)
        page = self._filled(request, filled, status) if filled else self._told(request, status)
        if isinstance(known, Unavailable):
            return replace(page, headers={**page.headers, "Retry-After": str(known.retry_after)})
        return page

    # --- what a request is --------------------------------------------------------------------------------------------

    async def _given(self, request: Request) -> Given:
        if isinstance(request.body, BodyFile):
            return await asyncio.to_thread(read_body, request.body, _content_type(request), keep_content=False)
        return read_body(request.body, _content_type(request), keep_content=False)

    def _language(self, request: Request) -> Language:
        asked = LANGUAGES.get(request.query.get("lang", ""))
        return asked or accepted_language(request.headers.get("Accept-Language", "")) or self.settings.language

    def _listed_origin(self, request: Request) -> str:
        """The listed site that a post comes from; "" when it is our own or not told. Raises Rejected("forbidden")."""
        origin = _origin(request) if request.method in {"POST", "OPTIONS"} else ""
        if origin in self.settings.allowed_origins:
            return origin
        if origin in {"", origin_of(self.context.public_url)} or _same_host(origin, request):
            return ""
        raise Rejected("forbidden", "this form does not accept submissions from that site", reason=origin[:200])

    def _demand_token(self, request: Request, given: Given, token: Token | None, origin: str) -> None:
        if token is not None and self.context.now().timestamp() <= token.expires:
            return
        if not given.first(TOKEN) and (origin or request.content_type == JSON):
            return  # without a page of ours: the Origin was checked, and a program may post
        raise FormRejected(Filled(given, token, notice="expired"), [EXPIRED], self._language(request))

    # --- the message --------------------------------------------------------------------------------------------------

    def _message(
        self, request: Request, given: Given, token: Token | None, checked: Checked, origin: str
    ) -> RawMessage:
        named = token.source if token else request.query.get("source") or given.first("source")
        source = named if self.settings.source(named) else ""
        fingerprint = checked.fingerprint(source)
        facts = {
            "fields": {one.name: list(one.spec) for one in self.settings.fields},
            "language": self._language(request),
            "remote": request.remote,
            "user_agent": one_line(request.headers.get("User-Agent", ""))[:200],
            "source": source,
            "origin": origin,
            "suspect": self._suspicion(request, given, token),
        }
        return RawMessage(
            kind="form",
            body=request.body,
            native_id=token.nonce if token else self._native_id(request, fingerprint),
            content_type=_content_type(request),
            facts={name: fact for name, fact in facts.items() if fact},
            fingerprint=fingerprint,
        )

    def _native_id(self, request: Request, fingerprint: bytes) -> str:
        """The identity of a message without a token; see the top of this file."""
        if "Idempotency-Key" in request.headers:
            return f"key:{idempotency_key(request.headers.getall('Idempotency-Key'))}"
        if request.content_type == JSON:
            return f"one:{secrets.token_urlsafe(16)}"
        period = int(self.context.now().timestamp() // SAME_CLICK_SECS)
        client = orjson.dumps([request.remote, one_line(request.headers.get("User-Agent", "")), period])
        return f"click:{sha256(client + fingerprint).hexdigest()}"

    def _suspicion(self, request: Request, given: Given, token: Token | None) -> str:
        if given.first(HONEYPOT).strip():
            return "honeypot"
        if token is None or request.content_type == JSON:  # programs are fast
            return ""
        elapsed = self.context.now().timestamp() - token.opened
        return "too_fast" if elapsed < self.settings.min_fill_seconds else ""

    # --- pages --------------------------------------------------------------------------------------------------------

    def _shown(self, request: Request) -> Reply:
        page = request.path.strip("/")
        if page == "thanks":
            language = self._language(request)
            reference = self._tokens.read_reference(request.query.get("ref", ""))
            return self._pages.message(language, self._link(request, "", language), 200, reference)
        if page:
            raise Rejected("not_found")
        return self._described(request) if _wants_json(request) else self._filled(request, Filled(), 200)

    def _described(self, request: Request) -> Reply:
        """The form for a program that shows it itself."""
        token = self._fresh_token(request)
        document = {
            "form_token": self._tokens.sign(token),
            "expires_at": int(token.expires),
            "fields": [one.model_dump(mode="json", exclude_none=True) for one in self.settings.fields],
        }
        return json_reply(document, 200, **self._json_headers(request))

    def _filled(self, request: Request, filled: Filled, status: int) -> Reply:
        token = filled.token or self._fresh_token(request)
        language = self._language(request)
        other: Language = "en" if language == "zh" else "zh"
        # Following a link would lose what was typed: on a page that came back there is none.
        link = "" if filled.given.values else self._link(request, "", other)
        signed = self._tokens.sign(self._tokens.renewed(token, self.context.now()))
        source = self.settings.source(token.source)
        return self._pages.form(language, filled, status, signed, source, link)

    def _told(self, request: Request, status: int) -> Reply:
        language = self._language(request)
        return self._pages.message(language, self._link(request, "", language), status)

    def _salvaged(self, request: Request, status: int) -> Filled | None:
        """What was posted, when posting it again may help and the body is still there."""
        if request.method != "POST" or status not in _REFILLED or not request.body:
            return None
        try:
            given = read_body(request.body, _content_type(request), keep_content=False)
        except (Rejected, OSError):
            return None
        return Filled(given, self._tokens.read(given.first(TOKEN)), notice=_REFILLED[status])

    def _fresh_token(self, request: Request) -> Token:
        return self._tokens.fresh(self.context.now(), self._asked_source(request))

    def _asked_source(self, request: Request) -> str:
        asked = self.settings.source(request.query.get("source", ""))
        return asked.name if asked else ""

    def _link(self, request: Request, page: str, language: Language, **query: str) -> str:
        """To `/c/NAME<page>`, relative, so that it holds behind any proxy."""
        up = "../" * request.path.count("/")
        source = self._asked_source(request)
        carried = {**query, "lang": language} | ({"source": source} if source else {})
        return f"{up}{self.name}{page}?{urlencode(carried)}"

    def _cors(self, request: Request) -> dict[str, str]:
        origin = _origin(request)
        if origin not in self.settings.allowed_origins:
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Allow-Headers": "Content-Type, Idempotency-Key",
            "Access-Control-Max-Age": "600",
            "Vary": "Origin",
        }

    def _json_headers(self, request: Request) -> dict[str, str]:
        return {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **self._cors(request)}


class Pages:
    """The templates, with the settings and headers that every page has."""

    def __init__(self, settings: FormSettings) -> None:
        folder = Path(__file__).parent
        css = (folder / "webform.css").read_text("utf-8")
        loader = FileSystemLoader(folder)
        environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        environment.globals.update(settings=settings, css=Markup(css), honeypot=HONEYPOT, size_text=size_text)  # noqa: S704 - our own file
        self._form = environment.get_template("webform.html")
        self._message = environment.get_template("webform_message.html")
        self._words: Mapping[str, Any] = environment.get_template("webform_words.html").module.words  # type: ignore[attr-defined]  # set there
        self._multipart = any(isinstance(one, FileField) for one in settings.fields)
        self._names = [one.name for one in settings.fields]
        self._headers = _security_headers(css, settings.frame_ancestors)

    def form(
        self, language: Language, filled: Filled, status: int, token: str, source: Source | None, other_language: str
    ) -> Reply:
        given = filled.given
        wrong = [name for name in self._names if name in filled.errors]
        html = self._form.render(
            language=language,
            say=self._words[language],
            token=token,
            values={name: [plain_text(value) for value in given.values.get(name, ())] or [""] for name in self._names},
            chosen={name: [file_name(u.filename) for u in files] for name, files in given.uploads.items()},
            errors=filled.errors,
            first_error=wrong[0] if wrong else "",
            notice=filled.notice,
            source_label=source.label if source else None,
            other_language=other_language,
            multipart=self._multipart,
        )
        return Reply(status, html.encode(), HTML, self._headers)

    def message(self, language: Language, form: str, status: int, reference: str = "") -> Reply:
        say = self._words[language]
        html = self._message.render(language=language, say=say, form=form, status=status, reference=reference)
        return Reply(status, html.encode(), HTML, self._headers)


def _security_headers(css: str, frame_ancestors: Sequence[str]) -> dict[str, str]:
    ancestors = " ".join(("'self'", *frame_ancestors))
    style = b64encode(sha256(css.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{style}'; img-src data:; form-action 'self'; base-uri 'none'; "
        f"frame-ancestors {ancestors}"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        # Not stricter: under `no-referrer` a browser sends `Origin: null` with our own form.
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


def _content_type(request: Request) -> str:
    return one_line(request.headers.get("Content-Type", ""))


def origin_of(url: str) -> str:
    """`https://host[:port]` in lower case, without a default port; "" when the address has no origin."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return ""
    if parts.scheme not in _PORTS or not parts.hostname:
        return ""
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port and port != _PORTS[parts.scheme] else "")


def _origin(request: Request) -> str:
    """Where a browser says a request comes from; "" when it says nothing, "null" when it hides it."""
    told = request.headers.get("Origin") or request.headers.get("Referer")
    return origin_of(told) or "null" if told else ""


def _same_host(origin: str, request: Request) -> bool:
    """Own pages under another name than `public_url` (localhost, an address): the browser sends both headers."""
    return origin.partition("://")[2] == request.headers.get("Host", "").lower()


def _wants_json(request: Request) -> bool:
    accept = request.headers.get("Accept", "").lower()
    return request.content_type == JSON or ("json" in accept and "text/html" not in accept)


def form_url(public_url: str, channel: str, source: str | None = None) -> str:
    """The public address of a form."""
    query = f"?source={quote(source, safe='')}" if source else ""
    return f"{public_url.rstrip('/')}/c/{quote(channel, safe='')}{query}"


def write_qr(url: str, path: Path) -> None:
    """Draws the QR code of an address as SVG (a millimetre a module) or PNG (ten pixels), by the file's suffix."""
    sizes: dict[str, dict[str, Any]] = {".svg": {"scale": 1, "unit": "mm"}, ".png": {"scale": 10}}
    size = sizes.get(path.suffix.lower())
    if size is None:
        raise ConfigError(f"{path}: a QR code is written as .svg or .png")
    # A quiet zone of four modules and a light ground, also on a dark page (ISO/IEC 18004).
    segno.make(url, error="m", micro=False).save(
        str(path), kind=path.suffix[1:].lower(), border=4, light="white", **size
    )
