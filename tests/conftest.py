"""Fixtures that several parts of the suite share."""

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import hypothesis
import pytest

from tests.daemon import Daemon, short_folder

# Hundreds of processes are started here. Each would compile every module for itself where this is set, as it often is
# in containers.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# How long an example takes says more about the machine than about us.
hypothesis.settings.register_profile("huiru", deadline=None)
hypothesis.settings.load_profile("huiru")


def pytest_addoption(parser: pytest.Parser) -> None:
    """For tests/faults: options must be known before its own conftest is read."""
    group = parser.getgroup("faults")
    group.addoption("--kills", type=int, default=20, help="how often the daemon is killed (default: 20)")
    group.addoption("--seed", type=int, default=None, help="of everything random in tests/faults (default: random)")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for a unix socket's name; pytest's own may not."""
    with short_folder() as path:
        yield path


@pytest.fixture
async def make_daemon(short_path: Path) -> AsyncIterator[Callable[..., Daemon]]:
    """`make_daemon(channels={…}, spool={…})`: a daemon that is not started yet, and is gone after the test."""
    made: list[Daemon] = []

    def make(channels: dict[str, Any], **sections: Any) -> Daemon:
        made.append(Daemon(short_path / str(len(made)), channels, **sections))
        return made[-1]

    yield make
    for daemon in made:
        await daemon.clean_up()


@pytest.fixture
def start_daemon(make_daemon: Callable[..., Daemon]) -> Callable[..., Awaitable[Daemon]]:
    """`await start_daemon(channels={…})`: a running daemon."""

    async def start(channels: dict[str, Any], **sections: Any) -> Daemon:
        return await make_daemon(channels, **sections).start()

    return start


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session
