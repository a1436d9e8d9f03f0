"""Address lists as they are and as they should be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.addresses import Address, parse


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"a@Example.COM", [("", "a@example.com")]),
        (b'"Doe, John" <j@x.com>', [("Doe, John", "j@x.com")]),
        (b"Doe, John <j@x.com>", [("Doe, John", "j@x.com")]),
        (b"undisclosed-recipients:;", []),
        (b"Team:Ed <ed@x.com>, Jo <jo@x.com>;, y@z.com", [("Ed", "ed@x.com"), ("Jo", "jo@x.com"), ("", "y@z.com")]),
        (b"Pete(A nice \\) chap) <pete(his account)@silly.test(his host)>", [("Pete", "pete@silly.test")]),
        (b"joe@x.com (Joe (nested) Q)", [("Joe (nested) Q", "joe@x.com")]),
        (b"a@b.com <c@d.com>", [("a@b.com", "c@d.com")]),
        (b"=?utf-8?Q?Doe, J?= <a@b.com>", [("Doe, J", "a@b.com")]),
        (b'"=?utf-8?B?546LLCDlsI/mmI4=?=" <w@x.cn>', [("王, 小明", "w@x.cn")]),
        (b"John Doe j@x.com", [("John Doe", "j@x.com")]),
        (b"a@b.com; c@d.com", [("", "a@b.com"), ("", "c@d.com")]),
        (b"<@a,@b:u@c.com>", [("", "u@c.com")]),
        (b"john @ x . com", [("", "john@x.com")]),
        (b'"joe q"@x.com', [("", '"joe q"@x.com')]),
        (b"a@b.com, , c@d.com,", [("", "a@b.com"), ("", "c@d.com")]),
        (b"MAILER-DAEMON", [("MAILER-DAEMON", "")]),
        (b"<>", []),
        ("张三 <z@例え.jp>".encode(), [("张三", "z@例え.jp")]),
        ("张三 <z@a.cn>".encode("gbk"), [("张三", "z@a.cn")]),
        (b'"unterminated <a@b.com>', [('"unterminated', "a@b.com")]),
    ],
)
def test_who_is_meant(raw: bytes, expected: list[tuple[str, str]]) -> None:
    assert parse(raw) == [Address(name, address) for name, address in expected]


def test_a_list_ends_at_its_limit() -> None:
    assert len(parse(b"a@b.com, " * 50, limit=7)) == 7


_MARKS = st.sampled_from(
    [b'"', b"\\", b"(", b")", b"<", b">", b"@", b",", b";", b":", b" ", b"=?utf-8?q?", b"?=", b"a", b"[", b"\xe6"]
)


@given(raw=st.lists(_MARKS | st.binary(max_size=3), max_size=40).map(b"".join))
def test_whatever_comes_is_a_list(raw: bytes) -> None:
    for address in parse(raw, limit=5):
        assert address.name or address.address
        assert not {"\n", "\r", "\0"} & set(address.name + address.address)
