"""Access tokens for a mailbox (RFC 6749): by a refresh token, or by client credentials.

Google: a refresh token with the scope https://mail.google.com/ (developers.google.com/identity/protocols/oauth2).
Microsoft 365: client credentials, for an app that an administrator has admitted to the mailbox, or a refresh token
(learn.microsoft.com/exchange/client-developer/legacy-protocols/how-to-authenticate-an-imap-pop-smtp-application-by-using-oauth).
"""

import time
from collections.abc import Mapping
from datetime import UTC, date, datetime
from datetime import time as time_of_day
from hashlib import sha256
from typing import Any, Literal, Self
from urllib.parse import quote, urlsplit

import aiohttp
import orjson
from pydantic import Field, SecretStr, model_validator

from gateway.contract import Memory, Settings
from gateway.errors import Rejected, Unavailable

_TIMEOUT_SECS = 20
_MAX_ANSWER_BYTES = 1 << 16
_SHARE, _BEFORE_SECS = 0.8, 300  # a token is renewed when so much of its life is over, at most so long before its end
_MEMO = "refresh_token"
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_MICROSOFT = "https://login.microsoftonline.com/{}/oauth2/v2.0/token"
_SCOPES = {  # provider, is there a refresh token -> what is asked for
    ("google", True): "",  # a refresh token's own
    ("microsoft", True): "https://outlook.office.com/IMAP.AccessAsUser.All offline_access",
    ("microsoft", False): "https://outlook.office365.com/.default",
}


class OAuth(Settings):
    """How to get access tokens."""

    provider: Literal["google", "microsoft", "other"] = Field(description="other: give token_url")
    tenant: str | None = Field(default=None, description="Microsoft's directory: its id or domain, not `common`")
    token_url: str | None = Field(default=None, description="where tokens are given; default: the provider's")
    client_id: str = Field(description="of the registered app")
    client_secret: SecretStr | None = Field(default=None, description="of the registered app")
    refresh_token: SecretStr | None = Field(
        default=None, description="of the mailbox's owner; null: client credentials, where the app acts by itself"
    )
    scope: str | None = Field(default=None, description="what is asked for; default: the provider's for IMAP")
    secret_expires_on: date | None = Field(
        default=None, description="when the client secret expires: told by huiru_credential_expiry_timestamp_seconds"
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.provider == "microsoft" and not (self.tenant or self.token_url):
            raise ValueError("microsoft needs tenant: the directory's id or domain")
        if self.provider == "other" and not self.token_url:
            raise ValueError("other needs token_url")
        if not (self.refresh_token or self.client_secret):
            raise ValueError("give refresh_token, or client_secret for client credentials")
        if self.provider == "google" and not self.refresh_token:
            raise ValueError("google gives no mailbox to client credentials; give refresh_token")
        url = urlsplit(self.address)
        if url.scheme != "https" and url.hostname not in _LOOPBACK:
            raise ValueError("token_url must be https: secrets are sent there")
        return self

    @property
    def address(self) -> str:
        if self.token_url:
            return self.token_url
        if self.provider == "google":
            return "https://oauth2.googleapis.com/token"
        return _MICROSOFT.format(quote(self.tenant or "", safe=""))


class Tokens:
    """`access` gives a token that is good for a while. A refresh token that the server exchanges is remembered."""

    def __init__(self, settings: OAuth, memory: Memory) -> None:
        self._settings = settings
        self._memory = memory
        self._token = ""
        self._renew_at = 0.0
        self._token_expires_at: float | None = None

    @property
    def expires_at(self) -> float | None:
        """Of the client secret, where that is known; else of the access token, which is renewed before."""
        if day := self._settings.secret_expires_on:
            return datetime.combine(day, time_of_day(), UTC).timestamp()
        return self._token_expires_at

    def forget(self) -> None:
        """The mail server refused it."""
        self._renew_at = 0.0

    async def access(self) -> str:
        """Raises Rejected("unauthenticated") when the token server refuses us, Unavailable when it is away."""
        if time.time() >= self._renew_at:
            await self._renew()
        return self._token

    async def _renew(self) -> None:
        refresh, remembered = await self._refresh_token()
        try:
            answer = await self._ask(refresh)
        except Rejected:
            if not remembered:
                raise
            refresh = _text(self._settings.refresh_token)  # the configured one may be good still
            answer = await self._ask(refresh)
        now, life = time.time(), _seconds(answer.get("expires_in"))
        self._token, self._token_expires_at = str(answer["access_token"]), now + life
        self._renew_at = now + max(_SHARE * life, life - _BEFORE_SECS)
        if refresh and isinstance(new := answer.get("refresh_token"), str) and new != refresh:
            await self._memory.memorise({_MEMO: f"{self._origin()} {new}"})

    async def _refresh_token(self) -> tuple[str, bool]:
        """The newest, and whether it is one that we were given in exchange for the configured one."""
        if self._settings.refresh_token is None:
            return "", False
        origin, _, remembered = (await self._memory.recall()).get(_MEMO, "").partition(" ")
        if remembered and origin == self._origin():
            return remembered, True
        return _text(self._settings.refresh_token), False

    def _origin(self) -> str:
        """Of what is remembered: another configured token makes it void."""
        return sha256(_text(self._settings.refresh_token).encode()).hexdigest()[:16]

    def _form(self, refresh: str) -> dict[str, str]:
        settings = self._settings
        grant = {"grant_type": "refresh_token", "refresh_token": refresh} if refresh else {}
        scope = settings.scope or _SCOPES.get((settings.provider, bool(refresh)), "")
        form = {"grant_type": "client_credentials", "client_id": settings.client_id, **grant, "scope": scope}
        form["client_secret"] = _text(settings.client_secret)
        return {name: value for name, value in form.items() if value}

    async def _ask(self, refresh: str) -> Mapping[str, Any]:
        url, timeout = self._settings.address, aiohttp.ClientTimeout(total=_TIMEOUT_SECS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, trust_env=True) as http,
                http.post(url, data=self._form(refresh), allow_redirects=False) as response,
            ):
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk[: _MAX_ANSWER_BYTES - len(body)]
                return _answer(response.status, bytes(body))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(reason=f"{urlsplit(url).hostname}: {type(error).__name__}: {error}") from None


def _answer(status: int, body: bytes) -> Mapping[str, Any]:
    """RFC 6749, 5.1 and 5.2."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = None
    answer = answer if isinstance(answer, dict) else {}
    if status == 200 and isinstance(answer.get("access_token"), str):
        return answer
    error = f"{status} {answer.get('error', '')}: {answer.get('error_description', '')}"
    reason = "".join(char for char in error if char.isprintable())[:300]
    if status in (400, 401, 403) and answer.get("error") != "temporarily_unavailable":
        raise Rejected("unauthenticated", reason=f"the token server refuses us: {reason}")
    raise Unavailable(reason=f"the token server answers {reason}")


def _seconds(value: object) -> float:
    """Microsoft has been seen to write it in quotes."""
    try:
        return min(max(float(value), 1), 86_400)  # type: ignore[arg-type]  # what is no number is an error
    except (TypeError, ValueError):
        return 3600


def _text(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret else ""
