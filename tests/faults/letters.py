"""Mails whose ticket is known: by their text, which begins with a token of their own, and their bytes."""

import base64
import hashlib
import quopri
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from tests.faults.load import WORDS, Record, Sent

_HEAVY_BYTES = 1_300_000  # of a file; IMAP brings such a mail in pieces
_LONG_WORDS = 9_000  # such a text is heavy too
_ENCODINGS = ("8bit", "base64", "quoted-printable")


@dataclass(slots=True, eq=False)
class Letter(Sent):
    """`raw` has CRLF at the end of its lines."""

    raw: bytes = b""


class Letters:
    """Of all forms and sizes, all different; what it makes is in the record."""

    def __init__(self, rng: Random, record: Record) -> None:
        self._rng = rng
        self._record = record
        self._run = f"{rng.getrandbits(40):010x}"
        self._numbers: Iterator[int] = iter(range(1 << 40))
        self._files = [rng.randbytes(rng.randint(1, 60_000)) for _ in range(5)]  # some come again and again
        self._heavy = rng.randbytes(_HEAVY_BYTES)

    def new(self, channel: str) -> Letter:
        rng, key = self._rng, f"{self._run}-{next(self._numbers)}"
        words = _LONG_WORDS if rng.random() < 0.06 else rng.randint(1, 60)
        text = " ".join([key.replace("-", ":"), *rng.choices(WORDS, k=words)])
        files = tuple(self._some_files())
        letter = Letter(key, channel, text, files, raw=self._raw(key, text, files))
        letter.bodies.add(hashlib.sha256(letter.raw).hexdigest())
        self._record.sent.append(letter)
        return letter

    def _some_files(self) -> Iterator[bytes]:
        shape = self._rng.random()
        if shape > 0.99:
            yield self._heavy
        elif shape > 0.9:
            for _ in range(self._rng.randint(1, 3)):
                yield self._rng.choice([*self._files, self._rng.randbytes(self._rng.randint(1, 90_000))])

    def _raw(self, key: str, text: str, files: tuple[bytes, ...]) -> bytes:
        boundary = f"----{self._rng.getrandbits(64):016x}"
        head = [
            *self._message_id(key),
            f"From: =?utf-8?B?5byg5LiJ?= <zhang{self._rng.randint(0, 50)}@example.com>",
            "To: support@acme.cn",
            f"Subject: {key}",
            "MIME-Version: 1.0",
        ]
        letter = self._text_part(text)
        if not files:
            return "\r\n".join(head).encode() + b"\r\n" + letter
        parts = [letter, *(_file_part(n, content) for n, content in enumerate(files))]
        mark = f"--{boundary}".encode()
        head.append(f'Content-Type: multipart/mixed; boundary="{boundary}"')
        body = b"".join(mark + b"\r\n" + part for part in parts)
        return "\r\n".join(head).encode() + b"\r\n\r\n" + body + mark + b"--\r\n"

    def _message_id(self, key: str) -> list[str]:
        """Mostly its own; also that of others, as shops have it, or none."""
        kind = self._rng.random()
        if kind < 0.1:
            return []
        return [f"Message-ID: <{'notice' if kind < 0.2 else key}@example.com>"]

    def _text_part(self, text: str) -> bytes:
        encoding = self._rng.choice(_ENCODINGS)
        head = f"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
        content = text.encode()
        if encoding == "base64":
            content = base64.encodebytes(content)
        elif encoding == "quoted-printable":
            content = quopri.encodestring(content)
        return head.encode() + content.rstrip(b"\n").replace(b"\n", b"\r\n") + b"\r\n"


def _file_part(n: int, content: bytes) -> bytes:
    head = (
        "Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n"
        f'Content-Disposition: attachment; filename="file-{n}.bin"\r\n\r\n'
    )
    return head.encode() + base64.encodebytes(content).replace(b"\n", b"\r\n")
