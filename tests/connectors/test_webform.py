"""The hosted form, driven as the core drives it: admit, verify, extract, reply, refuse."""

import asyncio
import json
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, MultiDict
from pydantic import ValidationError
from ruamel.yaml import YAML

from connectors.webform import (
    HONEYPOT,
    Connector,
    form_url,
    origin_of,
    write_qr,
)
from gateway import identity
from gateway.contract import BodyFile, Context, RawMessage, Receipt, Reply, Request, StoredMessage
from gateway.errors import ConfigError, HuiruError, Rejected, Unavailable, wire_error
from gateway.fields import accepted_language
from normalizers.form import normalize

ROOT = Path(__file__).parents[2]
URLENCODED = "application/x-www-form-urlencoded"
SHOP = "https://shop.example"
NAME = "web-support"
BROWSER = {"Host": "support.example", "Origin": "https://support.example", "Accept": "text/html,*/*;q=0.8"}
SETTINGS: dict[str, Any] = {
    "type": "webform",
    "title": {"zh": "提交问题", "en": "Contact support"},
    "intro": {"zh": "请说明", "en": "Tell us"},
    "fields": [
        {"name": "subject", "type": "text", "label": {"zh": "标题", "en": "Subject"}, "required": True},
        {"name": "text", "type": "textarea", "label": {"zh": "描述", "en": "Description"}, "help": "<b>?"},
        {"name": "email", "type": "email", "label": {"zh": "邮箱", "en": "E-mail"}},
        {"name": "phone", "type": "phone", "label": "Phone"},
        {"name": "product", "type": "select", "label": "Product", "choices": ["printer", "scanner"]},
        {"name": "urgency", "type": "radio", "label": "Urgency", "choices": ["low", "high"]},
        {"name": "reach", "type": "checkbox", "label": "Reach", "choices": ["mail", "call"]},
        {"name": "agree", "type": "checkbox", "label": "Agree"},
        {"name": "bought", "type": "date", "label": "Bought"},
        {"name": "photo", "type": "file", "label": {"zh": "图片", "en": "Picture"}, "accept": ["image/*"]},
        {"name": "build", "type": "hidden", "default": "v1"},
    ],
    "sources": ["shop-12", {"name": "poster", "label": {"zh": "海报", "en": "Poster"}}],
    "allowed_origins": [SHOP],
    "frame_ancestors": [SHOP],
}
GOOD = {"subject": "打印机坏了", "text": "一直闪红灯"}


class Page(HTMLParser):
    """What a browser would find in a page: its elements, with their attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.text = " ".join(filter(None, map(str.strip, self.texts)))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements[-1:] and self.elements[-1][0] != "style":
            self.texts.append(data)

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]

    def one(self, tag: str, **attributes: str) -> dict[str, str | None]:
        (found,) = self.all(tag, **attributes)
        return found

    def value(self, name: str) -> str | None:
        return self.one("input", name=name)["value"]


@dataclass
class Gateway:
    """The core as far as a webhook connector sees it, with a clock and a spool that can fail."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    failure: HuiruError | None = None
    now: datetime = datetime(2026, 11, 23, 9, tzinfo=UTC)
    accepted: dict[str, RawMessage] = field(default_factory=dict)
    public_url: str = "https://support.example"

    def __post_init__(self) -> None:
        settings = Connector.Settings.model_validate({**SETTINGS, **self.settings})
        context = Context("acme", self.public_url, lambda purpose: sha256(purpose.encode()).digest(), lambda: self.now)
        self.connector = Connector(NAME, settings, context)

    def request(self, method: str, target: str = "", body: Any = b"", **headers: str) -> Reply:
        parts = urlsplit(target)
        query = MultiDict(pair.split("=", 1) for pair in parts.query.split("&") if pair)
        named = CIMultiDict({name.replace("_", "-"): value for name, value in (BROWSER | headers).items() if value})
        url = f"{self.public_url}/c/{NAME}{target}"
        return asyncio.run(self._answer(Request(method, parts.path, url, query, named, "192.0.2.1", body)))

    async def _answer(self, request: Request) -> Reply:
        try:
            await self.connector.admit(request)
            found = await self.connector.extract(request, await self.connector.verify(request))
            if isinstance(found, Reply):
                return found
            return self.connector.reply(request, [self._accept(raw) for raw in found])
        except Exception as error:
            if not isinstance(error, Rejected | Unavailable):
                raise
            return self.connector.refuse(request, wire_error(error))

    def _accept(self, raw: RawMessage) -> Receipt:
        if self.failure:
            raise self.failure
        assert raw.fingerprint is not None
        id_ = identity.message_id("/acme/web", raw.native_id, raw.fingerprint)
        known = self.accepted.get(id_)
        if known is not None and known.fingerprint != raw.fingerprint:
            id_ = identity.conflict_id(id_, raw.fingerprint)
        duplicate = id_ in self.accepted
        self.accepted[id_] = raw
        return Receipt(id_, identity.reference(id_), duplicate)

    @property
    def messages(self) -> list[RawMessage]:
        return list(self.accepted.values())

    def token(self, target: str = "") -> str:
        """Opens the page and fills it in without haste."""
        token = page(self.request("GET", target)).value("form_token")
        self.now += timedelta(seconds=10)
        return token or ""

    def post(self, values: Mapping[str, Any], target: str = "", **headers: str) -> Reply:
        body = urlencode(values, doseq=True).encode()
        return self.request("POST", target, body, **{"Content_Type": URLENCODED} | headers)

    def post_json(self, document: object, target: str = "", **headers: str) -> Reply:
        body = json.dumps(document).encode()
        return self.request("POST", target, body, **{"Content_Type": "application/json", "Origin": ""} | headers)


def page(reply: Reply) -> Page:
    assert reply.content_type == "text/html; charset=utf-8"
    return Page(reply.body.decode())


def reference(reply: Reply) -> str:
    found = re.search(r'id="reference">([0-9A-Z-]+)<', reply.body.decode())
    assert found, reply.body.decode()
    return found[1]


def multipart(values: Mapping[str, str], *files: tuple[str, str, bytes], boundary: str = "b") -> bytes:
    parts = [(f'name="{name}"', value.encode()) for name, value in values.items()]
    parts += [(f'name="{name}"; filename="{filename}"', content) for name, filename, content in files]
    head = f"--{boundary}\r\nContent-Disposition: form-data; "
    return b"".join(f"{head}{names}\r\n\r\n".encode() + content + b"\r\n" for names, content in parts) + (
        f"--{boundary}--\r\n".encode()
    )


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


# The page


def test_the_page_has_a_labelled_control_for_every_field(gateway: Gateway) -> None:
    shown = page(gateway.request("GET"))

    labels = {label.get("for") for label in shown.all("label")}
    ids = {found.get("id") for tag, found in shown.elements if tag in {"input", "textarea", "select"}}
    assert {f"f-{name}" for name in ("subject", "text", "email", "phone", "product", "bought", "photo")} <= labels
    assert labels - {None} <= ids
    assert shown.one("form")["enctype"] == "multipart/form-data"
    assert "required" in shown.one("input", id="f-subject")
    assert "required" not in shown.one("input", id="f-email")
    assert shown.one("input", id="f-email")["autocomplete"] == "email"
    assert shown.one("textarea")["aria-describedby"] == "f-text-help"
    assert shown.one("p", id="f-text-help")
    assert shown.value("build") == "v1"
    assert len(shown.all("fieldset")) == len(shown.all("legend")) == 2


def test_ids_are_unique_and_every_reference_has_its_target(gateway: Gateway) -> None:
    shown = page(gateway.post({"form_token": gateway.token(), "photo": "x", "email": "?", "reach": "?"}))

    ids = [found["id"] for _, found in shown.elements if "id" in found]
    assert len(ids) == len(set(ids))
    for _, found in shown.elements:
        assert set((found.get("aria-describedby") or "").split()) <= set(ids)
    assert {link["href"] for link in shown.all("a")} <= {f"#{id_}" for id_ in ids}


@pytest.mark.parametrize(
    ("target", "accept_language", "language"),
    [
        ("", "", "zh-CN"),
        ("", "fr", "zh-CN"),
        ("", "en-GB,en;q=0.9,zh;q=0.8", "en"),
        ("", "en;q=0.5, zh-TW;q=0.7", "zh-CN"),
        ("?lang=en", "zh", "en"),
        ("?lang=xx", "en", "en"),
    ],
)
def test_the_language_is_the_readers(gateway: Gateway, target: str, accept_language: str, language: str) -> None:
    shown = page(gateway.request("GET", target, Accept_Language=accept_language))

    assert shown.one("html")["lang"] == language
    assert ("Contact support" in shown.text) == (language == "en")


def test_a_link_leads_to_the_other_language_and_keeps_the_source(gateway: Gateway) -> None:
    link = page(gateway.request("GET", "?lang=en&source=poster")).one("a")["href"]

    assert (
        urljoin(f"https://support.example/c/{NAME}", link) == f"https://support.example/c/{NAME}?lang=zh&source=poster"
    )


def test_what_the_configuration_says_is_escaped() -> None:
    evil = '"><script>alert(1)</script>'
    gateway = Gateway({"title": evil, "intro": evil, "submit": evil, "thanks": evil})

    shown = page(gateway.request("GET"))

    assert not shown.all("script")
    assert evil in shown.text


def test_every_page_has_the_security_headers(gateway: Gateway) -> None:
    pages = [
        gateway.request("GET"),
        gateway.post(GOOD),
        gateway.request("GET", "/nothing"),
        gateway.post(GOOD, Origin="x"),
    ]

    for reply in pages:
        style = reply.body.decode().partition("<style>")[2].partition("</style>")[0]
        policy = reply.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert f"frame-ancestors 'self' {SHOP}" in policy
        assert _sha256_source(style) in policy
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["Referrer-Policy"] == "same-origin"
        assert reply.headers["Cache-Control"] == "no-store"


def _sha256_source(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def test_nothing_is_loaded_from_anywhere(gateway: Gateway) -> None:
    html = gateway.request("GET").body.decode()

    assert not re.search(r"(src|href|action)=\"?(https?:)?//|url\(|@import|<script", html)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colours_have_the_contrast_of_wcag_aa(scheme: str) -> None:
    css = (ROOT / "connectors/webform.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{3,6});", blocks[scheme == "dark"]))

    readable = [
        ("ink", "card"),
        ("ink", "page"),
        ("soft", "card"),
        ("soft", "tint"),
        ("ink", "tint"),
        ("accent", "card"),
    ]
    readable += [("accent", "tint"), ("bad", "card"), ("bad", "bad-tint"), ("ink", "bad-tint"), ("on-accent", "accent")]
    assert {pair: ratio for pair in readable if (ratio := contrast(colours[pair[0]], colours[pair[1]])) < 4.5} == {}
    assert contrast(colours["line"], colours["card"]) >= 3
    assert contrast(colours["ring"], colours["card"]) >= 3


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.2, "contrast ratio"."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# A submission


def test_a_submission_is_accepted_and_shows_its_reference(gateway: Gateway) -> None:
    reply = gateway.post({**GOOD, "form_token": gateway.token()})

    (message,) = gateway.messages
    (id_,) = gateway.accepted
    assert reply.status == 303
    assert reference(reply) == identity.reference(id_)
    assert message.kind == "form"
    assert message.facts["language"] == "zh"
    assert message.facts["remote"] == "192.0.2.1"
    assert "suspect" not in message.facts


def test_the_redirect_leads_to_a_page_with_the_same_reference(gateway: Gateway) -> None:
    reply = gateway.post({**GOOD, "form_token": gateway.token()}, "?lang=en")
    location = urljoin(f"https://support.example/c/{NAME}", reply.headers["Location"])

    target = location.removeprefix(f"https://support.example/c/{NAME}")
    thanks = gateway.request("GET", target)

    assert target.startswith("/thanks?")
    assert thanks.status == 200
    assert reference(thanks) == reference(reply)
    assert page(thanks).one("html")["lang"] == "en"
    assert urljoin(location, page(thanks).one("a")["href"]) == f"https://support.example/c/{NAME}?lang=en"


@pytest.mark.parametrize("ref", ["", "AAAA-BBBB-CCCC", "IkFBQUEtQkJCQi1DQ0ND.x", "\udcff"])
def test_a_thank_you_page_cannot_be_made_up(gateway: Gateway, ref: str) -> None:
    assert gateway.request("GET", f"/thanks?ref={ref}").status == 404


def test_a_double_click_or_a_refresh_is_the_same_message(gateway: Gateway) -> None:
    values = {**GOOD, "form_token": gateway.token()}

    references = {reference(gateway.post(values)) for _ in range(3)}

    assert len(references) == len(gateway.messages) == 1


def test_a_retry_in_another_transport_is_still_the_same_message(gateway: Gateway) -> None:
    values = {**GOOD, "form_token": gateway.token()}
    photo = ("photo", "a.png", b"\x89PNG\r\n\x1a\n")

    for boundary in ("one", "two"):
        body = multipart(values, photo, boundary=boundary)
        gateway.request("POST", "", body, Content_Type=f"multipart/form-data; boundary={boundary}")

    assert len(gateway.messages) == 1


def test_other_content_under_the_same_token_is_a_message_of_its_own(gateway: Gateway) -> None:
    token = gateway.token()

    replies = [gateway.post({**GOOD, "text": text, "form_token": token}) for text in ("one", "two")]

    assert len({reference(reply) for reply in replies}) == 2
    assert [message.on_conflict for message in gateway.messages] == ["keep", "keep"]


def test_another_file_under_the_same_token_is_other_content(gateway: Gateway) -> None:
    values = {**GOOD, "form_token": gateway.token()}

    for content in (b"\x89PNG\r\n\x1a\n1", b"\x89PNG\r\n\x1a\n2"):
        body = multipart(values, ("photo", "a.png", content))
        gateway.request("POST", "", body, Content_Type="multipart/form-data; boundary=b")

    assert len({message.fingerprint for message in gateway.messages}) == 2


def test_two_openings_of_the_page_are_two_messages(gateway: Gateway) -> None:
    for _ in range(2):
        gateway.post({**GOOD, "form_token": gateway.token()})

    assert len(gateway.messages) == 2


def test_a_large_body_in_a_file_is_read_like_any_other(gateway: Gateway, tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(multipart({**GOOD, "form_token": gateway.token()}, ("photo", "a.png", b"\x89PNG\r\n\x1a\n")))
    body = BodyFile(path, path.stat().st_size, sha256(path.read_bytes()).digest())

    reply = gateway.request("POST", "", body, Content_Type="multipart/form-data; boundary=b")

    assert reply.status == 303
    assert gateway.messages[0].body is body


# Validation


def test_faults_come_back_beside_their_fields_with_everything_kept(gateway: Gateway) -> None:
    values = {
        "text": "<闪>\n红灯",
        "email": "zhang@",
        "product": "scanner",
        "urgency": "high",
        "reach": ["mail", "call"],
    }

    reply = gateway.post({**values, "agree": "true", "bought": "2026-02-30", "form_token": gateway.token()})

    shown = page(reply)
    assert reply.status == 422
    assert gateway.messages == []
    assert shown.value("email") == "zhang@"
    assert "<闪>\n红灯" in shown.text
    assert "selected" in shown.one("option", value="scanner")
    assert [found["value"] for _, found in shown.elements if "checked" in found] == ["high", "mail", "call", "true"]
    wrong = shown.one("input", id="f-email")
    assert wrong["aria-invalid"] == "true"
    assert "f-email-error" in (wrong["aria-describedby"] or "")
    assert shown.one("p", id="f-email-error")
    assert [link["href"] for link in shown.all("a")] == ["#f-subject", "#f-email", "#f-bought"]
    assert [found["id"] for _, found in shown.elements if "autofocus" in found] == ["f-subject"]
    assert "有误" in shown.text


def test_what_is_kept_has_no_control_characters(gateway: Gateway) -> None:
    reply = gateway.post({"text": "a\0b\x1b[31m\r\nc", "form_token": gateway.token()})

    assert "ab[31m\nc</textarea>" in reply.body.decode()


def test_a_corrected_form_goes_through_with_the_token_of_the_page_that_came_back(gateway: Gateway) -> None:
    first = gateway.post({"form_token": gateway.token()})

    reply = gateway.post({**GOOD, "form_token": page(first).value("form_token")})

    assert reply.status == 303


def test_a_chosen_file_is_named_when_it_must_be_chosen_again(gateway: Gateway) -> None:
    body = multipart({"form_token": gateway.token()}, ("photo", "故障.png", b"\x89PNG\r\n\x1a\n"))

    shown = page(gateway.request("POST", "", body, Content_Type="multipart/form-data; boundary=b"))

    assert "故障.png" in shown.text
    assert "f-photo-chosen" in (shown.one("input", id="f-photo")["aria-describedby"] or "")


def test_a_file_of_the_wrong_kind_is_refused_by_its_bytes(gateway: Gateway) -> None:
    body = multipart({**GOOD, "form_token": gateway.token()}, ("photo", "a.png", b"%PDF-1.7\n"))

    shown = page(gateway.request("POST", "", body, Content_Type="multipart/form-data; boundary=b"))

    assert shown.one("p", id="f-photo-error")
    assert gateway.messages == []


def test_too_many_files_over_all_fields_are_refused() -> None:
    gateway = Gateway({"max_files": 1})
    photo = ("photo", "a.png", b"\x89PNG\r\n\x1a\n")
    body = multipart({**GOOD, "form_token": gateway.token()}, photo, photo)

    reply = gateway.request("POST", "", body, Content_Type="multipart/form-data; boundary=b")

    assert reply.status == 422


def test_a_json_client_gets_every_fault_as_problem_json(gateway: Gateway) -> None:
    reply = gateway.post_json({"email": "zhang@", "product": "fax"}, "?lang=en")

    problem = json.loads(reply.body)
    assert (reply.status, reply.content_type) == (422, "application/problem+json")
    assert [(error["field"], error["code"]) for error in problem["errors"]] == [
        ("subject", "required"),
        ("email", "email"),
        ("product", "choice"),
    ]
    assert problem["errors"][0]["message"] == "Please fill this in"


def test_a_form_post_that_asks_for_json_gets_json(gateway: Gateway) -> None:
    bad = gateway.post({"form_token": gateway.token()}, Accept="application/json")
    good = gateway.post({**GOOD, "form_token": gateway.token()}, Accept="application/json")

    assert bad.content_type == "application/problem+json"
    assert good.status == 202


# The token


def test_an_expired_token_costs_the_customer_nothing(gateway: Gateway) -> None:
    token = gateway.token("?source=shop-12")
    gateway.now += timedelta(minutes=241)

    reply = gateway.post({**GOOD, "form_token": token})
    again = gateway.post({**GOOD, "form_token": page(reply).value("form_token")})

    assert reply.status == 422
    assert page(reply).value("subject") == "打印机坏了"
    assert "失效" in page(reply).text
    assert again.status == 303
    assert gateway.messages[0].facts["source"] == "shop-12"
    assert "suspect" not in gateway.messages[0].facts


def test_a_message_that_was_taken_before_its_token_expired_is_not_doubled(gateway: Gateway) -> None:
    token = gateway.token()
    gateway.post({**GOOD, "form_token": token})
    gateway.now += timedelta(minutes=241)

    reply = gateway.post({**GOOD, "form_token": token})
    gateway.post({**GOOD, "form_token": page(reply).value("form_token")})

    assert len(gateway.messages) == 1


@pytest.mark.parametrize("token", ["", "x", "é", "a.b.c", "\0", "WzFd.xxxx"])
def test_a_token_that_we_did_not_sign_is_refused(gateway: Gateway, token: str) -> None:
    reply = gateway.post({**GOOD, "form_token": token})

    assert reply.status == 422
    assert page(reply).value("subject") == "打印机坏了"
    assert gateway.messages == []


def test_a_changed_token_is_refused(gateway: Gateway) -> None:
    head, _, signature = gateway.token().partition(".")

    assert gateway.post({**GOOD, "form_token": f"{head}A.{signature}"}).status == 422


def test_a_token_of_another_shape_is_refused(gateway: Gateway) -> None:
    signed = gateway.connector._tokens._pages.dumps(["nonce"])

    assert gateway.post({**GOOD, "form_token": signed}).status == 422


def test_a_token_of_another_channel_is_refused(gateway: Gateway) -> None:
    other = Connector("other", gateway.connector.settings, gateway.connector.context)
    described = asyncio.run(
        other.extract(Request("GET", "", "", MultiDict(), CIMultiDict(Accept="application/json"), ""), {})
    )
    assert isinstance(described, Reply)

    reply = gateway.post({**GOOD, "form_token": json.loads(described.body)["form_token"]})

    assert reply.status == 422


def test_a_json_client_is_told_that_its_token_is_bad(gateway: Gateway) -> None:
    reply = gateway.post_json({**GOOD, "form_token": "x"})

    assert reply.status == 422
    assert json.loads(reply.body)["errors"][0]["code"] == "expired"


# Suspicion


def test_a_filled_honeypot_marks_the_message_and_keeps_it(gateway: Gateway) -> None:
    reply = gateway.post({**GOOD, HONEYPOT: "http://spam", "form_token": gateway.token()})

    assert reply.status == 303
    assert gateway.messages[0].facts["suspect"] == "honeypot"


def test_the_honeypot_is_out_of_the_way_of_people(gateway: Gateway) -> None:
    trap = page(gateway.request("GET")).one("input", name=HONEYPOT)

    assert trap["tabindex"] == "-1"
    assert trap["autocomplete"] == "off"


@pytest.mark.parametrize(("seconds", "suspect"), [(1.9, "too_fast"), (2.0, None)])
def test_haste_marks_the_message_and_keeps_it(gateway: Gateway, seconds: float, suspect: str | None) -> None:
    token = page(gateway.request("GET")).value("form_token")
    gateway.now += timedelta(seconds=seconds)

    assert gateway.post({**GOOD, "form_token": token}).status == 303
    assert gateway.messages[0].facts.get("suspect") == suspect


# Origins


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://support.example"},
        {"Origin": "HTTPS://SUPPORT.EXAMPLE:443"},
        {"Origin": "http://localhost:8080", "Host": "localhost:8080"},
        {"Origin": "", "Referer": "https://support.example/c/web-support?lang=zh"},
        {"Origin": ""},
        {"Origin": SHOP},
    ],
)
def test_own_and_listed_origins_may_post(gateway: Gateway, headers: dict[str, str]) -> None:
    assert gateway.post({**GOOD, "form_token": gateway.token()}, **headers).status == 303


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://shop.example"},
        {"Origin": "https://support.example:8443"},
        {"Origin": "https://support.example.evil.example"},
        {"Origin": "null"},
        {"Origin": "https://[broken"},
        {"Origin": "", "Referer": "https://evil.example/page"},
    ],
)
def test_other_origins_may_not(gateway: Gateway, headers: dict[str, str]) -> None:
    reply = gateway.post({**GOOD, "form_token": gateway.token()}, **headers)

    assert reply.status == 403
    assert gateway.messages == []
    assert gateway.post_json(GOOD, **headers).status == 403


def test_a_foreign_origin_is_refused_before_its_body_is_read(gateway: Gateway) -> None:
    headers = CIMultiDict(Origin="https://evil.example")

    with pytest.raises(Rejected) as caught:
        asyncio.run(gateway.connector.admit(Request("POST", "", "", MultiDict(), headers, "192.0.2.1")))

    assert caught.value.code == "forbidden"


def test_a_plain_form_on_a_listed_site_needs_no_token(gateway: Gateway) -> None:
    reply = gateway.post(GOOD, "?source=shop-12", Origin=SHOP)

    assert reply.status == 303
    assert gateway.messages[0].facts["origin"] == SHOP
    assert gateway.messages[0].facts["source"] == "shop-12"


def test_its_double_click_is_one_message_and_the_same_words_later_another(gateway: Gateway) -> None:
    twice = [reference(gateway.post(GOOD, Origin=SHOP)) for _ in range(2)]
    gateway.now += timedelta(minutes=10)
    later = reference(gateway.post(GOOD, Origin=SHOP))

    assert twice[0] == twice[1] != later


def test_the_same_words_of_two_clients_are_two_messages(gateway: Gateway) -> None:
    for agent in ("one", "two"):
        gateway.post(GOOD, Origin=SHOP, User_Agent=agent)

    assert len(gateway.messages) == 2


def test_other_words_of_the_same_client_are_no_conflict(gateway: Gateway) -> None:
    for text in ("one", "two"):
        gateway.post({**GOOD, "text": text}, Origin=SHOP)

    assert len({message.native_id for message in gateway.messages}) == 2


def test_a_script_on_a_listed_site_may_read_the_answers(gateway: Gateway) -> None:
    preflight = gateway.request("OPTIONS", Origin=SHOP, Access_Control_Request_Method="POST")
    answers = [gateway.request("GET", Accept="application/json", Origin=SHOP), gateway.post_json(GOOD, Origin=SHOP)]

    assert preflight.status == 204
    assert "Content-Type" in preflight.headers["Access-Control-Allow-Headers"]
    assert [answer.headers["Access-Control-Allow-Origin"] for answer in [preflight, *answers]] == [SHOP] * 3


def test_a_script_on_another_site_may_not(gateway: Gateway) -> None:
    answer = gateway.request("GET", Accept="application/json", Origin="https://evil.example")

    assert "Access-Control-Allow-Origin" not in answer.headers
    assert gateway.request("OPTIONS", Origin="https://evil.example").status == 403


# JSON clients


def test_a_program_gets_the_fields_and_a_token(gateway: Gateway) -> None:
    described = json.loads(gateway.request("GET", Accept="application/json").body)

    replies = [gateway.post_json({**GOOD, "form_token": described["form_token"]}) for _ in range(2)]

    assert described["expires_at"] == int(gateway.now.timestamp()) + 240 * 60
    assert [one["name"] for one in described["fields"]] == [one["name"] for one in SETTINGS["fields"]]
    assert [reply.status for reply in replies] == [202, 200]
    accepted, repeated = (json.loads(reply.body) for reply in replies)
    assert accepted == repeated == {"id": accepted["id"], "reference": accepted["reference"], "status": "accepted"}
    assert "suspect" not in gateway.messages[0].facts


def test_a_program_without_a_token_sends_messages_of_their_own(gateway: Gateway) -> None:
    assert [gateway.post_json(GOOD).status for _ in range(2)] == [202, 202]
    assert len(gateway.messages) == 2


def test_an_idempotency_key_makes_its_retries_one(gateway: Gateway) -> None:
    statuses = [gateway.post_json(GOOD, Idempotency_Key=key).status for key in ('"k-1"', "k-1", "k-2")]

    assert statuses == [202, 200, 202]


def test_a_bad_idempotency_key_is_malformed(gateway: Gateway) -> None:
    assert gateway.post_json(GOOD, Idempotency_Key="a b").status == 400


# Sources and their QR codes


@pytest.mark.parametrize(
    ("source", "fact"), [("shop-12", "shop-12"), ("poster", "poster"), ("shop-13", None), ("", None)]
)
def test_only_a_declared_source_is_kept(gateway: Gateway, source: str, fact: str | None) -> None:
    gateway.post({**GOOD, "form_token": gateway.token(f"?source={source}")})

    assert gateway.messages[0].facts.get("source") == fact


def test_a_source_with_a_label_is_shown(gateway: Gateway) -> None:
    assert "来自：海报" in page(gateway.request("GET", "?source=poster")).text


def test_a_declared_source_can_come_in_the_body_of_a_program(gateway: Gateway) -> None:
    for source in ("shop-12", "shop-13"):
        gateway.post_json({**GOOD, "source": source})

    assert [message.facts.get("source") for message in gateway.messages] == ["shop-12", None]


def test_the_address_of_a_form() -> None:
    assert form_url("https://a.example/", NAME) == f"https://a.example/c/{NAME}"
    assert form_url("https://a.example", NAME, "shop 12") == f"https://a.example/c/{NAME}?source=shop%2012"


@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<?xml"), ("PNG", b"\x89PNG\r\n")])
def test_a_qr_code_is_drawn_by_the_files_suffix(tmp_path: Path, suffix: str, start: bytes) -> None:
    path = tmp_path / f"shop.{suffix}"

    write_qr(form_url("https://a.example", NAME, "shop-12"), path)

    assert path.read_bytes().startswith(start)


def test_a_qr_code_has_no_other_format(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.svg or \.png"):
        write_qr("https://a.example", tmp_path / "shop.pdf")


# Refusals


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (Unavailable("spool_full"), 503, "暂时没有收下"),
        (Unavailable("busy", retry_after=7), 503, "暂时没有收下"),
        (Unavailable("rate_limited"), 429, "太频繁"),
    ],
)
def test_what_was_typed_comes_back_when_it_could_not_be_taken(error: Unavailable, status: int, words: str) -> None:
    gateway = Gateway(failure=error)

    reply = gateway.post({**GOOD, "form_token": gateway.token("?source=shop-12")})
    gateway.failure = None
    again = gateway.post({**GOOD, "form_token": page(reply).value("form_token")})

    assert reply.status == status
    assert reply.headers["Retry-After"] == str(error.retry_after)
    assert words in page(reply).text
    assert page(reply).value("subject") == "打印机坏了"
    assert again.status == 303
    assert gateway.messages[0].facts["source"] == "shop-12"


@pytest.mark.parametrize("code", ["malformed", "forbidden", "not_found", "method_not_allowed", "too_large", "gone"])
@pytest.mark.parametrize("language", ["zh", "en"])
def test_a_browser_is_told_in_its_language_and_led_back(gateway: Gateway, code: str, language: str) -> None:
    request = Request("POST", "/a/b", "", MultiDict(lang=language), CIMultiDict(BROWSER), "192.0.2.1")

    reply = gateway.connector.refuse(request, Rejected(code, "private words"))

    shown = page(reply)
    assert reply.status >= 400
    assert urljoin(f"https://support.example/c/{NAME}/a/b", shown.one("a")["href"]).endswith(
        f"/c/{NAME}?lang={language}"
    )
    assert "private words" not in shown.text


def test_a_program_is_told_by_problem_json(gateway: Gateway) -> None:
    gateway.failure = Unavailable("busy", retry_after=7)

    reply = gateway.post_json(GOOD)

    assert (reply.status, reply.content_type) == (503, "application/problem+json")
    assert reply.headers["Retry-After"] == "7"


def test_a_body_that_is_gone_gives_a_page_without_it(gateway: Gateway, tmp_path: Path) -> None:
    headers = CIMultiDict({**BROWSER, "Content-Type": URLENCODED})
    body = BodyFile(tmp_path / "taken", 10, b"")
    request = Request("POST", "", "", MultiDict(), headers, "192.0.2.1", body)

    reply = gateway.connector.refuse(request, Unavailable("spool_failed"))

    assert reply.status == 503
    assert "暂时无法受理" in page(reply).text


@pytest.mark.parametrize("target", ["/nothing", "/thanks/more"])
def test_other_pages_are_not_found(gateway: Gateway, target: str) -> None:
    assert gateway.request("GET", target).status == 404
    assert gateway.post({**GOOD, "form_token": gateway.token()}, target).status == 404


def test_another_media_type_is_refused(gateway: Gateway) -> None:
    assert gateway.request("POST", "", b"a", Content_Type="text/plain").status == 415


# Settings


@pytest.mark.parametrize(
    ("settings_", "complaint"),
    [
        ({"fields": []}, "fields"),
        ({"fields": [{"name": "source", "type": "text", "label": "S"}]}, "no field can be called source"),
        ({"fields": [{"name": "f", "type": "file", "label": "F", "max_bytes": "64MiB"}]}, "max_request_bytes"),
        ({"allowed_origins": ["https://a.example/path"]}, "give an origin"),
        ({"allowed_origins": ["*"]}, "give an origin"),
        ({"frame_ancestors": ["https://a.example; script-src *"]}, "give an origin"),
        ({"sources": ["a b"]}, "sources"),
        ({"titel": "x"}, "titel"),
    ],
)
def test_bad_settings_say_what_is_wrong(settings_: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Gateway(settings_)


def test_the_example_configuration_is_valid() -> None:
    text = (ROOT / "config/channels/webform.example.yaml").read_text()

    (example,) = YAML(typ="safe").load(text)["channels"].values()

    assert Connector.Settings.model_validate(example).rate is not None


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://A.example:443/x?y", "https://a.example"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("https://a.example:x", ""),
        ("ftp://a.example", ""),
        ("null", ""),
    ],
)
def test_the_origin_of_an_address(url: str, origin: str) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    ("header", "language"),
    [("zh", "zh"), ("en;q=0, zh;q=0.1", "zh"), ("*", None), ("en;q=x", "en"), (",;,", None), ("EN-us", "en")],
)
def test_the_better_liked_language(header: str, language: str | None) -> None:
    assert accepted_language(header) == language


# Anything at all

ANY_TEXT = st.text(max_size=40)
TYPES = st.sampled_from(
    [URLENCODED, "application/json", "multipart/form-data; boundary=b", "multipart/form-data", "\udcff", ""]
)
FUZZED = Gateway()
TOKEN = FUZZED.token()


def stored(raw: RawMessage) -> StoredMessage:
    assert isinstance(raw.body, bytes)
    received_at = datetime(2026, 11, 23, tzinfo=UTC)
    return StoredMessage("id", NAME, raw.kind, raw.body, raw.content_type, raw.native_id, raw.facts, received_at)


def assert_answered(reply: Reply) -> None:
    """Accepted and fit for its normalizer, or refused as the sender's own fault."""
    assert reply.status in {202, 303} or 400 <= reply.status < 500
    for raw in FUZZED.messages:
        json.dumps(raw.facts, ensure_ascii=False).encode()
        normalize(stored(raw)).message.model_dump_json().encode()
    FUZZED.accepted.clear()


@settings(deadline=None)
@given(st.binary(max_size=200), TYPES, ANY_TEXT, ANY_TEXT)
def test_any_bytes_are_answered(body: bytes, content_type: str, accept: str, agent: str) -> None:
    headers = {"Origin": SHOP, "Accept": accept, "User_Agent": agent + "\udcff"}

    assert_answered(FUZZED.request("POST", "", body, Content_Type=content_type, **headers))


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from([*(one["name"] for one in SETTINGS["fields"]), HONEYPOT, "x"]), st.lists(ANY_TEXT))
)
def test_any_values_are_answered(values: dict[str, list[str]]) -> None:
    assert_answered(FUZZED.post({**values, "form_token": TOKEN}))


JSON_VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT, st.lists, max_leaves=5)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["subject", "text", "email", "photo", "form_token", "source", HONEYPOT]), JSON_VALUES
    )
)
def test_any_json_is_answered(document: dict[str, Any]) -> None:
    assert_answered(FUZZED.post_json(document))


@settings(deadline=None)
@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_any_address_is_answered(path: str, language: str, source: str) -> None:
    headers = CIMultiDict({"Accept-Language": language, "Origin": source, "Referer": path})
    query = MultiDict(lang=language, source=source, ref=path + "\udcff")
    request = Request("GET", f"/{path}", "https://support.example/", query, headers, "192.0.2.1")

    reply = asyncio.run(FUZZED._answer(request))

    assert reply.status in {200, 404}
    reply.body.decode()
