"""What an operator copies from WeChat's console, and how it can be wrong."""

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.wechat.credentials import PushSettings
from tests.wechat.peer import AES_KEY, APPID, OTHER_AES_KEY, TOKEN

GOOD = {"type": "wechat", "appid": APPID, "token": TOKEN, "aes_key": AES_KEY}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"previous_aes_key": OTHER_AES_KEY},
        {"mode": "compatible"},
        {"mode": "plaintext"},
        {"mode": "plaintext", "aes_key": None},
        {"token": "令牌 with a blank"},
        {"token": "x"},
    ],
)
def test_good_settings(more: dict[str, Any]) -> None:
    settings = PushSettings.model_validate(GOOD | more)

    assert settings.mode == more.get("mode", "safe")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"token": ""}, "token"),
        ({"token": " "}, "token"),
        ({"token": f"{TOKEN}\n"}, "token"),
        ({"token": f" {TOKEN}"}, "token"),
        ({"token": "a\nb"}, "token"),
        ({"token": "a" * 129}, "token"),
        ({"aes_key": ""}, "aes_key"),
        ({"aes_key": AES_KEY[:-1]}, "aes_key"),
        ({"aes_key": f"{AES_KEY}="}, "aes_key"),
        ({"aes_key": f"{AES_KEY[:-1]}钥"}, "aes_key"),
        ({"aes_key": f"{AES_KEY}\n"}, "aes_key"),
        ({"previous_aes_key": "short"}, "previous_aes_key"),
        ({"aes_key": None}, "needs aes_key"),
        ({"aes_key": None, "mode": "compatible"}, "needs aes_key"),
        ({"aes_key": None, "mode": "plaintext", "previous_aes_key": OTHER_AES_KEY}, "beside aes_key"),
        ({"mode": "plain"}, "mode"),
        ({"appid": ""}, "appid"),
        ({"appid": "wx 1"}, "appid"),
        ({"freshness_secs": 0}, "freshness_secs"),
    ],
)
def test_faults_are_named_and_their_secrets_are_not(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named) as refused:
        PushSettings.model_validate(GOOD | wrong)

    told = str(refused.value.errors(include_input=False, include_context=False))
    assert TOKEN not in told
    assert AES_KEY[:-1] not in told


def test_no_secret_is_shown() -> None:
    shown = repr(PushSettings.model_validate(GOOD | {"previous_aes_key": OTHER_AES_KEY}))

    assert not any(secret in shown for secret in (TOKEN, AES_KEY, OTHER_AES_KEY))
