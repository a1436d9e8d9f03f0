"""Who may call: published vectors, Twilio's SDK as an oracle, each scheme's refusals, and hostile headers."""

import base64
import hmac
import string
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import MultiDict
from pydantic import TypeAdapter, ValidationError
from twilio.request_validator import RequestValidator

from gateway.contract import Apart, Request, Shared
from gateway.errors import Rejected, Unavailable
from gateway.voice.signature import TWILIO_SETTINGS, Authentication, Gate
from tests.voice.callbacks import request

FORM = "application/x-www-form-urlencoded; charset=UTF-8"
NOW = datetime(2026, 11, 24, 9, tzinfo=UTC)
SCHEMES: TypeAdapter[Any] = TypeAdapter(list[Authentication])
TOKEN = "12345"
V6_URL = "https://mycompany.com/myapp.php?foo=1&bar=2"
V6_BODY = b"CallSid=CA1234567890ABCDE&Caller=%2B14158675309&Digits=1234&From=%2B14158675309&To=%2B18005551212"
V6B_BODY = b'{"property": "value", "boolean": true}'
V6B_URL = f"{V6_URL}&bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620"
SHARED_KEY = "webhooks_sharedkey_0123456789"
KEY_HEADER = {TWILIO_SETTINGS: "key=K1,algorithm=HMAC_SHA256"}
SECRET_PATH = "/c/hotline/3f9d2c71a5b04e88"


def gate(*schemes: dict[str, Any], shared: Shared | None = None) -> Gate:
    return Gate("hotline", SCHEMES.validate_python(schemes), shared or Apart(), lambda: NOW)


TWILIO = {"scheme": "twilio", "auth_token": TOKEN, "shared_keys": {"K1": {"secret": SHARED_KEY}}}


def twilio(body: bytes, content_type: str, url: str, signature: str, **headers: str) -> Request:
    called = request(body, content_type, url, **headers)
    called.headers["X-Twilio-Signature"] = signature  # type: ignore[index]
    called.path = ""
    return called


async def code(gate_: Gate, called: Request) -> str:
    """ "" when it is let in."""
    try:
        await gate_.verify(called)
    except Rejected as error:
        return error.code
    return ""


# Twilio


@pytest.mark.parametrize(
    ("body", "content_type", "url", "signature"),
    [
        (V6_BODY, FORM, V6_URL, "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
        (V6_BODY, FORM, V6_URL.replace(".com/", ".com:443/"), "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
        (V6B_BODY, "application/json", V6B_URL, "a9nBmqA0ju/hNViExpshrM61xv4="),
    ],
)
async def test_published_vectors(body: bytes, content_type: str, url: str, signature: str) -> None:
    called = twilio(body, content_type, url, signature)

    assert await gate(TWILIO).verify(called) == {"authentication": ["twilio"]}
    called.headers["X-Twilio-Signature"] = signature.swapcase()  # type: ignore[index]
    assert await code(gate(TWILIO), called) == "unauthenticated"


async def test_the_scheme_with_shared_keys() -> None:
    expected = "033hgUJA9M/hXIZsYjwkerEP/DBm35nEri5FhCYjA5s="  # the vector is made with the Auth Token as the key
    scheme = {"scheme": "twilio", "shared_keys": {"K1": {"secret": TOKEN + "0" * 11}}}
    mac = base64.b64encode(hmac.digest((TOKEN + "0" * 11).encode(), _text(V6_URL, V6_BODY), "sha256")).decode()
    assert base64.b64encode(hmac.digest(TOKEN.encode(), _text(V6_URL, V6_BODY), "sha256")).decode() == expected

    headers = {"X_Twilio_Webhooks_Signature_Settings": "key=K1,algorithm=HMAC_SHA256"}
    assert await code(gate(scheme), twilio(V6_BODY, FORM, V6_URL, mac, **headers)) == ""


def _text(url: str, body: bytes) -> bytes:
    pairs = sorted(pair.split("=") for pair in body.decode().replace("%2B", "+").split("&"))
    return (url + "".join(name + value for name, value in pairs)).encode()


@pytest.mark.parametrize(
    "header",
    [
        "key=K2,algorithm=HMAC_SHA256",
        "key=K1,algorithm=HMAC_SHA1",
        "key=K1",
        "algorithm=HMAC_SHA256",
        "key=K1,algorithm=none",
    ],
)
async def test_a_key_or_an_algorithm_that_is_not_configured_is_refused_though_the_mac_is_right(header: str) -> None:
    for name in ("sha1", "sha256"):
        mac = base64.b64encode(hmac.digest(SHARED_KEY.encode(), _text(V6_URL, V6_BODY), name)).decode()
        called = twilio(V6_BODY, FORM, V6_URL, mac, X_Twilio_Webhooks_Signature_Settings=header)

        assert await code(gate(TWILIO), called) == "unauthenticated"


async def test_the_auth_token_does_not_stand_in_for_a_shared_key_nor_the_other_way_round() -> None:
    keys_alone = {"scheme": "twilio", "shared_keys": {"K1": {"secret": SHARED_KEY}}}
    legacy = RequestValidator(SHARED_KEY).compute_signature(V6_URL, {}, "HMAC_SHA1")

    assert await code(gate(keys_alone), twilio(b"", "", V6_URL, legacy)) == "unauthenticated"
    assert await code(gate(TWILIO), twilio(b"", "", V6_URL, legacy)) == "unauthenticated"


async def test_json_whose_address_does_not_vouch_for_it_is_refused() -> None:
    bare = RequestValidator(TOKEN).compute_signature(V6_URL, {})
    whole = RequestValidator(TOKEN).compute_signature(V6B_URL, {})

    assert await code(gate(TWILIO), twilio(V6B_BODY, "application/json", V6_URL, bare)) == "unauthenticated"
    assert await code(gate(TWILIO), twilio(V6B_BODY + b" ", "application/json", V6B_URL, whole)) == "unauthenticated"
    assert await code(gate(TWILIO), twilio(b"", "", V6_URL, bare)) == ""


async def test_a_form_beyond_reason_is_not_parsed_for_a_stranger() -> None:
    assert await code(gate(TWILIO), twilio(b"%" * 300_000, FORM, V6_URL, "")) == "too_large"


NAMES = st.text(st.sampled_from(string.ascii_letters + "号_[]. +&=%"), min_size=1, max_size=6)
VALUES = st.text(st.characters(codec="utf-8"), max_size=8)
PAIRS = st.lists(st.tuples(NAMES, VALUES), max_size=8)
URLS = st.builds(
    "{}://{}{}/c/hotline{}".format,
    st.sampled_from(["http", "https"]),
    st.sampled_from(["a.example", "127.0.0.1"]),
    st.sampled_from(["", ":80", ":443", ":8443"]),
    st.sampled_from(["", "?a=1", "?a=1&a=2&b=%E5%8F%B7"]),
)


@settings(max_examples=150, deadline=None)
@given(url=URLS, pairs=PAIRS, algorithm=st.sampled_from(["HMAC_SHA1", "HMAC_SHA256"]), with_port=st.booleans())
async def test_what_the_sdk_signs_we_let_in_and_what_we_let_in_the_sdk_finds_right(
    url: str, pairs: list[tuple[str, str]], algorithm: str, with_port: bool
) -> None:
    is_legacy = algorithm == "HMAC_SHA1"
    sdk = RequestValidator(TOKEN if is_legacy else SHARED_KEY)
    parameters = MultiDict(pairs)
    signed = _with_port(url) if with_port else url
    signature = sdk.compute_signature(signed, parameters, algorithm)
    headers = {} if is_legacy else {"X_Twilio_Webhooks_Signature_Settings": f"key=K1,algorithm={algorithm}"}

    ours = await code(gate(TWILIO), twilio(urlencode(pairs).encode(), FORM, url, signature, **headers))
    wrong = await code(gate(TWILIO), twilio(urlencode([*pairs, ("x!", "y")]).encode(), FORM, url, signature, **headers))

    assert (ours == "") is sdk.validate(url, parameters, signature, algorithm)
    assert (wrong == "") is sdk.validate(url, MultiDict([*pairs, ("x!", "y")]), signature, algorithm)


@settings(max_examples=60, deadline=None)
@given(url=URLS, body=st.binary(max_size=40).map(lambda raw: b"{" + raw.hex().encode() + b"}"), whole=st.booleans())
async def test_json_as_the_sdk_sees_it(url: str, body: bytes, whole: bool) -> None:
    digest = sha256(body if whole else body + b"x").hexdigest()
    address = f"{url}{'&' if '?' in url else '?'}bodySHA256={digest}"
    signature = RequestValidator(TOKEN).compute_signature(address, {})

    ours = await code(gate(TWILIO), twilio(body, "application/json", address, signature))

    assert (ours == "") is RequestValidator(TOKEN).validate(address, body.decode(), signature) is whole


def _with_port(url: str) -> str:
    split = urlsplit(url)
    return (
        url if split.port else url.replace(split.netloc, f"{split.netloc}:{443 if split.scheme == 'https' else 80}", 1)
    )


# Paths, passwords, headers, networks


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (SECRET_PATH, ""),
        (f"{SECRET_PATH}/", ""),
        ("/c/hotline", "not_found"),
        (SECRET_PATH[:-1], "not_found"),
        (f"{SECRET_PATH}0", "not_found"),
        (f"{SECRET_PATH}/x", "not_found"),
        (SECRET_PATH.upper(), "not_found"),
        ("/c/hotline/号", "not_found"),
    ],
)
async def test_a_secret_path(address: str, expected: str) -> None:
    scheme = {"scheme": "path", "secret": SECRET_PATH.rpartition("/")[2]}

    assert await code(gate(scheme), request(b"{}", "", address)) == expected


async def test_without_a_secret_path_there_is_nothing_below_the_channel() -> None:
    assert await code(gate({"scheme": "none"}), request()) == ""
    assert await code(gate({"scheme": "none"}), request(address=SECRET_PATH)) == "not_found"


def _basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (_basic("fs:correct:horse"), ""),
        (_basic("fs:correct:horse").replace("Basic", "basic"), ""),
        (_basic("fs:correct"), "unauthenticated"),
        (_basic("fs"), "unauthenticated"),
        (_basic("号:x"), "unauthenticated"),
        ("Basic", "unauthenticated"),
        ("Basic !!!", "unauthenticated"),
        ("Basic \udcff", "unauthenticated"),
        (_basic("fs:correct:horse").replace("Basic", "Digest"), "unauthenticated"),
        (None, "unauthenticated"),
    ],
)
async def test_basic(header: str | None, expected: str) -> None:
    scheme = {"scheme": "basic", "username": "fs", "password": "correct:horse"}
    headers = {} if header is None else {"Authorization": header}

    assert await code(gate(scheme), request(b"", **headers)) == expected
    assert gate(scheme).challenge == {"WWW-Authenticate": 'Basic realm="huiru", charset="UTF-8"'}


@pytest.mark.parametrize(
    ("scheme", "name", "right"),
    [
        ({"scheme": "bearer", "token": "t" * 16}, "Authorization", "Bearer " + "t" * 16),
        ({"scheme": "header", "name": "X-Key", "value": "钥" * 16}, "X_Key", "钥" * 16),
    ],
)
async def test_bearer_and_a_named_header(scheme: dict[str, Any], name: str, right: str) -> None:
    assert await code(gate(scheme), request(**{name: right})) == ""
    for wrong in ("", right[:-1], right + "x", right.lower() + "\ud800"):
        assert await code(gate(scheme), request(**{name: wrong})) == "unauthenticated"
    assert await code(gate(scheme), request()) == "unauthenticated"


@pytest.mark.parametrize(
    ("remote", "expected"),
    [("10.1.2.3", ""), ("::ffff:10.1.2.3", ""), ("2001:db8::1", ""), ("11.0.0.1", "forbidden"), ("", "forbidden")],
)
async def test_networks(remote: str, expected: str) -> None:
    called = request()
    called.remote = remote

    assert await code(gate({"scheme": "networks", "networks": ["10.0.0.0/8", "2001:db8::/32"]}), called) == expected


async def test_all_schemes_must_agree() -> None:
    both = gate({"scheme": "networks", "networks": ["203.0.113.0/24"]}, {"scheme": "bearer", "token": "t" * 16})

    assert await code(both, request()) == "unauthenticated"
    assert await code(both, request(Authorization="Bearer " + "t" * 16)) == ""
    assert await both.verify(request(Authorization="Bearer " + "t" * 16)) == {"authentication": ["networks", "bearer"]}


# HMAC

SECRET = "s" * 16
HMAC = {
    "scheme": "hmac",
    "secret": SECRET,
    "header": "X-Sign",
    "prefix": "sha256=",
    "signed": "{timestamp}.{nonce}.{method}.{path}.{query}.{header:X-App}.{body}",
    "timestamp_header": "X-Time",
    "nonce_header": "X-Nonce",
}


def signed(body: bytes = b"{}", nonce: str = "n1", moment: int = int(NOW.timestamp()), **changed: str) -> Request:
    text = f"{moment}.{nonce}.POST./c/hotline.a=1.app.".encode() + body
    digest = hmac.digest(SECRET.encode(), text, "sha256").hex()
    headers = {"X_Sign": f"sha256={digest}", "X_Time": str(moment), "X_Nonce": nonce, "X_App": "app"} | changed
    return request(body, "", "/c/hotline?a=1", **headers)


async def test_a_template_of_what_is_signed() -> None:
    assert await code(gate(HMAC), signed()) == ""
    assert await code(gate(HMAC), signed(X_Sign=signed().headers["X-Sign"].upper().replace("SHA256", "sha256"))) == ""
    assert await code(gate(HMAC), signed(X_App="other")) == "unauthenticated"
    assert await code(gate(HMAC), signed(X_Sign="")) == "unauthenticated"
    assert await code(gate(HMAC), signed(X_Nonce="")) == "unauthenticated"


@pytest.mark.parametrize("away", [301, -301])
async def test_a_stale_timestamp_is_refused(away: int) -> None:
    assert await code(gate(HMAC), signed(moment=int(NOW.timestamp()) + away)) == "unauthenticated"
    assert await code(gate(HMAC), signed(moment=int(NOW.timestamp()) + away // 2)) == ""


async def test_the_same_request_again_is_a_retry_and_another_under_its_nonce_is_refused() -> None:
    shared = Apart()

    assert await code(gate(HMAC, shared=shared), signed()) == ""
    assert await code(gate(HMAC, shared=shared), signed()) == ""
    assert await code(gate(HMAC, shared=shared), signed(b"[]")) == "forbidden"  # by another gateway
    assert await code(gate(HMAC, shared=shared), signed(b"[]", nonce="n2")) == ""


class Away(Apart):
    async def claim(self, key: str, value: str, /, *, ttl_secs: float) -> str:
        raise Unavailable


async def test_without_redis_a_gateway_remembers_its_own() -> None:
    alone = gate(HMAC, shared=Away())

    assert [await code(alone, one) for one in (signed(), signed(), signed(b"[]"))] == ["", "", "forbidden"]


@pytest.mark.parametrize(
    ("scheme", "signature"),
    [
        ({"algorithm": "sha1", "encoding": "base64"}, base64.b64encode(hmac.digest(SECRET.encode(), b"{}", "sha1"))),
        ({"algorithm": "sha512"}, hmac.digest(SECRET.encode(), b"{}", "sha512").hex().encode()),
        (
            {"signed": "{body_sha256}"},
            hmac.digest(SECRET.encode(), sha256(b"{}").hexdigest().encode(), "sha256").hex().encode(),
        ),
        (
            {"key_encoding": "hex", "secret": "00" * 16},
            hmac.digest(bytes(16), b"{}", "sha256").hex().encode(),
        ),
        (
            {"key_encoding": "base64", "secret": base64.b64encode(bytes(16)).decode()},
            hmac.digest(bytes(16), b"{}", "sha256").hex().encode(),
        ),
    ],
)
async def test_algorithms_and_encodings(scheme: dict[str, Any], signature: bytes) -> None:
    given_ = {"scheme": "hmac", "secret": SECRET, "header": "X-Sign"} | scheme

    assert await code(gate(given_), request(b"{}", X_Sign=signature.decode())) == ""
    assert await code(gate(given_), request(b"{} ", X_Sign=signature.decode())) == "unauthenticated"


@pytest.mark.parametrize(
    "scheme",
    [
        {"scheme": "path", "secret": "short"},
        {"scheme": "path", "secret": "slash/" * 4},
        {"scheme": "twilio"},
        {"scheme": "twilio", "auth_token": ""},
        {"scheme": "basic", "username": "a:b", "password": "p" * 8},
        {**HMAC, "signed": "{timestamp}{nonce}"},
        {**HMAC, "signed": "{body}{timestamp}{nonce}{colour}"},
        {**HMAC, "nonce_header": None},
        {**HMAC, "key_encoding": "hex"},
        {"scheme": "networks", "networks": []},
        {"scheme": "nothing"},
        {},
    ],
)
def test_settings_that_would_let_anybody_in_are_refused(scheme: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        gate(scheme)


EVERY: Sequence[dict[str, Any]] = [
    {"scheme": "basic", "username": "fs", "password": "correct:horse"},
    {"scheme": "bearer", "token": "t" * 16},
    {"scheme": "header", "name": "X-Sign", "value": "v" * 16},
    HMAC,
    TWILIO,
    {"scheme": "networks", "networks": ["203.0.113.0/24"]},
]
ANY = st.text(max_size=60)


@settings(max_examples=150, deadline=None)
@given(
    which=st.sampled_from(EVERY),
    body=st.binary(max_size=60),
    content_type=st.sampled_from([FORM, "application/json", "multipart/form-data", ""]),
    url=st.one_of(ANY, st.just("https://[x/c/hotline"), st.just("https://a:99999/x")),
    headers=st.dictionaries(
        st.sampled_from(["Authorization", "X_Sign", "X_Time", "X_Nonce", "X_Twilio_Webhooks_Signature_Settings"]), ANY
    ),
    signature=ANY,
)
async def test_nothing_but_a_refusal_escapes(
    which: dict[str, Any], body: bytes, content_type: str, url: str, headers: dict[str, str], signature: str
) -> None:
    called = twilio(body, content_type, "/c/hotline?" + quote(signature, errors="replace"), signature, **headers)
    called.url, called.remote = url, signature

    assert await code(gate(which), called) in {"unauthenticated", "forbidden", "malformed"}
