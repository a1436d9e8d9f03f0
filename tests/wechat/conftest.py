"""A gateway's side of WeChat's API, and a server that stands in for WeChat's."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.contract import Apart, Http, Shared
from gateway.fetch import Fetcher
from gateway.settings import MediaSettings
from gateway.shared import SharedState
from gateway.wechat.api import Api
from tests.core.redis_process import RedisProcess, servers
from tests.wechat.asking import MAX_BYTES, Clock
from tests.wechatserver import APPID, SECRET, WeChatServer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def wechat(clock: Clock) -> AsyncIterator[WeChatServer]:
    async with WeChatServer(now=lambda: clock.seconds) as server:
        yield server


@pytest.fixture
async def fetch() -> AsyncIterator[Fetcher]:
    """Loopback is not public: a video there has to be allowed."""
    fetcher = Fetcher(MediaSettings.model_validate({"allow_networks": ["127.0.0.0/8"], "max_bytes": MAX_BYTES}))
    yield fetcher
    await fetcher.close()


@pytest.fixture
def make_api(wechat: WeChatServer, fetch: Fetcher, clock: Clock) -> Callable[..., Api]:
    """Of one gateway process; `shared` is what it has in common with others."""

    def make(shared: Shared | None = None, http: Http = fetch, **changed: str) -> Api:
        account = {"base_url": wechat.url, "appid": APPID, "secret": SECRET} | changed
        return Api(http, shared or Apart(), now=clock, **account)

    return make


@pytest.fixture
def api(make_api: Callable[..., Api]) -> Api:
    return make_api()


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisProcess]:
    process = RedisProcess(servers()[0], tmp_path / "redis")
    yield await process.start()
    process.kill()


@pytest.fixture
async def make_state(redis: RedisProcess, tmp_path: Path) -> AsyncIterator[Callable[[], SharedState]]:
    """`make_state()`: one process' way to what all share."""
    made: list[SharedState] = []

    def make() -> SharedState:
        made.append(SharedState(redis.settings, "tickets", tmp_path))
        return made[-1]

    yield make
    for state in made:
        await state.close()
