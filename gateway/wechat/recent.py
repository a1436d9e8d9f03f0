"""What Redis said a moment ago, so that it is not asked for every message of a lively conversation."""

from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Generic, TypeVar

T = TypeVar("T")

RECENT_SECS = 60.0
_MOST = 10_000


class Recent(Generic[T]):
    """Values by key, each for RECENT_SECS after it was put; the oldest give way to new ones."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._values: OrderedDict[str, tuple[float, T]] = OrderedDict()

    def get(self, key: str) -> T | None:
        found = self._values.get(key)
        return found[1] if found and self._now().timestamp() < found[0] else None

    def put(self, key: str, value: T) -> None:
        self._values.pop(key, None)
        self._values[key] = (self._now().timestamp() + RECENT_SECS, value)
        if len(self._values) > _MOST:
            self._values.popitem(last=False)
