"""Those who fill in a web form: a browser, and the script of a listed site."""

import re
from urllib.parse import urlencode

import orjson

from tests.contract.driver import Call, Send, WebhookDriver

SITE = "https://www.example.com"  # listed in the example
VALUES = {"subject": "打印机坏了", "text": "一直闪红灯", "agree": "true"}
_TOKEN = re.compile(r'name="form_token" value="([^"]+)"')
_TOKENS = 8  # more than there are messages in a check


class _Visitor(WebhookDriver):
    waivers = {
        "a_message_without_proof_is_refused": "a form is open to everybody: who they are is no condition, only where"
        " a browser says that it comes from"
    }

    def authenticated(self, call: Call) -> Call:
        return call.having(Origin=SITE)

    def forged(self, call: Call) -> Call:
        return call.having(Origin="https://evil.example")


class Browser(_Visitor):
    """Opened the page, and posts what is on it."""

    async def prepare(self, send: Send) -> None:
        pages = [await send(Call("GET", headers={"Accept": "text/html"})) for _ in range(_TOKENS)]
        self._unused = [found[1] for page in pages if (found := _TOKEN.search(page.body.decode()))]
        self._tokens: dict[str, str] = {}

    def message(self, native_id: str) -> Call:
        if native_id not in self._tokens:
            self._tokens[native_id] = self._unused.pop()
        body = urlencode({**VALUES, "form_token": self._tokens[native_id]}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "text/html"}
        return Call(headers=headers, body=body)

    def malformed(self) -> Call:
        """Anything can be read as urlencoded; this lacks what the form demands."""
        return self.authenticated(self.message("malformed").having(Content_Type="multipart/form-data; boundary=none"))


class Script(_Visitor):
    """Shows the fields itself, and posts JSON."""

    def message(self, native_id: str) -> Call:
        headers = {"Content-Type": "application/json", "Idempotency-Key": native_id}
        return Call(headers=headers, body=orjson.dumps({**VALUES, "text": native_id}))
