"""Which checks a channel has to pass, and which it may not pass."""

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest

from tests.contract.driver import Subject
from tests.contract.rig import Check


def cases(subjects: Iterable[Subject], checks: Iterable[Check]) -> list[Any]:
    """Parameters `(subject, check)`. One with a waiver has to fail by an assertion: else the waiver is stale."""
    return [_case(subject, check) for subject, check in product(subjects, checks)]


def _case(subject: Subject, check: Check) -> Any:
    reason = subject.driver_class.waivers.get(check.__name__)
    marks = [pytest.mark.xfail(reason=reason, raises=AssertionError, strict=True)] if reason else []
    return pytest.param(subject, check, marks=marks, id=f"{subject}-{check.__name__}")
