"""A certificate's expiry, read from its bytes; and what is no certificate."""

import ssl
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.certificate import Certificate, expiry
from gateway.errors import ConfigError
from tests.smtp_talk import make_certificate


@pytest.mark.parametrize("days", [30, 365 * 40])  # from 2050 on the time has another form: RFC 5280 section 4.1.2.5
def test_the_expiry_is_that_of_the_first_certificate(tmp_path: Path, days: int) -> None:
    chain, _ = make_certificate(tmp_path, days=days)
    other, _ = make_certificate(tmp_path, "other.test", days=1)

    found = expiry("Bag Attributes\n" + chain.read_text() + other.read_text())

    assert found == pytest.approx(time.time() + days * 86400, abs=60)


@given(der=st.binary(max_size=60))
def test_nonsense_is_told_as_such(der: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever its words
        expiry(ssl.DER_cert_to_PEM_cert(der))


@pytest.mark.parametrize(
    "text", ["", "-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE----------BEGIN CERTIFICATE-----"]
)
def test_what_holds_no_certificate_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="no certificate"):
        expiry(text)


def test_a_key_with_a_passphrase_does_not_ask_for_it(tmp_path: Path) -> None:
    chain, key = make_certificate(tmp_path)
    locked = tmp_path / "locked.key"
    command = ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked]
    subprocess.run(command, check=True, capture_output=True)

    with pytest.raises(ConfigError, match="cannot be used"):
        Certificate(chain, locked, ssl.TLSVersion.TLSv1_2)
