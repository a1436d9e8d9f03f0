"""Who calls: the ways in which telephone systems prove it, each a setting. All of a channel's must agree.

    authentication: {scheme: path, secret: …}                      # /c/NAME/<secret>
    authentication: {scheme: basic, username: fs, password: …}
    authentication: {scheme: twilio, auth_token: …}
    authentication: [{scheme: networks, networks: [10.0.0.0/8]}, {scheme: header, name: X-Key, value: …}]
    authentication: {scheme: hmac, secret: …, header: X-Signature, prefix: "sha256=", signed: "{timestamp}.{body}", …}
    authentication: {scheme: none}                                 # anybody who knows the address

What is compared is compared as bytes, in constant time. Nothing but Rejected is raised for any request.

Twilio: X-Twilio-Signature over the public address and the form, or the address alone with `bodySHA256` in it (JSON);
with `X-Twilio-Webhooks-Signature-Settings: key=…,algorithm=HMAC_SHA256` by a shared key instead of the Auth Token
(twilio-python 9.13.0, request_validator.py). That SDK takes the algorithm from the request; here it is the key's.
"""

import base64
import binascii
import hmac
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from ipaddress import ip_address
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from gateway import formdata
from gateway.address import Network
from gateway.contract import Request, Settings, Shared
from gateway.errors import Rejected
from gateway.nonces import Nonces
from gateway.voice.reading import body_of

TWILIO_SIGNATURE = "X-Twilio-Signature"
TWILIO_SETTINGS = "X-Twilio-Webhooks-Signature-Settings"
_TWILIO_ALGORITHMS = {"HMAC_SHA1": "sha1", "HMAC_SHA256": "sha256"}
_BODY_DIGEST = b"bodySHA256"
_MAX_FORM_BYTES = 256 << 10  # of a form that is parsed before its sender is known
_MAX_NONCE_CHARS = 200

_HOLE = re.compile(r"\{([a-z0-9_]+(?::[A-Za-z0-9_-]+)?)\}")
_HOLES = ("body", "body_sha256", "timestamp", "nonce", "method", "path", "query", "url")
_AUTHENTIC = {"body", "body_sha256", "query", "url"}  # without one of them, the content is anybody's


# Settings


class SecretPath(Settings):
    """`/c/NAME/<secret>`, for vendors that authenticate nothing. Proxies write it into their logs."""

    scheme: Literal["path"] = Field(description="a secret in the address")
    secret: SecretStr = Field(
        min_length=16, description="letters, digits, `.`, `_`, `~` and `-`: `openssl rand -hex 24`"
    )

    @field_validator("secret")
    @classmethod
    def _demand_plain(cls, secret: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[A-Za-z0-9._~-]+", secret.get_secret_value()):
            raise ValueError("a secret path has letters, digits, `.`, `_`, `~` and `-` alone")
        return secret


class Basic(Settings):
    """HTTP Basic (RFC 7617)."""

    scheme: Literal["basic"] = Field(description="HTTP Basic")
    username: str = Field(max_length=200, pattern=r"^[^:\x00-\x1f]*$", description="without a colon")
    password: SecretStr = Field(min_length=8, description="8 characters or more")


class Bearer(Settings):
    """`Authorization: Bearer TOKEN`."""

    scheme: Literal["bearer"] = Field(description="`Authorization: Bearer`")
    token: SecretStr = Field(min_length=16, description="16 characters or more")


class NamedHeader(Settings):
    """A header with a secret value."""

    scheme: Literal["header"] = Field(description="a header with a secret value")
    name: str = Field(pattern=r"^[A-Za-z0-9-]{1,100}$", description="of the header")
    value: SecretStr = Field(min_length=16, description="16 characters or more")


class SharedKey(Settings):
    """A key of Twilio's new scheme."""

    secret: SecretStr = Field(min_length=16, description="16 characters or more")
    algorithm: Literal["HMAC_SHA1", "HMAC_SHA256"] = Field(
        default="HMAC_SHA256", description="what the key signs with; a request that names another is refused"
    )


class Twilio(Settings):
    """Twilio's signature."""

    scheme: Literal["twilio"] = Field(description="Twilio's signature")
    auth_token: SecretStr | None = Field(
        default=None, min_length=1, description="of the account; null: shared keys alone"
    )
    shared_keys: dict[str, SharedKey] = Field(default={}, description="by their id, which the request names")

    @model_validator(mode="after")
    def _demand_secret(self) -> "Twilio":
        if self.auth_token is None and not self.shared_keys:
            raise ValueError("nobody could call here; add auth_token or shared_keys")
        return self


class Hmac(Settings):
    """A keyed digest in a header."""

    scheme: Literal["hmac"] = Field(description="a keyed digest in a header")
    secret: SecretStr = Field(min_length=16, description="16 characters or more")
    key_encoding: Literal["text", "hex", "base64"] = Field(default="text", description="what the secret is written in")
    algorithm: Literal["sha1", "sha256", "sha384", "sha512", "md5"] = Field(
        default="sha256", description="the hash of the HMAC"
    )
    encoding: Literal["hex", "base64"] = Field(default="hex", description="of the digest in the header")
    header: str = Field(pattern=r"^[A-Za-z0-9-]{1,100}$", description="which holds the digest")
    prefix: str = Field(default="", max_length=40, description="stands before the digest: `sha256=`")
    signed: str = Field(
        default="{body}",
        max_length=400,
        description="what is signed: `{body}`, `{body_sha256}` (hex), `{timestamp}`, `{nonce}`, `{method}`, `{path}`,"
        " `{query}`, `{url}` (the public one), `{header:Name}` and the text between them",
    )
    timestamp_header: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]{1,100}$", description="Unix s or ms")
    nonce_header: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9-]{1,100}$", description="a text that no two requests share"
    )
    freshness_secs: int = Field(default=300, ge=1, le=86400, description="how far the timestamp may be from our time")

    @model_validator(mode="after")
    def _demand_sense(self) -> "Hmac":
        if not self.key:
            raise ValueError(f"the secret is no {self.key_encoding}")
        holes = set(_HOLE.findall(self.signed))
        if unknown := [hole for hole in holes if hole not in _HOLES and not hole.startswith("header:")]:
            raise ValueError(f"{{{unknown[0]}}} in `signed` is unknown; there are {', '.join(_HOLES)} and header:Name")
        if not holes & _AUTHENTIC:
            raise ValueError("`signed` needs {body}, {body_sha256}, {query} or {url}: else the content is anybody's")
        for name, header in (("timestamp", self.timestamp_header), ("nonce", self.nonce_header)):
            if (name in holes) is not (header is not None):
                raise ValueError(f"{{{name}}} in `signed` and `{name}_header` need each other")
        return self

    @property
    def key(self) -> bytes:
        """Empty when the secret is not what `key_encoding` says."""
        text = self.secret.get_secret_value()
        try:
            if self.key_encoding == "hex":
                return bytes.fromhex(text)
            return base64.b64decode(text, validate=True) if self.key_encoding == "base64" else text.encode()
        except (ValueError, binascii.Error):
            return b""


class Networks(Settings):
    """Where the request comes from, behind `http.trusted_proxies`."""

    scheme: Literal["networks"] = Field(description="where the request comes from")
    networks: tuple[Network, ...] = Field(min_length=1, description="addresses or CIDR ranges")


class Nobody(Settings):
    """No authentication: everybody who knows the address can make tickets."""

    scheme: Literal["none"] = Field(description="nobody proves anything")


Authentication = Annotated[
    SecretPath | Basic | Bearer | NamedHeader | Twilio | Hmac | Networks | Nobody, Field(discriminator="scheme")
]


# The gate


class Gate:
    """All of a channel's authentication. `name` is the channel's: nonces are kept under it."""

    def __init__(
        self, name: str, schemes: Sequence[Authentication], shared: Shared, now: Callable[[], datetime]
    ) -> None:
        self._schemes = schemes
        self._now = now
        self._nonces = Nonces(f"voice:{name}:nonce:", shared, now)
        paths = [scheme.secret for scheme in schemes if isinstance(scheme, SecretPath)]
        self._path = b"/" + paths[0].get_secret_value().encode() if paths else b""

    @property
    def challenge(self) -> dict[str, str]:
        """What an answer of 401 must say (RFC 9110, 11.6.1), as headers."""
        words = {"basic": 'Basic realm="huiru", charset="UTF-8"', "bearer": 'Bearer realm="huiru"'}
        found = [words[scheme.scheme] for scheme in self._schemes if scheme.scheme in words]
        return {"WWW-Authenticate": ", ".join(found)} if found else {}

    def admit(self, request: Request) -> None:
        """What can be told before the body is read. Raises Rejected."""
        if not _same(self._path, _bytes(request.path.rstrip("/"))):
            raise Rejected("not_found")
        for scheme in self._schemes:
            if isinstance(scheme, Basic | Bearer | NamedHeader | Networks):
                _demand(_PLAIN[scheme.scheme](scheme, request), scheme.scheme)

    async def verify(self, request: Request) -> Mapping[str, Any]:
        """Over the raw bytes. What is known of the sender: the schemes that agreed. Raises Rejected."""
        self.admit(request)
        for scheme in self._schemes:
            if isinstance(scheme, Twilio):
                _demand(_is_twilio(scheme, request), scheme.scheme)
            if isinstance(scheme, Hmac):
                await self._demand_hmac(scheme, request)
        return {"authentication": [scheme.scheme for scheme in self._schemes]}

    async def _demand_hmac(self, scheme: Hmac, request: Request) -> None:
        signed = _signed(scheme, request)
        digest = hmac.digest(scheme.key, signed, scheme.algorithm)
        text = digest.hex().encode() if scheme.encoding == "hex" else base64.b64encode(digest)
        given = _bytes(request.headers.get(scheme.header, "").strip())
        prefix = scheme.prefix.encode()
        value = given[len(prefix) :]
        value = value.lower() if scheme.encoding == "hex" else value
        _demand(_same(prefix + text, given[: len(prefix)] + value), scheme.scheme)
        timestamp = request.headers.get(scheme.timestamp_header or "", "")
        if scheme.timestamp_header:
            self._demand_fresh(scheme, timestamp)
        if scheme.nonce_header:
            nonce = f"{timestamp}:{request.headers.get(scheme.nonce_header, '')}"
            if not 0 < len(nonce) - len(timestamp) - 1 <= _MAX_NONCE_CHARS:
                raise Rejected("unauthenticated", f"{scheme.nonce_header} is missing or too long")
            # By its digest: what stands in a header may be long, and anything.
            key, content = sha256(_bytes(nonce)).hexdigest(), sha256(signed).hexdigest()
            await self._nonces.claim(key, content, 2.0 * scheme.freshness_secs, everywhere=True)

    def _demand_fresh(self, scheme: Hmac, given: str) -> None:
        if not re.fullmatch("[0-9]{9,13}", given, re.ASCII):
            raise Rejected("unauthenticated", f"{scheme.timestamp_header} must be Unix seconds or milliseconds")
        moment = int(given) / (1000 if len(given) > 11 else 1)
        if abs(self._now().timestamp() - moment) > scheme.freshness_secs:
            raise Rejected("unauthenticated", f"{scheme.timestamp_header} is too far from our time")


def _demand(agrees: bool, scheme: str) -> None:
    if not agrees:
        code = "forbidden" if scheme == "networks" else "unauthenticated"
        raise Rejected(code, reason=f"{scheme} does not agree")


def _same(expected: bytes, given: bytes) -> bool:
    return hmac.compare_digest(sha256(expected).digest(), sha256(given).digest())  # of one length, whatever came


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # no character is an error


# What needs no body


def _is_basic(scheme: Basic, request: Request) -> bool:
    kind, _, encoded = request.headers.get("Authorization", "").partition(" ")
    try:
        given = base64.b64decode(encoded.strip(), validate=True)
    except (ValueError, binascii.Error):
        given = b""
    expected = f"{scheme.username}:{scheme.password.get_secret_value()}".encode()
    return _same(expected, given) and kind.lower() == "basic"


def _is_bearer(scheme: Bearer, request: Request) -> bool:
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    return _same(scheme.token.get_secret_value().encode(), _bytes(token.strip())) and kind.lower() == "bearer"


def _has_header(scheme: NamedHeader, request: Request) -> bool:
    return _same(scheme.value.get_secret_value().encode(), _bytes(request.headers.get(scheme.name, "")))


def _is_within(scheme: Networks, request: Request) -> bool:
    try:
        address = ip_address(request.remote)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return any(mapped in network for network in scheme.networks)


_PLAIN: Mapping[str, Callable[[Any, Request], bool]] = {
    "basic": _is_basic,
    "bearer": _is_bearer,
    "header": _has_header,
    "networks": _is_within,
}


# HMAC


def _signed(scheme: Hmac, request: Request) -> bytes:
    body = body_of(request)
    address = _split(request.url)
    values = {
        "body": body,
        "body_sha256": sha256(body).hexdigest().encode(),
        "timestamp": _bytes(request.headers.get(scheme.timestamp_header or "", "")),
        "nonce": _bytes(request.headers.get(scheme.nonce_header or "", "")),
        "method": request.method.encode(),
        "path": _bytes(address.path),
        "query": _bytes(address.query),
        "url": _bytes(request.url),
    }
    return b"".join(_pieces(scheme.signed, values, request))


def _pieces(template: str, values: Mapping[str, bytes], request: Request) -> Iterator[bytes]:
    for at, piece in enumerate(_HOLE.split(template)):
        if at % 2 == 0:
            yield piece.encode()
        elif piece.startswith("header:"):
            yield _bytes(request.headers.get(piece.removeprefix("header:"), ""))
        else:
            yield values[piece]


# Twilio


def _is_twilio(scheme: Twilio, request: Request) -> bool:
    secret, algorithm = _twilio_key(scheme, request.headers.get(TWILIO_SETTINGS, ""))
    given = _bytes(request.headers.get(TWILIO_SIGNATURE, ""))
    body, address, parameters = body_of(request), _split(request.url), b""
    if request.content_type == formdata.URLENCODED:
        if len(body) > _MAX_FORM_BYTES:
            raise Rejected("too_large", f"a form may have {_MAX_FORM_BYTES} bytes")
        parameters, is_whole = b"".join(_unique_pairs(body)), True
    else:
        is_whole = _has_digest(address.query, body)
    texts = [_bytes(url) + parameters for url in _with_and_without_port(request.url, address)]
    macs = [base64.b64encode(hmac.digest(secret, text, algorithm)) for text in texts]
    agreeing = [_same(mac, given) for mac in macs]
    return any(agreeing) and is_whole


def _twilio_key(scheme: Twilio, header: str) -> tuple[bytes, str]:
    """The secret and the algorithm. Raises Rejected: a key that is unknown, or an algorithm that is not the key's."""
    named = dict(part.strip().partition("=")[::2] for part in header[:1000].split(","))
    key = scheme.shared_keys.get(named.get("key", ""))
    if not header.strip():
        if scheme.auth_token is None:
            raise Rejected(
                "unauthenticated", reason="the request is signed with the Auth Token, which is not configured"
            )
        return scheme.auth_token.get_secret_value().encode(), "sha1"
    if key is None:
        raise Rejected("unauthenticated", reason="the request is signed with a key that is not configured")
    if named.get("algorithm", "HMAC_SHA1").upper() != key.algorithm:
        raise Rejected("unauthenticated", reason=f"the key's algorithm is {key.algorithm}")
    return key.secret.get_secret_value().encode(), _TWILIO_ALGORITHMS[key.algorithm]


def _has_digest(query: str, body: bytes) -> bool:
    """Whether the address, which is signed, vouches for the body; of no body it need not speak."""
    digests = [value for name, value in _pairs(_bytes(query)) if name == _BODY_DIGEST]
    return _same(sha256(body).hexdigest().encode(), digests[0].lower()) if digests else not body


def _unique_pairs(body: bytes) -> list[bytes]:
    """Names and values, each pair once, in the order that sorting names and then values gives."""
    return [name + value for name, value in sorted(set(_pairs(body)))]


def _pairs(raw: bytes) -> list[tuple[bytes, bytes]]:
    """Names and values in UTF-8, whose bytes sort as its characters do. Raises Rejected("too_large")."""
    form = formdata.parse(raw, formdata.URLENCODED, keep_content=False, max_parts=1000)
    return [(name.encode("utf-8", "replace"), value.encode("utf-8", "replace")) for name, value in form.values]


def _with_and_without_port(url: str, address: SplitResult) -> list[str]:
    """The address as it is, and with the port added or taken away: which of them Twilio signs is not settled."""
    host = re.fullmatch(r"(.*?)(?::([0-9]{1,5}))?", address.netloc)
    name, port = (host[1], host[2]) if host else (address.netloc, None)
    default = "443" if address.scheme == "https" else "80"
    rest = url.partition("://")[2][len(address.netloc) :]
    return [f"{address.scheme}://{netloc}{rest}" for netloc in (name, f"{name}:{port or default}")]


def _split(url: str) -> SplitResult:
    """Raises Rejected("malformed") for what is no address: a bracket out of place is enough."""
    try:
        return urlsplit(url)
    except ValueError as error:
        raise Rejected("malformed", "the address is damaged", reason=str(error)) from error
