"""Fixtures of the core's tests."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway import registry
from gateway.spool import Spool
from tests.core.redis_process import RedisProcess, servers
from tests.core.rig import NORMALIZERS, Rig
from tests.core.samples import audit


@pytest.fixture
async def make_spool(tmp_path: Path) -> AsyncIterator[Callable[..., Spool]]:
    """`make_spool(folder=…, inline_bytes=…)`: an open spool. The books of each are audited after the test."""
    made: list[Spool] = []

    def make(folder: Path | None = None, **options: Any) -> Spool:
        spool = Spool(folder or tmp_path / "spool", **options)
        spool.open()
        made.append(spool)
        return spool

    yield make
    for spool in made:
        if not spool._journal._closing:
            await audit(spool)
            await spool.close()


@pytest.fixture
def spool(make_spool: Callable[..., Spool]) -> Spool:
    return make_spool()


@pytest.fixture
def server() -> Path:
    """The Redis server that tests run on; a module that runs on every one has a fixture of its own."""
    return servers()[0]


@pytest.fixture
async def redis(server: Path, tmp_path: Path) -> AsyncIterator[RedisProcess]:
    """A running server of the test's own."""
    process = RedisProcess(server, tmp_path / "redis")
    yield await process.start()
    process.kill()


@pytest.fixture
async def make_rig(
    tmp_path: Path, redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Rig]]:
    """`make_rig("name", …)`: the parts of a daemon in a folder of that name. Their books are audited after the test."""
    monkeypatch.setattr(registry, "normalizer", NORMALIZERS.__getitem__)
    made: list[Rig] = []

    def make(name: str = "state", **options: Any) -> Rig:
        made.append(Rig(tmp_path / name, redis, **options))
        return made[-1]

    yield make
    for rig in made:
        if not rig.spool._journal._closing:
            await audit(rig.spool)
        await rig.close()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()
