"""The one writer of the stream (R2, R4): a batch is one atomic step of publish.lua, sent until Redis has answered it.

The step is idempotent, so sending it again after a lost reply is harmless; redis-py's own retries are off, for they
would re-send without our knowing. One task owns the connection; it is never cancelled between a command and its reply
except at the very end, when the connection is thrown away with it.

Redis may forget what it acknowledged: a power loss, a failover, a wiped server (R14). A log loses its end, or all of
it, but never its middle. So the newest entry we were told of proves what came before it, and the origin, a random text
that publish.lua leaves beside the stream, that Redis was not emptied. When either is gone, `lost_data` asks for the
grace window to be published again.
"""

import asyncio
import contextlib
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, cast

import structlog
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from gateway.redis_server import redis_socket
from gateway.settings import RedisSettings, StreamSettings

T = TypeVar("T")
log = structlog.get_logger()

_FIRST_WAIT, _LONGEST_WAIT = 0.05, 2.0
_LENGTH_SECS = 2.0


class Result(IntEnum):
    """What publish.lua answers for a message."""

    DUPLICATE = 0
    ADDED = 1
    CONFLICT = 2
    ADDED_BEFORE = 3


@dataclass(frozen=True, slots=True)
class Item:
    """A message as it goes into the stream. `mark` tells apart contents and spool rows: see `mark_of`."""

    id: str
    mark: bytes
    type: str
    channel: str
    conversation: str
    event: bytes

    def arguments(self) -> tuple[bytes | str, ...]:
        digest = sha256(self.id.encode()).digest()[:16]
        return (digest, self.mark, self.id, self.type, self.channel, self.conversation, self.event)


def mark_of(fingerprint: bytes, spool: str, seq: int) -> bytes:
    """Six bytes for the content, four for the row of the spool."""
    return sha256(fingerprint).digest()[:6] + sha256(f"{spool}:{seq}".encode()).digest()[:4]


def connect(settings: RedisSettings, state_dir: Path, **options: Any) -> Redis:
    """A client that sends every command once. Connects when it is first used."""
    options = {
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": settings.timeout_secs,
        "socket_connect_timeout": settings.connect_timeout_secs,
        "protocol": 2,
        "client_name": "huiru",
        **options,
    }
    if settings.is_embedded:  # it has no password
        return Redis.from_url(f"unix://{redis_socket(state_dir)}", **options)
    if settings.username:
        options["username"] = settings.username
    if settings.password:
        options["password"] = settings.password.get_secret_value()
    if settings.url.startswith("rediss://"):
        files_ = {
            "ssl_ca_certs": settings.ca_file,
            "ssl_certfile": settings.cert_file,
            "ssl_keyfile": settings.key_file,
        }
        options |= {name: str(path) for name, path in files_.items() if path}
    return Redis.from_url(settings.url, **options)


class Publisher:
    """`bookmark` is what an earlier publisher's `bookmark` was; `changed(up)` is called when Redis becomes reachable or
    unreachable."""

    def __init__(
        self,
        redis: RedisSettings,
        stream: StreamSettings,
        state_dir: Path,
        *,
        bookmark: str = "",
        changed: Callable[[bool], None] = lambda up: None,
    ) -> None:
        # The newest entry that Redis acknowledged to us, and the origin it has.
        self._newest, _, self._origin = bookmark.partition(" ")
        self.up = False
        self.trouble = "not connected yet"
        self.lost_data = False
        self._changed = changed
        self._stream = stream.name
        self._origin_key = f"{{{stream.name}}}:origin"
        # Two generations make the window: see publish.lua.
        self._header = (max(1, int(stream.dedup_window_hours * 1800)), stream.max_len or "")
        self._script = files("gateway").joinpath("publish.lua").read_text()
        self._sha = ""
        self._fresh = True
        self._identity: tuple[str, str] | None = None
        self._client = connect(redis, state_dir, redis_connect_func=self._on_connect, max_connections=1)
        self._in_use = asyncio.Lock()  # the one connection is

    @property
    def bookmark(self) -> str:
        """What proves, later on, that Redis still has all that was published up to now."""
        return f"{self._newest} {self._origin}" if self._origin else ""

    async def publish(self, items: Sequence[Item]) -> list[Result]:
        """What became of each item. Returns only when Redis has answered; raises nothing but CancelledError."""
        *results, newest, origin = await self._until_answered(lambda: self._evaluate(items))
        if self._origin not in ("", origin.decode()):
            self._note_loss()
        self._newest, self._origin = newest.decode() or self._newest, origin.decode()
        return [Result(result) for result in results]

    async def look(self) -> None:
        """Asks Redis how it is; sets `up`, `trouble` and `lost_data`. Raises nothing but CancelledError."""
        async with self._in_use:
            try:
                await self._recognise()
            except (RedisError, OSError) as error:
                await self._note_failure(error)

    async def length(self) -> int | None:
        """Entries in the stream, or None when Redis does not say."""
        with contextlib.suppress(RedisError, OSError):
            async with asyncio.timeout(_LENGTH_SECS), self._in_use:
                return await self._client.xlen(self._stream)
        return None

    async def close(self) -> None:
        await self._client.aclose()

    async def _until_answered(self, ask: Callable[[], Awaitable[T]]) -> T:
        wait = _FIRST_WAIT
        while True:
            async with self._in_use:
                try:
                    return await self._answer(ask)
                except (RedisError, OSError) as error:
                    await self._note_failure(error)
            await asyncio.sleep(wait * random.uniform(0.5, 1))  # noqa: S311 - jitter
            wait = min(2 * wait, _LONGEST_WAIT)

    async def _answer(self, ask: Callable[[], Awaitable[T]]) -> T:
        if self._fresh:
            await self._recognise()
        answer = await ask()
        if self._fresh:  # it was another connection, perhaps to another server, that answered
            await self._recognise()
        self._note_success()
        return answer

    async def _evaluate(self, items: Sequence[Item]) -> list[Any]:
        keys = (self._stream, f"{{{self._stream}}}:seen:", self._origin_key)
        arguments: list[Any] = [*self._header, secrets.token_hex(8)]
        for item in items:
            arguments += item.arguments()
        if not self._sha:
            self._sha = await self._client.script_load(self._script)
        try:
            return cast(list[Any], await self._client.evalsha(self._sha, len(keys), *keys, *arguments))
        except NoScriptError:  # a restarted server has forgotten it
            self._sha = ""
            raise

    # Whom we are talking to

    async def _on_connect(self, connection: AbstractConnection) -> None:
        self._fresh = True
        await connection.on_connect()

    async def _recognise(self) -> None:
        info = await self._client.info()
        self._fresh = False
        identity = (info["run_id"], info["master_replid"])
        lost = await self._has_lost(changed=identity != self._identity)
        if identity != self._identity:
            _warn_about(info)
        self._identity = identity
        if lost:
            self._note_loss()
        self._note_success()

    async def _has_lost(self, *, changed: bool) -> bool:
        if self._origin and await self._client.get(self._origin_key) != self._origin.encode():
            return True
        if not self._newest:
            return False
        try:
            stream = await self._client.xinfo_stream(self._stream)
        except ResponseError as error:
            if "no such key" in str(error).lower():
                return True
            raise
        if _order(stream["last-generated-id"]) < _order(self._newest):
            return True
        return changed and not await self._client.xrange(self._stream, self._newest, self._newest)

    def _note_loss(self) -> None:
        log.warning("redis.lost_data", newest=self._newest)
        self.lost_data = True
        self._newest = self._origin = ""

    def _note_success(self) -> None:
        if not self.up:
            log.info("redis.up")
            self._changed(True)
        self.up, self.trouble = True, ""

    async def _note_failure(self, error: Exception) -> None:
        trouble = f"{type(error).__name__}: {error}"
        if self.up or trouble != self.trouble:
            log.warning("redis.down", error=trouble)
            self._changed(False)
        self.up, self.trouble = False, trouble
        # A server that turned read-only or answers nonsense may not be the one to go on with.
        with contextlib.suppress(RedisError, OSError):
            await self._client.connection_pool.disconnect()


def _order(entry_id: str | bytes) -> tuple[int, int]:
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    milliseconds, _, number = text.partition("-")
    return int(milliseconds), int(number or 0)


def _warn_about(info: dict[str, Any]) -> None:
    version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    log.info("redis.connected", version=info["redis_version"], run_id=info["run_id"])
    if version < (6, 2):
        log.error("redis.too_old", version=info["redis_version"], needed="6.2")
    if info.get("maxmemory") and info.get("maxmemory_policy") != "noeviction":
        log.warning("redis.may_evict", maxmemory_policy=info.get("maxmemory_policy"), remedy="set noeviction")
    if not info.get("aof_enabled"):
        log.warning("redis.no_aof", remedy="set appendonly yes: a restart would lose what consumers have not read")
    if info.get("aof_last_write_status", "ok") != "ok":
        log.error("redis.aof_write_failed")
