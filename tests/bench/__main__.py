"""`make bench`: what one process takes, beside a bare handler in the same run. Prints a table; asserts nothing."""

import argparse
import asyncio
import hashlib
import os
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import orjson
from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from gateway.publisher import Item, Publisher, mark_of
from gateway.settings import RedisSettings, StreamSettings
from tests.bench import load
from tests.bench.load import Load
from tests.daemon import Daemon, free_port

CHANNELS = {
    "app": {"type": "api", "keys": [{"name": "bench", "sha256": hashlib.sha256(b"bench-key").hexdigest()}]},
}
PATH = "/c/app"
Row = tuple[str, str, str, str]  # what, measured, beside, to reach


async def main(seconds: int, rounds: int, backlog: int, remembered: int) -> None:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="huiru-") as folder:
        rows += await throughput(Path(folder) / "t", seconds, rounds)
        rows += await outage(Path(folder) / "o", backlog)
        rows += await memory_of_marks(Path(folder) / "m", remembered, seconds, rounds)
    show(rows)


# Accepted messages a second, latency, lag


async def throughput(folder: Path, seconds: int, rounds: int) -> list[Row]:
    """One after the other, several times, so that both see the machine's moods."""
    daemon = Daemon(folder, CHANNELS)
    async with running(daemon), bare() as bare_url:
        bare_loads, ours = [], []
        for _ in range(rounds):
            bare_loads.append(await load.run(bare_url, seconds))
            ours.append(await load.run(daemon.url + PATH, seconds))
            await until_published(daemon)
        lag = await lag_at(daemon, 0.25 * median(one.per_second for one in ours))
        bare_p99_few = [(await load.run(bare_url, seconds, 8)).p99 for _ in range(rounds)]
        ours_p99_few = [(await load.run(daemon.url + PATH, seconds, 8)).p99 for _ in range(rounds)]
    share = middle(ours, "per_second") / middle(bare_loads, "per_second")
    return [
        ("accepted messages per second", f"{middle(ours, 'per_second'):.0f}", f"{share:.2f} of bare", ">= 0.5"),
        beside("p50, 64 connections, ms", middle(ours, "p50"), middle(bare_loads, "p50"), ""),
        beside("p99, 64 connections, ms", middle(ours, "p99"), middle(bare_loads, "p99"), "<= 3"),
        beside("p99, 8 connections, ms", median(ours_p99_few), median(bare_p99_few), "<= 3"),
        ("lag to the stream at a quarter of that load, ms", f"p50 {lag[0]:.0f}", f"p99 {lag[1]:.0f}", ""),
    ]


async def lag_at(daemon: Daemon, per_second: float, seconds: float = 4) -> tuple[float, float]:
    """Median and 99th percentile, in ms, from acceptance to the stream, at a steady load."""
    async with daemon.redis() as redis, aiohttp.ClientSession() as http:
        await redis.xtrim("tickets", maxlen=0, approximate=False)
        started, sent = time.perf_counter(), 0
        tasks = []
        while (elapsed := time.perf_counter() - started) < seconds:
            for _ in range(int(elapsed * per_second) - sent):
                tasks.append(asyncio.create_task(post(http, daemon.url + PATH)))
                sent += 1
            await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)
        await until_published(daemon)
        entries = await redis.xrange("tickets")
    lags = sorted(int(id_.partition("-")[0]) - received_ms(fields["event"]) for id_, fields in entries)
    return lags[len(lags) // 2], lags[len(lags) * 99 // 100]


def received_ms(event: str) -> float:
    return datetime.fromisoformat(orjson.loads(event)["time"]).timestamp() * 1000


async def post(http: aiohttp.ClientSession, url: str) -> None:
    headers = {"Authorization": "Bearer bench-key"}
    async with http.post(url, json={"text": "我的打印机今天早上开始不工作了。" * 16}, headers=headers) as response:
        assert response.status == 202, await response.text()


# An outage: Redis is away, messages wait, Redis comes back


async def outage(folder: Path, backlog: int) -> list[Row]:
    port = free_port()
    daemon = Daemon(folder, CHANNELS, redis={"url": f"redis://127.0.0.1:{port}"})
    async with running(daemon):
        await load.run(daemon.url + PATH, 1)  # whatever is made on first use is there
        before = resident(daemon)
        while (await daemon.status())["channels"][0]["waiting"] < backlog:
            await load.run(daemon.url + PATH, 5)
        waiting = (await daemon.status())["channels"][0]["waiting"]
        growth = resident(daemon) - before
        async with redis_server(folder, port):
            started = time.perf_counter()
            await daemon.until_status(lambda status: status["channels"][0]["published"] > 0, 60)
            back = time.perf_counter() - started
            await until_published(daemon, 600)
            rate = waiting / (time.perf_counter() - started - back)
            await daemon.stop()
    return [
        ("memory of a waiting backlog, MiB", f"{growth:.1f}", f"for {waiting} messages", "<= 50"),
        ("first message after Redis is back, s", f"{back:.1f}", "", ""),
        ("drain, messages per second", f"{rate:.0f}", "", ""),
    ]


def resident(daemon: Daemon) -> float:
    """MiB."""
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


# What it costs Redis to remember


async def memory_of_marks(folder: Path, remembered: int, seconds: int, rounds: int) -> list[Row]:
    port = free_port()
    url = f"redis://127.0.0.1:{port}"
    daemon = Daemon(folder, CHANNELS, redis={"url": url})
    async with redis_server(folder, port), running(daemon):
        without = [await measured(daemon, seconds) for _ in range(rounds)]
        async with Redis.from_url(url) as redis:
            before = await used(redis)
            await remember(folder, url, remembered)
            each = (await used(redis) - before) / remembered
        within = [await measured(daemon, seconds) for _ in range(rounds)]
        await daemon.stop()
    share = middle(within, "per_second") / middle(without, "per_second")
    return [
        ("dedup, Redis bytes per message", f"{each:.1f}", f"{remembered} remembered", "<= 40"),
        ("throughput with these remembered", f"{middle(within, 'per_second'):.0f}", f"{share:.2f} of none", ">= 0.9"),
    ]


async def measured(daemon: Daemon, seconds: int) -> Load:
    """Accepted and published, under full load and until all of it is in the stream."""
    started = (await daemon.status())["channels"][0]["published"]
    clock = time.perf_counter()
    result = await load.run(daemon.url + PATH, seconds)
    await until_published(daemon, 120)
    published = (await daemon.status())["channels"][0]["published"] - started
    return Load(published / (time.perf_counter() - clock), result.p50, result.p99)


async def remember(folder: Path, url: str, count: int) -> None:
    """Marks as the publisher makes them; the entries are trimmed away."""
    publisher = Publisher(RedisSettings(url=url), StreamSettings(max_len=1), folder)
    for start in range(0, count, 500):
        numbers = range(start, min(start + 500, count))
        await publisher.publish(
            [Item(f"bench-{n}", mark_of(b"%d" % n, "bench", n), "t", "c", "k", b"{}") for n in numbers]
        )
    await publisher.close()


async def used(redis: "Redis") -> int:
    await redis.xtrim("tickets", maxlen=0, approximate=False)
    await redis.memory_purge()
    memory: dict[str, Any] = await redis.info("memory")
    return int(memory["used_memory"])


# Servers


@asynccontextmanager
async def running(daemon: Daemon) -> AsyncIterator[None]:
    await daemon.start()
    try:
        yield
    finally:
        await daemon.clean_up()


@asynccontextmanager
async def bare() -> AsyncIterator[str]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.bench.bare", str(port))
    try:
        await until_open(port)
        yield f"http://127.0.0.1:{port}{PATH}"
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def redis_server(folder: Path, port: int) -> AsyncIterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        *("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)),
        *("--appendonly", "yes", "--save", "", "--loglevel", "warning"),
    )
    try:
        await until_open(port)
        yield
    finally:
        with suppress(ProcessLookupError):  # the daemon's clean-up stops it too
            process.kill()
        await process.wait()


async def until_open(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


async def until_published(daemon: Daemon, seconds: float = 120) -> None:
    await daemon.until_status(lambda status: status["channels"][0]["waiting"] == 0, seconds)


# The table


def middle(loads: list[Load], what: str) -> float:
    return median(getattr(one, what) for one in loads)


def beside(what: str, ours: float, theirs: float, wanted: str) -> Row:
    return what, f"{ours:.1f}", f"{ours / theirs:.1f} times bare's {theirs:.1f}", wanted


def show(rows: list[Row]) -> None:
    table = Table("what", "one huiru process", "ratio", "to reach", title="huiru bench")
    for row in rows:
        table.add_row(*row)
    console = Console(width=110)
    console.print(table)
    console.print(
        f"{os.cpu_count()} cores shared with wrk and Redis, Python {platform.python_version()},"
        f" SQLite {sqlite3.sqlite_version}, {platform.system()} {platform.machine()}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--seconds", type=int, default=5, help="of every load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backlog", type=int, default=200_000, help="messages waiting in the outage")
    parser.add_argument("--remembered", type=int, default=1_000_000, help="messages Redis remembers")
    given = parser.parse_args()
    asyncio.run(main(given.seconds, given.rounds, given.backlog, given.remembered))
