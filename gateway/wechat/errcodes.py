"""What the codes of WeChat's server mean for us.

Errors come with HTTP status 200 and `{"errcode": …, "errmsg": …}`. Sources: each call's own page, and
developers.weixin.qq.com/doc/oplatform/developers/errCode/errCode.html. A code that is in no table is taken as passing.
"""

from collections.abc import Mapping

from gateway.errors import HuiruError, Rejected, Unavailable

_BUSY_SECS, _TROUBLE_SECS, _UNKNOWN_SECS = 2, 300, 60
_BUSY, UNAUTHORISED = -1, 48001

# The access token is not good, or no longer: another is asked for. Where the token itself was asked for, 40001 is the
# secret's fault: see TOKEN_REMEDIES.
BAD_TOKEN = frozenset({40001, 40014, 41001, 42001})

# Seconds to wait: 45009 is the quota of a day, 45011 that of a minute.
QUOTAS: Mapping[int, int] = {45009: 3600, 45011: 60}

# What the operator has to do. What was asked for can be had afterwards.
REMEDIES: Mapping[int, str] = {
    40013: "the appid is not the account's: compare it with the AppID in WeChat's console (开发设置, 基本配置)",
    40125: "the secret is wrong: compare it with the AppSecret, or reset that in WeChat's console (开发设置, 基本配置)",
    40164: "this gateway's address is not in the account's IP whitelist: add it in WeChat's console (IP白名单)",
    40243: "the AppSecret is frozen: unfreeze it in WeChat's console (开发设置, 基本配置)",
    48004: "WeChat has blocked this call for the account: WeChat's console says why",
    89503: "an administrator of the account has to confirm this gateway's address: they were asked in WeChat",
    89506: "an administrator of the account refused this gateway's address twice: it is barred for 24 hours",
    89507: "an administrator of the account refused this gateway's address: it is barred for an hour",
}
TOKEN_REMEDIES: Mapping[int, str] = {**REMEDIES, 40001: REMEDIES[40125], 41002: REMEDIES[40013], 41004: REMEDIES[40125]}

# Nobody can do anything: our code, and the public text.
MEDIA_REFUSALS: Mapping[int, tuple[str, str]] = {
    40007: ("gone", "WeChat no longer has this file"),
    UNAUTHORISED: ("forbidden", "WeChat gives this account no files: it has to be a verified one"),
}
CODE_REFUSALS: Mapping[int, tuple[str, str]] = {
    40029: ("unauthenticated", "the code is not valid, or no longer"),
    40163: ("unauthenticated", "the code has been used before"),
    40226: ("forbidden", "WeChat has blocked this user"),
    UNAUTHORISED: ("forbidden", "WeChat does not let this mini-program ask for that"),
}

# Users of whom WeChat tells nothing, or not to this account. 43004: does not follow it; 46004: does not exist.
NO_PROFILE: Mapping[int, tuple[str, str]] = dict.fromkeys(
    (40003, 43004, 46004, UNAUTHORISED, 48004, 50001, 50002), ("not_found", "WeChat tells nothing of this user")
)


class Trouble(Unavailable):
    """Temporary, and only until the operator does something: `reason` says what."""


def error_of(
    code: int,
    message: str,
    *,
    remedies: Mapping[int, str] = REMEDIES,
    refusals: Mapping[int, tuple[str, str]] = {},
) -> HuiruError:
    """Rejected, Trouble, or Unavailable with a fitting `retry_after`. `message` is the server's, without secrets."""
    said = f"WeChat says {code}: {message}"
    if code in refusals:
        return Rejected(*refusals[code], reason=said)
    if code in remedies:
        return Trouble(reason=f"{remedies[code]} [{said}]", retry_after=_TROUBLE_SECS)
    if code in QUOTAS:
        return Unavailable("rate_limited", reason=said, retry_after=QUOTAS[code])
    if code == _BUSY:
        return Unavailable("busy", reason=said, retry_after=_BUSY_SECS)
    return Unavailable(reason=said, retry_after=_UNKNOWN_SECS)
