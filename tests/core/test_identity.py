"""Ids are functions of the message, and people can read them out."""

from hashlib import sha256

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.identity import conflict_id, id_prefix, message_id, reference

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
texts = st.text(max_size=40)
contents = st.binary(max_size=40)


def crockford(number: int, digits: int) -> str:
    return "".join(ALPHABET[number >> 5 * shift & 31] for shift in reversed(range(digits)))


def test_an_id_is_what_it_always_was() -> None:
    # These stand in customers' mails and in ticket stores: they must never change.
    assert message_id("/acme/shop", "n1", b"") == "8bw2p79ehag0jwbxkejh3czrb8"
    assert message_id("/acme/shop", None, b"content") == "9bb3yd7ep2eym1e8mwjeed7zkr"


def test_an_id_can_be_computed_by_others() -> None:
    parts = [b"native", b"/acme/shop", "订单 7".encode()]
    digest = sha256(b"".join(str(len(part)).encode() + b":" + part for part in parts)).digest()

    assert message_id("/acme/shop", "订单 7", b"anything") == crockford(int.from_bytes(digest[:16], "big") << 2, 26)


@given(texts, texts, contents)
def test_an_id_has_26_readable_characters(source: str, native_id: str, content: bytes) -> None:
    for id_ in (message_id(source, native_id, content), message_id(source, None, content)):
        assert len(id_) == 26
        assert set(id_) <= set(ALPHABET)


@given(st.tuples(texts, texts), st.tuples(texts, texts))
def test_different_messages_have_different_ids(one: tuple[str, str], other: tuple[str, str]) -> None:
    assume(one != other)

    assert message_id(*one, b"") != message_id(*other, b"")


@given(texts, contents)
def test_a_native_id_is_never_taken_for_a_content(source: str, content: bytes) -> None:
    text = content.decode("latin-1")

    assert message_id(source, text, content) != message_id(source, None, content)
    assert message_id(source, text, b"") != conflict_id(source, content)


@given(texts, contents, contents)
def test_the_content_counts_only_where_there_is_no_native_id(native_id: str, one: bytes, other: bytes) -> None:
    assume(one != other)

    assert message_id("/acme/shop", native_id, one) == message_id("/acme/shop", native_id, other)
    assert message_id("/acme/shop", None, one) != message_id("/acme/shop", None, other)
    assert conflict_id("first", one) != conflict_id("first", other)


def test_a_native_id_may_be_no_proper_text() -> None:
    assert message_id("/acme/shop", "\ud800", b"") != message_id("/acme/shop", "\ud801", b"")


@given(texts)
def test_a_reference_is_the_beginning_of_its_id(native_id: str) -> None:
    id_ = message_id("/acme/shop", native_id, b"")
    shown = reference(id_)

    assert [len(group) for group in shown.split("-")] == [4, 4, 4]
    assert shown == shown.upper()
    assert id_.startswith(id_prefix(shown))


@pytest.mark.parametrize("typed", ["7K3M-9QX2-4WPD", "7k3m9qx24wpd", " 7K3M 9QX2 4WPD ", "7k3m-9QX2-4wpd"])
def test_a_reference_may_be_typed_in_any_way(typed: str) -> None:
    assert id_prefix(typed) == "7k3m9qx24wpd"


def test_letters_that_crockford_leaves_out_are_read_as_what_they_look_like() -> None:
    assert id_prefix("IiLlOo") == "111100"
