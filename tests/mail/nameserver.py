"""A name server of the test's own, on loopback."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

Zone = dict[tuple[str, str], list[str]]


class NameServer(asyncio.DatagramProtocol):
    """Answers from `zone`: `{("example.com", "TXT"): ['"v=spf1 -all"']}`.

    `["SERVFAIL"]` fails, `["SILENCE"]` never answers.
    """

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.asked: list[tuple[str, str]] = []
        self.transport: Any

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = question.name.to_text(True).lower(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        records = self.zone.get((name, kind), [])
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if records == ["SILENCE"]:
            return
        if records == ["SERVFAIL"]:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif records:
            answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", kind, *records))
        elif not any(known == name for known, _ in self.zone):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self.transport.sendto(answer.to_wire(max_size=65535), addr)


@contextmanager
def resolver_of(server: NameServer) -> Iterator[dns.asyncresolver.Resolver]:
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = server.transport.get_extra_info("sockname")[1]
    resolver.timeout = 0.3
    yield resolver
    server.transport.close()
