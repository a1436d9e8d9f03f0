"""The error classes, and the one table that turns an error into an answer.

    HuiruError
    ├── Rejected      permanent: the same message will never be accepted
    ├── Unavailable   temporary: the sender should try again
    └── ConfigError   the operator must change the configuration; the daemon does not start

Every error has a low-cardinality `code`, a `public` text that may cross the wire, and a private `reason` for the log.
Anything else that is raised is our own fault and therefore temporary (R8).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    """What a sender is told about one error code.

    `http` is a status code; `smtp` a reply with its enhanced code (RFC 3463); `imap` what the mailbox reader does with
    the message: `quarantine` it and go on, or `retry` it later.
    """

    http: int
    smtp: str
    imap: str
    title: str


PERMANENT: Mapping[str, Answer] = {
    "malformed": Answer(400, "554 5.6.0", "quarantine", "The request cannot be read"),
    "unauthenticated": Answer(401, "535 5.7.8", "quarantine", "Authentication failed"),
    "forbidden": Answer(403, "550 5.7.1", "quarantine", "Not allowed"),
    "not_found": Answer(404, "550 5.1.1", "quarantine", "Nothing here"),
    "method_not_allowed": Answer(405, "502 5.5.1", "quarantine", "Method not allowed"),
    "conflict": Answer(409, "554 5.5.0", "quarantine", "Conflict"),
    "gone": Answer(410, "550 5.1.6", "quarantine", "No longer available"),
    "too_large": Answer(413, "552 5.3.4", "quarantine", "Too large"),
    "unsupported_media_type": Answer(415, "554 5.6.1", "quarantine", "Unsupported media type"),
    "invalid": Answer(422, "554 5.6.0", "quarantine", "Some values are not valid"),
    "idempotency_mismatch": Answer(422, "554 5.6.0", "quarantine", "Idempotency key used with other content"),
}
TEMPORARY: Mapping[str, Answer] = {
    "timeout": Answer(408, "451 4.4.2", "retry", "The request took too long"),
    "rate_limited": Answer(429, "451 4.7.1", "retry", "Too many requests"),
    "unavailable": Answer(503, "451 4.3.0", "retry", "Temporarily unavailable"),
    "busy": Answer(503, "451 4.3.2", "retry", "Temporarily unavailable"),
    "spool_full": Answer(503, "452 4.3.1", "retry", "Temporarily unavailable"),
    "spool_failed": Answer(503, "451 4.3.0", "retry", "Temporarily unavailable"),
    "stopping": Answer(503, "421 4.3.2", "retry", "Temporarily unavailable"),
    "internal": Answer(503, "451 4.3.0", "retry", "Temporarily unavailable"),
}
ANSWERS: Mapping[str, Answer] = {**PERMANENT, **TEMPORARY}


class HuiruError(Exception):
    """Base of all errors this project raises on purpose."""

    def __init__(
        self, code: str, public: str = "", *, reason: str = "", extra: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(reason or public or code)
        self.code = code
        self.public = public or (ANSWERS[code].title if code in ANSWERS else "")
        self.reason = reason or self.public
        self.extra = dict(extra or {})


class Rejected(HuiruError):
    """Permanent. `code` is a key of PERMANENT when it answers a sender; a normalizer may use codes of its own.

    `extra` is added to the problem document as it is, for example `{"errors": [{"field": …, "message": …}]}`.
    """


class Unavailable(HuiruError):
    """Temporary. `code` is a key of TEMPORARY; `retry_after` is in seconds."""

    def __init__(self, code: str = "unavailable", public: str = "", *, reason: str = "", retry_after: int = 5) -> None:
        super().__init__(code, public, reason=reason)
        self.retry_after = retry_after


class ConfigError(HuiruError):
    """The configuration cannot be used. `public` holds one line per fault, each with file, line, key and remedy."""

    def __init__(self, public: str) -> None:
        super().__init__("config", public)


def wire_error(error: BaseException) -> HuiruError:
    """The error a sender may see: ours as it is, anybody else's as a temporary fault without its text."""
    if isinstance(error, Rejected | Unavailable) and error.code in ANSWERS:
        return error
    if isinstance(error, Rejected):
        return Rejected("invalid", reason=f"{error.code}: {error.reason}")
    return Unavailable("internal", reason=f"{type(error).__name__}: {error}")


def problem(error: HuiruError) -> dict[str, Any]:
    """The error as a problem document (RFC 9457), with our `code` and the error's own members."""
    answer = ANSWERS[error.code]
    document: dict[str, Any] = {
        "type": f"urn:huiru:problem:{error.code}",
        "title": answer.title,
        "status": answer.http,
        "detail": error.public,
        "code": error.code,
    }
    if isinstance(error, Unavailable):
        document["retry_after"] = error.retry_after
    return document | error.extra
