"""Our own DKIM, SPF and DMARC, against a name server of the test's own."""

import asyncio
import base64
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import dkim
import pytest
from dns.asyncresolver import Resolver
from nacl.encoding import Base64Encoder
from nacl.signing import SigningKey

from gateway.mail import verification
from gateway.mail.authentication import evaluate, own
from tests.mail.nameserver import NameServer, Zone, resolver_of

MAIL = (
    b"From: Zhang <zhang@corp.example>\r\nTo: support@huiru.example\r\nSubject: printer\r\n"
    b"Date: Tue, 24 Nov 2026 09:00:00 +0800\r\nMessage-ID: <1@corp.example>\r\n\r\nIt does not print.\r\n"
)
Evaluate = Callable[..., Awaitable[Mapping[str, str]]]
ED25519 = SigningKey(bytes(range(32)))
ED25519_RECORD = f'"v=DKIM1; k=ed25519; p={ED25519.verify_key.encode(Base64Encoder).decode()}"'


@pytest.fixture
async def server() -> AsyncIterator[NameServer]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(lambda: NameServer({}), local_addr=("127.0.0.1", 0))
    yield server
    transport.close()


@pytest.fixture
async def resolver(server: NameServer) -> AsyncIterator[Resolver]:
    with resolver_of(server) as resolver:
        yield resolver


@pytest.fixture
def ask(server: NameServer, resolver: Resolver) -> Evaluate:
    """`await ask(raw, zone, ip=…)`: the evaluation of a mail in a world of that zone."""

    async def ask(
        raw: bytes,
        zone: Zone,
        *,
        ip: str | None = "192.0.2.1",
        helo: str = "mx.corp.example",
        mail_from: str = "zhang@corp.example",
        timeout_secs: float = 5,
    ) -> Mapping[str, str]:
        server.zone |= zone
        return await evaluate(raw, ip=ip, helo=helo, mail_from=mail_from, resolver=resolver, timeout_secs=timeout_secs)

    return ask


@pytest.fixture(scope="module")
def rsa(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    """A private key in PEM, and its record."""
    path = tmp_path_factory.mktemp("rsa") / "key.pem"
    subprocess.run(["openssl", "genrsa", "-traditional", "-out", path, "1024"], check=True, capture_output=True)
    public = subprocess.run(
        ["openssl", "rsa", "-in", path, "-pubout", "-outform", "DER"], check=True, capture_output=True
    )
    encoded = base64.b64encode(public.stdout).decode()
    return Path(path).read_bytes(), f'"v=DKIM1; k=rsa; p={encoded[:200]}" "{encoded[200:]}"'


def signed(mail: bytes = MAIL, domain: bytes = b"corp.example", **options: object) -> bytes:
    signer = dkim.DKIM(mail)
    key = ED25519.encode(Base64Encoder)
    header: bytes = signer.sign(b"s1", domain, key, signature_algorithm=b"ed25519-sha256", **options)
    return header + mail


KEY: Zone = {("s1._domainkey.corp.example", "TXT"): [ED25519_RECORD]}
SPF: Zone = {("corp.example", "TXT"): ['"other text"', '"v=spf1 ip4:192.0.2.0/24 -all"']}
REJECT: Zone = {("_dmarc.corp.example", "TXT"): ['"v=DMARC1; p=reject"']}

# DKIM


async def test_ed25519(ask: Evaluate) -> None:
    found = await ask(signed(), KEY | SPF | REJECT)

    assert found == {"dkim": "pass", "spf": "pass", "dmarc": "pass", "aligned": "pass"}
    assert own(found).model_dump() == {
        "verdict": "pass",
        "methods": {"dkim": "pass", "dmarc": "pass", "spf": "pass"},
    }


async def test_rsa(ask: Evaluate, rsa: tuple[bytes, str]) -> None:
    key, record = rsa
    raw = dkim.sign(MAIL, b"s2", b"corp.example", key, canonicalize=(b"relaxed", b"relaxed")) + MAIL

    found = await ask(raw, {("s2._domainkey.corp.example", "TXT"): [record]}, ip=None)

    assert (found["dkim"], found["spf"], found["dmarc"]) == ("pass", "none", "none")
    assert own(found).verdict == "pass"


@pytest.mark.parametrize(
    ("raw", "zone", "result"),
    [
        (MAIL, KEY, "none"),
        (signed().replace(b"print.", b"print!"), KEY, "fail"),
        (signed().replace(b"printer", b"scanner"), KEY, "fail"),
        (signed(), {}, "permerror"),
        (signed(), {("s1._domainkey.corp.example", "TXT"): ['"v=DKIM1; k=ed25519; p="']}, "permerror"),
        (signed(), {("s1._domainkey.corp.example", "TXT"): ['"v=DKIM1; k=rsa; p=AAAA"']}, "permerror"),
        (signed(), {("s1._domainkey.corp.example", "TXT"): ['"' + "x" * 250 + '"']}, "permerror"),
        (signed(), {("s1._domainkey.corp.example", "TXT"): ["SERVFAIL"]}, "temperror"),
        (signed(length=True), KEY, "policy"),
        (b"DKIM-Signature: rubbish\r\n" + MAIL, KEY, "permerror"),
        (b"DKIM-Signature: v=1; a=x; d=\xff; s=\xff; h=from; bh=; b=\r\n" + MAIL, KEY, "fail"),
        (b"DKIM-Signature: " + b"x" * 10_000 + b"\r\n" + MAIL, KEY, "neutral"),
        (b"X-A: b\r\n" * 1001 + signed(), KEY, "neutral"),
    ],
    ids=lambda value: "",
)
async def test_signatures(ask: Evaluate, raw: bytes, zone: Zone, result: str) -> None:
    assert (await ask(raw, zone, ip=None))["dkim"] == result


async def test_an_expired_signature(ask: Evaluate) -> None:
    past = signed().replace(
        b"; t=", b"; x=1000000000; t=1; r=", 1
    )  # the hash is wrong too; the date is looked at first

    assert (await ask(past, KEY, ip=None))["dkim"] == "fail"


async def test_the_second_signature_counts(ask: Evaluate) -> None:
    broken = signed().replace(b"s=s1", b"s=s9", 1)
    raw = broken[: broken.index(b"From:")] + signed()

    assert (await ask(raw, KEY, ip=None))["dkim"] == "pass"


async def test_a_strangers_signature_is_not_the_authors(ask: Evaluate) -> None:
    zone: Zone = {("s1._domainkey.bulk.example", "TXT"): [ED25519_RECORD]}

    found = await ask(signed(domain=b"bulk.example"), zone | REJECT, ip=None)

    assert (found["dkim"], found["dmarc"], own(found).verdict) == ("pass", "fail", "fail")


async def test_blanks_that_would_take_hours(ask: Evaluate) -> None:
    raw = signed(canonicalize=(b"relaxed", b"relaxed")) + b" " * 1_000_000
    started = time.process_time()

    assert (await ask(raw, KEY, ip=None))["dkim"] == "neutral"
    assert time.process_time() - started < 2


# SPF


@pytest.mark.parametrize(
    ("record", "result"),
    [
        ("v=spf1 ip4:192.0.2.1 -all", "pass"),
        ("v=spf1 ip4:198.51.100.1 -all", "fail"),
        ("v=spf1 ip4:198.51.100.1 ~all", "softfail"),
        ("v=spf1 ?all", "neutral"),
        ("v=spf1 a:mx.corp.example -all", "pass"),
        ("v=spf1 mx -all", "pass"),
        ("v=spf1 ptr -all", "pass"),
        ("v=spf1 include:spf.corp.example -all", "pass"),
        ("v=spf1 redirect=spf.corp.example", "pass"),
        ("v=spf1 exists:%{ir}.list.corp.example -all", "pass"),
        ("v=spf1 include:loop.corp.example -all", "permerror"),
        ("v=spf1 include:nothing.example -all", "permerror"),
        ("v=spf1 " + " ".join(f"a:h{n}.corp.example" for n in range(11)) + " -all", "permerror"),
        ("v=spf1 a:x1.example a:x2.example a:x3.example -all", "permerror"),
        ("v=spf1 ip4:999.1.1.1 -all", "permerror"),
        ("v=spf1 a:broken.corp.example -all", "temperror"),
        ("nothing of the kind", "none"),
    ],
)
async def test_spf(ask: Evaluate, record: str, result: str) -> None:
    chunks = [record[at : at + 200] for at in range(0, len(record), 200)]
    zone: Zone = {
        ("corp.example", "TXT"): [" ".join(f'"{chunk}"' for chunk in chunks)],
        ("corp.example", "MX"): ["10 mx.corp.example."],
        ("mx.corp.example", "A"): ["192.0.2.1"],
        ("1.2.0.192.in-addr.arpa", "PTR"): ["mx.corp.example."],
        ("spf.corp.example", "TXT"): ['"v=spf1 ip4:192.0.2.0/28 -all"'],
        ("loop.corp.example", "TXT"): ['"v=spf1 include:loop.corp.example -all"'],
        ("1.2.0.192.list.corp.example", "A"): ["127.0.0.2"],
        ("broken.corp.example", "A"): ["SERVFAIL"],
        **{(f"h{n}.corp.example", "A"): ["198.51.100.9"] for n in range(11)},
    }

    assert (await ask(MAIL, zone))["spf"] == result


@pytest.mark.parametrize(
    ("ip", "helo", "mail_from", "result"),
    [
        ("2001:db8::1", "mx", "a@six.example", "pass"),
        ("::ffff:192.0.2.1", "mx", "a@corp.example", "pass"),
        ("192.0.2.1", "helo.corp.example", "", "fail"),
        ("no address", "mx", "a@corp.example", "permerror"),
        (None, "mx", "a@corp.example", "none"),
        ("192.0.2.1", "", "", "none"),
        ("192.0.2.1", "mx", "a@" + "x" * 300 + ".example", "none"),
        ("192.0.2.1", "mx", "\udcff@\udcff", "none"),
    ],
)
async def test_spf_identities(ask: Evaluate, ip: str | None, helo: str, mail_from: str, result: str) -> None:
    zone: Zone = SPF | {
        ("six.example", "TXT"): ['"v=spf1 ip6:2001:db8::/32 -all"'],
        ("helo.corp.example", "TXT"): ['"v=spf1 -all"'],
    }

    assert (await ask(MAIL, zone, ip=ip, helo=helo, mail_from=mail_from))["spf"] == result


# DMARC


@pytest.mark.parametrize(
    ("mail_from", "zone", "dmarc", "verdict"),
    [
        ("bounce@news.corp.example", REJECT, "pass", "pass"),
        ("bounce@news.corp.example", {("_dmarc.corp.example", "TXT"): ['"v=DMARC1; p=none; aspf=s"']}, "fail", "fail"),
        ("zhang@corp.example", {("_dmarc.corp.example", "TXT"): ['"v=DMARC1; p=none; aspf=s"']}, "pass", "pass"),
        ("zhang@corp.example", {}, "none", "pass"),
        ("a@other.example", {}, "none", "none"),
        ("a@other.example", REJECT, "fail", "fail"),
        (
            "zhang@corp.example",
            {("_dmarc.corp.example", "TXT"): ['"v=DMARC1; p=none"'] * 1 + ['"v=DMARC1; p=reject"']},
            "none",
            "pass",
        ),
        ("zhang@corp.example", {("_dmarc.corp.example", "TXT"): ['"v=DMARC1"']}, "none", "pass"),
        ("zhang@corp.example", {("_dmarc.corp.example", "TXT"): ['"v=spf1 -all"']}, "none", "pass"),
        ("zhang@corp.example", {("_dmarc.corp.example", "TXT"): ["SERVFAIL"]}, "temperror", "pass"),
    ],
    ids=lambda value: "",
)
async def test_dmarc(ask: Evaluate, mail_from: str, zone: Zone, dmarc: str, verdict: str) -> None:
    senders: Zone = {
        ("news.corp.example", "TXT"): ['"v=spf1 ip4:192.0.2.1 -all"'],
        ("other.example", "TXT"): ['"v=spf1 ip4:192.0.2.1 -all"'],
    }

    found = await ask(MAIL, SPF | senders | zone, mail_from=mail_from)

    assert found["dmarc"] == dmarc
    assert own(found).verdict == verdict


async def test_the_policy_of_the_organisation(ask: Evaluate, server: NameServer) -> None:
    mail = MAIL.replace(b"zhang@corp.example", b"zhang@it.dept.corp.com.cn")

    found = await ask(mail, {("_dmarc.corp.com.cn", "TXT"): ['"v=DMARC1; p=reject"']}, ip=None)

    assert found["dmarc"] == "fail"
    assert [name for name, _ in server.asked] == ["_dmarc.it.dept.corp.com.cn", "_dmarc.corp.com.cn"]


@pytest.mark.parametrize("sender", [b"", b"From: a@corp.example, b@other.example\r\n", b"From: nobody\r\n"])
async def test_no_single_author(ask: Evaluate, sender: bytes) -> None:
    mail = sender + b"Subject: x\r\n\r\nx\r\n"

    assert (await ask(mail, SPF))["dmarc"] == "permerror"


async def test_a_silent_name_server_costs_no_more_than_the_time_given(ask: Evaluate) -> None:
    silence: Zone = {(name, "TXT"): ["SILENCE"] for name in ("corp.example", "_dmarc.corp.example")}
    started = time.monotonic()

    found = await ask(signed(), KEY | silence, timeout_secs=0.5)

    assert (found["spf"], found["dmarc"]) == ("temperror", "temperror")
    assert time.monotonic() - started < 5


async def test_look_ups_are_counted(ask: Evaluate, server: NameServer) -> None:
    wide = "v=spf1 " + " ".join(f"mx:m{n}.corp.example" for n in range(10)) + " -all"
    zone: Zone = {("corp.example", "TXT"): [f'"{wide[:200]}" "{wide[200:]}"']}
    for n in range(10):
        zone["m" + str(n) + ".corp.example", "MX"] = [f"1 a{n}-{host}.corp.example." for host in range(10)]
        zone |= {(f"a{n}-{host}.corp.example", "A"): ["198.51.100.1"] for host in range(10)}

    found = await ask(MAIL, zone)

    assert found["spf"] == "temperror"
    assert len(server.asked) <= verification._MAX_LOOKUPS
