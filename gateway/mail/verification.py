"""DKIM (RFC 6376, 8463), SPF (RFC 7208) and DMARC (RFC 7489) evaluated here, for channels that turn it on.

dkimpy and pyspf do the work. They are synchronous, so one thread runs them, and asks the event loop's resolver; what
they would do without a bound is bounded before they are called. pyspf looks names up by a function of its module; here
its one method that does is replaced instead.
"""

import asyncio
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import dkim  # type: ignore[import-untyped]
from dns.asyncresolver import Resolver
from dns.exception import DNSException, Timeout
from dns.resolver import NoNameservers

from gateway.mail.authentication import from_domain, is_aligned, organisational
from gateway.mail.message import header_block

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pyspf 2.0.14 has an escape in a docstring that newer compilers complain of
    import spf  # type: ignore[import-untyped]

_MAX_LOOKUPS = 60  # SPF may take 10 terms of 10 names each; a mail that needs that many is not worth it
_MAX_SIGNATURES = 5
_MAX_HEADER_BYTES = 256 << 10
_MAX_HEADERS = 1000
_MAX_SIGNATURE_BYTES = 8 << 10
_MAX_KEY_BYTES = 2 << 10  # an RSA key of 8192 bits is 1.4 kB
_MAX_POLICY_BYTES = 4 << 10
_MAX_BLANKS = 200_000_000  # squares of the lengths of runs: what dkimpy's relaxed form takes steps for
_BLANKS = re.compile(rb"[\t ]{16,}+")
_TAG = re.compile(r"\s*([A-Za-z]+)\s*=\s*([^;]*?)\s*(?:;|$)")


class _Trouble(Exception):
    """The answer of the DNS is not known now: a temporary error."""


@dataclass(slots=True)
class _Names:
    """Look-ups from the thread, in the loop; counted, and none after the deadline."""

    resolver: Resolver
    loop: asyncio.AbstractEventLoop
    deadline: float
    count: int = 0

    def ask(self, name: str, kind: str) -> list[Any]:
        """The records, [] when there are none; raises _Trouble."""
        self.count += 1
        left = self.deadline - time.monotonic()
        if left <= 0 or self.count > _MAX_LOOKUPS:
            raise _Trouble
        question = self.resolver.resolve(name, kind, search=False, lifetime=left)
        try:
            return list(asyncio.run_coroutine_threadsafe(question, self.loop).result(left + 1))
        except (Timeout, TimeoutError, NoNameservers, OSError, CancelledError) as error:
            raise _Trouble from error
        except (DNSException, UnicodeError):  # no such name, no such record, or nothing that could be a name
            return []

    def texts(self, name: str) -> list[bytes]:
        return [b"".join(record.strings) for record in self.ask(name, "TXT")]


@dataclass(slots=True)
class _Found:
    """A result, and the domain whose result it is."""

    result: str
    domain: str = ""


@dataclass(slots=True)
class _Key:
    """What the DNS had for a signature: dkimpy tells a missing key from a wrong signature in its log only."""

    names: _Names
    usable: bool = False

    def __call__(self, name: bytes, timeout: int = 5) -> bytes | None:
        texts = [text for text in self.names.texts(name.decode("ascii")) if len(text) <= _MAX_KEY_BYTES]
        if not texts:
            return None
        try:
            dkim.evaluate_pk(name, texts[0])
        except Exception:
            return None
        self.usable = True
        return texts[0]


class _Spf(spf.query):  # type: ignore[misc]
    """pyspf with our look-ups."""

    def __init__(self, names: _Names, ip: str, mail_from: str, helo: str) -> None:
        self.names = names
        super().__init__(i=ip, s=mail_from, h=helo)

    def dns(self, name: str, qtype: str, cnames: object = None, ignore_void: bool = False) -> list[Any]:
        """As pyspf's own, but that the resolver follows CNAMEs. Too many empty answers: RFC 7208, 4.6.4."""
        try:
            found = [_plain(record, qtype) for record in self.names.ask(str(name), qtype)]
        except _Trouble:
            raise spf.TempError("DNS") from None
        if not found and not ignore_void:
            self.void_lookups += 1
            if self.void_lookups > spf.MAX_VOID_LOOKUPS:
                raise spf.PermError("too many void look-ups")
        return found

    def get_explanation(self, spec: str) -> str:
        return ""  # it would be looked up, and nobody reads it


async def evaluate(
    raw: bytes, *, ip: str | None, helo: str, mail_from: str, resolver: Resolver, timeout_secs: float
) -> Mapping[str, str]:
    """See gateway.mail.authentication.evaluate."""
    names = _Names(resolver, asyncio.get_running_loop(), time.monotonic() + timeout_secs)
    return await asyncio.to_thread(_evaluate, raw, ip, helo, mail_from, names)


def _evaluate(raw: bytes, ip: str | None, helo: str, mail_from: str, names: _Names) -> dict[str, str]:
    headers, _ = header_block(raw)
    author = from_domain(headers)
    sender = _sender(names, ip, helo, mail_from)
    signatures = _signatures(raw, len(headers.all("DKIM-Signature")), len(headers.items), names)
    dmarc = _dmarc(author, sender, signatures, names)
    return {
        "dkim": _best(signatures, author).result,
        "spf": sender.result,
        "dmarc": dmarc,
        "aligned": _aligned(author, sender, signatures),
    }


def _aligned(author: str, sender: _Found, signatures: Sequence[_Found]) -> str:
    if any(one.result == "pass" and is_aligned(one.domain, author) for one in (sender, *signatures)):
        return "pass"
    return "fail" if sender.result == "fail" and is_aligned(sender.domain, author) else "none"


# SPF


def _sender(names: _Names, ip: str | None, helo: str, mail_from: str) -> _Found:
    domain = (mail_from.rpartition("@")[2] if mail_from else helo).lower().rstrip(".")
    if not ip or not domain:
        return _Found("none", domain)
    try:
        result = _Spf(names, ip, mail_from, helo).check()[0]
    except Exception:  # a record or an address that pyspf did not foresee
        result = "permerror"
    return _Found(str(result), domain)


def _plain(record: Any, kind: str) -> Any:
    """A record as pyspf expects it."""
    if kind in {"A", "AAAA"}:
        return record.address
    if kind == "MX":
        return record.preference, record.exchange.to_text(True)
    if kind == "PTR":
        return record.target.to_text(True)
    strings: tuple[bytes, ...] = record.strings
    if sum(map(len, strings)) > _MAX_POLICY_BYTES:
        raise spf.PermError("a record too long to read")
    return strings


# DKIM


def _signatures(raw: bytes, count: int, headers: int, names: _Names) -> list[_Found]:
    if not count:
        return []
    if headers > _MAX_HEADERS or not _is_readable(raw):
        return [_Found("neutral")]
    try:
        signer = dkim.DKIM(raw, minkey=1024)
    except Exception:  # a header that dkimpy cannot read
        return [_Found("neutral")]
    return [_signature(signer, index, names) for index in range(min(count, _MAX_SIGNATURES))]


def _is_readable(raw: bytes) -> bool:
    """Whether dkimpy reads it in a time that is linear in its size."""
    crlf, lf = raw.find(b"\r\n\r\n"), raw.find(b"\n\n")
    end = min((at for at in (crlf, lf) if at >= 0), default=len(raw))
    blanks = 0
    for run in _BLANKS.finditer(raw):
        blanks += (run.end() - run.start()) ** 2
        if blanks > _MAX_BLANKS:
            return False
    return end <= _MAX_HEADER_BYTES


def _signature(signer: Any, index: int, names: _Names) -> _Found:
    """One signature. `policy`: it leaves the end of the body open (l=), or is SHA-1 (RFC 8301)."""
    signer.domain, signer.signature_fields = None, {}
    key = _Key(names)
    try:
        fields = [value for name, value in signer.headers if name.lower() == b"dkim-signature"]
        if len(fields[index]) > _MAX_SIGNATURE_BYTES:
            return _Found("neutral")
        verified = signer.verify(idx=index, dnsfunc=key)
    except _Trouble:
        return _Found("temperror", _text(signer.domain))
    except dkim.ValidationError:
        return _Found("fail", _text(signer.domain))
    except Exception:  # dkimpy's own errors for what it cannot read, and those it did not foresee
        return _Found("permerror", _text(signer.domain))
    if not key.usable:
        return _Found("permerror", _text(signer.domain))
    tags = signer.signature_fields
    weak = b"l" in tags or tags.get(b"a") == b"rsa-sha1"
    return _Found(("policy" if weak else "pass") if verified else "fail", _text(signer.domain))


def _text(domain: bytes | None) -> str:
    return (domain or b"").decode("ascii", "replace").lower()


def _best(signatures: Sequence[_Found], author: str) -> _Found:
    passed = [one for one in signatures if one.result == "pass"]
    aligned = [one for one in passed if is_aligned(one.domain, author)]
    return (aligned or passed or [*signatures, _Found("none")])[0]


# DMARC


def _dmarc(author: str, sender: _Found, signatures: Sequence[_Found], names: _Names) -> str:
    """RFC 7489, 6.6.2. `none`: the domain has no policy, or the mail no single author's domain."""
    if not author:
        return "permerror"
    try:
        policy = _policy(author, names)
    except _Trouble:
        return "temperror"
    if policy is None:
        return "none"
    strict = {"dkim": policy.get("adkim", "r").lower() == "s", "spf": policy.get("aspf", "r").lower() == "s"}
    aligned = [one.result for one in signatures if is_aligned(one.domain, author, strict=strict["dkim"])]
    if is_aligned(sender.domain, author, strict=strict["spf"]):
        aligned.append(sender.result)
    return next((result for result in ("pass", "temperror") if result in aligned), "fail")


def _policy(author: str, names: _Names) -> dict[str, str] | None:
    """The domain's record, else its organisation's; None for none, and for several (RFC 7489, 6.6.3)."""
    for domain in dict.fromkeys((author, organisational(author))):
        records = [record for text in names.texts(f"_dmarc.{domain}") if (record := _record(text))]
        if records:
            return records[0] if len(records) == 1 else None
    return None


def _record(text: bytes) -> dict[str, str] | None:
    tags = _TAG.findall(text[:_MAX_POLICY_BYTES].decode("utf-8", "replace"))
    if not tags or (tags[0][0].lower(), tags[0][1]) != ("v", "DMARC1"):
        return None
    record = {name.lower(): value for name, value in reversed(tags)}
    return record if "p" in record or "rua" in record else None
