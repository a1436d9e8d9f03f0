"""The address a customer answers to: our own with the message's reference in it, signed.

    support+7k3m9qx24wpduvjuwwj6tjniz7js@acme.cn
            └ reference ┘└ signature ──┘

A subject can be written by anybody, and a reference in it is a hint. Whoever has this address was sent it by us, or by
somebody to whom we sent it. The part behind the plus is the subaddress of RFC 5233; it is made of letters and digits,
because a mail system on the way may change a local part's case, and says nothing about the customer.
"""

import hmac
import re
from base64 import b32encode

from gateway.errors import Rejected

LONGEST_LOCAL_PART = 64  # octets; RFC 5321, 4.5.3.1.1
_SIGNATURE_BYTES = 10  # 80 bits: a guess costs the guesser a mail
_REFERENCE = re.compile(r"[0-9a-hjkmnp-tv-z]{12}", re.ASCII)
_TOKEN = re.compile(r"([0-9a-hjkmnp-tv-z]{12})([a-z2-7]{16})", re.ASCII)
LONGEST_BASE = LONGEST_LOCAL_PART - len("+") - 12 - 16  # what is left for the mailbox's own local part


def make(address: str, reference: str, key: bytes) -> str:
    """`address` with the reference behind a plus.

    Raises Rejected("invalid") when `address` leaves no room for it (a local part of more than 35 octets), and for what
    is no address or no reference.
    """
    local, at, domain = address.rpartition("@")
    plain = reference.replace("-", "").lower()
    if not at or not local or not domain or not _REFERENCE.fullmatch(plain):
        raise Rejected("invalid", reason="no address, or no reference")
    if len(local.encode("utf-8", "surrogatepass")) > LONGEST_BASE:
        raise Rejected("invalid", reason=f"the part before the @ is longer than {LONGEST_BASE} octets")
    return f"{local}+{plain}{_signature(plain, key)}@{domain}"


def verify(address: str, key: bytes) -> str | None:
    """The reference in an address that `make` made with this key, as people read it; None for every other text."""
    local, _, _ = address.rpartition("@")
    if not local.isascii():  # one of the capitals of other alphabets is `k` in lower case
        return None
    token = _TOKEN.fullmatch(local.rpartition("+")[2].lower())
    if token is None or not hmac.compare_digest(token[2], _signature(token[1], key)):
        return None
    plain = token[1].upper()
    return f"{plain[:4]}-{plain[4:8]}-{plain[8:]}"


def _signature(reference: str, key: bytes) -> str:
    return b32encode(hmac.digest(key, reference.encode(), "sha256")[:_SIGNATURE_BYTES]).decode().lower()
