"""The words of an RTF, and the compression that Outlook uses."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.rtf import decompress, read

# The two examples of [MS-OXRTFCP], 3.
PACKED = bytes.fromhex(
    "2d0000002b0000004c5a4675f1c5c7a703000a007263706731323542320af32068656c090020627705b06c647d0a800fa0"
)
RUN = bytes.fromhex("1a0000001c0000004c5a4675e2d44b51410004205758595a0d6e7d010eb0")


def test_the_published_examples() -> None:
    assert decompress(PACKED) == b"{\\rtf1\\ansi\\ansicpg1252\\pard hello world}\r\n"
    assert decompress(RUN) == b"{\\rtf1 WXYZWXYZWXYZWXYZWXYZ}"
    assert read(decompress(PACKED)).text == "hello world"


def test_stored() -> None:
    assert decompress(bytes(4) + (5).to_bytes(4, "little") + b"MELA" + bytes(4) + b"{\\rtf") == b"{\\rtf"


@pytest.mark.parametrize("data", [b"", b"LZFu", bytes(16), PACKED[:30], PACKED[:16] + b"\xff" * 100])
def test_what_is_cut_off(data: bytes) -> None:
    assert len(decompress(data)) < 100


@pytest.mark.parametrize(
    ("rtf", "text"),
    [
        (rb"{\rtf1\ansi Hello\par world}", "Hello\nworld"),
        (rb"{\rtf1\ansi\ansicpg936 \'c4\'e3\'ba\'c3}", "你好"),
        (rb"{\rtf1\ansi\ansicpg1252 caf\'e9 \{x\} a\~b}", "café {x} a\xa0b"),
        (rb"{\rtf1\uc1 \u20320?\u22909? {\uc2\u20320??}x}", "你好 你x"),
        (rb"{\rtf1\uc1 \u-10179?\u-8704?}", "😀"),
        (rb"{\rtf1{\fonttbl{\f0 Arial;}}{\*\generator x;}{\info{\title t}}text}", "text"),
        (rb"{\rtf1 a\tab b\line c\emdash d}", "a\tb\nc—d"),
        (rb"{\rtf1 }}}} x", "x"),
        (rb"no rtf", ""),
    ],
)
def test_text(rtf: bytes, text: str) -> None:
    assert read(rtf).text == text


def test_the_html_in_it() -> None:
    rtf = (
        rb"{\rtf1\ansi\ansicpg936\fromhtml1 \deff0{\fonttbl{\f0 Arial;}}"
        rb"{\*\htmltag19 <html>}{\*\htmltag64 <p>}\htmlrtf {\htmlrtf0 \'c4\'e3\'ba\'c3 "
        rb"{\*\htmltag84 <b>}\htmlrtf \b \htmlrtf0 b"
        rb"{\*\htmltag92 </b>}\htmlrtf }\htmlrtf0 {\*\htmltag72 </p>}{\*\htmltag27 </html>}}"
    )

    assert read(rtf).html == "<html><p>你好 <b>b</b></p></html>"


@given(
    st.lists(
        st.sampled_from(
            (b"{", b"}", b"\\", b"\\u", b"-1", b"\\'", b"\\*", b"\\htmltag", b"\\uc9", b"\\bin5 ", b"\\fonttbl")
        )
        | st.binary(max_size=4)
    ).map(b"".join)
)
def test_nothing_raises(data: bytes) -> None:
    read(b"{\\rtf1" + data).text.encode()
    decompress(bytes(4) + b"\xff" * 4 + b"LZFu" + bytes(4) + data)


@pytest.mark.parametrize("piece", [b"{", b"}", b"\\u1?", b"\\'e9", b"a ", b"\\", b"{\\*\\x", b"{\\htmlrtf "])
def test_time_is_linear(piece: bytes) -> None:
    started = time.process_time()

    read(b"{\\rtf1 " + piece * (200_000 // len(piece)))

    assert time.process_time() - started < 1.5
