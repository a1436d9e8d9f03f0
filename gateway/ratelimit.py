"""A token bucket per client address, in bounded memory."""

import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Network, ip_address

from gateway.contract import Rate


class TokenBuckets:
    """The bucket that was used longest ago is forgotten when there are more than `max_clients`."""

    def __init__(self, rate: Rate, *, max_clients: int = 65_536, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = rate.per_minute / 60
        self._burst = float(rate.burst)
        self._max_clients = max_clients
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> tokens, when

    def take(self, address: str) -> float:
        """0 when the client may go on, else the seconds until it may."""
        now, client = self._clock(), _client(address)
        tokens, since = self._buckets.pop(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._per_second)
        allowed = tokens >= 1
        self._buckets[client] = (tokens - allowed, now)
        if len(self._buckets) > self._max_clients:
            self._buckets.popitem(last=False)
        return 0 if allowed else (1 - tokens) / self._per_second


def _client(address: str) -> str:
    """An IPv6 customer has a /64 to choose from, and is one client all the same."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return str(IPv6Network((parsed, 64), strict=False))
    return address
