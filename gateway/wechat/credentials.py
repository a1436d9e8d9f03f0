"""What an operator copies out of WeChat's console, checked before anything depends on it."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, StringConstraints, model_validator

from gateway.contract import ChannelSettings

_AES_KEY = re.compile(r"[A-Za-z0-9+/]{43}")
_TOKEN = re.compile(r"\S(?:[^\x00-\x1f\x7f]*\S)?")
_MAX_TOKEN_CHARS = 128


def _demand_token(token: SecretStr) -> SecretStr:
    value = token.get_secret_value()
    if not _TOKEN.fullmatch(value) or len(value) > _MAX_TOKEN_CHARS:
        # With an empty one anybody could sign.
        raise ValueError("must be the Token of WeChat's console: not empty, one line, no blanks around it")
    return token


def _demand_aes_key(key: SecretStr) -> SecretStr:
    given = len(key.get_secret_value())
    if not _AES_KEY.fullmatch(key.get_secret_value()):
        raise ValueError(f"must be the EncodingAESKey of WeChat's console: 43 letters and digits; it has {given}")
    return key


Token = Annotated[SecretStr, AfterValidator(_demand_token)]
AesKey = Annotated[SecretStr, AfterValidator(_demand_aes_key)]
AppId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Mode = Literal["safe", "compatible", "plaintext"]


class PushSettings(ChannelSettings):
    """The keys of every channel that WeChat pushes to, named as its console names them."""

    appid: AppId = Field(description="the account's AppID, wx…; every encrypted push must end with it")
    token: Token = Field(description="the Token of the console's message push, by which WeChat signs")
    aes_key: AesKey | None = Field(
        default=None, description="the EncodingAESKey, 43 characters; only the mode plaintext can do without"
    )
    previous_aes_key: AesKey | None = Field(
        default=None, description="the EncodingAESKey before: still tried while WeChat changes over to a new one"
    )
    mode: Mode = Field(
        default="safe",
        description="as chosen in the console. In safe and compatible only what is encrypted is read; in plaintext"
        " whoever learns a signed address can post anything for some minutes: never over the internet",
    )
    freshness_secs: int = Field(default=300, ge=1, le=86400, description="how far a signature's time may be from ours")

    @model_validator(mode="after")
    def _demand_keys(self) -> Self:
        if self.aes_key is None and self.mode != "plaintext":
            raise ValueError(f"the mode {self.mode} needs aes_key, the EncodingAESKey of WeChat's console")
        if self.aes_key is None and self.previous_aes_key is not None:
            raise ValueError("previous_aes_key stands beside aes_key, never alone")
        return self
