"""Would WeChat's console take our address? Its own word for no is `Token 校验失败`, and it does not say why.

It asks the address once, as `probe` does, from the outside: WeChat's servers may still be kept out by a firewall.
Source: developers.weixin.qq.com/doc/service/guide/dev/push/ (a URL on the ports 80 and 443 only; the echostr as it is)
"""

import secrets
from collections.abc import Callable
from datetime import datetime
from ipaddress import ip_address
from urllib.parse import urlencode, urlsplit

from gateway.contract import Http, HttpResponse
from gateway.errors import HuiruError, Unavailable
from gateway.wechat.crypto import signature

TIMEOUT_SECS = 5.0
_PORTS = {"http": 80, "https": 443}
_CAUSES = {
    403: "the gateway that runs there has another token, or its clock is minutes off",
    404: "the configuration that runs there has no such channel, or a proxy does not hand on its path",
    502: "the proxy there does not reach huiru",
    503: "the proxy there does not reach huiru, or huiru is stopping",
}
_CAUSE = "a proxy or a firewall answers in huiru's place; it has to hand the request on as it is, without a redirect"


async def probe(http: Http, address: str, token: str, now: Callable[[], datetime]) -> None:
    """Asks our public address as the console would, with a signature of our own. Raises Unavailable: why it is refused.

    Not for channels in the mode plaintext: who reads this request in some log could post with its signature.
    """
    _demand_port(address)
    echostr = secrets.token_hex(8)
    answer = await _asked(http, address, token, str(int(now().timestamp())), echostr)
    if answer.status != 200:
        raise _refusal(f"{address} answers {answer.status}: {_CAUSES.get(answer.status, _CAUSE)}")
    if answer.content != echostr.encode():
        raise _refusal(f"{address} does not answer with the echostr: {_CAUSE}")


async def _asked(http: Http, address: str, token: str, timestamp: str, echostr: str) -> HttpResponse:
    nonce = secrets.token_hex(8)
    query = {"signature": signature(token, timestamp, nonce), "timestamp": timestamp, "nonce": nonce}
    try:
        url = f"{address}?{urlencode(query | {'echostr': echostr})}"
        return await http(url, trusted=True, timeout_secs=TIMEOUT_SECS)
    except HuiruError as error:
        said = error.reason
    raise _refusal(f"{address} cannot be reached from here ({said}); huiru has to run, and a proxy to lead to it")


def _demand_port(address: str) -> None:
    """On loopback somebody tries things out."""
    parts = urlsplit(address)
    port = parts.port or _PORTS.get(parts.scheme)
    if port not in _PORTS.values() and not _is_loopback(parts.hostname or ""):
        raise _refusal(f"WeChat calls the ports 80 and 443 alone, and http.public_url has {port}")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _refusal(reason: str) -> Unavailable:
    return Unavailable(reason=f"{reason}. WeChat's console would say: Token 校验失败")
