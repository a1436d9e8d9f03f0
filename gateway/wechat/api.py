"""What we ask WeChat's server: files, users, the logins of mini-programs (developers.weixin.qq.com).

`media`    GET  /cgi-bin/media/get               doc/service/api/material/temporary/api_getmedia
`user`     GET  /cgi-bin/user/info               doc/service/api/usermanage/userinfo/api_userinfo
`session`  GET  /sns/jscode2session              miniprogram/dev/OpenApiDoc/user-login/code2Session.html
`phone`    POST /wxa/business/getuserphonenumber miniprogram/dev/OpenApiDoc/user-info/phone-number/getPhoneNumber.html
`token`    see stabletoken.py

Nothing but Rejected and Unavailable is raised, whatever the server says; no secret, token or code is in their words.
What the server's codes mean for us: errcodes.py.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
import phonenumbers
from multidict import MultiMapping

from gateway import mediatype
from gateway.contract import Http, Part, Profile, Shared
from gateway.envelope import Identity
from gateway.errors import Rejected, Unavailable
from gateway.mail import parameters
from gateway.text import file_name, one_line
from gateway.wechat.errcodes import (
    BAD_TOKEN,
    CODE_REFUSALS,
    MEDIA_REFUSALS,
    NO_PROFILE,
    REMEDIES,
    TOKEN_REMEDIES,
    UNAUTHORISED,
    Trouble,
    error_of,
)
from gateway.wechat.recent import Recent
from gateway.wechat.server import Answer, Server
from gateway.wechat.stabletoken import StableToken

DEFAULT_URL = "https://api.weixin.qq.com"
_MEDIA, _USER = "/cgi-bin/media/get", "/cgi-bin/user/info"
_SESSION, _PHONE = "/sns/jscode2session", "/wxa/business/getuserphonenumber"
_PROFILE_SECS, _NO_PROFILE_SECS = 86_400, 3600
_MAX_NAME_CHARS = 100
_MAX_URL_CHARS = 4096
_SNIFFED_BYTES = 4096
_OPENID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_CODE = re.compile(r"[!-~]{1,512}")
_DIGITS = re.compile(r"[0-9]{1,20}")
_LANGUAGE = re.compile(r"([A-Za-z]{2,3})(?:[_-]([A-Za-z]{2}|[0-9]{3}))?")


@dataclass(frozen=True, slots=True)
class Session:
    """Who has logged in to a mini-program. The session_key that comes with it is kept nowhere."""

    openid: str
    unionid: str | None = None


class Api:
    """Of one account; all gateways at one Redis share its token and what is known of its users."""

    def __init__(
        self, http: Http, shared: Shared, base_url: str, appid: str, secret: str, now: Callable[[], datetime]
    ) -> None:
        self._server = Server(http, base_url, secret)
        self._tokens = StableToken(self._server, shared, appid, secret, now)
        self._shared = shared
        self._appid = appid
        self._secret = secret
        self._profiles: Recent[Profile] = Recent(now)
        self._troubles: dict[str, str] = {}  # by the path that was asked

    @property
    def trouble(self) -> str:
        """What the operator has to do before WeChat gives us anything again; "" when nothing."""
        return self._tokens.trouble or next(iter(self._troubles.values()), "")

    async def probe(self) -> None:
        """Asks for a token, whatever is held: raises Unavailable, whose reason says what is wrong."""
        await self._tokens.check()

    async def token(self) -> str:
        """An access token. Raises Unavailable."""
        return await self._tokens.give()

    async def media(self, media_id: str) -> Part:
        """A file that a user sent. Raises Rejected when it can never be had, Unavailable when another try may help."""
        if not _CODE.fullmatch(media_id):
            raise Rejected("malformed", "the message names no file that WeChat could have")
        answer = await self._authorised(_MEDIA, {"media_id": media_id}, refusals=MEDIA_REFUSALS)
        if "video_url" in answer.document:
            return await self._video(answer.document["video_url"])
        return _part(answer.content, answer.headers)

    async def user(self, openid: str) -> Profile:
        """What WeChat tells of a user of the account: unionid, language, to few accounts the name. Raises Unavailable.

        Empty when it tells nothing, or not to this account.
        """
        known = await self.cached_user(openid)
        if known is not None:
            return known
        try:
            profile = _profile((await self._authorised(_USER, {"openid": openid}, refusals=NO_PROFILE)).document)
        except Rejected:
            profile = Profile()
        await self._remember(openid, profile)
        return profile

    async def cached_user(self, openid: str) -> Profile | None:
        """What `user` found within the last day; None when that is not known. Asks nobody but Redis; raises nothing."""
        if not _OPENID.fullmatch(openid):
            return Profile()
        known = self._profiles.get(openid)
        if known is None:
            with suppress(Unavailable):
                known = _remembered(await self._shared.get(self._key(openid)))
            if known is not None:
                self._profiles.put(openid, known)
        return known

    async def session(self, code: str) -> Session:
        """The user for whom `wx.login` gave this code; it is good once, for five minutes.

        Raises Rejected("unauthenticated" or "forbidden") and Unavailable.
        """
        query = {"appid": self._appid, "secret": self._secret, "js_code": _code(code)}
        answer = await self._server.ask(_SESSION, query | {"grant_type": "authorization_code"})
        self._judge(_SESSION, answer, CODE_REFUSALS, TOKEN_REMEDIES)
        openid = answer.document.get("openid")
        if not isinstance(openid, str) or not _OPENID.fullmatch(openid):
            raise Unavailable(reason="WeChat's server gives no openid for the code")
        return Session(openid, _id(answer.document.get("unionid")))

    async def phone(self, code: str) -> str:
        """The number (E.164) for which a user's `getPhoneNumber` gave this code, which is not that of `session`.

        Raises Rejected("unauthenticated", "forbidden" or "invalid") and Unavailable.
        """
        answer = await self._authorised(_PHONE, {}, {"code": _code(code)}, refusals=CODE_REFUSALS)
        return _number(answer.document.get("phone_info"), self._appid)

    async def _authorised(
        self,
        path: str,
        query: Mapping[str, str],
        document: Mapping[str, Any] | None = None,
        *,
        refusals: Mapping[int, tuple[str, str]],
    ) -> Answer:
        """The answer to a call with the token, once one is found that WeChat takes."""
        for given in (self._tokens.give, self._tokens.give, self._tokens.force):
            token = await given()
            whole = {"access_token": token, **query}
            answer = await (
                self._server.fetch(path, whole) if path == _MEDIA else self._server.ask(path, whole, document)
            )
            if answer.code not in BAD_TOKEN:
                self._judge(path, answer, refusals)
                return answer
            await self._tokens.forget(token)
        raise Unavailable(
            reason=f"WeChat refuses every token it gives: {answer.code}: {answer.message}", retry_after=60
        )

    def _judge(
        self,
        path: str,
        answer: Answer,
        refusals: Mapping[int, tuple[str, str]],
        remedies: Mapping[int, str] = REMEDIES,
    ) -> None:
        """Raises what the answer's code means, and remembers what the operator should know of it."""
        if not answer.code:
            self._troubles.pop(path, None)
            return
        error = error_of(answer.code, answer.message, remedies=remedies, refusals=refusals)
        if isinstance(error, Trouble) or (answer.code == UNAUTHORISED and path != _USER):
            self._troubles[path] = error.reason
        raise error

    async def _video(self, url: object) -> Part:
        """The second step to a video; the vendor's answers have been seen to come a little before the file is there."""
        if not isinstance(url, str) or len(url) > _MAX_URL_CHARS or not url.lower().startswith(("https://", "http://")):
            raise Unavailable(reason="WeChat's server gives no address for the video")
        response = await self._server.download(url)
        if response.status != 200:
            raise Unavailable(reason=f"the video's server answers with HTTP status {response.status}", retry_after=10)
        return _part(response.content, response.headers)

    async def _remember(self, openid: str, profile: Profile) -> None:
        unionid = next((identity.value for identity in profile.identities), None)
        text = orjson.dumps([profile.name, unionid, profile.language]).decode()
        ttl_secs = _NO_PROFILE_SECS if profile == Profile() else _PROFILE_SECS
        with suppress(Unavailable):
            await self._shared.put(self._key(openid), text, ttl_secs=ttl_secs)

    def _key(self, openid: str) -> str:
        return f"wechat:{self._appid}:user:{openid}"


def _part(content: bytes, headers: MultiMapping[str]) -> Part:
    """What is no text: a page of a proxy's, or an error of a form that we do not know, is no file of a user's."""
    disposition = headers.get("Content-Disposition", "").encode("utf-8", "surrogateescape")
    filename = file_name(parameters.parse(disposition)[1].get("filename", ""))
    content_type = mediatype.sniff(content[:_SNIFFED_BYTES], filename, headers.get("Content-Type", ""))
    if not content or content_type.startswith("text/") or content_type == "application/json":
        raise Unavailable(reason=f"WeChat's server gives {content_type if content else 'nothing'} for a file")
    return Part(content, filename, content_type)


def _profile(document: Mapping[str, Any]) -> Profile:
    unionid = _id(document.get("unionid"))
    identities = (Identity(kind="wechat_unionid", value=unionid, verified=True),) if unionid else ()
    name, language = document.get("nickname"), document.get("language")
    return Profile(
        name=one_line(name)[:_MAX_NAME_CHARS] or None if isinstance(name, str) else None,
        identities=identities,
        language=_language(language) if isinstance(language, str) else None,
    )


def _remembered(text: str | None) -> Profile | None:
    try:
        name, unionid, language = orjson.loads(text or "")
        return _profile({"nickname": name, "unionid": unionid, "language": language})
    except (ValueError, TypeError):
        return None


def _language(text: str) -> str | None:
    """`zh_CN` as BCP 47 has it: `zh-CN`."""
    tag = _LANGUAGE.fullmatch(text)
    if tag is None:
        return None
    return f"{tag[1].lower()}-{tag[2].upper()}" if tag[2] else tag[1].lower()


def _id(value: object) -> str | None:
    return value if isinstance(value, str) and _OPENID.fullmatch(value) else None


def _code(code: str) -> str:
    if not _CODE.fullmatch(code):
        raise Rejected("unauthenticated", CODE_REFUSALS[40029][1])
    return code


def _number(info: object, appid: str) -> str:
    """Of `phoneNumber`, `purePhoneNumber` and `countryCode`, the first has the country code abroad alone."""
    given: Mapping[str, Any] = info if isinstance(info, dict) else {}
    watermark = given.get("watermark")
    if not isinstance(watermark, dict) or watermark.get("appid") != appid:
        raise Rejected("invalid", "WeChat gives the number of another mini-program's user")
    country, number = str(given.get("countryCode")), str(given.get("purePhoneNumber"))
    if not (_DIGITS.fullmatch(country) and _DIGITS.fullmatch(number)):
        raise Rejected("invalid", "WeChat gives no telephone number")
    try:
        parsed = phonenumbers.parse(f"+{country}{number}")
    except phonenumbers.NumberParseException:
        raise Rejected("invalid", "WeChat gives no telephone number") from None
    if not phonenumbers.is_possible_number(parsed):
        raise Rejected("invalid", "WeChat gives no telephone number")
    return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)
