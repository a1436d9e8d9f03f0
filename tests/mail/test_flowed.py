"""format=flowed, RFC 3676."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.flowed import unfold


@pytest.mark.parametrize(
    ("flowed", "whole"),
    [
        ("", ""),
        ("a \nb\nc", "a b\nc"),
        ("a \r\nb\r\nc", "a b\nc"),
        ("a \n\nb", "a \n\nb"),
        ("a \nb \nc \n", "a b c \n"),
        (" From here\n  two\n >no quote", "From here\n two\n>no quote"),
        ("> a \n> b\n>> c \n> d", "> a b\n>> c \n> d"),
        (">a \n>b", "> a b"),
        (">> a \n>> b \n\nc", ">> a b \n\nc"),
        ("text \n-- \nJane \nDoe", "text \n-- \nJane Doe"),
        ("> text\n> -- \n> Jane", "> text\n> -- \n> Jane"),
        (">\n> a", ">\n> a"),
        ("a  \nb", "a  b"),
    ],
)  # fmt: skip
def test_lines_that_were_broken_are_whole(flowed: str, whole: str) -> None:
    assert unfold(flowed, delsp=False) == whole


@pytest.mark.parametrize(
    ("flowed", "whole"),
    [
        ("你好， \n世界。\n再见", "你好，世界。\n再见"),
        ("two  \nwords", "two words"),
        ("-- \na", "-- \na"),
        ("> 你 \n> 好", "> 你好"),
        (" 你 \n 好", "你好"),
    ],
)
def test_the_added_blank_goes_with_delsp(flowed: str, whole: str) -> None:
    assert unfold(flowed, delsp=True) == whole


@given(st.text(alphabet=st.sampled_from("ab> \n-\r你")), st.booleans())
def test_nothing_but_blanks_and_marks_is_lost(text: str, delsp: bool) -> None:
    whole = unfold(text, delsp)

    letters = str.maketrans("", "", "> \n\r")
    assert whole.translate(letters) == text.translate(letters)
    assert whole.count("\n") <= text.count("\n")
