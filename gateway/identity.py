"""A message's identity is a function of the message (R3): the same on every retry, after every crash, everywhere."""

from functools import lru_cache
from hashlib import sha256
from itertools import product

# Crockford's base32: no I, L, O or U, so that people can read it out and type it in (crockford.com/base32.html).
_TWO = ["".join(pair) for pair in product("0123456789abcdefghjkmnpqrstvwxyz", repeat=2)]
_SHIFTS = range(120, -1, -10)  # 26 characters hold 128 bits and two of padding
_MISREAD = str.maketrans({"I": "1", "L": "1", "O": "0", "-": None, " ": None})


def message_id(source: str, native_id: str | None, fingerprint: bytes) -> str:
    """The id of a message: 26 characters of Crockford base32 in lower case.

    `source` is the CloudEvents source (gateway and channel name); `native_id` the channel's own id, and where it gives
    none, the content's digest takes its place.
    """
    if native_id is None:
        return _derive(_head("content", source), fingerprint)
    return _derive(_head("native", source), native_id.encode("utf-8", "surrogatepass"))


def conflict_id(first_id: str, fingerprint: bytes) -> str:
    """The id of a message that came under the native id of `first_id` with other content (R5)."""
    return _derive(_part(b"conflict") + _part(first_id.encode()), fingerprint)


def reference(id_: str) -> str:
    """What a customer is told: the first 12 characters of the id, grouped, in capitals (60 bits)."""
    head = id_[:12].upper()
    return f"{head[:4]}-{head[4:8]}-{head[8:]}"


def id_prefix(text: str) -> str:
    """What a person typed, a reference or an id, as the start of an id: any case, dashes or none, I and L for 1."""
    return text.upper().translate(_MISREAD).lower()


@lru_cache(maxsize=256)
def _head(kind: str, source: str) -> bytes:
    return _part(kind.encode()) + _part(source.encode())


def _part(content: bytes) -> bytes:
    """Preceded by its length, so that no two lists of parts give the same input."""
    return b"%d:%b" % (len(content), content)


def _derive(head: bytes, last: bytes) -> str:
    number = int.from_bytes(sha256(head + _part(last)).digest()[:16], "big") << 2
    return "".join([_TWO[number >> shift & 1023] for shift in _SHIFTS])
