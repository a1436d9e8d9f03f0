"""Times and durations as vendors write them.

Unix seconds, milliseconds, microseconds or nanoseconds, as number or text; `2026-11-24 17:00:00` and its kin, with a
zone or in the vendor's; 14 digits; the dates of mail (RFC 5322). Zero, an empty text and the epoch are no time.
"""

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from zoneinfo import ZoneInfo

_MAX_CHARS = 64
_EARLIEST, _LATEST = datetime(1990, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
_MAX_SECONDS = 31 * 86400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NOTHING = re.compile(r"[0\-/:.+\sTZ]*|null|1970-01-01[ T]0[08]:00:00.*", re.IGNORECASE | re.ASCII)
_UNIX = re.compile(r"([0-9]{9,19})(?:\.([0-9]{1,9}))?", re.ASCII)
_DIGITS = re.compile(r"[0-9]{14}", re.ASCII)
_COUNT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(?:s|秒)?", re.ASCII)
_LAPSE = re.compile(r"(?:([0-9]{1,4}):)?([0-9]{1,4}):([0-9]{1,2}(?:\.[0-9]{1,9})?)", re.ASCII)
_ZONED = re.compile(r"(.*[0-9])\s*(?:UTC|GMT)", re.IGNORECASE | re.ASCII)


def moment(given: str, zone: ZoneInfo, formats: Sequence[str] = ()) -> datetime | None:
    """In UTC; None for no time. `zone` is that of times that name none. Raises ValueError: not a time, or absurd."""
    text = given.strip()
    if len(text) > _MAX_CHARS:
        raise ValueError("is too long for a time")
    if _NOTHING.fullmatch(text):
        return None
    try:
        found = _parsed(text, formats)
        found = (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError, TypeError, IndexError) as error:  # the last two are email.utils' own
        raise ValueError("is not a time") from error
    if not _EARLIEST <= found < _LATEST:
        raise ValueError("is not a time a call was made at")
    return found


def seconds(given: str) -> float | None:
    """Of `35`, `35.2`, `00:01:05` or `1:05`; None for none. Raises ValueError: not a duration, or absurd."""
    text = given.strip()[:_MAX_CHARS]
    if not text or text.lower() in {"null", "-1"}:
        return None
    count, lapse = _COUNT.fullmatch(text), _LAPSE.fullmatch(text)
    if count:
        found = float(count[1])
    elif lapse:
        found = int(lapse[1] or 0) * 3600 + int(lapse[2]) * 60 + float(lapse[3])
    else:
        raise ValueError("is not a duration")
    if found > _MAX_SECONDS:
        raise ValueError("is longer than a call can be")
    return found


def _parsed(text: str, formats: Sequence[str]) -> datetime:
    for form in formats:
        try:
            return datetime.strptime(text, form)  # noqa: DTZ007 - the caller gives it its zone
        except ValueError:
            continue
    if _DIGITS.fullmatch(text):
        return datetime.strptime(text, "%Y%m%d%H%M%S")  # noqa: DTZ007 - the caller gives it its zone
    if unix := _UNIX.fullmatch(text):
        return _of_unix(unix[1], unix[2] or "")
    if "," in text or text[:1].isalpha():
        return parsedate_to_datetime(text)
    zoned = _ZONED.fullmatch(text)
    text = f"{zoned[1]}Z" if zoned else text
    return datetime.fromisoformat(text.replace("/", "-").replace(" +", "+").replace(" -", "-"))


def _of_unix(digits: str, fraction: str) -> datetime:
    """By the number of digits: seconds have ten from 2001 on, and each finer unit three more."""
    scale = min(max(math.ceil((len(digits) - 10) / 3), 0), 3)
    micros = int(f"{digits}{fraction:0<9}") // 10 ** (3 + 3 * scale)
    return _EPOCH + timedelta(microseconds=micros)
