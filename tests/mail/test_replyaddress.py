"""A reply address carries a reference that only we can have written there."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.errors import Rejected
from gateway.identity import message_id, reference
from gateway.mail.replyaddress import LONGEST_BASE, LONGEST_LOCAL_PART, make, verify

KEY = b"k" * 32
ids = st.text(max_size=20).map(lambda native_id: message_id("/acme/mail", native_id, b""))
locals_ = st.text("abcdefghijklmnopqrstuvwxyz0123456789.+-_", min_size=1, max_size=LONGEST_BASE)


def test_an_address_is_what_it_always_was() -> None:
    # These stand in customers' mails: they must never change.
    assert make("support@acme.cn", "7K3M-9QX2-4WPD", KEY) == "support+7k3m9qx24wpduvjuwwj6tjniz7js@acme.cn"


@given(locals_, ids)
def test_what_was_made_is_verified(local: str, id_: str) -> None:
    address = make(f"{local}@acme.cn", reference(id_), KEY)

    assert verify(address, KEY) == reference(id_)
    assert address.startswith(f"{local}+")
    assert address.endswith("@acme.cn")
    assert len(address.rpartition("@")[0]) <= LONGEST_LOCAL_PART


@given(ids, st.data())
def test_the_case_of_letters_does_not_matter(id_: str, data: st.DataObject) -> None:
    address = make("support@acme.cn", reference(id_), KEY)
    capitals = data.draw(st.lists(st.booleans(), min_size=len(address), max_size=len(address)))

    changed = "".join(c.upper() if capital else c for c, capital in zip(address, capitals, strict=True))

    assert verify(changed, KEY) == reference(id_)


@given(ids, st.integers(0, 27), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_another_reference_or_signature_is_refused(id_: str, at: int, character: str) -> None:
    token = make("a@b", reference(id_), KEY)[2:-2]
    assume(token[at] != character)

    assert verify(f"a+{token[:at]}{character}{token[at + 1 :]}@b", KEY) is None


@given(ids)
def test_another_gateway_s_address_is_refused(id_: str) -> None:
    assert verify(make("support@acme.cn", reference(id_), b"another key"), KEY) is None


@given(st.text(max_size=120) | st.from_regex(r"[^@]{0,9}\+[0-9a-z]{26,30}@a", fullmatch=True))
def test_no_text_is_an_error_or_verified(text: str) -> None:
    assert verify(text, KEY) is None


@pytest.mark.parametrize("sign", ["\u212a", "ⅸ", "ſ", "\ud800"])
def test_a_letter_of_another_alphabet_is_no_letter(sign: str) -> None:
    # KELVIN SIGN becomes `k` in lower case.
    address = make("support@acme.cn", "KKKK-KKKK-KKKK", KEY)

    assert verify(address.replace("+k", f"+{sign}"), KEY) is None


@pytest.mark.parametrize(
    ("address", "ref"),
    [
        ("support", "7K3M-9QX2-4WPD"),
        ("@acme.cn", "7K3M-9QX2-4WPD"),
        ("support@", "7K3M-9QX2-4WPD"),
        ("support@acme.cn", "7K3M-9QX2"),
        ("support@acme.cn", "7K3M-9QX2-4WPU"),
        ("s" * (LONGEST_BASE + 1) + "@acme.cn", "7K3M-9QX2-4WPD"),
    ],
)
def test_what_cannot_be_made_is_refused(address: str, ref: str) -> None:
    with pytest.raises(Rejected):
        make(address, ref, KEY)
