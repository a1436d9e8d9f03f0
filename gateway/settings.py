"""The configuration: one YAML file, read once, as frozen models. A channel is checked by its own connector's Settings.

Every fault of the file is reported at once, except that what concerns several sections together is looked at when each
of them is right by itself.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    Field,
    PlainValidator,
    SecretStr,
    SerializeAsAny,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError

from gateway import configfile, letter, registry
from gateway.address import Address, Listen, Network
from gateway.configfile import ConfigFile
from gateway.contract import ChannelSettings, Settings
from gateway.errors import ConfigError
from gateway.faults import explain

Model = TypeVar("Model", bound=Settings)
DEFAULT_STATE_DIR = Path("/var/lib/huiru")


def _slug(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]{1,63}", text):
        raise ValueError("a name is 1 to 63 characters of a-z, 0-9 and -")
    return text


def _http_url(url: str) -> str:
    """Without the slash at its end."""
    parts = _split(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise ValueError("expected an address such as https://support.example.com")
    if parts.query or parts.fragment:
        raise ValueError("the address must not have a ? or # part")
    return url.rstrip("/")


def _redis_url(url: str) -> str:
    if url == "embedded":
        return url
    parts = _split(url)
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError("expected embedded, redis://HOST:6379/0, rediss://… (TLS) or unix:///path/to/redis.sock")
    if not (parts.path if parts.scheme == "unix" else parts.hostname):
        raise ValueError("the address names no server; write redis://HOST:6379/0 or unix:///path/to/redis.sock")
    if parts.scheme != "unix" and not re.fullmatch(r"/?[0-9]{0,4}", parts.path):
        raise ValueError("the part behind the host is the database's number, such as /0")
    if parts.fragment or not re.fullmatch(r"(db=[0-9]{1,4})?", parts.query):
        raise ValueError("the only option an address may have is ?db=N; the others are keys of this section")
    return url


def _credentials(url: Any) -> tuple[str, dict[str, str]] | None:
    """The address without user and password, and these; None when it has none."""
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
    except ValueError:
        return None
    if parts is None or "@" not in parts.netloc:
        return None
    before = parts.netloc.rpartition("@")[0]
    user, _, password = before.partition(":")
    credentials = {"username": unquote(user), "password": unquote(password)}
    return url.replace(f"//{before}@", "//", 1), {key: value for key, value in credentials.items() if value}


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:  # its text may repeat a password
        raise ValueError("is not a valid address; have special characters been percent-encoded?") from error
    return parts


def _bucket_url(url: str) -> str:
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w.!*'()/-]*)?", url, re.ASCII):
        raise ValueError("expected s3://BUCKET or s3://BUCKET/PREFIX")
    return url.rstrip("/")


def _stream_name(name: str) -> str:
    if not re.fullmatch(r"[^\s{}\x00-\x1f\x7f]{1,200}", name):
        raise ValueError("a stream's name is 1 to 200 characters without spaces, control characters and braces")
    return name


def _long_enough(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value()) < 32:
        raise ValueError("is shorter than 32 characters; make one by: openssl rand -hex 32")
    return secret


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise ValueError("~ stands for a home folder, and there is no such user") from error


def _channel(block: Any) -> ChannelSettings:
    """A channel's settings by the model of its connector."""
    if isinstance(block, ChannelSettings):
        return block
    if not isinstance(block, dict):
        raise PydanticKnownError("dict_type")
    if "type" not in block:
        raise _error_at(("type",), "missing")
    if not isinstance(block["type"], str):
        raise _error_at(("type",), "string_type")
    try:
        connector = registry.connector(block["type"])
    except ConfigError as error:
        raise _error_at(("type",), PydanticCustomError("channel_type", "{text}", {"text": error.public})) from None
    return connector.Settings.model_validate(block)


def _error_at(key: tuple[str, ...], error: PydanticCustomError | str) -> ValidationError:
    """An error at a key below the value being validated. The value itself is left out."""
    return ValidationError.from_exception_data("settings", [InitErrorDetails(type=error, loc=key, input=None)])


def _fault_at(key: str, text: str) -> ValidationError:
    return _error_at(tuple(key.split(".")), PydanticCustomError("settings", "{text}", {"text": text}))


# An empty value means "not set", so that `${NAME:-}` can switch an optional key off.
_Unset = BeforeValidator(lambda value: None if value == "" else value)
Slug = Annotated[str, AfterValidator(_slug), WithJsonSchema({"type": "string", "pattern": "^[a-z0-9-]{1,63}$"})]
# The schema of the channels is made from the connectors: see schema.py.
Channel = Annotated[SerializeAsAny[ChannelSettings], PlainValidator(_channel), WithJsonSchema({"type": "object"})]
Folder = Annotated[Path, AfterValidator(_absolute)]


class HttpSettings(Settings):
    """The listener for all webhook channels."""

    listen: Listen = Field(default=Address("0.0.0.0", 8080), description="host:port the channels are served on")  # noqa: S104 - customers come from outside
    public_url: Annotated[str, AfterValidator(_http_url)] | None = Field(
        default=None, description="the address customers reach it by; default: http://127.0.0.1:PORT"
    )
    trusted_proxies: tuple[Network, ...] = Field(
        default=(), description="networks whose X-Forwarded-For and X-Forwarded-Proto are believed"
    )
    max_inflight: int = Field(default=1000, ge=1, description="requests in work at a time; more are answered 503")
    body_timeout_secs: int = Field(default=60, ge=1, description="a request's body must arrive within this time")
    memory_body_bytes: ByteSize = Field(
        default=ByteSize(64 << 10), ge=1024, description="larger request bodies go through a file"
    )

    def base_url(self, port: int | None = None) -> str:
        """`public_url`, or where it listens; `port` is the one that was bound, for a configured port 0."""
        if self.public_url:
            return self.public_url
        host = "127.0.0.1" if self.listen.is_wildcard else self.listen.host
        return f"http://{Address(host, self.listen.port if port is None else port)}"


class AdminSettings(Settings):
    """Health, readiness and metrics. Keep it away from the internet."""

    listen: Listen = Field(default=Address("127.0.0.1", 9090), description="host:port of /healthz, /readyz, /metrics")


class RedisSettings(Settings):
    """The Redis (6.2 or newer) or Valkey that holds the stream."""

    url: Annotated[str, BeforeValidator(lambda url: url or "embedded"), AfterValidator(_redis_url)] = Field(
        default="embedded",
        description="embedded (the daemon starts one of its own), redis://HOST:PORT/DB, rediss://… or unix:///PATH?db=N",
    )
    username: Annotated[str | None, _Unset] = Field(default=None, description="ACL user")
    password: Annotated[SecretStr | None, _Unset] = Field(default=None, description="its password")
    ca_file: Annotated[Path | None, _Unset] = Field(default=None, description="certificates to trust, PEM (rediss)")
    cert_file: Annotated[Path | None, _Unset] = Field(default=None, description="our own certificate, PEM (rediss)")
    key_file: Annotated[Path | None, _Unset] = Field(default=None, description="its private key, PEM (rediss)")
    embedded_port: int = Field(default=6390, ge=0, le=65535, description="TCP port of the embedded Redis, on loopback")
    connect_timeout_secs: float = Field(default=5, gt=0, le=300, description="for a new connection")
    timeout_secs: float = Field(default=10, gt=0, le=300, description="for an answer")

    @property
    def is_embedded(self) -> bool:
        """Whether the daemon starts a Redis of its own."""
        return self.url == "embedded"

    @property
    def shown_url(self) -> str:
        """The address for people and logs; see `_credentials_apart`."""
        return self.url

    @model_validator(mode="before")
    @classmethod
    def _credentials_apart(cls, given: Any) -> Any:
        """User and password in the address go to the keys of their own, so that the address holds no secret."""
        found = _credentials(given.get("url")) if isinstance(given, dict) else None
        if found is None:
            return given
        url, credentials = found
        for key in credentials:
            if given.get(key):
                raise _fault_at(key, "is in url too; give it once")
        return {**given, **credentials, "url": url}

    @model_validator(mode="after")
    def _tls(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            given, absent = ("cert_file", "key_file") if self.cert_file else ("key_file", "cert_file")
            raise _fault_at(given, f"a certificate and its key belong together; add {absent}")
        tls = next((name for name in ("ca_file", "cert_file") if getattr(self, name)), None)
        if tls and not self.url.startswith("rediss://"):
            raise _fault_at(tls, "is for TLS; write rediss:// in url, or remove the key")
        return self


class StreamSettings(Settings):
    """The Redis stream that tickets are published to."""

    name: Annotated[str, AfterValidator(_stream_name)] = Field(default="tickets", description="the stream's key")
    dedup_window_hours: int = Field(default=168, ge=1, le=24 * 366, description="how long a message id is remembered")
    batch: int = Field(default=200, ge=1, le=500, description="messages published in one step at most")
    max_len: int | None = Field(
        default=None, ge=1, description="trims the stream to about so many tickets, READ OR NOT; null: never"
    )


class SpoolSettings(Settings):
    """The journal on disk in which every message stands before it is acknowledged."""

    max_bytes: ByteSize = Field(
        default=ByteSize(10 << 30), ge=1 << 20, description="when it is full, senders are told to retry"
    )
    min_free_bytes: ByteSize = Field(
        default=ByteSize(64 << 20), ge=0, description="disk space to leave free; below it, senders are told to retry"
    )
    keep_published_hours: int = Field(
        default=72, ge=1, description="how long published messages are kept, to publish them again if Redis loses them"
    )
    max_tries: int = Field(
        default=5, ge=1, description="failures without a known cause before a message is quarantined"
    )
    inline_bytes: ByteSize = Field(
        default=ByteSize(64 << 10), ge=0, description="larger messages lie in a file of their own"
    )


class NormalizeSettings(Settings):
    """Large messages are normalised in processes of their own, so that they hold up nobody else."""

    workers: int = Field(default=1, ge=1, le=64, description="how many such processes there may be")
    in_process_bytes: ByteSize = Field(
        default=ByteSize(64 << 10), ge=64 << 10, description="larger messages are normalised by a worker"
    )
    timeout_secs: float = Field(
        default=30, gt=0, le=3600, description="a message that takes a worker longer goes to quarantine"
    )
    memory_bytes: ByteSize = Field(
        default=ByteSize(1 << 30), ge=256 << 20, description="so does one for which a worker needs more address space"
    )


class MediaSettings(Settings):
    """What messages refer to is fetched after they were accepted: WeChat's pictures and voices, recordings of calls."""

    wait_secs: float = Field(
        default=600,
        ge=0,
        le=259_200,
        description="how long a ticket waits for its files; then it goes out without them, and what comes later follows"
        " as an update",
    )
    give_up_hours: float = Field(default=72, gt=0, le=720, description="how long a file is tried for")
    concurrency: int = Field(default=4, ge=1, le=64, description="files fetched at a time")
    max_bytes: ByteSize = Field(default=ByteSize(32 << 20), ge=1024, description="larger files are left out")
    timeout_secs: float = Field(default=60, gt=0, le=3600, description="for one try")
    max_redirects: int = Field(default=3, ge=0, le=20, description="that are followed")
    allow_networks: tuple[Network, ...] = Field(
        default=(),
        description="networks that are not public and may be fetched from all the same, such as a recorder's",
    )


class BlobSettings(Settings):
    """Where attachments lie."""

    url: Annotated[Annotated[str, AfterValidator(_bucket_url)] | None, _Unset] = Field(
        default=None, description="s3://BUCKET/PREFIX, with the credentials of the AWS_… variables; null: in state_dir"
    )
    keep_days: int = Field(default=30, ge=1, description="attachments are deleted after this time")
    url_ttl_hours: int = Field(default=168, ge=1, description="how long the signed addresses in tickets are good")


class OutgoingMail(Settings):
    """The submission server that acknowledgements are sent through."""

    host: str = Field(min_length=1, max_length=255, description="its name or address")
    port: Annotated[int | None, _Unset] = Field(
        default=None, ge=1, le=65535, description="null: 587 with starttls, 465 with implicit, 25 with none"
    )
    tls: Literal["starttls", "implicit", "none"] = Field(
        default="starttls", description="starttls and implicit refuse a server without a valid certificate"
    )
    username: Annotated[str | None, _Unset] = Field(default=None, description="null: without authentication")
    password: Annotated[SecretStr | None, _Unset] = Field(default=None, description="its password")
    ca_file: Annotated[Path | None, _Unset] = Field(default=None, description="certificates to trust, PEM")
    timeout_secs: float = Field(default=30, gt=0, le=600, description="for a connection, and for each answer")
    helo: Annotated[str | None, _Unset] = Field(
        default=None,
        pattern=r"^[A-Za-z0-9.:\[\]-]{1,255}$",
        description="what we call ourselves; null: our host's name",
    )
    return_path: Annotated[Annotated[str, AfterValidator(letter.ascii_address)] | None, _Unset] = Field(
        default=None,
        description="null: none, as RFC 3834 asks; an address only for a server that refuses mail without one",
    )

    @property
    def port_number(self) -> int:
        """`port`, or the usual one."""
        return self.port or {"starttls": 587, "implicit": 465, "none": 25}[self.tls]

    @model_validator(mode="after")
    def _login(self) -> Self:
        if (self.username is None) != (self.password is None):
            given, absent = ("username", "password") if self.username else ("password", "username")
            raise _fault_at(given, f"a user and its password belong together; add {absent}")
        if self.password and self.tls == "none" and not _is_loopback(self.host):
            raise _fault_at("tls", "would show the password to the network; write starttls or implicit")
        if self.ca_file and self.tls == "none":
            raise _fault_at("ca_file", "is for TLS; write tls: starttls or implicit, or remove the key")
        return self


class LogSettings(Settings):
    """Log lines go to standard error."""

    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: console on a terminal, else json"
    )
    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="the least that is logged")


class Whereabouts(Settings):
    """The part of the file by which a tool finds the daemon and its stream."""

    state_dir: Folder = Field(
        default=DEFAULT_STATE_DIR,
        description="spool, attachments, embedded Redis; a relative path is relative to the current folder",
    )
    redis: RedisSettings = Field(default=RedisSettings(), description="where tickets go")
    stream: StreamSettings = Field(default=StreamSettings(), description="the stream of tickets")


class GatewaySettings(Whereabouts):
    """The whole file."""

    name: Slug = Field(default="huiru", description="the gateway's name: part of every event's source")
    secret: Annotated[Annotated[SecretStr, AfterValidator(_long_enough)] | None, _Unset] = Field(
        default=None,
        description="32 characters or more, from which signing keys are made; null: made and kept in state_dir",
    )
    http: HttpSettings = Field(default=HttpSettings(), description="where the channels are served")
    admin: AdminSettings = Field(default=AdminSettings(), description="where health and metrics are served")
    spool: SpoolSettings = Field(default=SpoolSettings(), description="the journal on disk")
    normalize: NormalizeSettings = Field(default=NormalizeSettings(), description="large messages")
    media: MediaSettings = Field(default=MediaSettings(), description="files that are fetched")
    blobs: BlobSettings = Field(default=BlobSettings(), description="attachments")
    outgoing_mail: OutgoingMail | None = Field(
        default=None, description="the server that acknowledgements are sent through; null: none are sent"
    )
    log: LogSettings = Field(default=LogSettings(), description="logging")
    shutdown_secs: int = Field(default=20, ge=1, le=600, description="how long a stop may take to finish work in hand")
    channels: dict[Slug, Channel] = Field(description="the channels by name; each has a `type`")

    @model_validator(mode="after")
    def _has_channels(self) -> Self:
        if not self.channels:
            raise _fault_at("channels", "there is none; add a channel, for example `app: {type: api, …}`")
        return self

    @model_validator(mode="after")
    def _own_addresses(self) -> Self:
        taken: dict[str, Address] = {}
        for key, address in self._listeners():
            for other, its in taken.items():
                if address.clashes(its):
                    raise _fault_at(key, f"is the address of {other} too; give each its own port")
            taken[key] = address
        return self

    @model_validator(mode="after")
    def _acknowledgements(self) -> Self:
        for name, channel in self.channels.items():
            if channel.acknowledge is None:
                continue
            key = f"channels.{name}.acknowledge"
            if self.outgoing_mail is None:
                remedy = "add `outgoing_mail: {host: smtp.example.com, …}` to the file, or remove acknowledge"
                raise _fault_at(key, f"there is no server to send it through; {remedy}")
            for below, text in letter.faults(channel.acknowledge):
                raise _fault_at(f"{key}.{below}", text)
        return self

    def _listeners(self) -> Iterator[tuple[str, Address]]:
        yield "http.listen", self.http.listen
        yield "admin.listen", self.admin.listen
        if self.redis.is_embedded:
            yield "redis.embedded_port", Address("127.0.0.1", self.redis.embedded_port)
        for name, channel in self.channels.items():
            address = getattr(channel, "listen", None)
            if isinstance(address, Address):
                yield f"channels.{name}.listen", address


def load(path: Path, env: Mapping[str, str]) -> GatewaySettings:
    """The settings in a file, with `${…}` from `env`.

    Raises ConfigError, whose `public` has one line per fault, in the order of the file:
    `FILE:LINE: key.path: what is wrong; remedy`.
    """
    return _validated(GatewaySettings, configfile.read(path, env), path)


def locate(path: Path, env: Mapping[str, str]) -> Whereabouts:
    """The same of one part alone, for a tool whose user may not read the secrets of the rest. Raises ConfigError."""
    file = configfile.read(path, env)
    ours = Whereabouts.model_fields
    file.data = {key: value for key, value in file.data.items() if key in ours}
    file.faults = [fault for fault in file.faults if not fault.key or fault.key[0] in ours]
    return _validated(Whereabouts, file, path)


def secret_values(settings: BaseModel) -> Iterator[str]:
    """Every secret in the settings, for the logs to leave out."""
    for name in type(settings).model_fields:
        yield from _secrets_in(getattr(settings, name))


def _secrets_in(value: object) -> Iterator[str]:
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, BaseModel):
        yield from secret_values(value)
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from _secrets_in(member)
    elif isinstance(value, tuple | list):
        for member in value:
            yield from _secrets_in(member)


def _validated(model: type[Model], file: ConfigFile, path: Path) -> Model:
    faults = list(file.faults)
    try:
        settings = model.model_validate(file.data)
    except ValidationError as error:
        faults += explain(error, file, model)
    if faults:
        raise ConfigError("\n".join(fault.show(str(path)) for fault in sorted(faults, key=file.position)))
    return settings
