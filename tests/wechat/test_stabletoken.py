"""The access token, of one gateway process and of several at one Redis."""

import asyncio
from collections.abc import Callable

import pytest

from gateway.contract import Apart
from gateway.errors import Unavailable
from gateway.shared import SharedState
from gateway.wechat.api import Api
from gateway.wechat.errcodes import Trouble
from tests.core.redis_process import RedisProcess
from tests.wechat.asking import OPENID, Away, Clock
from tests.wechatserver import APPID, MEDIA, SECRET, STABLE_TOKEN, USER, WeChatServer

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0\x90wS\xde"
MakeState = Callable[[], SharedState]


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


async def test_processes_share_a_token(
    wechat: WeChatServer, make_api: Callable[..., Api], make_state: MakeState
) -> None:
    one, other = make_api(make_state()), make_api(make_state())

    assert await one.token() == await other.token()

    assert wechat.times(STABLE_TOKEN) == 1


async def test_many_callers_in_many_processes_cause_one_question(
    wechat: WeChatServer, make_api: Callable[..., Api], make_state: MakeState
) -> None:
    processes = [make_api(make_state()) for _ in range(5)]

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
    wechat: WeChatServer, make_api: Callable[..., Api], make_state: MakeState, clock: Clock
) -> None:
    one, other = make_api(make_state()), make_api(make_state())
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
    assert first.cancelled()
    assert wechat.times(STABLE_TOKEN) == 2


async def test_a_process_that_died_while_asking_is_waited_for_a_moment(
    wechat: WeChatServer, make_api: Callable[..., Api], make_state: MakeState
) -> None:
    await make_state().claim(f"wechat:{APPID}:token:asking", "the dead one", ttl_secs=0.2)

    assert await make_api(make_state()).token()


async def test_a_claim_that_does_not_end_is_not_waited_for_forever(
    make_api: Callable[..., Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.wechat.stabletoken._CLAIM_SECS", 0.1)
    shared = Apart()
    await shared.claim(f"wechat:{APPID}:token:asking", "another", ttl_secs=15)

    with pytest.raises(Unavailable, match="too long"):
        await make_api(shared).token()


async def test_redis_that_goes_away_is_no_obstacle(
    wechat: WeChatServer, make_api: Callable[..., Api], make_state: MakeState, redis: RedisProcess, clock: Clock
) -> None:
    api = make_api(make_state())
    old = await api.token()
    redis.kill()
    clock.seconds += 7200

    assert await api.token() != old


async def test_without_redis_a_process_has_a_token_of_its_own(
    wechat: WeChatServer, make_api: Callable[..., Api]
) -> None:
    one, other = make_api(Away()), make_api(Away())

    assert await one.token() == await one.token() == await other.token()

    assert wechat.times(STABLE_TOKEN) == 2


async def test_without_redis_many_callers_cause_one_question(
    wechat: WeChatServer, make_api: Callable[..., Api]
) -> None:
    api = make_api(Away())

    tokens = await asyncio.gather(*(api.token() for _ in range(20)))

    assert len(set(tokens)) == wechat.times(STABLE_TOKEN) == 1


async def test_a_token_that_came_while_the_claim_was_taken_is_used(
    wechat: WeChatServer, make_api: Callable[..., Api]
) -> None:
    shared = Apart()
    other = make_api(shared)

    class Late(Apart):
        """The other process is done between our look and our claim."""

        get = shared.get

        async def claim(self, key: str, value: str, /, *, ttl_secs: float) -> str:
            theirs.append(await other.token())
            return await shared.claim(key, value, ttl_secs=ttl_secs)

    theirs: list[str] = []

    assert await make_api(Late()).token() == theirs[0]
    assert wechat.times(STABLE_TOKEN) == 1


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
    wechat: WeChatServer, make_api: Callable[..., Api], make_state: MakeState
) -> None:
    one, other = make_api(make_state()), make_api(make_state())
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


async def test_a_refused_token_that_stays_in_redis_is_not_taken_from_there(
    wechat: WeChatServer, make_api: Callable[..., Api]
) -> None:
    class Stubborn(Apart):
        async def delete(self, key: str, /) -> None:
            if not key.endswith(":token"):
                await super().delete(key)

    wechat.users[OPENID] = {}
    api = make_api(Stubborn())
    await api.token()
    wechat.reset()

    await api.user(OPENID)

    assert [asked.document["force_refresh"] for asked in wechat.asked if asked.path == STABLE_TOKEN] == [False, False]


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
