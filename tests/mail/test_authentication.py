"""What a trusted server's Authentication-Results say, and that nobody else's are believed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.authentication import from_domain, is_aligned, organisational, own, trusted
from gateway.mail.message import Headers, parse

IDS = ("mx.huiru.example", "Relay.Example")


def headers(*fields: str, sender: str = "Zhang <zhang@corp.example>") -> Headers:
    lines = [*fields, f"From: {sender}", "", "text"]
    return parse("\r\n".join(lines).encode("utf-8", "surrogateescape")).headers


@pytest.mark.parametrize(
    ("value", "verdict", "methods"),
    [
        ("mx.huiru.example; dmarc=pass header.from=corp.example", "pass", {"dmarc": "pass"}),
        ("MX.huiru.example 1; dmarc=fail (p=reject; dis=none)", "fail", {"dmarc": "fail"}),
        ("mx.huiru.example/1; none", "none", {}),
        ("mx.huiru.example; none", "none", {}),
        ("mx.huiru.example 2; dmarc=pass", "none", {}),
        ("mx.huiru.example.evil.example; dmarc=pass", "none", {}),
        ("evil.example; dmarc=pass", "none", {}),
        ('"mx.huiru.example"; dmarc=pass', "pass", {"dmarc": "pass"}),
        ("(a (nested; dmarc=fail) comment) mx.huiru.example (x); dmarc (y) = pass", "pass", {"dmarc": "pass"}),
        ("mx.huiru.example; dkim=pass header.d=corp.example", "pass", {"dkim": "pass"}),
        ("mx.huiru.example; dkim=pass header.i=@mail.corp.example", "pass", {"dkim": "pass"}),
        ("mx.huiru.example; dkim=pass header.d=bulk.example", "none", {"dkim": "pass"}),
        (
            "mx.huiru.example; dkim=fail header.d=a.example; dkim=pass header.d=corp.example; spf=fail",
            "pass",
            {"dkim": "pass", "spf": "fail"},
        ),
        ("mx.huiru.example; spf=pass smtp.mailfrom=b@corp.example", "pass", {"spf": "pass"}),
        ("mx.huiru.example; spf=pass smtp.mailfrom=corp.example", "pass", {"spf": "pass"}),
        ("mx.huiru.example; spf=pass smtp.mailfrom=b@bulk.example", "none", {"spf": "pass"}),
        ("mx.huiru.example; spf=fail smtp.mailfrom=corp.example", "fail", {"spf": "fail"}),
        ("mx.huiru.example; spf=softfail smtp.mailfrom=corp.example", "none", {"spf": "softfail"}),
        ("mx.huiru.example; spf=hardfail smtp.mailfrom=corp.example", "fail", {"spf": "fail"}),
        ("mx.huiru.example; dmarc=none; dkim=pass header.d=corp.example", "pass", {"dkim": "pass", "dmarc": "none"}),
        ("mx.huiru.example; dmarc=bestguesspass action=none", "none", {"dmarc": "none"}),
        ('mx.huiru.example; dkim=fail reason="a; dmarc=pass" header.d=x.example', "none", {"dkim": "fail"}),
        ("mx.huiru.example; iprev=pass; auth=pass; dkim-adsp=pass; dmarc=perfect", "none", {}),
        ("mx.huiru.example; dkim/1=pass header.d=corp.example", "pass", {"dkim": "pass"}),
        ("relay.example;\r\n\tspf=pass\r\n\t smtp.mailfrom=corp.example", "pass", {"spf": "pass"}),
        ("", "none", {}),
        (";;;", "none", {}),
        ("mx.huiru.example; =pass; dmarc=; dmarc", "none", {}),
    ],
)
def test_results(value: str, verdict: str, methods: dict[str, str]) -> None:
    found = trusted(headers(f"Authentication-Results: {value}"), IDS)

    assert (found.verdict, found.methods) == (verdict, methods)


def test_nobody_is_trusted_unless_configured() -> None:
    assert trusted(headers("Authentication-Results: mx.huiru.example; dmarc=pass"), ()).verdict == "none"


def test_the_topmost_of_a_trusted_server_counts() -> None:
    found = trusted(
        headers(
            "Authentication-Results: elsewhere.example; dmarc=pass",
            "Authentication-Results: mx.huiru.example; spf=fail smtp.mailfrom=corp.example",
            "Received: from x",
            "Authentication-Results: mx.huiru.example; dmarc=pass",
        ),
        IDS,
    )

    assert (found.verdict, found.methods) == ("fail", {"spf": "fail"})


@pytest.mark.parametrize(
    ("own_result", "chain", "verdict"),
    [
        ("arc=pass; dmarc=fail", "i=1; relay.example; dmarc=pass", "pass"),
        ("arc=fail; dmarc=fail", "i=1; relay.example; dmarc=pass", "fail"),
        ("dmarc=fail", "i=1; relay.example; dmarc=pass", "fail"),
        ("arc=pass; dmarc=fail", "i=1; stranger.example; dmarc=pass", "fail"),
        ("arc=pass; dmarc=fail", "relay.example; dmarc=pass", "fail"),
        ("arc=pass; dmarc=fail", "i=1; relay.example; dmarc=fail", "fail"),
        ("arc=pass", "i=1; relay.example; dkim=pass header.d=corp.example", "pass"),
    ],
)
def test_chains(own_result: str, chain: str, verdict: str) -> None:
    found = trusted(
        headers(
            f"Authentication-Results: mx.huiru.example; {own_result}",
            f"ARC-Authentication-Results: {chain}",
        ),
        IDS,
    )

    assert found.verdict == verdict


@pytest.mark.parametrize(
    ("sender", "domain"),
    [
        ("Zhang <zhang@Corp.Example>", "corp.example"),
        ("zhang@corp.example", "corp.example"),
        ('"boss@bank.example" <zhang@corp.example>', "corp.example"),
        ("boss@bank.example <zhang@corp.example>", "corp.example"),
        ("zhang@corp.example (boss@bank.example)", "corp.example"),
        ("a@corp.example, b@corp.example", "corp.example"),
        ("a@corp.example, b@bank.example", ""),
        ("张三 <zhang@例子.公司>", "xn--fsqu00a.xn--55qx5d"),
        ("nobody", ""),
        ("a@" + "x" * 70 + "é.example", ""),
        ("", ""),
    ],
)
def test_the_authors_domain(sender: str, domain: str) -> None:
    assert from_domain(headers(sender=sender)) == domain


def test_two_from_fields_have_no_author() -> None:
    assert from_domain(headers("From: boss@bank.example")) == ""


@pytest.mark.parametrize(
    ("one", "other", "relaxed", "strict"),
    [
        ("corp.example", "corp.example", True, True),
        ("mail.corp.com.cn", "corp.com.cn", True, False),
        ("a.com.cn", "b.com.cn", False, False),
        ("a.github.io", "b.github.io", False, False),
        ("", "", False, False),
    ],
)
def test_alignment(one: str, other: str, relaxed: bool, strict: bool) -> None:
    assert is_aligned(one, other) is relaxed
    assert is_aligned(one, other, strict=True) is strict


def test_organisations() -> None:
    assert organisational("a.b.corp.com.cn") == "corp.com.cn"
    assert organisational("com.cn") == "com.cn"


@pytest.mark.parametrize(
    ("evaluation", "verdict"),
    [
        ({}, "none"),
        ({"dkim": "pass"}, "none"),
        ({"dkim": "pass", "aligned": "pass"}, "pass"),
        ({"spf": "fail", "aligned": "fail", "dmarc": "none"}, "fail"),
        ({"spf": "fail", "aligned": "fail", "dmarc": "pass"}, "pass"),
        ({"aligned": "rubbish"}, "none"),
    ],
)
def test_own_results(evaluation: dict[str, str], verdict: str) -> None:
    found = own(evaluation)

    assert found.verdict == verdict
    assert "aligned" not in found.methods


@given(
    st.lists(
        st.sampled_from(
            ["mx.huiru.example", ";", "(", ")", '"', "\\", "=", " ", "dkim", "pass", "header.d", "@", "é", "\udcff"]
        )
        | st.text(max_size=5),
        max_size=60,
    ).map("".join)
)
def test_nothing_raises(value: str) -> None:
    value = value.replace("\r", "").replace("\n", "").encode("utf-8", "replace").decode()
    block = headers(
        f"Authentication-Results: {value}", f"Authentication-Results: mx.huiru.example; {value}",
        "Authentication-Results: mx.huiru.example; arc=pass", f"ARC-Authentication-Results: i=1; {value}", sender=value,
    )  # fmt: skip

    trusted(block, IDS)
