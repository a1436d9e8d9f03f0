"""Which signed requests have come before: under one timestamp and nonce there is only one body.

The same body again is the retry of a sender that got no answer, and goes through: the spool knows its message.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime

from gateway.contract import Shared
from gateway.errors import Rejected, Unavailable

MAX_KEPT = 50_000
_WAIT_SECS = 0.5  # the sender may give up after some seconds


class Nonces:
    """Of one sender, whose keys in `shared` begin with `prefix`.

    This process remembers the last MAX_KEPT of them, `shared` those of all gateways.
    """

    def __init__(self, prefix: str, shared: Shared, now: Callable[[], datetime]) -> None:
        self._prefix = prefix
        self._shared = shared
        self._now = now
        self._held: OrderedDict[str, tuple[str, float]] = OrderedDict()  # digest and end, in the order they came

    async def claim(self, nonce: str, digest: str, ttl_secs: float, *, everywhere: bool) -> None:
        """Raises Rejected("forbidden") when it came with another body.

        `everywhere` asks the other gateways too, where the signature does not cover the body. While Redis is away or
        slow, what this process has seen has to do.
        """
        is_new, held = self._claim_here(nonce, digest, ttl_secs)
        if is_new and everywhere:
            held = await self._claim_everywhere(nonce, digest, ttl_secs)
        if held != digest:
            raise Rejected("forbidden", "this signature was used before", reason="another body came under its nonce")

    def _claim_here(self, nonce: str, digest: str, ttl_secs: float) -> tuple[bool, str]:
        now = self._now().timestamp()
        while self._held and (len(self._held) >= MAX_KEPT or next(iter(self._held.values()))[1] < now):
            self._held.popitem(last=False)
        held, _ = self._held.get(nonce, ("", 0))
        if not held:
            self._held[nonce] = (digest, now + ttl_secs)
        return not held, held or digest

    async def _claim_everywhere(self, nonce: str, digest: str, ttl_secs: float) -> str:
        try:
            async with asyncio.timeout(_WAIT_SECS):
                held = await self._shared.claim(f"{self._prefix}{nonce}", digest, ttl_secs=ttl_secs)
        except (Unavailable, TimeoutError):
            return digest
        if held != digest:
            self._held[nonce] = (held, self._now().timestamp() + ttl_secs)  # whose retry may come here
        return held
