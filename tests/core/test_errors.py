"""The table of errors, cell by cell, and what of an error may cross the wire."""

import re

import pytest

from gateway.errors import (
    ANSWERS,
    PERMANENT,
    TEMPORARY,
    ConfigError,
    HuiruError,
    Rejected,
    Unavailable,
    problem,
    wire_error,
)

TABLE = {
    "malformed": (400, "554 5.6.0", "quarantine"),
    "unauthenticated": (401, "535 5.7.8", "quarantine"),
    "forbidden": (403, "550 5.7.1", "quarantine"),
    "not_found": (404, "550 5.1.1", "quarantine"),
    "method_not_allowed": (405, "502 5.5.1", "quarantine"),
    "conflict": (409, "554 5.5.0", "quarantine"),
    "gone": (410, "550 5.1.6", "quarantine"),
    "too_large": (413, "552 5.3.4", "quarantine"),
    "unsupported_media_type": (415, "554 5.6.1", "quarantine"),
    "invalid": (422, "554 5.6.0", "quarantine"),
    "idempotency_mismatch": (422, "554 5.6.0", "quarantine"),
    "timeout": (408, "451 4.4.2", "retry"),
    "rate_limited": (429, "451 4.7.1", "retry"),
    "unavailable": (503, "451 4.3.0", "retry"),
    "busy": (503, "451 4.3.2", "retry"),
    "spool_full": (503, "452 4.3.1", "retry"),
    "spool_failed": (503, "451 4.3.0", "retry"),
    "stopping": (503, "421 4.3.2", "retry"),
    "internal": (503, "451 4.3.0", "retry"),
}


def test_the_table_has_these_codes() -> None:
    assert ANSWERS.keys() == TABLE.keys()


@pytest.mark.parametrize("code", TABLE)
def test_each_code_has_its_answers(code: str) -> None:
    answer = ANSWERS[code]

    assert (answer.http, answer.smtp, answer.imap) == TABLE[code]
    assert answer.title


@pytest.mark.parametrize("code", TABLE)
def test_the_three_protocols_say_the_same(code: str) -> None:
    """Permanent or not: by the first digits of RFC 5321 and RFC 3463."""
    answer, permanent = ANSWERS[code], code in PERMANENT
    reply = re.fullmatch(r"([45])\d\d ([45])\.\d\.\d", answer.smtp)

    assert reply is not None
    assert reply[1] == reply[2] == ("5" if permanent else "4")
    assert answer.imap == ("quarantine" if permanent else "retry")
    assert permanent == (answer.http in range(400, 500) and answer.http not in (408, 429))


def test_our_own_faults_are_never_permanent() -> None:
    assert {"internal", "spool_full", "spool_failed", "stopping", "unavailable"} <= TEMPORARY.keys()


def test_the_texts_of_an_error_have_defaults() -> None:
    plain, told, reasoned = Rejected("gone"), Rejected("gone", "it was here"), Rejected("gone", reason="row 7")

    assert (plain.public, plain.reason) == ("No longer available", "No longer available")
    assert (told.public, told.reason) == ("it was here", "it was here")
    assert (reasoned.public, reasoned.reason, str(reasoned)) == ("No longer available", "row 7", "row 7")
    assert Rejected("a normalizer's own").public == ""


def test_an_error_that_is_ours_crosses_the_wire_as_it_is() -> None:
    for error in (Rejected("invalid", "no name"), Unavailable("busy", retry_after=3)):
        assert wire_error(error) is error


@pytest.mark.parametrize(
    "error", [RuntimeError("password"), OSError("password"), ConfigError("password"), HuiruError("busy", "password")]
)
def test_an_error_of_anybody_else_is_a_temporary_fault_without_its_text(error: Exception) -> None:
    known = wire_error(error)

    assert isinstance(known, Unavailable)
    assert known.code == "internal"
    assert "password" not in known.public
    assert "password" in known.reason
    assert "password" not in str(problem(known))


def test_a_code_of_a_normalizers_own_crosses_the_wire_as_invalid() -> None:
    known = wire_error(Rejected("bad_mime", "secret detail", reason="at byte 7"))

    assert isinstance(known, Rejected)
    assert (known.code, known.reason) == ("invalid", "bad_mime: at byte 7")
    assert "secret detail" not in str(problem(known))


def test_a_problem_document_has_what_rfc_9457_names() -> None:
    document = problem(Rejected("invalid", "no name", extra={"errors": [{"field": "name"}]}))

    assert document == {
        "type": "urn:huiru:problem:invalid",
        "title": "Some values are not valid",
        "status": 422,
        "detail": "no name",
        "code": "invalid",
        "errors": [{"field": "name"}],
    }


def test_a_problem_that_passes_says_when() -> None:
    assert problem(Unavailable("busy", retry_after=3))["retry_after"] == 3
