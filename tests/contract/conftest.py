"""Fixtures of the contract suite."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import connectors
import normalizers

pytest.register_assert_rewrite("tests.contract.rig", "tests.contract.webhook", "tests.contract.running")

from tests.contract.driver import Driver  # noqa: E402 - the assertions of these are rewritten first
from tests.contract.rig import OpenRig, Rig  # noqa: E402
from tests.contract.watch import Fence, Log  # noqa: E402
from tests.core.redis_process import RedisProcess, servers  # noqa: E402


@pytest.fixture(scope="session")
def fence() -> Fence:
    return Fence()


@pytest.fixture(autouse=True)
def on_loopback(fence: Fence) -> Iterator[None]:
    fence.attempts.clear()
    fence.up = True
    yield
    fence.up = False
    assert not fence.attempts, "left loopback"


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of this session's own; every rig has a stream of its own."""
    server = RedisProcess(servers()[0], tmp_path_factory.mktemp("redis"))
    asyncio.run(server.start())
    yield f"redis://127.0.0.1:{server.port}/0"
    server.kill()


@pytest.fixture
def log() -> Iterator[Log]:
    with Log().watching() as log:
        yield log


@pytest.fixture
def add_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """`add_modules(folder)`: what is in its `connectors` and `normalizers` is there like any other, for one test."""
    known = set(sys.modules)

    def add(folder: Path) -> None:
        for package in (connectors, normalizers):
            monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder / package.__name__)])

    yield add
    for name in set(sys.modules) - known:
        if name.partition(".")[0] in ("connectors", "normalizers"):
            del sys.modules[name]


@pytest.fixture
def outsiders(add_modules: Callable[[Path], None]) -> None:
    """The suite's own channel, `lines`."""
    add_modules(Path(__file__).parent / "outside")


@pytest.fixture
def open_rig(short_path: Path, redis_url: str, log: Log) -> OpenRig:
    """`async with open_rig(driver) as rig`."""

    @asynccontextmanager
    async def opened(driver: Driver) -> AsyncIterator[Rig]:
        async with Rig(driver, short_path, redis_url, log).running() as rig:
            yield rig

    return opened
