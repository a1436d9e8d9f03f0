"""WeChat's server, asked once. What is secret in a question comes back in no error."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import orjson
from multidict import MultiMapping

from gateway.contract import Http, HttpResponse
from gateway.errors import HuiruError, Rejected, Unavailable
from gateway.text import one_line

TIMEOUT_SECS = 10.0  # for a document; a file has the time of the settings
_MAX_DOCUMENT_BYTES = 1 << 16
_MAX_SAID_CHARS = 300
_HIDDEN = "[hidden]"
_JSON = {"Content-Type": "application/json"}
_QUERY = re.compile(r"\?\S+")
_SHORTEST_SECRET = 6


@dataclass(frozen=True, slots=True)
class Answer:
    """Of status 200. `document` is empty unless the content is an object in JSON; `code` is its errcode, else 0."""

    content: bytes
    headers: MultiMapping[str]
    document: Mapping[str, Any]
    code: int
    message: str


class Server:
    """`base_url` is the operator's; `secret` the account's, for which no error has a place either."""

    def __init__(self, http: Http, base_url: str, secret: str) -> None:
        self._http = http
        self._base_url = base_url.rstrip("/")
        self._secret = secret

    async def ask(self, path: str, query: Mapping[str, str], document: Mapping[str, Any] | None = None) -> Answer:
        """What is answered with a document: POST with one, GET without. Raises Unavailable."""
        try:
            answer = await self._sent(path, query, document, TIMEOUT_SECS)
        except Rejected as error:  # the operator can set the address right
            raise Unavailable(reason=error.reason) from None
        if not answer.document:
            raise Unavailable(reason="WeChat's server answers with something else than an object in JSON")
        return answer

    async def fetch(self, path: str, query: Mapping[str, str]) -> Answer:
        """What may be a file. Raises Rejected("too_large"), and Unavailable."""
        try:
            return await self._sent(path, query, None, None)
        except Rejected as error:
            if error.code == "too_large":
                raise
            raise Unavailable(reason=error.reason) from None

    async def download(self, url: str) -> HttpResponse:
        """From an address that the server gave us. Raises Rejected("forbidden" or "too_large"), and Unavailable."""
        try:
            return await self._http(url)
        except Exception as error:
            failure = _without(error, (self._secret, url))
        raise failure

    async def _sent(
        self, path: str, query: Mapping[str, str], document: Mapping[str, Any] | None, timeout_secs: float | None
    ) -> Answer:
        secrets = (self._secret, *query.values(), *_texts(document or {}))
        try:
            response = await self._http(
                f"{self._base_url}{path}" + (f"?{urlencode(query)}" if query else ""),
                method="GET" if document is None else "POST",
                headers={} if document is None else _JSON,
                body=b"" if document is None else orjson.dumps(document),
                trusted=True,
                timeout_secs=timeout_secs,
            )
        except Exception as error:
            failure = _without(error, secrets)
        else:
            return _answer(response, secrets)
        raise failure  # out of the block: the error it was, which may show the address, is not its context


def _answer(response: HttpResponse, secrets: Iterable[str]) -> Answer:
    if response.status != 200:
        raise Unavailable(reason=f"WeChat's server answers with HTTP status {response.status}")
    document = json_object(response.content)
    code = document.get("errcode", 0)
    message = _hidden(str(document.get("errmsg", "")), secrets)
    if type(code) is not int:
        raise Unavailable(reason="WeChat's server answers with an errcode that is no number")
    return Answer(response.content, response.headers, document, code, message)


def json_object(content: bytes) -> Mapping[str, Any]:
    """What the content says, if it is an object in JSON and no longer than an answer can be; else nothing."""
    if len(content) > _MAX_DOCUMENT_BYTES or not content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return {}
    try:
        document = orjson.loads(content.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _without(error: Exception, secrets: Iterable[str]) -> HuiruError:
    """The same error, as far as it is ours, and its words without secrets."""
    if isinstance(error, Rejected):
        return Rejected(error.code, _hidden(error.public, secrets), reason=_hidden(error.reason, secrets))
    reason = error.reason if isinstance(error, HuiruError) else type(error).__name__
    code, wait = (error.code, error.retry_after) if isinstance(error, Unavailable) else ("unavailable", 5)
    return Unavailable(code, reason=f"WeChat's server cannot be reached: {_hidden(reason, secrets)}", retry_after=wait)


def _hidden(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        if len(secret) >= _SHORTEST_SECRET:
            for form in (secret, quote(secret), quote_plus(secret)):
                text = text.replace(form, _HIDDEN)
    return one_line(_QUERY.sub(f"?{_HIDDEN}", text))[:_MAX_SAID_CHARS]


def _texts(document: Mapping[str, Any]) -> Iterable[str]:
    return (value for value in document.values() if isinstance(value, str))
