"""What we ask WeChat's server, against a server on loopback that answers like it."""

import json
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway.contract import Apart, Http, HttpResponse, Part, Profile
from gateway.envelope import Identity
from gateway.errors import HuiruError, Rejected, Unavailable
from gateway.fetch import Fetcher
from gateway.settings import MediaSettings
from gateway.wechat.api import Api, Session
from gateway.wechat.errcodes import CODE_REFUSALS, MEDIA_REFUSALS, NO_PROFILE, QUOTAS, REMEDIES, TOKEN_REMEDIES, Trouble
from tests.daemon import free_port
from tests.wechat.asking import MAX_BYTES, OPENID, UNIONID, Away, Clock
from tests.wechatserver import APPID, MEDIA, PHONE, SECRET, SESSION, STABLE_TOKEN, USER, VIDEO, WeChatServer

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0\x90wS\xde"
AMR = b"#!AMR\n" + bytes(range(64))
MP4 = b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(64)
CALLS: dict[str, tuple[str, str]] = {
    "media": (MEDIA, "the-media-id"),
    "user": (USER, OPENID),
    "session": (SESSION, "the-login-code"),
    "phone": (PHONE, "the-phone-code"),
}
_NUMBER = {"purePhoneNumber": "13800138000", "countryCode": 86, "watermark": {"appid": APPID}}
PHONE_ANSWER = orjson.dumps({"errcode": 0, "phone_info": _NUMBER})


def talkative(fetch: Http) -> Http:
    """Whose errors tell all of the question."""

    async def http(url: str, **how: Any) -> HttpResponse:
        try:
            return await fetch(url, **how)
        except HuiruError as error:
            said = f"{url}: {error}, {how}"
            raise type(error)(error.code, said, reason=said) from error

    return http


# Their codes, and ours


@pytest.mark.parametrize("code", sorted({*TOKEN_REMEDIES, *QUOTAS, -1, 99_999}))
async def test_every_code_for_the_token(wechat: WeChatServer, api: Api, code: int) -> None:
    wechat.fail_once(STABLE_TOKEN, code, "because")

    with pytest.raises(Unavailable, match="because") as raised:
        await api.probe()

    assert isinstance(raised.value, Trouble) == (code in TOKEN_REMEDIES)
    assert api.trouble == (raised.value.reason if code in TOKEN_REMEDIES else "")
    assert raised.value.code == {45009: "rate_limited", 45011: "rate_limited", -1: "busy"}.get(code, "unavailable")
    assert raised.value.retry_after == {45009: 3600, 45011: 60, -1: 2, 99_999: 60}.get(code, 300)
    assert "because" not in raised.value.public


@pytest.mark.parametrize(
    ("call", "path", "refusals"),
    [("media", MEDIA, MEDIA_REFUSALS), ("session", SESSION, CODE_REFUSALS), ("phone", PHONE, CODE_REFUSALS)],
)
@pytest.mark.parametrize("code", sorted({*REMEDIES, *QUOTAS, *MEDIA_REFUSALS, *CODE_REFUSALS, -1, 99_999}))
async def test_every_code_for_every_call(
    wechat: WeChatServer, api: Api, call: str, path: str, refusals: Mapping[int, tuple[str, str]], code: int
) -> None:
    wechat.fail_once(path, code)

    with pytest.raises(HuiruError) as raised:
        await getattr(api, call)("c0de")

    assert isinstance(raised.value, Rejected) == (code in refusals)
    if code in refusals:
        assert (raised.value.code, raised.value.public) == refusals[code]


async def test_trouble_names_its_remedy_until_it_is_over(wechat: WeChatServer, api: Api, clock: Clock) -> None:
    assert api.trouble == ""
    wechat.is_address_allowed = False

    with pytest.raises(Trouble):
        await api.probe()
    assert "IP whitelist" in api.trouble
    assert "203.0.113.7" in api.trouble

    wechat.is_address_allowed = True
    await api.probe()
    assert api.trouble == ""


@pytest.mark.parametrize("call", ["media", "phone"])
async def test_what_the_account_may_not_ask_for_is_trouble(wechat: WeChatServer, api: Api, call: str) -> None:
    path, argument = CALLS[call]
    wechat.unauthorised = {path}
    with pytest.raises(Rejected, match="48001"):
        await getattr(api, call)(argument)
    assert "48001" in api.trouble

    wechat.unauthorised = set()
    wechat.fail_once(path, -1)
    with pytest.raises(Unavailable):
        await getattr(api, call)(argument)
    assert "48001" in api.trouble  # that it is busy says nothing

    wechat.add_media(argument, PNG, "image/png")
    wechat.say_once(PHONE, PHONE_ANSWER)
    await getattr(api, call)(argument)
    assert api.trouble == ""


@pytest.mark.parametrize(("changed", "told"), [({"appid": "wx00"}, "AppID"), ({"secret": "x" * 32}, "AppSecret")])
async def test_a_probe_says_what_to_set_right(make_api: Callable[..., Api], changed: dict[str, str], told: str) -> None:
    with pytest.raises(Unavailable, match=told):
        await make_api(**changed).probe()


async def test_a_probe_asks_even_if_a_token_is_held(wechat: WeChatServer, api: Api) -> None:
    await api.token()
    await api.probe()

    assert wechat.times(STABLE_TOKEN) == 2


# Files


async def test_a_picture(wechat: WeChatServer, api: Api) -> None:
    wechat.add_media("m1", PNG, "image/jpeg", "m1.png")

    assert await api.media("m1") == Part(PNG, "m1.png", "image/png")

    assert wechat.asked[-1].query == {"access_token": await api.token(), "media_id": "m1"}


async def test_a_voice_stays_what_it_is(wechat: WeChatServer, api: Api) -> None:
    wechat.add_media("v1", AMR, "application/octet-stream", "v1.amr")
    wechat.add_media("v2", bytes(range(64)), "audio/speex", "v2.speex")

    assert await api.media("v1") == Part(AMR, "v1.amr", "audio/amr")
    assert (await api.media("v2")).content_type == "audio/speex"


async def test_a_video_is_fetched_from_where_the_server_says(wechat: WeChatServer, api: Api) -> None:
    wechat.add_media("v1", MP4, "video/mp4", "v1.mp4")

    assert await api.media("v1") == Part(MP4, "v1.mp4", "video/mp4")

    assert [asked.path for asked in wechat.asked] == [STABLE_TOKEN, MEDIA, VIDEO]
    assert wechat.asked[-1].query == {"vkey": "0123456789ABCDEF"}


async def test_a_video_that_comes_at_once_is_taken_too(wechat: WeChatServer, api: Api) -> None:
    wechat.say_once(MEDIA, MP4, "video/mp4")

    assert (await api.media("v1")).content == MP4


async def test_a_video_that_is_not_there_yet_is_tried_again(wechat: WeChatServer, api: Api) -> None:
    wechat.add_media("v1", MP4, "video/mp4", "v1.mp4")
    wechat.say_once(VIDEO, b"not here", "text/html", 404)

    with pytest.raises(Unavailable):
        await api.media("v1")

    assert (await api.media("v1")).content == MP4


@pytest.mark.parametrize("url", [None, 7, "", "ftp://example.com/a", "javascript:1", "http://" + "a" * 9999, ["x"], {}])
async def test_a_video_without_an_address(wechat: WeChatServer, api: Api, url: object) -> None:
    wechat.say_once(MEDIA, orjson.dumps({"video_url": url}))

    with pytest.raises(Unavailable):
        await api.media("v1")


async def test_a_file_that_is_no_longer_there(wechat: WeChatServer, api: Api, clock: Clock) -> None:
    wechat.add_media("m1", PNG, "image/png", "a.png")
    clock.seconds += 3 * 86_400 + 1

    with pytest.raises(Rejected) as raised:
        await api.media("m1")

    assert (raised.value.code, raised.value.public) == ("gone", "WeChat no longer has this file")
    assert api.trouble == ""


@pytest.mark.parametrize("media_id", ["", "a b", "a\nb", "图", "x" * 600])
async def test_what_is_no_media_id_is_asked_of_nobody(wechat: WeChatServer, api: Api, media_id: str) -> None:
    with pytest.raises(Rejected):
        await api.media(media_id)

    assert not wechat.asked


async def test_an_error_is_known_by_what_it_says_and_not_by_what_it_says_it_is(wechat: WeChatServer, api: Api) -> None:
    wechat.say_once(MEDIA, b'\xef\xbb\xbf {"errcode": 40007, "errmsg": "invalid media_id"}', "image/jpeg")

    with pytest.raises(Rejected):
        await api.media("m1")


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "image/jpeg", 200),
        (b"{}", "application/json", 200),
        (b'{"errcode": 0}', "application/json", 200),
        (b'{"errcode": "40007"}', "application/json", 200),
        (b'{"errcode": true}', "application/json", 200),
        (b"<html>log in to the wifi</html>", "text/html", 200),
        (PNG, "image/png", 502),
    ],
)
async def test_what_is_no_file_is_tried_again(
    wechat: WeChatServer, api: Api, body: bytes, content_type: str, status: int
) -> None:
    wechat.say_once(MEDIA, body, content_type, status)

    with pytest.raises(Unavailable):
        await api.media("m1")


async def test_a_file_that_is_too_large(wechat: WeChatServer, api: Api) -> None:
    wechat.flood_once(MEDIA, MAX_BYTES + 1)

    with pytest.raises(Rejected) as raised:
        await api.media("m1")

    assert raised.value.code == "too_large"


async def test_an_answer_that_is_too_large_is_no_file(wechat: WeChatServer, api: Api) -> None:
    wechat.flood_once(STABLE_TOKEN, MAX_BYTES + 1)

    with pytest.raises(Unavailable):
        await api.media("m1")


@pytest.mark.parametrize(
    ("disposition", "filename"),
    [
        ("", ""),
        ("attachment", ""),
        ('attachment; filename="a b.png"', "a b.png"),
        ("attachment; filename=a.png", "a.png"),
        ('attachment; filename="报告.png"', "报告.png"),
        ("attachment; filename*=UTF-8''%E6%8A%A5%E5%91%8A.png; filename=x.png", "报告.png"),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename="C:\\\\a\\\\b.png"', "b.png"),
        ('attachment; filename=".."', ""),
        ('attachment; filename="a\tb\u202egnp.exe"', "a bgnp.exe"),
        ('attachment; filename="' + "x" * 2000, "x" * 200),
        ("attachment;" + "filename*0=a;" * 200, "a"),
        (";;;===\"'*", ""),
    ],
)
async def test_file_names(wechat: WeChatServer, api: Api, disposition: str, filename: str) -> None:
    wechat.add_media("m1", PNG, "image/png", disposition=disposition)

    assert (await api.media("m1")).filename == filename


# Users


async def test_a_user(wechat: WeChatServer, api: Api) -> None:
    wechat.users[OPENID] = {"nickname": " 张\n三 ", "language": "zh_CN", "unionid": UNIONID, "city": "深圳"}

    profile = await api.user(OPENID)

    unionid = Identity(kind="wechat_unionid", value=UNIONID, verified=True)
    assert profile == Profile("张 三", (unionid,), "zh-CN")
    assert await api.cached_user(OPENID) == await api.user(OPENID) == profile
    assert wechat.times(USER) == 1


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("zh_TW", "zh-TW"), ("en", "en"), ("EN-us", "en-US"), ("", None), ("zh_Hans_CN", None), ("<b>", None), (7, None)],
)
async def test_languages(wechat: WeChatServer, api: Api, theirs: object, ours: str | None) -> None:
    wechat.users[OPENID] = {"nickname": "", "language": theirs, "unionid": None}

    assert await api.user(OPENID) == Profile(None, (), ours)


@pytest.mark.parametrize("code", sorted(NO_PROFILE))
async def test_a_user_of_whom_nothing_is_told(wechat: WeChatServer, api: Api, code: int) -> None:
    wechat.fail_once(USER, code)

    assert await api.user(OPENID) == Profile()

    assert await api.cached_user(OPENID) == await api.user(OPENID) == Profile()
    assert wechat.times(USER) == 1
    assert api.trouble == ""


async def test_what_is_not_known_is_not_asked_for_by_who_only_looks(wechat: WeChatServer, api: Api) -> None:
    assert await api.cached_user(OPENID) is None

    assert not wechat.asked


async def test_without_redis_a_user_is_asked_for_each_time(wechat: WeChatServer, make_api: Callable[..., Api]) -> None:
    wechat.users[OPENID] = {"nickname": "李四"}
    api = make_api(Away())

    assert (await api.user(OPENID)).name == (await api.user(OPENID)).name == "李四"

    assert await api.cached_user(OPENID) is None
    assert wechat.times(USER) == 2


@pytest.mark.parametrize("openid", ["", "a b", "a:b", "*", "x" * 200, "图"])
async def test_what_is_no_openid_is_asked_of_nobody(wechat: WeChatServer, api: Api, openid: str) -> None:
    assert await api.user(openid) == Profile()

    assert not wechat.asked


async def test_a_user_who_cannot_be_asked_for_now_is_not_remembered_so(wechat: WeChatServer, api: Api) -> None:
    wechat.users[OPENID] = {"nickname": "李四"}
    wechat.fail_once(USER, -1)

    with pytest.raises(Unavailable):
        await api.user(OPENID)

    assert (await api.user(OPENID)).name == "李四"


# Logins of mini-programs


async def test_a_login(wechat: WeChatServer, api: Api) -> None:
    code = wechat.login(OPENID, UNIONID)

    session = await api.session(code)

    assert session == Session(OPENID, UNIONID)
    assert wechat.asked[-1].query == {
        "appid": APPID,
        "secret": SECRET,
        "js_code": code,
        "grant_type": "authorization_code",
    }
    assert wechat.times(STABLE_TOKEN) == 0


async def test_a_login_is_good_once(wechat: WeChatServer, api: Api) -> None:
    code = wechat.login(OPENID)
    assert await api.session(code) == Session(OPENID)

    with pytest.raises(Rejected, match="40163") as raised:
        await api.session(code)

    assert raised.value.code == "unauthenticated"


async def test_a_login_is_good_for_five_minutes(wechat: WeChatServer, api: Api, clock: Clock) -> None:
    code = wechat.login(OPENID)
    clock.seconds += 301

    with pytest.raises(Rejected, match="40029"):
        await api.session(code)


@pytest.mark.parametrize("code", ["", "a b", "a\r\nb", "图", "x" * 600])
@pytest.mark.parametrize("call", ["session", "phone"])
async def test_what_is_no_code_is_asked_of_nobody(wechat: WeChatServer, api: Api, call: str, code: str) -> None:
    with pytest.raises(Rejected) as raised:
        await getattr(api, call)(code)

    assert raised.value.code == "unauthenticated"
    assert not wechat.asked


@pytest.mark.parametrize(
    ("number", "country", "ours"),
    [("13800138000", "86", "+8613800138000"), ("51234567", "852", "+85251234567"), ("2025550123", "1", "+12025550123")],
)
async def test_a_telephone_number(wechat: WeChatServer, api: Api, number: str, country: str, ours: str) -> None:
    code = wechat.phone_code(number, country)

    assert await api.phone(code) == ours

    assert wechat.asked[-1] == (PHONE, {"access_token": await api.token()}, {"code": code})
    with pytest.raises(Rejected, match="40163"):
        await api.phone(code)


@pytest.mark.parametrize(
    "info",
    [
        None,
        [],
        {},
        {"purePhoneNumber": "13800138000", "countryCode": "86"},
        {"purePhoneNumber": "13800138000", "countryCode": "86", "watermark": {"appid": "wx-another"}},
        {"purePhoneNumber": "1" * 99, "countryCode": "86", "watermark": {"appid": APPID}},
        {"purePhoneNumber": "13800138000", "countryCode": "999", "watermark": {"appid": APPID}},
        {"purePhoneNumber": None, "countryCode": [], "watermark": {"appid": APPID}},
        {"purePhoneNumber": "1", "countryCode": "86", "watermark": {"appid": APPID}},
        {"purePhoneNumber": "138", "countryCode": "86", "watermark": {"appid": APPID}},
    ],
)
async def test_what_is_no_telephone_number(wechat: WeChatServer, api: Api, info: object) -> None:
    wechat.say_once(PHONE, orjson.dumps({"errcode": 0, "phone_info": info}))

    with pytest.raises(Rejected) as raised:
        await api.phone("c0de")

    assert raised.value.code == "invalid"


# What must not happen


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("failure", ["cut", "redirected", "500", "told", "no JSON", "flood"])
@pytest.mark.parametrize("first", [False, True])
async def test_no_error_tells_a_secret(
    wechat: WeChatServer,
    fetch: Fetcher,
    make_api: Callable[..., Api],
    call: str,
    failure: str,
    first: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, argument = CALLS[call]
    api = make_api(http=talkative(fetch))
    on = STABLE_TOKEN if first and call != "session" else path
    secrets = [SECRET] if on != path else [SECRET, argument] if call == "session" else [await api.token(), argument]
    told = " ".join(f"{secret} /?access_token={secret}&secret={secret}" for secret in secrets)
    for _ in range(2):  # a connection that is cut when it was idle is tried again
        fail(wechat, on, failure, told)

    with pytest.raises((Rejected, Unavailable)) as raised:
        await getattr(api, call)(argument)

    error = raised.value
    words = [str(error), repr(error), error.public, api.trouble, repr(vars(error)), caplog.text]
    words += traceback.format_exception(error)
    assert not [secret for secret in secrets if any(secret in word for word in words)]


def fail(wechat: WeChatServer, path: str, failure: str, told: str) -> None:
    match failure:
        case "cut":
            wechat.cut_once(path)
        case "redirected":
            wechat.redirect_once(path, f"/elsewhere?{quote(told)}")
        case "500":
            wechat.say_once(path, told.encode(), "text/html", 500)
        case "told":
            wechat.fail_once(path, 99_999, told)
        case "no JSON":
            wechat.say_once(path, told.encode(), "text/plain")
        case "flood":
            wechat.flood_once(path, MAX_BYTES + 1)


async def test_the_session_key_is_kept_nowhere(wechat: WeChatServer, make_api: Callable[..., Api]) -> None:
    shared = Apart()
    api = make_api(shared)

    session = await api.session(wechat.login(OPENID))

    assert "dGhlLXNl" not in repr((session, vars(api), shared.__dict__))


async def test_a_video_may_not_come_from_our_own_network(wechat: WeChatServer, make_api: Callable[..., Api]) -> None:
    wechat.add_media("v1", MP4, "video/mp4", "v1.mp4")
    fetch = Fetcher(MediaSettings())

    with pytest.raises(Rejected) as raised:
        await make_api(http=fetch).media("v1")

    await fetch.close()
    assert raised.value.code == "forbidden"
    assert wechat.times(VIDEO) == 0


async def test_the_servers_redirects_are_not_followed(wechat: WeChatServer, api: Api) -> None:
    wechat.redirect_once(STABLE_TOKEN, f"{wechat.url}{SESSION}")

    with pytest.raises(Unavailable, match="302"):
        await api.token()

    assert wechat.times(SESSION) == 0


async def test_a_server_that_is_away(make_api: Callable[..., Api]) -> None:
    with pytest.raises(Unavailable, match=r"cannot be reached: 127\.0\.0\.1"):
        await make_api(base_url=f"http://127.0.0.1:{free_port()}").probe()


def _written(said: object) -> bytes:
    """With NaN, huge numbers and half characters: orjson would not."""
    return json.dumps(said).encode()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("x" * 4000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = [
    "access_token",
    "expires_in",
    "errcode",
    "errmsg",
    "video_url",
    "unionid",
    "nickname",
    "openid",
    "phone_info",
]
_ANSWERS = st.one_of(
    st.dictionaries(st.sampled_from(_FIELDS), _JSON).map(_written),
    _JSON.map(_written),
    st.binary(max_size=200),
    st.sampled_from([b"[" * 9999, b'{"errcode":' * 9999, b'{"errcode": 1e999}', b'{"errcode": ' + b"9" * 9999 + b"}"]),
)


@given(answers=st.lists(_ANSWERS, min_size=1, max_size=4), call=st.sampled_from(sorted(CALLS)))
async def test_whatever_the_server_says(answers: list[bytes], call: str) -> None:
    left = list(answers)

    async def http(url: str, **_: Any) -> HttpResponse:
        said = left.pop(0) if left else answers[-1]
        return HttpResponse(200, CIMultiDict({"Content-Disposition": said[:40].decode("latin-1")}), said, url)

    api = Api(http, Apart(), "https://x", APPID, SECRET, Clock())
    with suppress(Rejected, Unavailable):
        assert isinstance(await getattr(api, call)(CALLS[call][1]), Part | Profile | Session | str)


@given(text=st.text(), whole=st.binary(max_size=60))
async def test_whatever_the_network_raises(text: str, whole: bytes) -> None:
    async def http(url: str, **_: Any) -> HttpResponse:
        raise ValueError(text, whole, url)

    with pytest.raises(Unavailable, match="ValueError"):
        await Api(http, Apart(), "https://x", APPID, SECRET, Clock()).token()
