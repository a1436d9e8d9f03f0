"""A rig for each test, with a folder that is kept when the test fails."""

import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.faults import disk
from tests.faults.rig import Rig

KILLS_A_STORM = 10  # more kills are more storms, each with a seed of its own
StartRig = Callable[..., Awaitable[Rig]]

log = logging.getLogger(__name__)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kills" in metafunc.fixturenames:
        kills = metafunc.config.getoption("--kills")
        storms = [min(KILLS_A_STORM, kills - done) for done in range(0, kills, KILLS_A_STORM)]
        metafunc.parametrize(("storm", "kills"), list(enumerate(storms)))
    if "disk_kind" in metafunc.fixturenames:
        metafunc.parametrize("disk_kind", disk.kinds())


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """As given, else another one at every run."""
    given: int | None = request.config.getoption("--seed")
    return Random().getrandbits(32) if given is None else given


@pytest.fixture
async def start_rig(request: pytest.FixtureRequest) -> AsyncIterator[StartRig]:
    """`await start_rig(seed, disk_kind, after="seen", stream={…})`: everything runs, and the clients post."""
    failed_before = request.session.testsfailed
    folder = Path(tempfile.mkdtemp(prefix="huiru-faults-"))
    rigs: list[Rig] = []
    disks: list[disk.Disk] = []

    async def start(seed: int, disk_kind: disk.DiskKind | None = None, *, after: str = "", **sections: Any) -> Rig:
        disks.extend([disk_kind(folder / "state")] if disk_kind else [])
        rigs.append(Rig(folder, seed, disks[0] if disks else None, after))
        await rigs[-1].start(**sections)
        return rigs[-1]

    yield start
    for rig in rigs:
        await rig.close()
        log.info("%s", rig.summary())
    for one in disks:
        one.release()
    if request.session.testsfailed == failed_before:
        shutil.rmtree(folder)
