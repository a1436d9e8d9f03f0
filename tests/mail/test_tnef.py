"""winmail.dat, built here after [MS-OXTNEF]."""

import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import Part
from gateway.mail.tnef import SIGNATURE, is_tnef, unpack

GUID = bytes.fromhex("0703020000000000c000000000000046")
TITLE, DATA, BEGINS, PROPERTIES, FILE_PROPERTIES, CODE_PAGE, BODY = (
    0x18010, 0x6800F, 0x69002, 0x69003, 0x69005, 0x69007, 0x2800C
)  # fmt: skip


def attribute(level: int, name: int, value: bytes) -> bytes:
    return struct.pack("<BII", level, name, len(value)) + value + struct.pack("<H", sum(value) & 0xFFFF)


def file(name: bytes, content: bytes, *properties: bytes) -> bytes:
    packed = attribute(2, FILE_PROPERTIES, struct.pack("<I", len(properties)) + b"".join(properties))
    return (
        attribute(2, BEGINS, bytes(14))
        + attribute(2, TITLE, name + b"\0")
        + attribute(2, DATA, content)
        + (packed if properties else b"")
    )


def stream(*attributes: bytes, code_page: int = 936) -> bytes:
    return SIGNATURE + b"\1\0" + attribute(1, CODE_PAGE, struct.pack("<II", code_page, 0)) + b"".join(attributes)


def variable(kind: int, name: int, value: bytes) -> bytes:
    return struct.pack("<HHII", kind, name, 1, len(value)) + value + bytes(-len(value) % 4)


def unicode(name: int, value: str) -> bytes:
    return variable(0x1F, name, (value + "\0").encode("utf-16-le"))


def test_files() -> None:
    data = stream(file("发票.txt".encode("gbk"), b"abc"), file(b"empty.bin", b""))

    assert unpack(data) == [Part(b"abc", "发票.txt"), Part(b"", "empty.bin")]


def test_the_long_name_counts() -> None:
    properties = (
        struct.pack("<HHI", 3, 0x3705, 1),
        struct.pack("<HHI", 0x0B, 0x7FFE, 0),
        struct.pack("<HH16sII", 0x1E, 0x8001, bytes(16), 0, 7) + struct.pack("<II", 1, 2) + b"x\0\0\0",
        struct.pack("<HH16sII", 3, 0x8002, bytes(16), 1, 6) + "abc".encode("utf-16-le") + bytes(2) + bytes(4),
        struct.pack("<HHI3h", 0x1002, 0x6001, 3, 1, 2, 3) + bytes(2),
        unicode(0x3707, "..\\二〇二六年十一月发票.pdf"),
        unicode(0x370E, "application/pdf"),
        unicode(0x3712, "<image001@x>"),
    )

    (part,) = unpack(stream(file(b"FAPIAO~1.PDF", b"%PDF", *properties)))

    assert part == Part(b"%PDF", "二〇二六年十一月发票.pdf", "application/pdf", True, "image001@x")


def test_a_mail_in_it_is_unpacked_too() -> None:
    inner = stream(file(b"inner.txt", b"deep"), code_page=1252)
    outer = stream(
        attribute(2, BEGINS, bytes(14))
        + attribute(2, FILE_PROPERTIES, struct.pack("<I", 1) + variable(0x0D, 0x3701, GUID + inner))
    )

    assert unpack(outer) == [Part(b"deep", "inner.txt")]


def test_mails_in_mails_come_to_an_end() -> None:
    data = stream(file(b"core.txt", b"x"))
    for _ in range(200):
        packed = struct.pack("<I", 1) + variable(0x0D, 0x3701, GUID + data)
        data = stream(attribute(2, BEGINS, bytes(14)) + attribute(2, FILE_PROPERTIES, packed))

    assert len(unpack(data)) == 1


@pytest.mark.parametrize(
    ("properties", "kind", "content"),
    [
        ([variable(0x102, 0x1013, "<p>你好</p>".encode("gbk"))], "text/html", "<p>你好</p>"),
        (
            [variable(0x102, 0x1013, "<p>你好</p>".encode()), struct.pack("<HHI", 3, 0x3FDE, 65001)],
            "text/html",
            "<p>你好</p>",
        ),
        ([variable(0x1E, 0x1000, "你好\0".encode("gbk"))], "text/plain", "你好"),
        ([unicode(0x1000, "你好")], "text/plain", "你好"),
        (
            [variable(0x102, 0x1009, struct.pack("<II", 0, 22) + b"MELA" + bytes(4) + rb"{\rtf1 Hello\par you}")],
            "text/plain",
            "Hello\nyou",
        ),
        ([variable(0x102, 0x1009, b"rubbish"), unicode(0x1000, "text")], "text/plain", "text"),
    ],
    ids=lambda value: "",
)
def test_the_text(properties: list[bytes], kind: str, content: str) -> None:
    packed = attribute(1, PROPERTIES, struct.pack("<I", len(properties)) + b"".join(properties))

    assert unpack(stream(packed)) == [Part(content.encode(), "", f"{kind}; charset=utf-8", True)]


def test_the_old_text() -> None:
    assert unpack(stream(attribute(1, BODY, b"old\0")))[0].content == b"old"


def test_what_is_cut_off_is_left_out() -> None:
    whole = stream(file(b"one.txt", b"1" * 50), file(b"two.txt", b"2" * 50))

    for end in range(len(whole)):
        assert [part.filename for part in unpack(whole[:end])] in ([], ["one.txt"], ["one.txt", "two.txt"])
    assert len(unpack(whole[:-20])) == 1


@pytest.mark.parametrize("data", [b"", b"PK\3\4", SIGNATURE, SIGNATURE + b"\0\0" + b"\xff" * 50])
def test_nothing_to_be_read(data: bytes) -> None:
    assert unpack(data) == []
    assert is_tnef(data) is data.startswith(SIGNATURE)


@given(st.data())
def test_nothing_raises(data: st.DataObject) -> None:
    raw = bytearray(stream(file(b"a.txt", b"abc", unicode(0x3707, "a.txt")), attribute(1, PROPERTIES, b"\1\0\0\0")))
    for _ in range(data.draw(st.integers(0, 8))):
        at = data.draw(st.integers(6, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))

    unpack(bytes(raw))
    unpack(SIGNATURE + data.draw(st.binary(max_size=100)))


@pytest.mark.parametrize(
    "body",
    [
        attribute(2, BEGINS, b"") * 200_000,
        attribute(1, PROPERTIES, struct.pack("<I", 0xFFFFFFFF) + struct.pack("<HHI", 3, 1, 1) * 300_000),
        attribute(1, PROPERTIES, struct.pack("<IHHI", 1, 0x101F, 1, 0xFFFFFFFF) + bytes(4) * 500_000),
    ],
    ids=["attributes", "properties", "values"],
)
def test_time_is_linear(body: bytes) -> None:
    started = time.process_time()

    unpack(stream(body))

    assert time.process_time() - started < 1
