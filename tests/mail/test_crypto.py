"""Signed and encrypted mails are flagged; openssl makes the real ones."""

import subprocess
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.crypto import seals, signed_content
from gateway.mail.message import parse

INNER = b"Content-Type: text/plain; charset=utf-8\r\n\r\n" + "打印机坏了".encode() + b"\r\n"
Smime = Callable[..., bytes]


@pytest.fixture(scope="module")
def smime(tmp_path_factory: pytest.TempPathFactory) -> Smime:
    """`smime("-sign", "-nodetach")`: INNER as openssl signs or encrypts it."""
    folder = tmp_path_factory.mktemp("smime")
    key, certificate, inner = folder / "key.pem", folder / "certificate.pem", folder / "inner.eml"
    inner.write_bytes(INNER)
    ask = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=zhang", "-days", "2"]
    subprocess.run([*ask, "-keyout", key, "-out", certificate], check=True, capture_output=True)

    def run(*options: str) -> bytes:
        signing = ["-signer", certificate, "-inkey", key] if "-sign" in options else ["-aes256"]
        last = [] if "-sign" in options else [certificate]
        done = subprocess.run(
            ["openssl", "cms", *options, "-in", inner, *signing, *last], check=True, capture_output=True
        )
        return done.stdout

    return run


def flags(raw: bytes, text: str = "") -> list[tuple[str, str]]:
    return [(one.code, one.detail) for one in seals(parse(raw), text)]


def test_a_signature_around_the_text(smime: Smime) -> None:
    mail = smime("-sign", "-nodetach", "-binary")

    assert flags(mail) == [("signed", "S/MIME")]
    assert signed_content(parse(mail).body) == INNER


def test_a_signature_in_pieces(smime: Smime) -> None:
    mail = smime("-sign", "-nodetach", "-binary", "-stream")

    assert signed_content(parse(mail).body) == INNER


def test_a_signature_without_its_type(smime: Smime) -> None:
    mail = smime("-sign", "-nodetach").replace(b"smime-type=signed-data; ", b"")

    assert flags(mail) == [("signed", "S/MIME")]


def test_a_signature_beside_the_text(smime: Smime) -> None:
    assert flags(smime("-sign")) == [("signed", "S/MIME")]


def test_encrypted(smime: Smime) -> None:
    mail = smime("-encrypt")

    assert flags(mail) == [("encrypted", "S/MIME")]
    assert signed_content(parse(mail).body) == b""


@pytest.mark.parametrize(
    ("kind", "parts", "expected"),
    [
        ("signed", ("text/plain", "application/pgp-signature"), [("signed", "OpenPGP")]),
        ("encrypted", ("application/pgp-encrypted", "application/octet-stream"), [("encrypted", "OpenPGP")]),
        ("mixed", ("text/plain", "application/pkcs7-mime; smime-type=enveloped-data"), [("encrypted", "S/MIME")]),
        ("mixed", ("text/plain", "application/pkcs7-mime"), [("encrypted", "S/MIME")]),
        ("mixed", ("text/plain", "application/pdf"), []),
        (
            "mixed",
            ("application/pgp-signature", "application/pkcs7-mime"),
            [("encrypted", "S/MIME"), ("signed", "OpenPGP")],
        ),
    ],
)
def test_parts(kind: str, parts: tuple[str, ...], expected: list[tuple[str, str]]) -> None:
    inner = "".join(f"--x\r\nContent-Type: {part}\r\n\r\nabc\r\n" for part in parts)
    raw = f"Content-Type: multipart/{kind}; boundary=x\r\n\r\n{inner}--x--\r\n".encode()

    assert flags(raw) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-----BEGIN PGP MESSAGE-----\n\nabc\n-----END PGP MESSAGE-----", [("encrypted", "OpenPGP")]),
        ("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nhi", [("signed", "OpenPGP")]),
        ("> -----BEGIN PGP MESSAGE-----", []),
        ("What is -----BEGIN PGP MESSAGE----- for?", []),
    ],
)
def test_inline(text: str, expected: list[tuple[str, str]]) -> None:
    assert flags(b"Subject: x\r\n\r\n", text) == expected


@given(st.binary(max_size=200), st.integers(0, 60))
def test_nothing_raises(data: bytes, cut: int) -> None:
    head = (
        bytes.fromhex("3080")
        + b"\x06\x09"
        + bytes.fromhex("2a864886f70d010702")
        + bytes.fromhex("a080308002010131003080")
    )

    signed_content(data)
    signed_content((head + data)[:cut] + data)
