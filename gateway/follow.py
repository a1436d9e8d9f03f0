"""Follows the stream as a reader of its own: entries as they come, over restarts of Redis."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError, RedisError, ResponseError

START = "0-0"
_BLOCK_MS = 1000
_LONGEST_WAIT_SECS = 2.0

Entry = tuple[str, dict[bytes, bytes]]


def is_entry_id(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,19}(-[0-9]{1,19})?", text) is not None


async def entries(
    redis: Redis, stream: str, after: str | None, troubled: Callable[[str], None] = lambda trouble: None
) -> AsyncGenerator[Entry, None]:
    """Entries after an id, for ever; None: those that come from now on.

    While Redis is away it is asked again and again; `troubled` is told once why, and "" when it is back. Raises
    RedisError where waiting does not help: credentials, or a key that is no stream.
    """
    wait = 0.0
    while True:
        try:
            after = await _newest(redis, stream) if after is None else after
            found = await redis.xread({stream: after}, count=100, block=_BLOCK_MS)
            _heed_cancellation()
        except (RedisError, OSError) as error:
            if lasting := refusal(error):
                raise lasting from error
            if not wait:
                troubled(str(error) or type(error).__name__)
            wait = min(_LONGEST_WAIT_SECS, wait * 2 or 0.1)
            await asyncio.sleep(wait)
            continue
        if wait:
            troubled("")
            wait = 0.0
        for entry_id, fields in _of(found):
            after = entry_id
            yield entry_id, fields


def refusal(error: Exception) -> RedisError | None:
    """What Redis itself said and will say again, such as a wrong password; None when waiting may help."""
    said = error.__cause__ or error  # an error while connecting comes wrapped
    if isinstance(said, BusyLoadingError) or str(said).startswith("MASTERDOWN"):
        return None
    return said if isinstance(said, AuthenticationError | AuthorizationError | ResponseError) else None


def _heed_cancellation() -> None:
    """redis-py sends by asyncio.wait_for, which in Python 3.11 can swallow a cancellation (cpython issue 86296)."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _newest(redis: Redis, stream: str) -> str:
    newest: Any = await redis.xrevrange(stream, count=1)
    return newest[0][0].decode() if newest else START


def _of(answer: Any) -> list[Entry]:
    return [(entry_id.decode(), fields or {}) for _, found in answer or () for entry_id, fields in found]
