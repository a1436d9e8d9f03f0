"""`host:port` as settings write it, where a server listens; and networks, whose clients it knows."""

import re
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

_FORM = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})", re.ASCII)
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - they are compared with, not listened on


@dataclass(frozen=True, slots=True)
class Address:
    """A host (a name, or an IP address without brackets) and a TCP port; port 0 means any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_wildcard(self) -> bool:
        """Whether it means every address of the machine."""
        return self.host in _WILDCARDS

    def clashes(self, other: "Address") -> bool:
        """Whether two servers cannot have both."""
        same_host = self.host == other.host or self.is_wildcard or other.is_wildcard
        return self.port == other.port != 0 and same_host


def parse(text: Any) -> Address:
    """Raises ValueError, whose text says what is expected."""
    if isinstance(text, Address):
        return text
    match = _FORM.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError('expected HOST:PORT, for example "127.0.0.1:8080" or "[::1]:8080"')
    port = int(match["port"])
    if port > 65535:
        raise ValueError("the port is larger than 65535")
    return Address(_host(match), port)


def _host(match: re.Match[str]) -> str:
    literal, numeric = match["v6"], re.fullmatch(r"[0-9.]+", match["name"] or "")
    if not literal and not numeric:
        return match["name"].lower()
    try:
        address = ip_address(literal or match["name"])
    except ValueError as error:
        raise ValueError("the host is not a valid IP address") from error
    if isinstance(address, IPv6Address if numeric else IPv4Address):
        raise ValueError("brackets are for IPv6 addresses, and only for them")
    return address.compressed


Listen = Annotated[
    Address,
    PlainValidator(parse),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "pattern": r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$"}),
]


def network(value: Any) -> IPv4Network | IPv6Network:
    """Raises ValueError, whose text says what is expected."""
    if isinstance(value, str | IPv4Network | IPv6Network):
        with suppress(ValueError):
            return ip_network(value)
    raise ValueError("expected a network such as 10.0.0.0/8 (with no bits behind its prefix) or an address")


Network = Annotated[
    IPv4Network | IPv6Network, PlainValidator(network), PlainSerializer(str), WithJsonSchema({"type": "string"})
]
