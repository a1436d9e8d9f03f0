"""The `voice` channel: its settings, what it makes of requests, how it fetches; its examples and pages work."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict, MultiDict
from pydantic import ValidationError
from ruamel.yaml import YAML

from connectors.voice import Connector
from gateway.contract import BodyFile, Context, HttpResponse, Part, RawMessage, Receipt, Reply, Request, Wanted
from gateway.errors import HuiruError, Rejected, Unavailable
from gateway.settings import load
from gateway.voice.preset import names

CHANNELS = Path(__file__).parents[2] / "config" / "channels"
EXAMPLES = sorted(CHANNELS.glob("voice-*.example.yaml"))
PAGES = [CHANNELS / "voice.md", CHANNELS / "voice.zh.md"]
ENV = dict.fromkeys(("VOICE_SECRET", "TWILIO_AUTH_TOKEN", "TCCC_PASSWORD", "PBX_PASSWORD"), "a-secret-of-the-tests")
SECRET = "a-secret-of-the-tests"
NOW = datetime(2026, 11, 24, 9, tzinfo=UTC)
PLAIN = {"type": "voice", "preset": "generic", "authentication": {"scheme": "path", "secret": SECRET}}
MISSED = {"call_id": "c-1", "direction": "inbound", "caller": "13800138000", "result": "missed"}


class Server:
    """What answers `Context.http`."""

    def __init__(self, status: int = 200, content: bytes = b"RIFF", **headers: str) -> None:
        self.asked: list[tuple[str, Mapping[str, str]]] = []
        self._answer = status, content, CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})

    async def __call__(self, url: str, *, headers: Mapping[str, str] = {}, **_: Any) -> HttpResponse:
        self.asked.append((url, headers))
        status, content, named = self._answer
        return HttpResponse(status, named, content, url)


def channel(http: Any = None, **more: Any) -> Connector:
    context = Context("test", "https://support.example", lambda purpose: bytes(32), lambda: NOW)
    if http:
        context = Context("test", "https://support.example", lambda purpose: bytes(32), lambda: NOW, http=http)
    return Connector("hotline", Connector.Settings.model_validate(PLAIN | more), context)


def request(body: Any, path: str = f"/{SECRET}", method: str = "POST", **headers: str) -> Request:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = CIMultiDict({"Content-Type": "application/json", **headers})
    return Request(method, path, f"https://support.example/c/hotline{path}", MultiDict(), named, "192.0.2.1", raw)


async def receive(connector: Connector, one: Request) -> list[RawMessage] | Reply:
    await connector.admit(one)
    found = await connector.extract(one, await connector.verify(one))
    return found if isinstance(found, Reply) else list(found)


async def messages(connector: Connector, body: Any) -> list[RawMessage]:
    found = await receive(connector, request(body))
    assert not isinstance(found, Reply)
    return found


# Messages


async def test_a_ticket_is_the_same_whichever_callback_makes_it() -> None:
    (first,) = await messages(channel(), MISSED)
    (other,) = await messages(channel(), {**MISSED, "queue": "售后"})

    assert (first.kind, first.native_id) == ("call", "call:c-1")
    assert json.loads(bytes(first.body)) == MISSED  # type: ignore[arg-type]  # it is in memory
    assert (first.native_id, first.fingerprint) == (other.native_id, other.fingerprint)
    assert first.facts["call"]["caller"] == "+8613800138000"


@pytest.mark.parametrize(
    ("settings", "offset"),
    [({}, 28_800), ({"zone": "Europe/Berlin"}, 3600), ({"preset": {"use": "generic", "zone": "UTC"}}, 28_800)],
)
async def test_a_time_is_told_as_it_was_where_the_agents_are(settings: dict[str, Any], offset: int) -> None:
    """Not where the vendor's times without a zone are."""
    (ticket,) = await messages(channel(**settings), MISSED | {"started_at": "2026-11-24T09:00:00Z"})

    assert ticket.facts["utc_offset_secs"] == offset


def test_a_zone_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="Asia/Shanghai"):
        channel(zone="Mars/Olympus")


async def test_an_addition_comes_with_its_ticket() -> None:
    connector = channel()
    await messages(connector, MISSED)

    ticket, update = await messages(
        connector, {"call_id": "c-1", "event": "recording", "recording_url": "https://v.example/1.wav"}
    )

    assert ticket.native_id == "call:c-1"
    assert (update.facts["updates"], update.facts["conversation"]) == ("call:c-1", "phone:+8613800138000")
    assert "v.example" not in str(update.native_id)
    assert [one["url"] for one in update.facts["recordings"]] == ["https://v.example/1.wav"]


async def test_a_body_in_a_file(tmp_path: Path) -> None:
    one = request(MISSED)
    assert isinstance(one.body, bytes)
    (tmp_path / "body").write_bytes(one.body)
    in_memory = await receive(channel(), one)
    one.body = BodyFile(tmp_path / "body", len(one.body), b"")

    assert await receive(channel(), one) == in_memory


async def test_what_is_no_ticket_is_a_success_that_is_counted() -> None:
    found = await receive(channel(), request({**MISSED, "result": "answered"}))

    assert isinstance(found, Reply)
    assert (found.status, found.ignored) == (200, ("answered",))
    assert json.loads(found.body) == {"ok": True, "reference": ""}


async def test_what_is_ignored_beside_a_ticket_is_counted_too() -> None:
    connector, one = channel(), request([MISSED, {**MISSED, "call_id": "c-2", "result": "answered"}])
    found = await receive(connector, one)
    assert not isinstance(found, Reply)

    reply = connector.reply(one, [Receipt("id", "7K3M-9QX2-4WPD")])

    assert len(found) == 1
    assert (reply.ignored, reply.headers) == (("answered",), {"Huiru-Reference": "7K3M-9QX2-4WPD"})
    assert json.loads(reply.body)["reference"] == "7K3M-9QX2-4WPD"


async def test_a_bad_element_is_for_quarantine_and_its_neighbours_are_not() -> None:
    found = await messages(channel(), b'[17, {"call_id": "c-1", "result": "missed"}, {"caller": "1"}, {broken}]')

    assert [one.facts.get("unreadable") is None for one in found] == [False, True, False, False]
    assert [one.native_id for one in found] == [None, "call:c-1", None, None]
    assert found[0].body == b"17"


@pytest.mark.parametrize("body", [b"", b"{}", b'{"caller": "1"}', b"\xff{", b"[", b"<a/>", b"a=b"])
async def test_a_request_without_a_record_is_refused(body: bytes) -> None:
    with pytest.raises(Rejected) as caught:
        await receive(channel(), request(body))

    assert caught.value.code in ("malformed", "unsupported_media_type")


async def test_a_head_request_is_no_callback() -> None:
    with pytest.raises(Rejected, match="method_not_allowed"):
        await channel().admit(request(b"", method="HEAD"))


@pytest.mark.parametrize(
    ("error", "status"),
    [(Unavailable("spool_full"), 503), (Rejected("malformed"), 400), (Rejected("unauthenticated"), 401)],
)
def test_refusals_in_the_vendors_words(error: HuiruError, status: int) -> None:
    basic = {"scheme": "basic", "username": "tccc", "password": "a-password"}
    reply = channel(preset="tccc", authentication=basic).refuse(request(MISSED), error)

    assert reply.status == status
    assert json.loads(reply.body)["ErrCode"] == 1
    assert ("WWW-Authenticate" in reply.headers) is (status == 401)


# Settings


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"authentication": []}, "say who may call"),
        ({"authentication": [{"scheme": "none"}, {"scheme": "networks", "networks": ["10.0.0.0/8"]}]}, "stands alone"),
        ({"authentication": {"scheme": "path", "secret": "short"}}, "at least 16"),
        ({"preset": "nobody"}, "expected one of the presets"),
        ({"preset": {"use": "tccc", "map": {"colour": "x"}}}, "colour"),
        ({"region": "China"}, "two letters"),
        ({"tickets": {"results": ["lost"]}}, "results"),
        ({"recordings": {"username": "x"}}, "go together"),
        ({"recordings": {"header": "X-Key"}}, "needs a token"),
        ({"recordings": {"username": "x", "password": "y", "token": "z"}}, "not both"),
        ({"state_hours": 200}, "less than or equal"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Connector.Settings.model_validate(PLAIN | settings)


def test_twilio_in_short() -> None:
    settings = Connector.Settings.model_validate({"type": "voice", "preset": "twilio", "auth_token": "0123456789"})

    assert [scheme.scheme for scheme in settings.schemes()] == ["twilio"]


def test_every_preset_has_an_example() -> None:
    assert [path.name.split(".")[0].removeprefix("voice-") for path in EXAMPLES] == sorted(names())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_loads(path: Path) -> None:
    (settings,) = load(path, ENV | {"TWILIO_ACCOUNT_SID": "AC1"}).channels.values()

    assert isinstance(settings, Connector.Settings)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_a_page_shows_loads(page: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)

    for n, block in enumerate(blocks):
        (tmp_path / f"{n}.yaml").write_text(block)
        (settings,) = load(tmp_path / f"{n}.yaml", {}).channels.values()
        assert isinstance(settings, Connector.Settings)
    assert len(blocks) == 3


def test_both_pages_show_the_same() -> None:
    shown = [re.findall(r"^```(?:yaml|sh)?\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL) for page in PAGES]

    plain = [[re.sub(r" +#.*", "", block) for block in blocks] for blocks in shown]
    assert plain[0] == plain[1]


async def test_the_preset_of_the_page_works() -> None:
    block = YAML(typ="safe").load(re.findall(r"```yaml\n(.*?)```", PAGES[0].read_text(), re.DOTALL)[-1])
    own = channel(preset=block["channels"]["hotline"]["preset"])

    (ticket,) = await messages(own, {"id": 7, "from": {"number": "13800138000"}, "dir": "in", "state": 17, "vip": "1"})

    assert (ticket.native_id, ticket.facts["call"]["result"]) == ("call:7", "missed")
    assert ticket.facts["call"]["fields"]["vip"] == "1"


# Recordings


def wanted(url: str, kind: str = "recording") -> Wanted:
    return Wanted(kind, json.dumps({"url": url, "id": "RE1", "kind": kind}))


async def fetched(server: Server, url: str, **recordings: Any) -> Part:
    part = await channel(server, recordings=recordings).fetch(wanted(url))
    assert isinstance(part, Part)
    return part


PASSWORD = {"username": "AC1", "password": "token", "hosts": ["vendor.example"]}


@pytest.mark.parametrize(
    ("url", "settings", "header"),
    [
        ("https://vendor.example/1", PASSWORD, ("Authorization", "Basic QUMxOnRva2Vu")),
        ("https://api.Vendor.example/1", PASSWORD, ("Authorization", "Basic QUMxOnRva2Vu")),
        ("https://vendor.example/1", {"token": "t", "hosts": ["vendor.example"]}, ("Authorization", "Bearer t")),
        ("https://vendor.example/1", {"token": "t", "header": "X-Key", "hosts": ["vendor.example"]}, ("X-Key", "t")),
        ("http://vendor.example/1", PASSWORD | {"plain_http": True}, ("Authorization", "Basic QUMxOnRva2Vu")),
        ("http://vendor.example/1", PASSWORD, None),
        ("https://evilvendor.example/1", PASSWORD, None),
        ("https://vendor.example.evil/1", PASSWORD, None),
        ("https://vendor.example@evil.example/1", PASSWORD, None),
        ("https://vendor.example/1", {}, None),
        ("https://vendor.example/1", {"username": "AC1", "password": "token"}, None),
    ],
)
async def test_who_gets_the_credentials(url: str, settings: dict[str, Any], header: tuple[str, str] | None) -> None:
    server = Server(Content_Type="audio/mpeg")

    await fetched(server, url, **settings)

    assert server.asked == [(url, dict([header] if header else []))]


@pytest.mark.parametrize(
    ("url", "content_type", "filename"),
    [
        ("https://v.example/a/%E7%95%99%E8%A8%80.wav?sig=x", "audio/x-wav", "留言.wav"),
        ("https://v.example/Recordings/RE1", "audio/x-wav; charset=binary", "recording-RE1.wav"),
        ("https://v.example/", "audio/mpeg", "recording-RE1.mp3"),
        ("https://v.example/..%2f..%2fetc%2fpasswd", "", "recording-passwd"),
    ],
)
async def test_the_name_of_a_file(url: str, content_type: str, filename: str) -> None:
    assert (await fetched(Server(Content_Type=content_type), url)).filename == filename


@pytest.mark.parametrize(
    ("server", "error"),
    [
        (Server(404), Unavailable),
        (Server(500), Unavailable),
        (Server(401), Unavailable),
        (Server(200, b""), Unavailable),
        (Server(200, b"{}", Content_Type="application/json"), Unavailable),
        (Server(200, b"<html>", Content_Type="text/html"), Unavailable),
        (Server(403), Rejected),
        (Server(410), Rejected),
    ],
)
async def test_what_is_no_recording(server: Server, error: type[HuiruError]) -> None:
    with pytest.raises(error):
        await fetched(server, "https://v.example/1")


@pytest.mark.parametrize("url", ["", "ftp://v.example/1", "file:///etc/passwd", "https://[", "https:///x"])
async def test_what_is_no_address(url: str) -> None:
    with pytest.raises(Rejected):
        await fetched(Server(), url)
