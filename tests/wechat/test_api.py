"""What we ask WeChat's server, against a server on loopback that answers like it."""

import asyncio
import json
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

import aiohttp
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway.contract import Apart, HttpResponse, Part, Profile, Shared
from gateway.envelope import Identity
from gateway.errors import HuiruError, Rejected, Unavailable
from gateway.wechat.api import Api, Session
from gateway.wechat.errcodes import CODE_REFUSALS, MEDIA_REFUSALS, NO_PROFILE, QUOTAS, REMEDIES, TOKEN_REMEDIES, Trouble
from tests.wechatserver import APPID, MEDIA, PHONE, SECRET, SESSION, STABLE_TOKEN, USER, VIDEO, WeChatServer

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0\x90wS\xde"
AMR = b"#!AMR\n" + bytes(range(64))
MP4 = b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(64)
OPENID, UNIONID = "oUser01-_abcdefghijklmnopqr", "oUnion_0123456789"
MAX_BYTES = 1 << 20


class Clock:
    """Both sides' own time."""

    def __init__(self) -> None:
        self.seconds = 1_760_000_000.0

    def __call__(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)


class Away(Shared):
    """Redis that does not answer."""

    async def get(self, key: str, /) -> str | None:
        raise Unavailable(reason="Redis is away")

    async def put(self, key: str, value: str, /, *, ttl_secs: float) -> None:
        raise Unavailable(reason="Redis is away")

    async def claim(self, key: str, value: str, /, *, ttl_secs: float) -> str:
        raise Unavailable(reason="Redis is away")

    async def merge(self, key: str, values: Mapping[str, str], /, *, ttl_secs: float) -> dict[str, str]:
        raise Unavailable(reason="Redis is away")

    async def delete(self, key: str, /) -> None:
        raise Unavailable(reason="Redis is away")


class Talkative:
    """An Http on the open network, whose errors tell all of the address."""

    def __init__(self) -> None:
        self.session = aiohttp.ClientSession(auto_decompress=False)

    async def __call__(
        self,
        url: str,
        *,
        method: Literal["GET", "POST"] = "GET",
        headers: Mapping[str, str] = {},
        body: bytes = b"",
        trusted: bool = False,
        timeout_secs: float | None = None,
    ) -> HttpResponse:
        asked = self.session.request(method, url, headers=headers, data=body or None, allow_redirects=not trusted)
        try:
            async with asyncio.timeout(timeout_secs), asked as answer:
                content = await answer.content.read(MAX_BYTES + 1)
                while len(content) <= MAX_BYTES and (more := await answer.content.read(MAX_BYTES)):
                    content += more
                if len(content) > MAX_BYTES:
                    raise Rejected("too_large", reason=f"{url} is too large")
                return HttpResponse(answer.status, CIMultiDict(answer.headers), content, str(answer.url))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(reason=f"{url}: {error}, {body!r}") from error


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def wechat(clock: Clock) -> AsyncIterator[WeChatServer]:
    async with WeChatServer(now=lambda: clock.seconds) as server:
        yield server


@pytest.fixture
async def http() -> AsyncIterator[Talkative]:
    talkative = Talkative()
    yield talkative
    await talkative.session.close()


@pytest.fixture
def make_api(wechat: WeChatServer, http: Talkative, clock: Clock) -> Callable[..., Api]:
    """Of one gateway process; `shared` is what it has in common with others."""

    def make(shared: Shared | None = None, **changed: str) -> Api:
        account = {"base_url": wechat.url, "appid": APPID, "secret": SECRET} | changed
        return Api(http, shared or Apart(), now=clock, **account)

    return make


@pytest.fixture
def api(make_api: Callable[..., Api]) -> Api:
    return make_api()


# The token


async def test_the_token_is_asked_for_once_and_kept(wechat: WeChatServer, api: Api) -> None:
    first, second = await api.token(), await api.token()

    assert first == second
    assert wechat.asked[0].document == {
        "grant_type": "client_credential",
        "appid": APPID,
        "secret": SECRET,
        "force_refresh": False,
    }
    assert wechat.times(STABLE_TOKEN) == 1


async def test_processes_share_a_token(wechat: WeChatServer, make_api: Callable[..., Api]) -> None:
    shared = Apart()
    one, other = make_api(shared), make_api(shared)

    assert await one.token() == await other.token()

    assert wechat.times(STABLE_TOKEN) == 1


async def test_many_callers_in_many_processes_cause_one_question(
    wechat: WeChatServer, make_api: Callable[..., Api]
) -> None:
    shared = Apart()
    processes = [make_api(shared) for _ in range(5)]

    tokens = await asyncio.gather(*(process.token() for process in processes for _ in range(20)))

    assert len(set(tokens)) == 1
    assert wechat.times(STABLE_TOKEN) == 1


async def test_a_token_is_renewed_in_the_overlap_and_not_before(wechat: WeChatServer, api: Api, clock: Clock) -> None:
    first = await api.token()

    clock.seconds += 7200 - 301  # the platform would give the same one
    assert await api.token() == first
    clock.seconds += 35
    assert await api.token() != first

    assert wechat.times(STABLE_TOKEN) == 2


async def test_who_has_an_old_token_does_not_wait_for_the_new_one(
    wechat: WeChatServer, make_api: Callable[..., Api], clock: Clock
) -> None:
    shared = Apart()
    one, other = make_api(shared), make_api(shared)
    old = await one.token()
    assert await other.token() == old
    clock.seconds += 7200 - 200
    come, go = wechat.hold_once(STABLE_TOKEN)
    renewing = asyncio.create_task(one.token())
    await come.wait()

    assert await one.token() == old
    assert await other.token() == old

    go.set()
    new = await renewing
    assert new != old
    assert await other.token() == new
    assert wechat.times(STABLE_TOKEN) == 2


async def test_who_has_none_waits_for_the_process_that_asks(wechat: WeChatServer, make_api: Callable[..., Api]) -> None:
    shared = Apart()
    come, go = wechat.hold_once(STABLE_TOKEN)
    asking = asyncio.create_task(make_api(shared).token())
    await come.wait()
    waiting = asyncio.create_task(make_api(shared).token())
    await asyncio.sleep(0)
    go.set()

    assert await waiting == await asking

    assert wechat.times(STABLE_TOKEN) == 1


async def test_a_caller_that_is_cancelled_leaves_the_question_to_the_next(
    wechat: WeChatServer, make_api: Callable[..., Api]
) -> None:
    shared = Apart()
    api = make_api(shared)
    come, go = wechat.hold_once(STABLE_TOKEN)
    first, others = asyncio.create_task(api.token()), [asyncio.create_task(api.token()) for _ in range(3)]
    elsewhere = asyncio.create_task(make_api(shared).token())
    await come.wait()

    first.cancel()

    tokens = await asyncio.gather(*others, elsewhere)
    go.set()
    assert len(set(tokens)) == 1
    assert first.cancelled() or await asyncio.wait({first})
    assert wechat.times(STABLE_TOKEN) == 2


async def test_a_process_that_died_while_asking_is_not_waited_for_forever(
    wechat: WeChatServer, make_api: Callable[..., Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.wechat.stabletoken._CLAIM_SECS", 0.2)
    shared = Apart()
    await shared.claim(f"wechat:{APPID}:token:asking", "the dead one", ttl_secs=15)

    with pytest.raises(Unavailable, match="too long"):
        await make_api(shared).token()

    await shared.delete(f"wechat:{APPID}:token:asking")  # its time is over
    assert await make_api(shared).token()


async def test_without_redis_a_process_has_a_token_of_its_own(
    wechat: WeChatServer, make_api: Callable[..., Api]
) -> None:
    one, other = make_api(Away()), make_api(Away())

    assert await one.token() == await one.token() == await other.token()

    assert wechat.times(STABLE_TOKEN) == 2


@pytest.mark.parametrize("stored", ["", "nonsense", "[]", '["t"]', '["t", "x", null]', "[1, [], {}]", "7"])
async def test_what_is_no_token_in_redis_is_not_used(api: Api, make_api: Callable[..., Api], stored: str) -> None:
    shared = Apart()
    await shared.put(f"wechat:{APPID}:token", stored, ttl_secs=60)

    assert (await make_api(shared).token()).startswith("T")


async def test_the_old_token_is_used_while_the_new_one_cannot_be_had(
    wechat: WeChatServer, api: Api, clock: Clock
) -> None:
    old = await api.token()
    clock.seconds += 7200 - 200
    wechat.cut_once(STABLE_TOKEN)

    assert await api.token() == old
    assert await api.token() == old
    assert wechat.times(STABLE_TOKEN) == 2  # and the failure is not repeated at once

    clock.seconds += 31
    assert await api.token() != old


async def test_a_failure_is_not_repeated_at_once(wechat: WeChatServer, api: Api, clock: Clock) -> None:
    wechat.fail_once(STABLE_TOKEN, 40125)
    for _ in range(3):
        with pytest.raises(Trouble, match="AppSecret"):
            await api.token()
    assert wechat.times(STABLE_TOKEN) == 1

    clock.seconds += 31
    assert await api.token()
    assert api.trouble == ""


# A token that WeChat refuses


@pytest.mark.parametrize("code", [40001, 40014, 41001, 42001])
async def test_a_refused_token_is_asked_for_anew(wechat: WeChatServer, api: Api, code: int) -> None:
    wechat.add_media("m1", PNG, "image/png", "a.png")
    wechat.fail_once(MEDIA, code)

    assert (await api.media("m1")).content == PNG

    assert [asked.path for asked in wechat.asked] == [STABLE_TOKEN, MEDIA, STABLE_TOKEN, MEDIA]
    assert not any(asked.document["force_refresh"] for asked in wechat.asked if asked.path == STABLE_TOKEN)


async def test_a_token_that_another_has_ended_is_replaced_in_every_process(
    wechat: WeChatServer, make_api: Callable[..., Api]
) -> None:
    shared = Apart()
    one, other = make_api(shared), make_api(shared)
    old = await one.token()
    await other.token()
    wechat.users[OPENID] = {}
    wechat.reset()

    await one.user(OPENID)
    wechat.users["o2"] = {}
    await other.user("o2")

    assert await one.token() == await other.token() != old
    assert wechat.times(STABLE_TOKEN) == 2


async def test_another_token_is_forced_when_the_platform_gives_a_bad_one_again(wechat: WeChatServer, api: Api) -> None:
    wechat.add_media("m1", PNG, "image/png", "a.png")
    await api.token()
    wechat.revoke()

    assert (await api.media("m1")).content == PNG

    forced = [asked.document["force_refresh"] for asked in wechat.asked if asked.path == STABLE_TOKEN]
    assert forced == [False, False, True]


async def test_a_token_is_forced_no_more_often_than_the_vendor_allows(
    wechat: WeChatServer, make_api: Callable[..., Api]
) -> None:
    shared = Apart()
    wechat.users = {"o1": {}, "o2": {}}
    for openid in wechat.users:
        api = make_api(shared)
        await api.token()
        wechat.revoke()
        if openid == "o1":
            await api.user(openid)
        else:
            with pytest.raises(Unavailable, match="soon"):
                await api.user(openid)

    assert sum(asked.path == STABLE_TOKEN and asked.document["force_refresh"] for asked in wechat.asked) == 1


async def test_without_redis_no_token_is_forced(wechat: WeChatServer, make_api: Callable[..., Api]) -> None:
    api = make_api(Away())
    await api.token()
    wechat.revoke()

    with pytest.raises(Unavailable, match="soon"):
        await api.user(OPENID)

    assert not any(asked.path == STABLE_TOKEN and asked.document["force_refresh"] for asked in wechat.asked)


async def test_a_server_that_refuses_every_token_ends(wechat: WeChatServer, api: Api) -> None:
    for _ in range(9):
        wechat.fail_once(USER, 40001)

    with pytest.raises(Unavailable, match="every token"):
        await api.user(OPENID)

    assert wechat.times(USER) == 3


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


async def test_an_account_without_files_is_told(wechat: WeChatServer, api: Api) -> None:
    wechat.unauthorised = {MEDIA}

    with pytest.raises(Rejected, match="48001"):
        await api.media("m1")

    assert "48001" in api.trouble


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
    ],
)
async def test_what_is_no_telephone_number(wechat: WeChatServer, api: Api, info: object) -> None:
    wechat.say_once(PHONE, orjson.dumps({"errcode": 0, "phone_info": info}))

    with pytest.raises(Rejected) as raised:
        await api.phone("c0de")

    assert raised.value.code == "invalid"


# What must not happen


CALLS: dict[str, tuple[str, str]] = {
    "media": (MEDIA, "the-media-id"),
    "user": (USER, OPENID),
    "session": (SESSION, "the-login-code"),
    "phone": (PHONE, "the-phone-code"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("failure", ["cut", "redirected", "500", "told", "no JSON", "flood"])
@pytest.mark.parametrize("first", [False, True])
async def test_no_error_tells_a_secret(
    wechat: WeChatServer, api: Api, call: str, failure: str, first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path, argument = CALLS[call]
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


async def test_a_video_may_not_come_from_our_own_network(wechat: WeChatServer, clock: Clock) -> None:
    asked: list[tuple[str, bool]] = []

    async def http(url: str, *, trusted: bool = False, **_: Any) -> HttpResponse:
        asked.append((url.partition("?")[0].rpartition("/")[2], trusted))
        if not trusted:
            raise Rejected("forbidden", "127.0.0.1 is not a public address")
        said = {"access_token": "t" * 32, "expires_in": 7200, "video_url": "http://127.0.0.1:6379/v.mp4"}
        return HttpResponse(200, CIMultiDict(), orjson.dumps(said), url)

    with pytest.raises(Rejected) as raised:
        await Api(http, Apart(), "https://x", APPID, SECRET, clock).media("v1")

    assert raised.value.code == "forbidden"
    assert asked == [("stable_token", True), ("get", True), ("v.mp4", False)]


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
