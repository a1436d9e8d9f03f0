"""The Date of a mail (RFC 5322, 3.3 and 4.3) and what stands in its place, as a moment in UTC.

A date that cannot be is none: nothing is made up. A time without a zone is taken for UTC, as RFC 5322 takes an unknown
zone. With a zone that no place has the moment is unknown.
"""

import re
from datetime import UTC, datetime, timedelta

from gateway.mail import words

_MAX_BYTES = 200
_MAX_OFFSET_MINUTES = 15 * 60

_USUAL = re.compile(
    rb"(?:[A-Za-z]{3}, )?(\d{1,2}) ([A-Za-z]{3}) (\d{4}) (\d\d):(\d\d)(?::(\d\d))? ([+-])(\d\d)(\d\d)(?: \([^()]*\))?"
)
_TIME = re.compile(
    r"""(?P<half>上午|下午|晚上|凌晨|早上|中午|午前|午後|오전|오후|[ap]\.?m\.?)?\s{0,3}
    (?<!\d)(?P<hour>\d{1,2})\s{0,2}[:：.时時点시]\s{0,2}(?P<minute>\d{1,2})
    (?:\s{0,2}[:：.分분]\s{0,2}(?P<second>\d{1,2})(?:[.,]\d{1,9})?)?[分秒초분]?
    (?:\s{0,3}(?P<half2>[ap]\.?m\b\.?))?""",
    re.VERBOSE | re.IGNORECASE,
)
_ISO = re.compile(
    r"(?<!\d)(\d{4})\s{0,2}[-/.年년]\s{0,2}(\d{1,2})\s{0,2}[-/.月월]\s{0,2}(\d{1,2})(?!\d)\s{0,2}[日일T]?"
)
_DAY_FIRST = re.compile(
    r"(?<!\d)(\d{1,2})\.?(?:\s+|\s{0,3}[-/]\s{0,3})"
    r"([^\W\d_]{3,12}|十?[一二三四五六七八九十]月|\d{1,2}月)\.?[\s,/-]{0,4}(\d{2,4})(?![\d:])"
)
_MONTH_FIRST = re.compile(r"([^\W\d_]{3,12})\.?\s{1,3}(\d{1,2})(?:st|nd|rd|th)?(?![\d:]),?")
_YEAR = re.compile(r"(?<![\d:+-])(\d{4})(?![\d:])")
_SLASHED = re.compile(r"(?<!\d)(\d{1,2})([/.])(\d{1,2})\2(\d{4})(?!\d)")
_OFFSET = re.compile(r"(?:GMT|UTC?)?\s{0,2}([+-])\s{0,2}(\d{1,2})(?::?(\d{2}))?(?!\d)", re.IGNORECASE)
_ZONE = re.compile(r"(?<![A-Za-z])([A-Z]{1,5})(?![A-Za-z])")

_MONTHS: dict[str, int] = {}
for _number, _names in enumerate(
    (
        "jan ene gen янв 一月 1月",
        "feb fév fev фев 二月 2月",
        "mar mär mrz mrt маr мар 三月 3月",
        "apr avr abr апр 四月 4月",
        "may mai mag maj mei май мая 五月 5月",
        "jun juin giu июн 六月 6月",
        "jul juil lug июл 七月 7月",
        "aug aoû aou ago авг 八月 8月",
        "sep set сен 九月 9月",
        "oct okt ott out окт 十月 10月",
        "nov ноя 十一月 11月",
        "dec dez déc dic дек 十二月 12月",
    ),
    1,
):
    _MONTHS |= dict.fromkeys(_names.split(), _number)

# RFC 5322, 4.3, and a few that are no matter of doubt. CST stays American, as the RFC has it.
_ZONES = {
    zone: minutes
    for minutes, zones in (
        (0, "UT GMT UTC Z WET"),
        (60, "CET MET BST"),
        (120, "CEST MEST EET"),
        (180, "EEST MSK"),
        (480, "HKT SGT AWST"),
        (540, "JST KST"),
        (600, "AEST"),
        (660, "AEDT"),
        (720, "NZST"),
        (780, "NZDT"),
        (-240, "EDT"),
        (-300, "EST CDT"),
        (-360, "CST MDT"),
        (-420, "MST PDT"),
        (-480, "PST"),
        (-540, "AKST"),
        (-600, "HST"),
    )
    for zone in zones.split()
}
_AFTERNOON = frozenset({"下午", "晚上", "午後", "오후"})


def parse(raw: bytes | None) -> datetime | None:
    """The moment in UTC, from 1970 to 2199; None if there is none to be read. Never raises."""
    if not raw:
        return None
    usual = _USUAL.fullmatch(raw)
    if usual and (month := _MONTHS.get(usual[2].decode().lower())):
        day, year, hour, minute, second = (int(usual[n] or 0) for n in (1, 3, 4, 5, 6))
        return _moment((year, month, day), (hour, minute, second), _offset(usual[7], usual[8], usual[9]))
    return _lenient(words.decode(raw[:_MAX_BYTES]))


def _lenient(text: str) -> datetime | None:
    comments = re.findall(r"\(([^()]*)\)", text)
    plain = re.sub(r"\([^()]*\)", " ", text)
    time = _TIME.search(plain)
    without_time = plain[: time.start()] + " " + plain[time.end() :] if time else plain
    day = _day(without_time if time else plain)
    if day is None:
        return None
    rest = plain[time.end() :] if time else ""
    zone = _zone(rest)
    return _moment(day, _clock(time), _zone(" ".join(comments)) if zone is None else zone)


def _day(text: str) -> tuple[int, int, int] | None:
    if iso := _ISO.search(text):
        return int(iso[1]), int(iso[2]), int(iso[3])
    for found in _DAY_FIRST.finditer(text):
        if month := _month(found[2]):
            return _year(found[3]), month, int(found[1])
    for found in _MONTH_FIRST.finditer(text):
        if (month := _month(found[1])) and (year := _YEAR.search(text, found.end())):
            return int(year[1]), month, int(found[2])
    slashed = _SLASHED.search(text)
    return _slashed(slashed) if slashed else None


def _month(name: str) -> int:
    lower = name.lower()
    return _MONTHS.get(lower) or _MONTHS.get(lower[:4]) or _MONTHS.get(lower[:3]) or 0


def _year(digits: str) -> int:
    """RFC 5322, 4.3: two digits are of 1950 to 2049, three count from 1900."""
    year = int(digits)
    if len(digits) == 2:
        return year + (2000 if year < 50 else 1900)
    return year + 1900 if len(digits) == 3 else year


def _slashed(found: re.Match[str]) -> tuple[int, int, int] | None:
    """With slashes only where day and month cannot be taken for each other; with dots the day comes first."""
    first, second, year = int(found[1]), int(found[3]), int(found[4])
    if found[2] == "." or first > 12:
        return year, second, first
    return (year, first, second) if second > 12 or first == second else None


def _clock(time: re.Match[str] | None) -> tuple[int, int, int]:
    if time is None:
        return 0, 0, 0
    hour, minute, second = int(time["hour"]), int(time["minute"]), int(time["second"] or 0)
    half = (time["half2"] or time["half"] or "").lower()
    if half.startswith("p") or half in _AFTERNOON:
        hour += 12 if hour < 12 else 0
    elif half.startswith("a") and hour == 12:
        hour = 0
    return hour, minute, second


def _zone(text: str) -> int | None:
    """Minutes east of UTC."""
    if offset := _OFFSET.search(text):
        return _offset(offset[1].encode(), offset[2].encode(), (offset[3] or "0").encode())
    return next((_ZONES[name[1]] for name in _ZONE.finditer(text) if name[1] in _ZONES), None)


def _offset(sign: bytes, hours: bytes, minutes: bytes) -> int:
    total = int(hours or 0) * 60 + int(minutes or 0)
    return -total if sign == b"-" else total


def _moment(day: tuple[int, int, int], clock: tuple[int, int, int], offset: int | None) -> datetime | None:
    hour, minute, second = clock
    offset = offset or 0
    try:
        midnight = datetime(*day, tzinfo=UTC)
        if hour > 24 or minute > 59 or second > 61 or abs(offset) > _MAX_OFFSET_MINUTES:
            return None
        moment = midnight + timedelta(hours=hour, minutes=minute - offset, seconds=min(second, 59))
    except (ValueError, OverflowError):
        return None
    return moment if 1970 <= moment.year < 2200 else None
