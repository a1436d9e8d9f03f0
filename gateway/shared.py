"""What all gateways at one stream share, in Redis, for a time: tokens, the state of calls, who claims what.

A customer may be waiting behind every question, so none takes long: Redis that did not answer is not asked again for a
moment.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from gateway.contract import Shared
from gateway.errors import Unavailable
from gateway.publisher import connect
from gateway.settings import RedisSettings

_PATIENCE_SECS = 0.5
_PAUSE_SECS = 1.0  # after a failure


class SharedState(Shared):
    """See contract.Shared."""

    def __init__(self, redis: RedisSettings, stream: str, state_dir: Path) -> None:
        self._prefix = f"{{{stream}}}:shared:"
        self._client = connect(redis, state_dir)
        self._script = files("gateway").joinpath("shared.lua").read_text()
        self._resting_until = 0.0  # by the event loop's clock

    async def get(self, key: str, /) -> str | None:
        found = await self._ask(self._client.get(self._key(key)))
        return None if found is None else _text(found)

    async def put(self, key: str, value: str, /, *, ttl_secs: float) -> None:
        await self._ask(self._client.set(self._key(key), _bytes(value), px=_milliseconds(ttl_secs)))

    async def claim(self, key: str, value: str, /, *, ttl_secs: float) -> str:
        return _text(await self._step(key, "claim", ttl_secs, value))

    async def merge(self, key: str, values: Mapping[str, str], /, *, ttl_secs: float) -> dict[str, str]:
        flat = await self._step(key, "merge", ttl_secs, *chain.from_iterable(values.items()))
        return dict(zip(map(_text, flat[::2]), map(_text, flat[1::2]), strict=True))

    async def delete(self, key: str, /) -> None:
        await self._ask(self._client.delete(self._key(key)))

    async def close(self) -> None:
        await self._client.aclose()

    async def _step(self, key: str, action: str, ttl_secs: float, *rest: str) -> Any:
        arguments: tuple[bytes | str | int, ...] = (action, _milliseconds(ttl_secs), *map(_bytes, rest))
        return await self._ask(self._client.eval(self._script, 1, self._key(key), *arguments))

    def _key(self, key: str) -> bytes:
        return _bytes(self._prefix + key)

    async def _ask(self, command: Awaitable[Any]) -> Any:
        loop = asyncio.get_running_loop()
        if loop.time() < self._resting_until:
            getattr(command, "close", lambda: None)()  # it was not begun
            raise Unavailable(reason="Redis did not answer a moment ago")
        try:
            async with asyncio.timeout(_PATIENCE_SECS):
                return await command
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            self._resting_until = loop.time() + _PAUSE_SECS
            raise Unavailable(reason=f"Redis: {type(error).__name__}: {error}") from error


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # JSON can hold half a character


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogatepass")
