"""Passwords of which a configuration holds a hash alone."""

import hmac
import re
from hashlib import scrypt

FORM = r"^scrypt:[0-9a-f]{32}:[0-9a-f]{64}$"
# Of any password and nobody's: an unknown user takes as long as a wrong password.
NOBODY = f"scrypt:{'0' * 32}:{'0' * 64}"
_COST = {"n": 1 << 14, "r": 8, "p": 1}  # 16 MiB and some 50 ms, in the range of OWASP's password storage cheat sheet


def hashed(password: bytes, salt: bytes) -> str:
    """`scrypt:<hex salt>:<hex hash>`, 16 and 32 bytes."""
    return f"scrypt:{salt.hex()}:{scrypt(password, salt=salt, dklen=32, **_COST).hex()}"


def matches(password: bytes, expected: str) -> bool:
    """Whether it is the password of this hash, in a time that tells nothing of it. Slow by design: for a thread."""
    if not re.fullmatch(FORM, expected):
        return False
    salt = bytes.fromhex(expected.split(":")[1])
    return hmac.compare_digest(hashed(password, salt).encode(), expected.encode())
