"""What an Idempotency-Key header may be."""

import pytest

from gateway.errors import Rejected
from gateway.idempotency import idempotency_key


@pytest.mark.parametrize(
    ("header", "key"),
    [("a", "a"), ('"a"', "a"), (r'"a\"b\\"', 'a"b\\'), ('"a b"', "a b"), (" k-1 ", "k-1"), ("x" * 255, "x" * 255)],
)
def test_it_is_quoted_or_bare(header: str, key: str) -> None:
    assert idempotency_key([header]) == key


@pytest.mark.parametrize("header", ["", '""', '"', "a b", "键", "x" * 256, "a\x7f", '"a', 'a"b'])
def test_anything_else_is_malformed(header: str) -> None:
    with pytest.raises(Rejected) as refused:
        idempotency_key([header])
    assert refused.value.code == "malformed"


def test_it_comes_once() -> None:
    with pytest.raises(Rejected):
        idempotency_key(["a", "a"])
