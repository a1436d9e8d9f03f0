"""What operators and their tools see: health, readiness and metrics over TCP, everything else over a unix socket.

The JSON API shows customers' messages and changes their fate, so it is not on the network: whoever may open
`state_dir/admin.sock` (mode 0600) may use it.
"""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from gateway import __version__
from gateway.contract import Receipt, Reply, json_reply, problem_reply
from gateway.envelope import rfc3339
from gateway.errors import ConfigError, HuiruError, Rejected
from gateway.identity import reference
from gateway.outbox import Outbox
from gateway.pipeline import Pipeline
from gateway.publisher import Publisher
from gateway.spool import QUARANTINED, Row, Spool
from gateway.telemetry import Metrics

_PAGE = 100
_LARGEST_PAGE = 10_000


class Daemon(Protocol):
    """What the admin listener asks of the composition."""

    name: str
    redis_url: str
    stream_name: str
    started: float

    def troubles(self) -> list[str]:
        """Why no messages can be accepted; empty when they can."""

    def channels(self) -> dict[str, tuple[str, bool, str]]:
        """Channel name -> its type, whether it receives, and what is wrong with it."""

    def largest_mail(self, channel: str) -> int:
        """The largest mail that a channel takes. Raises Rejected."""

    async def take_mail(self, channel: str, content: bytes, received_at: datetime | None) -> Receipt:
        """Old mail, through its channel. Raises Rejected or Unavailable."""

    async def reload(self) -> list[str]:
        """Takes the configuration file again and returns the keys that wait for a restart. Raises ConfigError."""


def health_application(daemon: Daemon, metrics: Metrics) -> web.Application:
    """`/healthz`, `/readyz` and `/metrics`."""

    async def alive(_: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def ready(_: web.Request) -> web.Response:
        troubles = daemon.troubles()
        return web.json_response({"ready": not troubles, "reasons": troubles}, status=503 if troubles else 200)

    async def exposition(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(metrics.registry), headers={"Content-Type": content_type})

    app = web.Application()
    app.router.add_get("/healthz", alive)
    app.router.add_get("/readyz", ready)
    app.router.add_get("/metrics", exposition)
    return app


class AdminApi:
    """The JSON API the command line talks to."""

    def __init__(self, daemon: Daemon, spool: Spool, publisher: Publisher, pipeline: Pipeline, outbox: Outbox) -> None:
        self._daemon = daemon
        self._spool = spool
        self._publisher = publisher
        self._pipeline = pipeline
        self._outbox = outbox

    def application(self) -> web.Application:
        app = web.Application()
        for method, path, handler in (
            ("GET", "/api/status", self._status),
            ("GET", "/api/quarantine", self._list),
            ("POST", "/api/quarantine/retry", self._retry_all),
            ("GET", "/api/quarantine/{id}", self._show),
            ("GET", "/api/quarantine/{id}/raw", self._raw),
            ("POST", "/api/quarantine/{id}/retry", self._retry),
            ("POST", "/api/quarantine/{id}/discard", self._discard),
            ("GET", "/api/import/{channel}", self._may_import),
            ("POST", "/api/import/{channel}", self._import),
            ("POST", "/api/replay", self._replay),
            ("POST", "/api/reload", self._reload),
        ):
            app.router.add_route(method, path, _answering(handler))
        return app

    async def _status(self, _: web.Request) -> Reply:
        daemon, troubles = self._daemon, self._daemon.troubles()
        return json_reply(
            {
                "gateway": daemon.name,
                "version": __version__,
                "uptime_seconds": round(time.time() - daemon.started, 3),
                "ready": not troubles,
                "reasons": troubles,
                "redis": {"up": self._publisher.up, "url": daemon.redis_url, "trouble": self._publisher.trouble},
                "stream": {
                    "name": daemon.stream_name,
                    "length": await self._publisher.length(),
                    "replaying": self._pipeline.replaying,
                },
                "spool": {"bytes": self._spool.bytes, "damaged": self._spool.damaged is not None},
                "outbox": {"waiting": self._spool.letters.waiting, "trouble": self._outbox.trouble},
                "channels": [self._channel(*item) for item in sorted(daemon.channels().items())],
            }
        )

    def _channel(self, name: str, state: tuple[str, bool, str]) -> dict[str, Any]:
        type_, up, trouble = state
        ledger, newest = self._spool.ledger, self._spool.last_message.get(name)
        counts = {
            entry: ledger[name, entry] for entry in ("accepted", "published", "duplicate", "quarantined", "discarded")
        }
        last = rfc3339(datetime.fromtimestamp(newest, UTC)) if newest else None
        waiting = self._spool.waiting(name)
        mood = {"up": up, "trouble": trouble}
        return {"name": name, "type": type_, **mood, **counts, "waiting": waiting, "last_message_at": last}

    async def _list(self, request: web.Request) -> Reply:
        limit = min(_number(request, "limit", _PAGE), _LARGEST_PAGE)
        channel = request.query.get("channel")
        rows = await self._spool.quarantined(channel, limit, _number(request, "offset", 0))
        ledger = dict(self._spool.ledger)  # a copy: a commit in its thread may add to it
        total = sum(n for (name, entry), n in ledger.items() if entry == "quarantined" and channel in (None, name))
        return json_reply({"total": total, "items": [_summary(row) for row in rows]})

    async def _show(self, request: web.Request) -> Reply:
        row = await self._find(request)
        message = row.message
        more = {"content_type": message.content_type, "facts": message.facts, "native_id": message.native_id}
        return json_reply(_summary(row) | more)

    async def _raw(self, request: web.Request) -> Reply:
        row = await self._find(request, with_body=True)
        if row.fault:
            raise Rejected("gone", f"the bytes cannot be read: {row.fault}")
        return Reply(body=row.message.body, content_type="application/octet-stream")

    async def _retry(self, request: web.Request) -> Reply:
        row = await self._find(request)
        return await self._retried(row.seq)

    async def _retry_all(self, _: web.Request) -> Reply:
        return await self._retried(None)

    async def _retried(self, seq: int | None) -> Reply:
        retried = await self._spool.retry(seq)
        self._pipeline.wake()
        return json_reply({"retried": retried})

    async def _discard(self, request: web.Request) -> Reply:
        row = await self._find(request)
        await self._spool.discard(row)
        return json_reply({"discarded": row.message.id})

    async def _replay(self, request: web.Request) -> Reply:
        try:
            seconds = float(orjson.loads(await request.read())["since_seconds"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise Rejected("malformed", 'send {"since_seconds": N}') from error
        since = time.time() - seconds
        self._pipeline.replay(since)
        return json_reply({"scheduled": await self._spool.count_published_since(since)})

    async def _may_import(self, request: web.Request) -> Reply:
        return json_reply({"max_message_bytes": self._daemon.largest_mail(request.match_info["channel"])})

    async def _import(self, request: web.Request) -> Reply:
        """One old mail, as it is. `?received_at=` says when it was delivered then."""
        channel, received_at = request.match_info["channel"], _moment(request, "received_at")
        content = await _content(request, self._daemon.largest_mail(channel))
        receipt = await self._daemon.take_mail(channel, content, received_at)
        return json_reply({"id": receipt.id, "reference": receipt.reference, "duplicate": receipt.duplicate})

    async def _reload(self, _: web.Request) -> Reply:
        return json_reply({"status": "reloaded", "needs_restart": await self._daemon.reload()})

    async def _find(self, request: web.Request, *, with_body: bool = False) -> Row:
        return await self._spool.find(request.match_info["id"], state=QUARANTINED, with_body=with_body)


def _summary(row: Row) -> dict[str, Any]:
    message = row.message
    return {
        "id": message.id,
        "reference": reference(message.id),
        "channel": message.channel,
        "kind": message.kind,
        "code": row.code,
        "reason": row.reason,
        "received_at": rfc3339(message.received_at),
        "tries": row.tries,
        "size": row.size,
    }


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise Rejected("malformed", f"{name} is not a number")
    return int(text)


def _moment(request: web.Request, name: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(request.query[name]) if name in request.query else None
    except ValueError as error:
        raise Rejected("malformed", f"{name} is not a time") from error
    if moment is not None and moment.tzinfo is None:
        raise Rejected("malformed", f"{name} needs its offset from UTC")
    return moment


async def _content(request: web.Request, largest: int) -> bytes:
    content = bytearray()
    async for chunk in request.content.iter_any():
        content += chunk
        if len(content) > largest:
            raise Rejected("too_large", f"the channel takes {largest:,} bytes")
    return bytes(content)


def _answering(
    handler: Callable[[web.Request], Awaitable[Reply]],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            reply = await handler(request)
        except ConfigError as error:
            reply = problem_reply(Rejected("invalid", error.public))
        except HuiruError as error:
            reply = problem_reply(error)
        return web.Response(status=reply.status, body=reply.body, headers={"Content-Type": reply.content_type})

    return answer
