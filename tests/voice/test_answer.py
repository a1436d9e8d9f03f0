"""What vendors are told."""

import pytest

from gateway.errors import Rejected, Unavailable
from gateway.voice.answer import failure, success
from gateway.voice.preset import names, preset

TWIML = b'<?xml version="1.0" encoding="UTF-8"?><Response/>'


@pytest.mark.parametrize(
    ("name", "body", "content_type"),
    [
        ("twilio", TWIML, "application/xml"),
        ("tccc", b'{"ErrCode":0,"ErrMsg":""}', "application/json"),
        ("aliyun", '{"code":0,"msg":"接收成功"}'.encode(), "application/json"),
        ("clink", b'{"result":"success"}', "application/json"),
        ("asterisk", b"7K3M-9QX2-4WPD", "text/plain; charset=utf-8"),
        ("generic", b'{"ok":true,"reference":"7K3M-9QX2-4WPD"}', "application/json"),
    ],
)
def test_success_in_the_vendors_words(name: str, body: bytes, content_type: str) -> None:
    reply = success(preset(name), "7K3M-9QX2-4WPD")

    assert (reply.status, reply.body, reply.content_type) == (200, body, content_type)


@pytest.mark.parametrize("name", names())
def test_success_is_exactly_200_and_our_own_fault_makes_the_vendor_try_again(name: str) -> None:
    assert success(preset(name)).status == 200

    reply = failure(preset(name), Unavailable("spool_full", retry_after=30))

    assert (reply.status, reply.headers["Retry-After"]) == (503, "30")
    assert reply.body != success(preset(name)).body or name in {"asterisk", "twilio"}  # they look at the status


@pytest.mark.parametrize(("code", "status"), [("unauthenticated", 401), ("malformed", 400), ("too_large", 413)])
def test_a_fault_of_the_request_has_its_own_status(code: str, status: int) -> None:
    reply = failure(preset("tccc"), Rejected(code, "no", reason="secret"), **{"WWW-Authenticate": "Basic"})

    assert (reply.status, reply.body) == (status, b'{"ErrCode":1,"ErrMsg":"no"}')
    assert reply.headers == {"WWW-Authenticate": "Basic"}


def test_what_is_not_ours_tells_nothing() -> None:
    reply = failure(preset("tccc"), RuntimeError("secret"))

    assert reply.status == 503
    assert b"secret" not in reply.body


def test_answers_are_escaped_in_their_form() -> None:
    form = {"content_type": "application/x-www-form-urlencoded", "body": {"retcode": 1, "msg": "{message}"}}
    xml = {"content_type": "text/xml", "body": "<m>{message}</m>"}

    assert (
        failure(preset({"use": "generic", "failure": form}), Rejected("malformed", "a&b")).body
        == b"retcode=1&msg=a%26b"
    )
    assert failure(preset({"use": "generic", "failure": xml}), Rejected("malformed", "a<b")).body == b"<m>a&lt;b</m>"
