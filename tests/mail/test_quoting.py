"""What a mail says now: no line of the customer's is lost, few of other people's are left."""

import time
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.mail.quotemarks import REPLY_MARKER, is_reply_above
from gateway.mail.quoting import Split, split
from gateway.text import without_controls
from tests.mail.quoting_cases import Case, cases, full_lines

CASES = list(cases())


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_what_was_written_now(case: Case) -> None:
    result = split(case.text)

    found = {part: full_lines(getattr(result, part)) for part in case.parts}
    assert found == case.parts


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_line_ends_change_nothing(case: Case) -> None:
    assert split(case.text.replace("\n", "\r\n")) == split(case.text)


def test_empty_lines_between_paragraphs_stay() -> None:
    result = split("\n\na\n\n\n  b\n\nFrom: x <x@y.z>\nTo: b\nSubject: c\n\nd\n")

    assert result == Split(text="a\n\n\n  b", quoted="From: x <x@y.z>\nTo: b\nSubject: c\n\nd", signature="")


@pytest.mark.parametrize("text", ["", "\n \n", "\0"])
def test_nothing_stays_nothing(text: str) -> None:
    assert split(text) == Split("", "", "")


def test_our_own_mark_is_one() -> None:
    assert is_reply_above(REPLY_MARKER)
    assert split(f"yes\n\n{REPLY_MARKER}\nold").text == "yes"


LINES = st.sampled_from([line for case in CASES for line in case.text.split("\n")])
TEXTS = st.lists(LINES | st.text(max_size=20), max_size=25).map("\n".join) | st.text()


@given(TEXTS)
@example("-- \n")
@example(">")
@example("-----Original Message-----")
def test_nothing_is_lost_and_nothing_invented(text: str) -> None:
    result = split(text)

    parts = [result.text, result.quoted, result.signature]
    there = Counter(line.rstrip() for line in without_controls(text).split("\n") if line.strip())
    assert Counter(line.rstrip() for part in parts for line in part.split("\n") if line.strip()) == there
    assert bool(result.text.strip()) == bool(there)


@given(TEXTS)
def test_what_was_written_now_has_its_order(text: str) -> None:
    result = split(text)

    lines = iter(line.rstrip() for line in without_controls(text).split("\n"))
    assert all(line.rstrip() in lines for line in result.text.split("\n") if line.strip())


HOSTILE = {
    "quotes and words in turn": "> a\nb\n",
    "attributions that do not end": "On 5 March 2024 at 10:11 a@b.c said\n",
    "attributions": "On 5 March 2024 at 10:11 a@b.c wrote:\n",
    "names of fields": "From: a\n",
    "all fields": "From: a\nTo: b\nDate: c\n",
    "folded fields": "To: a@b.c;\n",
    "rules": "-----\n",
    "signatures": "-- \nJane\n",
    "empty lines": "\n",
    "blanks": "  \n",
    "phones": "Sent from my iPhone\n",
    "one line of blanks": " ",
    "one line of colons": "a:",
    "one line of digits": "1 ",
    "one line of rules": "-=",
    "one line of quotes": ">",
    "one line of entities": "&nbsp;",
    "one line of commas": "，",
    "long lines": "From " * 70 + ":\n",
    "lines of pipes": "|" * 700 + "\n",
    "lines of blanks and a colon": "a" + " " * 700 + "b:\n",
}  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
def test_the_time_grows_with_the_length(piece: str) -> None:
    small = piece * (20_000 // len(piece))

    ratio = _seconds(small * 4) / _seconds(small)

    assert ratio < 9  # 4 where it is linear, 16 where it is quadratic


def _seconds(text: str) -> float:
    return min(_once(text) for _ in range(3))


def _once(text: str) -> float:
    started = time.process_time()
    split(text)
    return time.process_time() - started
