"""Telephone numbers: E.164 where that can be told, as they came where it cannot, and whether they can be called back.

Chinese service numbers (400, 800, 95xxx, 96xxx, 1xxxx) have no international form and stay as they came. A hidden
caller is the user part `anonymous` of RFC 3323, 4.1.1.3, a word that means it, or one typed on a keypad: Twilio's
+266696687.
"""

import re
from dataclasses import dataclass

import phonenumbers

_MAX_CHARS = 128
_ANGLES = re.compile(r"<([^<>]+)>")  # "Li" <13800138000>, as SIP has it
_URI = re.compile(r"^(?:tel|sips?):([^@;?]+)", re.IGNORECASE)
_DECORATION = re.compile(r"[\s().\-\u2010-\u2015/]")
_DIALABLE = re.compile(r"\+?[0-9]{2,20}")
_MASKED = re.compile(r"\+?[0-9]{1,12}[*xX#•＊]{2,12}[0-9]{0,8}")
_WORDS = (
    "anonymous restricted unavailable unknown private withheld blocked hidden"
    " 匿名 未知 未知号码 隐藏 隐藏号码 保密 私人号码"
)
_KEYPAD = "266696687 7378742833 86282452253 8656696 2562533"  # anonymous, restricted, unavailable, unknown, blocked
_HIDDEN = frozenset([*_WORDS.split(), *(sign + digits for digits in _KEYPAD.split() for sign in ("", "+"))])
_SERVICE = re.compile(r"(?:\+?86)?(?:[48]00[0-9]{7}|9[56][0-9]{3,8}|1[0-2][0-9]{1,6}|1[0-9]{4})")


@dataclass(frozen=True, slots=True)
class Number:
    """`text` is None for a hidden number and for none at all."""

    text: str | None = None
    masked: bool = False
    hidden: bool = False


def number(given: str, region: str) -> Number:
    """`region` (ISO 3166, `CN`) is that of numbers without a country code. Never raises."""
    plain = given[:_MAX_CHARS].strip()
    for pattern in (_ANGLES, _URI):
        if match := pattern.search(plain):
            plain = match[1].strip()
    compact = _DECORATION.sub("", plain)
    if not compact or compact.lower() in _HIDDEN:
        return Number(hidden=bool(compact))
    if _MASKED.fullmatch(compact):
        return Number(compact, masked=True)
    if not _DIALABLE.fullmatch(compact):
        return Number(given[:_MAX_CHARS].strip())  # a SIP address, a client's name
    return Number(_e164(compact, region) or compact)


def _e164(compact: str, region: str) -> str | None:
    if region == "CN" and _SERVICE.fullmatch(compact):
        return None
    text = f"+{compact[2:]}" if compact.startswith("00") else compact
    try:
        parsed = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return None
    if not phonenumbers.is_valid_number(parsed):
        return None
    # The library also reads 8613800138000, with the region's own code and no plus, as many exchanges send it.
    return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)
