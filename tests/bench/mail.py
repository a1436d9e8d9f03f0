"""`python -m tests.bench.mail`: mail a second, beside a bare aiosmtpd, Postfix and Haraka in the same run.

The client is Postfix's smtp-source. Postfix accepts, queues and syncs, and holds what it has; aiosmtpd and Haraka throw
it away; we accept, sync, normalise and publish. Prints a table; asserts nothing.
"""

import argparse
import asyncio
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.bench.__main__ import running, until_open, until_published
from tests.daemon import Daemon, free_port
from tests.postfix import postfix

TO = "support@acme.cn"
HARAKA = "haraka@3.3.4"
SESSIONS = 20
_ACCEPT = "exports.hook_rcpt = next => next(OK)\nexports.hook_queue = next => next(OK)\n"
_HOLD = "smtpd_client_restrictions = check_client_access static:HOLD\nsmtpd_client_connection_count_limit = 0"


@dataclass(frozen=True)
class Case:
    """What is sent."""

    size: int
    reuse: bool
    messages: int

    def __str__(self) -> str:
        return f"{self.size // 1024} KiB, {'re-used' if self.reuse else 'new'} connections"


async def main(rounds: int, scale: float) -> None:
    sizes = ((2 << 10, 2000), (100 << 10, 600))
    cases = [Case(size, reuse, int(n * scale)) for size, n in sizes for reuse in (False, True)]
    with tempfile.TemporaryDirectory(prefix="huiru-") as name:
        folder = Path(name)
        daemon = Daemon(folder / "ours", {"mx": {"type": "smtp", "listen": f"127.0.0.1:{(port := free_port())}"}})
        daemon.config["channels"]["mx"] |= {"domains": ["acme.cn"], "max_connections_per_client": 500}
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(running(daemon))
            ports = {"huiru": port, "aiosmtpd": await stack.enter_async_context(bare())}
            if os.geteuid() == 0:
                ports["postfix"] = free_port()
                await stack.enter_async_context(
                    postfix(folder / "postfix", ports["postfix"], "smtp:[127.0.0.1]:9", _HOLD)
                )
            if shutil.which("npm"):
                ports["haraka"] = await stack.enter_async_context(haraka(folder / "haraka"))
            show({case: await compared(case, ports, rounds, daemon) for case in cases})


async def compared(case: Case, ports: Mapping[str, int], rounds: int, daemon: Daemon) -> dict[str, float]:
    """Messages a second, of each: one after the other, several times, so that all see the machine's moods."""
    found: dict[str, list[float]] = {name: [] for name in ports}
    for _ in range(rounds):
        for name, port in ports.items():
            found[name].append(await sent(case, port))
            if name == "huiru":
                await until_published(daemon)
    return {name: median(rates) for name, rates in found.items()}


async def sent(case: Case, port: int) -> float:
    how = ["-d"] if case.reuse else []
    started = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *("smtp-source", "-s", str(SESSIONS), "-m", str(case.messages), "-l", str(case.size), *how),
        *("-f", "zhang@example.com", "-t", TO, f"127.0.0.1:{port}"),
        env={"PATH": "/usr/sbin:/usr/bin"},
    )
    assert await process.wait() == 0
    return case.messages / (time.perf_counter() - started)


@asynccontextmanager
async def bare() -> AsyncIterator[int]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.bench.baremail", str(port))
    try:
        await until_open(port)
        yield port
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def haraka(folder: Path) -> AsyncIterator[int]:
    """Installed from npm without anything that would have to be built; two lines of a plugin accept and forget."""
    port, host = free_port(), folder / "host"
    host.mkdir(parents=True)
    npm = ("npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--omit=optional", "--ignore-scripts")
    install = await asyncio.create_subprocess_exec(*npm, "--loglevel=error", HARAKA)
    assert await install.wait() == 0
    package = folder / "node_modules/haraka"
    shutil.copytree(package / "config", host / "config")
    (host / "plugins").mkdir()
    (host / "plugins/accept.js").write_text(_ACCEPT)
    (host / "config/plugins").write_text("accept\n")
    (host / "config/smtp.ini").write_text(f"listen=127.0.0.1:{port}\nnodes=0\n")
    (host / "config/log.ini").write_text("[main]\nlevel=error\n")
    with (folder / "log").open("wb") as log:
        node = await asyncio.create_subprocess_exec(
            "node", str(package / "bin/haraka"), "-c", str(host), stdout=log, stderr=log
        )
    try:
        await until_open(port)
        yield port
    finally:
        node.kill()
        await node.wait()


def show(found: Mapping[Case, Mapping[str, float]]) -> None:
    others = [name for name in next(iter(found.values())) if name != "huiru"]
    table = Table("mail a second", "huiru", *others, title="huiru mail bench")
    for case, rates in found.items():
        ratios = [f"{rates[name]:.0f} ({rates['huiru'] / rates[name]:.2f})" for name in others]
        table.add_row(str(case), f"{rates['huiru']:.0f}", *ratios)
    console = Console(width=110)
    console.print(table)
    console.print(
        "In brackets: huiru's share of it; to reach are 0.6 of aiosmtpd and 1 of postfix."
        f" {os.cpu_count()} cores shared with smtp-source and Redis, Python {platform.python_version()},"
        f" {platform.system()} {platform.machine()}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.mail", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1, help="of the number of messages")
    given = parser.parse_args()
    asyncio.run(main(given.rounds, given.scale))
