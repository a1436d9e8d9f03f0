"""Would WeChat's console accept our address? Asked of it as the console asks, with a signature as WeChat makes it."""

import ipaddress
import secrets
from collections.abc import Mapping
from urllib.parse import urlencode, urlsplit

from gateway.contract import Context, HttpResponse
from gateway.errors import HuiruError, Unavailable
from gateway.wechat.crypto import signature

PROBE_SECS = 5.0
_PORTS = {"http": 80, "https": 443}  # the only ones that WeChat calls
_CONSOLE = "In WeChat's console this is the error Token 校验失败."
_BLAMES: Mapping[int, str] = {
    403: "whoever answers there has another token, or a clock that is minutes off",
    404: "the channel is not in the configuration that runs there, or a proxy does not hand on its path",
    502: "the proxy there does not reach huiru",
    503: "huiru there takes nothing at the moment, or the proxy does not reach it",
}
_BLAME = (
    "something before huiru answers in its place; it must hand the request on as it is, without a redirect or a login"
)


async def demand_echo(context: Context, channel: str, token: str) -> None:
    """Raises Unavailable, whose reason says what the console would not like.

    Not for the mode plaintext: who saw that address could post with it.
    """
    address = f"{context.public_url}/c/{channel}"
    _demand_callable(address)
    echostr = secrets.token_hex(8)
    response = await _called(context, address, token, echostr)
    if response.status == 200 and response.content == echostr.encode():
        return
    said = f"{address} answers {response.status}" + ("" if response.status != 200 else ", but not the echostr")
    raise Unavailable(reason=f"{said}: {_BLAMES.get(response.status, _BLAME)}. {_CONSOLE}")


async def _called(context: Context, address: str, token: str, echostr: str) -> HttpResponse:
    timestamp, nonce = str(int(context.now().timestamp())), secrets.token_hex(8)
    signed = signature(token, timestamp, nonce)
    query = {"signature": signed, "timestamp": timestamp, "nonce": nonce, "echostr": echostr}
    try:
        return await context.http(f"{address}?{urlencode(query)}", trusted=True, timeout_secs=PROBE_SECS)
    except HuiruError as error:
        text = f"{address} cannot be reached from here ({error.reason}): is huiru running, and the proxy before it?"
        raise Unavailable(reason=f"{text} {_CONSOLE}") from error


def _demand_callable(address: str) -> None:
    """WeChat calls two ports of public addresses; on loopback somebody tries things out."""
    parts = urlsplit(address)
    port = parts.port or _PORTS.get(parts.scheme)
    if port not in _PORTS.values() and not _is_loopback(parts.hostname or ""):
        raise Unavailable(reason=f"WeChat calls the ports 80 and 443 alone; http.public_url has {port}. {_CONSOLE}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
