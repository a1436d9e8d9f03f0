"""Both ends of our questions to WeChat's server, as the tests need them."""

from collections.abc import Mapping
from datetime import UTC, datetime

from gateway.contract import Shared
from gateway.errors import Unavailable

MAX_BYTES = 1 << 20
OPENID, UNIONID = "oUser01-_abcdefghijklmnopqr", "oUnion_0123456789"


class Clock:
    """Both sides' own time."""

    def __init__(self) -> None:
        self.seconds = 1_760_000_000.0

    def __call__(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)


class Away(Shared):
    """Redis that does not answer."""

    async def get(self, key: str, /) -> str | None:
        raise Unavailable(reason="Redis is away")

    async def put(self, key: str, value: str, /, *, ttl_secs: float) -> None:
        raise Unavailable(reason="Redis is away")

    async def claim(self, key: str, value: str, /, *, ttl_secs: float) -> str:
        raise Unavailable(reason="Redis is away")

    async def merge(self, key: str, values: Mapping[str, str], /, *, ttl_secs: float) -> dict[str, str]:
        raise Unavailable(reason="Redis is away")

    async def delete(self, key: str, /) -> None:
        raise Unavailable(reason="Redis is away")
