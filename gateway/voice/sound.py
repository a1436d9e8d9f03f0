"""Recordings and voicemails: how they are fetched from where a vendor keeps them.

The address comes with a callback, so it may lead anywhere: the core refuses what is not public, unless the settings
`media.allow_networks` has it, and our credentials go to configured hosts alone, over TLS.
"""

from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import orjson
from pydantic import Field, SecretStr, model_validator

from gateway.contract import Http, HttpResponse, Part, Settings, Wanted
from gateway.errors import Rejected, Unavailable
from gateway.text import file_name
from gateway.voice.preset import Fetching

_GONE = {403: "forbidden", 410: "gone"}
# What vendors' servers call the sounds that telephones make, and the ends of names that programs know them by.
_ENDS = {
    "audio/mpeg": ".mp3",
    "audio/mp3": ".mp3",
    "audio/wav": ".wav",
    "audio/x-wav": ".wav",
    "audio/wave": ".wav",
    "audio/vnd.wave": ".wav",
    "audio/ogg": ".ogg",
    "audio/amr": ".amr",
    "audio/mp4": ".m4a",
    "audio/x-m4a": ".m4a",
}
_NO_SOUND = ("text/", "application/json", "application/xml", "application/problem")


class Recordings(Settings):
    """What is done about recordings."""

    fetch: bool = Field(default=True, description="false: tickets have no recordings attached")
    username: str | None = Field(default=None, max_length=255, description="for Basic authentication")
    password: SecretStr | None = Field(default=None, description="for Basic authentication")
    token: SecretStr | None = Field(default=None, description="sent as `Authorization: Bearer`, or in `header`")
    header: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9-]{1,64}$", description="the header that has the token, as it is"
    )
    hosts: tuple[str, ...] | None = Field(
        default=None,
        description="credentials go to these hosts and to what is below them, and nowhere else; null: to the preset's",
    )
    plain_http: bool = Field(default=False, description="send credentials without TLS too")
    urls: bool = Field(
        default=False,
        description="the vendor's addresses into the ticket's `fields.recording_urls`: whoever has them may listen",
    )

    @model_validator(mode="after")
    def _demand_pairs(self) -> "Recordings":
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password go together")
        if self.username is not None and self.token is not None:
            raise ValueError("expected a password or a token, not both")
        if self.header is not None and self.token is None:
            raise ValueError("the header needs a token")
        return self


class Sounds:
    """Fetches recordings for one channel."""

    def __init__(self, settings: Recordings, preset: Fetching, http: Http) -> None:
        self._settings = settings
        self._http = http
        self._hosts = preset.hosts if settings.hosts is None else settings.hosts

    async def fetch(self, wanted: Wanted) -> Part:
        """Raises Rejected when the vendor says that it is not there any more, or not for us; else Unavailable: many
        vendors name a recording before they have it."""
        source = orjson.loads(wanted.source)
        url = str(source["url"])
        response = await self._http(url, headers=self._credentials(url, _host(url)))
        if response.status in _GONE:
            raise Rejected(_GONE[response.status], f"the vendor's server answered {response.status}")
        content_type = _content_type(response)
        if response.status != 200 or not response.content or content_type.startswith(_NO_SOUND):
            reason = f"the vendor's server answered {response.status} with {content_type or 'nothing'}"
            raise Unavailable(reason=reason, retry_after=1)  # the core waits longer each time
        return Part(response.content, _filename(source, content_type), content_type)

    def _credentials(self, url: str, host: str) -> Mapping[str, str]:
        own = self._settings
        if not _is_below(host, self._hosts) or not (url.lower().startswith("https:") or own.plain_http):
            return {}
        if own.username is not None and own.password is not None:
            pair = f"{own.username}:{own.password.get_secret_value()}".encode()
            return {"Authorization": f"Basic {b64encode(pair).decode()}"}
        if own.token is None:
            return {}
        token = own.token.get_secret_value()
        return {own.header: token} if own.header else {"Authorization": f"Bearer {token}"}


def _host(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("http", "https"):
        raise Rejected("invalid", "the vendor gave no address that can be fetched")
    return host


def _is_below(host: str, hosts: tuple[str, ...]) -> bool:
    return any(host == known.lower() or host.endswith(f".{known.lower()}") for known in hosts)


def _content_type(response: HttpResponse) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _filename(source: Mapping[str, Any], content_type: str) -> str:
    """The address' last part, when it looks like a file's name; else by the kind and the vendor's id."""
    name = file_name(unquote(urlsplit(str(source["url"])).path, errors="replace"))
    if "." in name:
        return name
    name = name or file_name(str(source.get("id") or "")) or "1"
    return f"{source.get('kind') or 'recording'}-{name}{_ENDS.get(content_type, '')}"
