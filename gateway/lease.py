"""Leases in Redis: of all gateways at one stream, one does a channel's work at a time.

A lease lives for a while and is renewed long before its end. Whoever cannot renew it gives its work up before it ends
there, by its own clock; so two never work at a time, unless one of them stood still and does not know it. That one is
held off by the fencing in lease.lua, from what the owners share, and by `check`, from all else.
"""

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import structlog
from redis.exceptions import RedisError

from gateway.contract import Hold, Lease
from gateway.errors import Unavailable
from gateway.publisher import connect
from gateway.settings import RedisSettings

log = structlog.get_logger()

LIFE_SECS = 30.0
_SHARE = 0.9  # of a lease's life that its owner believes in: clocks do not run alike
_GIVE_SECS = 2.0


class Leases:
    """`spool` is the id of our spool, which no other process has open."""

    def __init__(
        self, redis: RedisSettings, stream: str, state_dir: Path, *, spool: str, life_secs: float = LIFE_SECS
    ) -> None:
        self.life_secs = life_secs
        self.spool = spool
        self._stream = stream
        self._client = connect(redis, state_dir)
        self._script = files("gateway").joinpath("lease.lua").read_text()

    def of(self, channel: str) -> Lease:
        return _ChannelLease(self, channel)

    async def close(self) -> None:
        await self._client.aclose()

    async def step(self, channel: str, action: str, owner: str, *rest: str | int) -> int:
        """One step of lease.lua. Raises Unavailable when Redis does not answer in a third of a lease's life."""
        names = [f"{{{self._stream}}}:{part}:{channel}" for part in ("lease", "lease-number", "position")]
        return int(await self._ask(self._client.eval(self._script, len(names), *names, action, owner, *rest)))

    async def shared(self, channel: str) -> dict[str, str]:
        """What the owners of a channel's lease share. Raises Unavailable."""
        found = await self._ask(self._client.hgetall(f"{{{self._stream}}}:position:{channel}"))
        return {name.decode(): value.decode("utf-8", "replace") for name, value in found.items()}

    async def _ask(self, command: Any) -> Any:
        try:
            async with asyncio.timeout(self.life_secs / 3):
                return await command
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            raise Unavailable(reason=f"Redis: {type(error).__name__}: {error}") from error


class _Held(Hold):
    """`until` is by the event loop's clock."""

    def __init__(self, leases: Leases, channel: str, owner: str, number: int, until: float) -> None:
        self.number = number
        self.until = until
        self.owner = owner
        self._leases = leases
        self._channel = channel

    def check(self) -> None:
        # Also when the timeout that ends the work was not noticed yet: the process may have stood still.
        if asyncio.get_running_loop().time() >= self.until:
            raise _lost()

    async def recall(self) -> Mapping[str, str]:
        return await self._leases.shared(self._channel)

    async def memorise(self, values: Mapping[str, str], /) -> None:
        flat = [text for pair in values.items() for text in pair]
        if not await self._leases.step(self._channel, "write", self.owner, self.number, *flat):
            self.until = 0
            raise _lost()


class _ChannelLease(Lease):
    def __init__(self, leases: Leases, channel: str) -> None:
        self._leases = leases
        self._channel = channel

    @contextlib.asynccontextmanager
    async def hold(self, waiting: Callable[[str], None]) -> AsyncIterator[Hold]:
        held = await self._take(waiting)
        log.info("lease.taken", channel=self._channel, number=held.number)
        try:
            async with asyncio.timeout_at(held.until) as limit:
                async with self._renewing(held, limit):
                    yield held
        except TimeoutError:
            if not limit.expired():
                raise
            log.warning("lease.lost", channel=self._channel, number=held.number)
            raise _lost() from None

    async def _take(self, waiting: Callable[[str], None]) -> _Held:
        loop, life = asyncio.get_running_loop(), self._leases.life_secs
        owner = f"{self._leases.spool}:{secrets.token_hex(8)}"
        while True:
            asked = loop.time()
            try:
                if number := await self._step("take", owner):
                    return _Held(self._leases, self._channel, owner, number, asked + _SHARE * life)
                waiting("another gateway reads it")
            except Unavailable as error:
                waiting(f"waits for Redis, without which it is not known whether another gateway reads: {error.reason}")
            await asyncio.sleep(life / 10 * random.uniform(0.5, 1))  # noqa: S311 - jitter

    @contextlib.asynccontextmanager
    async def _renewing(self, held: _Held, limit: asyncio.Timeout) -> AsyncIterator[None]:
        renewal = asyncio.create_task(self._renew(held, limit), name=f"lease of {self._channel}")
        try:
            yield
        finally:
            renewal.cancel()
            with contextlib.suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(_GIVE_SECS):
                    await self._step("give", held.owner, 0)

    async def _renew(self, held: _Held, limit: asyncio.Timeout) -> None:
        loop, life = asyncio.get_running_loop(), self._leases.life_secs
        wait = life / 3
        while True:
            await asyncio.sleep(wait)
            asked = loop.time()
            try:
                kept = await self._step("keep", held.owner)
            except Unavailable as error:
                log.warning("lease.not_renewed", channel=self._channel, error=error.reason)
                wait = life / 10
                continue
            held.until = asked + _SHARE * life if kept else 0
            limit.reschedule(held.until)
            if not kept:
                return
            wait = life / 3

    async def _step(self, action: str, owner: str, *rest: int) -> int:
        life = int(self._leases.life_secs * 1000)
        return await self._leases.step(self._channel, action, owner, *(rest or (life,)))


def _lost() -> Unavailable:
    return Unavailable(reason="the lease is lost: another gateway may read now, or Redis cannot be reached")
