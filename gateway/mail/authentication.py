"""Whether a mail comes from whom it says: what a trusted server found, or what we find ourselves.

Anyone can write an `Authentication-Results` field. It counts when its authserv-id is configured and no field of that id
stands above it: a server that keeps RFC 8601, 5, removes forged ones, and adds its own on top.

The verdict is the one of DMARC where there is one; else a DKIM signature or an SPF pass of the From's own domain is a
pass, and an SPF fail of it is a fail. A pass of another domain says nothing about the sender.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal

from publicsuffixlist import PublicSuffixList

from gateway.envelope import Authentication
from gateway.mail.message import Headers

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver

_MAX_FIELD_CHARS = 16 << 10
_MAX_RESULTS = 100
_MAX_ADDRESSES = 1 << 12  # characters of a From that are looked at
METHODS = frozenset({"dkim", "spf", "dmarc", "arc"})
RESULTS = frozenset({"pass", "fail", "softfail", "neutral", "none", "temperror", "permerror", "policy"})
# What RFC 5451 and large providers call them.
_OLD_RESULTS = {"hardfail": "fail", "error": "permerror", "bestguesspass": "none"}

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"?|[()]|[^"()\\]++|\\.?', re.DOTALL)
_RESULT = re.compile(r"([a-z][a-z0-9-]{0,39})(?:\s*/\s*\d+)?\s*=\s*([a-z]{1,20})(?![^\s])", re.IGNORECASE)
_PROPERTY = re.compile(r"([a-z]{1,20})\s*\.\s*([a-z0-9-]{1,40})\s*=\s*(\S{1,1000})", re.IGNORECASE)
_AUTHSERV = re.compile(r"(\S{1,255})(?:\s+(\d{1,9}))?")
_INSTANCE = re.compile(r"\s*i\s*=\s*(\d{1,2})\s*;")
_QUOTED_OR_COMMENT = re.compile(r'"(?:[^"\\]|\\.)*+"?|\([^()]*+\)')
_DOMAIN = re.compile(r"@([^\s<>@,;:()\[\]\"]{1,255})")

Verdict = Literal["pass", "fail", "none"]


@dataclass(frozen=True, slots=True)
class _Result:
    method: str
    result: str
    properties: Mapping[str, str] = field(default_factory=dict)  # "header.d": "example.com"


def trusted(headers: Headers, authserv_ids: Sequence[str]) -> Authentication:
    """What the topmost `Authentication-Results` of a configured server says; nothing otherwise. Never raises."""
    ids = {name.lower() for name in authserv_ids}
    results = _first(headers.all("Authentication-Results"), ids) if ids else []
    if not results:
        return Authentication()
    domain = from_domain(headers)
    methods = {method: _best(results, method, domain) for method in sorted({one.method for one in results})}
    verdict = _verdict(results, domain)
    if verdict != "pass" and methods.get("arc") == "pass" and _passed_before(headers, ids, domain):
        verdict = "pass"
    return Authentication(verdict=verdict, methods=methods)


def own(evaluation: Mapping[str, str]) -> Authentication:
    """What `evaluate` found, as the envelope has it."""
    methods = {method: evaluation[method] for method in sorted(METHODS & evaluation.keys())}
    dmarc = methods.get("dmarc")
    if dmarc == "pass" or dmarc == "fail":
        return Authentication(verdict=dmarc, methods=methods)
    aligned = evaluation.get("aligned", "none")
    return Authentication(verdict=aligned if aligned == "pass" or aligned == "fail" else "none", methods=methods)


async def evaluate(
    raw: bytes, *, ip: str | None, helo: str, mail_from: str, resolver: "Resolver", timeout_secs: float = 20.0
) -> Mapping[str, str]:
    """Our own DKIM, SPF and DMARC results by the names of RFC 8601, 2.7, for a mail that was given to us over SMTP.

    `aligned` is what a DKIM or SPF result of the From's own domain says, for `own`. Takes at most `timeout_secs` and
    a bounded number of look-ups; what is not known by then is `temperror`. Never raises but when cancelled.
    """
    from gateway.mail import verification  # its libraries are loaded by those who turn it on

    return await verification.evaluate(
        raw, ip=ip, helo=helo, mail_from=mail_from, resolver=resolver, timeout_secs=timeout_secs
    )


def from_domain(headers: Headers) -> str:
    """The domain of the From; "" when there is not exactly one (RFC 7489, 6.6.1)."""
    fields = headers.all("From")
    if len(fields) != 1:
        return ""
    text = _QUOTED_OR_COMMENT.sub(" ", fields[0][:_MAX_ADDRESSES].decode("utf-8", "replace"))
    bracketed = "".join(re.findall(r"<[^<>]*+>", text))
    domains = {_normal(domain) for domain in _DOMAIN.findall(bracketed or text)}
    return domains.pop() if len(domains) == 1 else ""


def organisational(domain: str) -> str:
    """The domain that somebody registered: one label below a public suffix; the domain itself when there is none."""
    return _suffixes().privatesuffix(domain) or domain


def is_aligned(domain: str, author: str, *, strict: bool = False) -> bool:
    """RFC 7489, 3.1: the same domain, or the same organisation's."""
    domain, author = _normal(domain), _normal(author)
    if not domain or not author:
        return False
    return domain == author or (not strict and organisational(domain) == organisational(author))


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()


def _normal(domain: str) -> str:
    domain = domain.strip().rstrip(".").lower()
    try:
        return domain if domain.isascii() else domain.encode("idna").decode("ascii")
    except UnicodeError:
        return ""


# Authentication-Results


def _first(values: Sequence[bytes], ids: set[str]) -> list[_Result]:
    for value in values:
        authserv, results = _parse(value)
        if authserv in ids:
            return results
    return []


def _parse(value: bytes) -> tuple[str, list[_Result]]:
    """The authserv-id in lower case, and what is known of its results; ("", []) for another version (RFC 8601, 2.2)."""
    identity, *statements = _statements(value[:_MAX_FIELD_CHARS].decode("utf-8", "replace"))
    match = _AUTHSERV.fullmatch(identity.strip())
    if not match or int(match[2] or 1) != 1:
        return "", []
    return match[1].lower(), [one for statement in statements[:_MAX_RESULTS] if (one := _result(statement))]


def _statements(text: str) -> list[str]:
    """Split at semicolons; no comments, and quoted strings bare, with `_` for what would separate."""
    pieces: list[str] = [""]
    depth = 0
    for token in _TOKEN.findall(text):
        if token == "(":  # noqa: S105 - a token of the grammar
            depth += 1
        elif token == ")":  # noqa: S105
            depth = max(0, depth - 1)
            pieces[-1] += " "
        elif depth:
            continue
        elif token.startswith('"'):
            pieces[-1] += re.sub(r"[\s;=]", "_", re.sub(r"\\(.)", r"\1", token.strip('"')))
        else:
            first, *rest = token.split(";")
            pieces[-1] += first
            pieces.extend(rest)
    return pieces


def _result(statement: str) -> _Result | None:
    match = _RESULT.match(statement.strip())
    if not match:
        return None
    method, result = match[1].lower(), match[2].lower()
    result = _OLD_RESULTS.get(result, result)
    if method not in METHODS or result not in RESULTS:
        return None
    properties = {f"{kind}.{name}".lower(): value for kind, name, value in _PROPERTY.findall(statement)}
    return _Result(method, result, properties)


def _best(results: Sequence[_Result], method: str, domain: str) -> str:
    """Of several results of a method: the one of the From's own domain if it passed, any that passed, the first."""
    mine = [one for one in results if one.method == method]
    passed = [one for one in mine if one.result == "pass"]
    aligned = [one for one in passed if is_aligned(_domain(one), domain)]
    return (aligned or passed or mine)[0].result


def _domain(one: _Result) -> str:
    """Whose result it is."""
    names = ("header.d", "header.i") if one.method == "dkim" else ("smtp.mailfrom", "smtp.helo", "smtp.mail")
    value = next((one.properties[name] for name in names if name in one.properties), "")
    return value.rpartition("@")[2].strip("<>")


def _verdict(results: Sequence[_Result], domain: str) -> Verdict:
    for one in results:
        if one.method == "dmarc" and one.result in {"pass", "fail"}:
            return "pass" if one.result == "pass" else "fail"
    aligned = {(one.method, one.result) for one in results if is_aligned(_domain(one), domain)}
    if aligned & {("dkim", "pass"), ("spf", "pass")}:
        return "pass"
    return "fail" if ("spf", "fail") in aligned else "none"


def _passed_before(headers: Headers, ids: set[str], domain: str) -> bool:
    """Whether a configured server further up the chain, which is unbroken, had found a pass (RFC 8617, 5.2)."""
    return any(_verdict(results, domain) == "pass" for results in _chain(headers, ids))


def _chain(headers: Headers, ids: set[str]) -> Iterator[list[_Result]]:
    for value in headers.all("ARC-Authentication-Results"):
        text = value[:_MAX_FIELD_CHARS].decode("utf-8", "replace")
        instance = _INSTANCE.match(text)
        authserv, results = _parse(text[instance.end() :].encode()) if instance else ("", [])
        if authserv in ids:
            yield results
