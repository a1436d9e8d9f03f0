"""The template channel: the tests that a channel has at the least, beside the contract suite."""

import hmac
import json
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, MultiDict
from pydantic import ValidationError
from ruamel.yaml import YAML

from connectors.echo import SIGNATURE, Connector
from gateway.contract import BodyFile, Context, RawMessage, Receipt, Reply, Request
from gateway.errors import Rejected

EXAMPLE = Path(__file__).parents[2] / "config/channels/echo.example.yaml"
SECRET = "a secret for the tests"
HELLO = {"id": "m-1", "from": "user", "text": "hello"}


@pytest.fixture
def connector() -> Connector:
    settings = Connector.Settings.model_validate({"type": "echo", "secret": SECRET})
    now = datetime(2026, 11, 23, 9, tzinfo=UTC)
    return Connector(
        "echo", settings, Context("test", "https://support.example", lambda purpose: bytes(32), lambda: now)
    )


def post(body: Any, secret: str = SECRET, path: str = "", **headers: str) -> Request:
    """A request as the vendor sends it, signed."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    signature = "sha256=" + hmac.new(secret.encode(), raw, "sha256").hexdigest()
    named = CIMultiDict({"Content-Type": "application/json", SIGNATURE: signature} | headers)
    return Request("POST", path, f"https://support.example/c/echo{path}", MultiDict(), named, "192.0.2.1", raw)


async def receive(connector: Connector, request: Request) -> RawMessage:
    found = await connector.extract(request, await connector.verify(request))
    assert not isinstance(found, Reply)
    (message,) = found
    return message


async def test_a_message_is_taken_as_it_is(connector: Connector) -> None:
    request = post(HELLO)

    message = await receive(connector, request)

    assert message == RawMessage("echo", request.body, "m-1", "application/json")


async def test_a_large_message_is_taken_from_its_file(connector: Connector, tmp_path: Path) -> None:
    request = post(HELLO)
    assert isinstance(request.body, bytes)
    path = tmp_path / "body"
    path.write_bytes(request.body)
    request.body = BodyFile(path, len(request.body), sha256(request.body).digest())

    message = await receive(connector, request)

    assert (message.body, message.native_id) == (request.body, "m-1")


def test_the_answer_is_what_the_vendor_wants(connector: Connector) -> None:
    reply = connector.reply(post(HELLO), [Receipt("id", "7K3M-9QX2-4WPD")])

    assert reply.status == 200
    assert json.loads(reply.body) == {"ok": True, "reference": "7K3M-9QX2-4WPD"}


@pytest.mark.parametrize(
    "request_",
    [
        post(HELLO, secret="another secret"),
        post(HELLO, **{SIGNATURE: ""}),
        post(HELLO, **{SIGNATURE: "sha256=клю\ud800"}),
        post(HELLO, **{SIGNATURE: post({"text": "other"}).headers[SIGNATURE]}),
    ],
)
async def test_a_wrong_signature_is_refused(connector: Connector, request_: Request) -> None:
    with pytest.raises(Rejected) as caught:
        await connector.verify(request_)

    assert caught.value.code == "unauthenticated"
    assert connector.refuse(request_, caught.value).status == 401


async def test_there_are_no_paths_below(connector: Connector) -> None:
    with pytest.raises(Rejected) as caught:
        await connector.verify(post(HELLO, path="/more"))

    assert caught.value.code == "not_found"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", {"id": "m-1"}, {"id": 1, "text": "x"}, {"id": "", "text": "x"}])
async def test_what_is_no_message_is_refused(connector: Connector, body: Any) -> None:
    with pytest.raises(Rejected) as caught:
        await receive(connector, post(body))

    assert caught.value.code == "malformed"


@given(body=st.binary())
async def test_no_body_makes_it_fail(body: bytes) -> None:
    settings = Connector.Settings.model_validate({"type": "echo", "secret": SECRET})
    connector = Connector("echo", settings, Context("test", "", lambda purpose: b"", lambda: datetime.now(UTC)))

    with pytest.raises(Rejected):
        await receive(connector, post(body))


def test_a_short_secret_is_a_fault() -> None:
    with pytest.raises(ValidationError):
        Connector.Settings.model_validate({"type": "echo", "secret": "short"})


def test_the_example_is_valid() -> None:
    channel = YAML(typ="safe").load(EXAMPLE)["channels"]["echo"] | {"secret": SECRET}

    assert Connector.Settings.model_validate(channel).secret.get_secret_value() == SECRET
