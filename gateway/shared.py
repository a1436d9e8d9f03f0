"""What all gateways at one stream share, in Redis, for a time: tokens, the state of calls, who claims what.

A customer may be waiting behind every question, so none takes long: Redis that did not answer is not asked again for a
moment. What many ask at a time is asked together: a question costs us far more than one more key in it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

from redis.exceptions import RedisError

from gateway.contract import Shared
from gateway.errors import Unavailable
from gateway.publisher import connect
from gateway.settings import RedisSettings

_Q = TypeVar("_Q")
_A = TypeVar("_A")
_MOST = 200  # questions in one
_PATIENCE_SECS = 0.5
_PAUSE_SECS = 1.0  # after a failure


class SharedState(Shared):
    """See contract.Shared."""

    def __init__(self, redis: RedisSettings, stream: str, state_dir: Path) -> None:
        self._prefix = f"{{{stream}}}:shared:"
        self._client = connect(redis, state_dir)
        self._script = files("gateway").joinpath("shared.lua").read_text()
        self._resting_until = 0.0  # by the event loop's clock
        self._gets = _Together(self._get_all)
        self._claims = _Together(self._claim_all)

    async def get(self, key: str, /) -> str | None:
        return await self._gets.ask(key)

    async def _get_all(self, keys: list[str]) -> list[str | None]:
        found = await self._ask(self._client.mget([self._key(key) for key in keys]))
        return [None if value is None else _text(value) for value in found]

    async def put(self, key: str, value: str, /, *, ttl_secs: float) -> None:
        await self._ask(self._client.set(self._key(key), _bytes(value), px=_milliseconds(ttl_secs)))

    async def claim(self, key: str, value: str, /, *, ttl_secs: float) -> str:
        return await self._claims.ask((key, value, ttl_secs))

    async def _claim_all(self, claims: list[tuple[str, str, float]]) -> list[str]:
        keys = [self._key(key) for key, _, _ in claims]
        values: list[int | bytes] = []
        for _, value, ttl_secs in claims:
            values += (_milliseconds(ttl_secs), _bytes(value))
        held = await self._ask(self._client.eval(self._script, len(keys), *keys, "claim", *values))
        return [_text(value) for value in held]

    async def merge(self, key: str, values: Mapping[str, str], /, *, ttl_secs: float) -> dict[str, str]:
        new = map(_bytes, chain.from_iterable(values.items()))
        arguments: tuple[bytes | str | int, ...] = ("merge", _milliseconds(ttl_secs), *new)
        flat = await self._ask(self._client.eval(self._script, 1, self._key(key), *arguments))
        return dict(zip(map(_text, flat[::2]), map(_text, flat[1::2]), strict=True))

    async def delete(self, key: str, /) -> None:
        await self._ask(self._client.delete(self._key(key)))

    async def close(self) -> None:
        await self._client.aclose()

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


class _Together(Generic[_Q, _A]):
    """Questions that share an asking: whatever is asked while one is under way is asked in the next."""

    def __init__(self, ask_all: Callable[[list[_Q]], Awaitable[list[_A]]]) -> None:
        self._ask_all = ask_all
        self._waiting: list[tuple[_Q, asyncio.Future[_A]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def ask(self, question: _Q) -> _A:
        """Raises what the asking raised."""
        answer: asyncio.Future[_A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        return await answer

    async def _ask(self) -> None:
        try:
            while self._waiting:
                asked, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                try:
                    answers = await self._ask_all([question for question, _ in asked])
                except Unavailable as error:
                    for _, answer in asked:
                        _settle(answer, error)
                else:
                    for (_, answer), its in zip(asked, answers, strict=True):
                        _settle(answer, its)
        finally:
            self._asking = None


def _settle(future: asyncio.Future[Any], outcome: object) -> None:
    if future.done():  # whoever asked went away
        return
    if isinstance(outcome, Unavailable):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # JSON can hold half a character


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogatepass")
