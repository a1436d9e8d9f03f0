"""A server's certificate: loaded anew when its files change, and when it expires."""

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import structlog

from gateway.errors import ConfigError

log = structlog.get_logger()

_VERSION, _UTC_TIME = 0xA0, 0x17  # of X.690's tags; the other time is GeneralizedTime
_Stamp = tuple[tuple[int, int, int], ...]


class Certificate:
    """A chain in PEM and its key, in the same file where there is no other.

    Tools that renew certificates write the two files one after the other: until both fit, the old pair stays in use.
    """

    def __init__(self, chain: Path, key: Path | None, oldest: ssl.TLSVersion) -> None:
        """Raises ConfigError when they cannot be used."""
        self._files = (chain, key or chain)
        self._oldest = oldest
        self._stamp: _Stamp = ()
        self._trouble = ""
        try:
            self._load()
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise ConfigError(f"the certificate {chain} cannot be used: {_words(error)}") from error

    @property
    def context(self) -> ssl.SSLContext:
        """For the next handshake."""
        self._refresh()
        return self._context

    @property
    def expires_at(self) -> float:
        """Of the server's own certificate, in seconds since the epoch."""
        self._refresh()
        return self._expires_at

    def _refresh(self) -> None:
        trouble = ""
        try:
            if self._stamp_now() != self._stamp:
                self._load()
                log.info("certificate.loaded", path=str(self._files[0]), expires_at=self._expires_at)
            else:
                trouble = self._trouble
        except (OSError, ValueError) as error:
            trouble = _words(error)
            if trouble != self._trouble:
                log.error("certificate.unusable", path=str(self._files[0]), reason=trouble)
        self._trouble = trouble

    def _load(self) -> None:
        self._stamp = self._stamp_now()  # first: what changes while we read is seen the next time, a fault told once
        chain, key = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = self._oldest
        context.load_cert_chain(chain, key, password=lambda: "")  # else OpenSSL asks at the terminal
        self._expires_at = expiry(chain.read_text("utf-8", "replace"))
        self._context = context

    def _stamp_now(self) -> _Stamp:
        found = [path.stat() for path in self._files]
        return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in found)


def expiry(pem: str) -> float:
    """`notAfter` of the first certificate in a text, in seconds since the epoch. Raises ValueError.

    The ssl module tells it of a peer's certificate alone, so it is read from the DER: RFC 5280 section 4.1.
    """
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    start = pem.find(begin)
    stop = pem.find(end, start)
    if start < 0 or stop < 0:
        raise ValueError("there is no certificate in it")
    try:
        return _not_after(ssl.PEM_cert_to_DER_cert(pem[start : stop + len(end)]))
    except (StopIteration, IndexError) as error:
        raise ValueError("the certificate is not one") from error


def _not_after(der: bytes) -> float:
    certificate = next(_elements(der))[1]
    fields = [content for tag, content in _elements(next(_elements(certificate))[1]) if tag != _VERSION]
    validity = list(_elements(fields[3]))  # behind serial number, algorithm and issuer
    tag, text = validity[1]
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text.decode("ascii"), form).replace(tzinfo=UTC).timestamp()


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element: X.690 section 8.1. Raises ValueError."""
    at = 0
    while at < len(der):
        head = der[at : at + 2]
        if len(head) < 2:
            raise ValueError("the certificate is cut off")
        tag, length = head
        at += 2
        if length & 0x80:
            width = length & 0x7F
            length = int.from_bytes(der[at : at + width], "big")
            at += width
        yield tag, der[at : at + length]
        at += length


def _words(error: Exception) -> str:
    """What OpenSSL means by its `[SSL] PEM lib (_ssl.c:3900)`, for example."""
    if isinstance(error, FileNotFoundError):
        return f"there is no file {error.filename}"
    if isinstance(error, PermissionError):
        return f"{error.filename} may not be read by this user"
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return "the private key belongs to another certificate"
    if isinstance(error, ssl.SSLError):
        return f"it is not PEM, or its private key is missing or has a passphrase ({error.reason or error})"
    return str(error)
