"""`python -m tests.bench.wechat`: WeChat's encrypted text messages a second, beside wechatpy in a bare handler."""

import argparse
import asyncio
import os
import platform
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from urllib.parse import urlencode

from rich.console import Console
from rich.table import Table

from tests.bench import load
from tests.bench.__main__ import middle, running, until_open, until_published
from tests.bench.load import Load
from tests.daemon import Daemon, free_port
from tests.wechat.peer import AES_KEY, APPID, TOKEN, Peer
from tests.wechatserver import SECRET, WeChatServer

SCRIPT = Path(__file__).with_name("push.lua")
PATH = "/c/wechat"
_USERS = 500
_MOST_PER_SECOND = 6000  # that are prepared, so that none comes twice
_MESSAGE = (
    "<xml><ToUserName><![CDATA[gh_aa11]]></ToUserName><FromUserName><![CDATA[o{user:027d}]]></FromUserName>"
    "<CreateTime>{time}</CreateTime><MsgType><![CDATA[text]]></MsgType>"
    "<Content><![CDATA[我的打印机今天早上开始不工作了，订单 {n}]]></Content><MsgId>{n}</MsgId></xml>"
)


async def main(seconds: int, rounds: int) -> None:
    table = Table("with", "huiru", "bare wechatpy", "ratio", "p99, ms", title="WeChat, messages per second")
    for name, more in (("text alone", {}), ("profiles and replies", {"secret": SECRET, "reply": {}})):
        ours, theirs = await beside(more, seconds, rounds)
        rates = middle(ours, "per_second"), middle(theirs, "per_second")
        p99 = f"{median(one.p99 for one in ours):.0f} beside {median(one.p99 for one in theirs):.0f}"
        table.add_row(name, f"{rates[0]:.0f}", f"{rates[1]:.0f}", f"{rates[0] / rates[1]:.2f}", p99)
    console = Console(width=110)
    console.print(table)
    load_average = os.getloadavg()[0]
    console.print(f"{os.cpu_count()} cores, load {load_average:.1f}, Python {platform.python_version()}; to reach: 0.5")


async def beside(more: dict[str, object], seconds: int, rounds: int) -> tuple[list[Load], list[Load]]:
    """One after the other, several times; every message is a new one."""
    ours: list[Load] = []
    theirs: list[Load] = []
    with tempfile.TemporaryDirectory(prefix="huiru-") as folder:
        async with WeChatServer(appid=APPID) as server, bare() as url:
            server.users = {f"o{user:027d}": {"language": "zh_CN", "unionid": f"u{user}"} for user in range(_USERS)}
            account = {"type": "wechat", "appid": APPID, "token": TOKEN, "aes_key": AES_KEY, "freshness_secs": 3600}
            daemon = Daemon(Path(folder) / "d", {"wechat": {**account, "api_base_url": server.url, **more}})
            async with running(daemon):
                await load.run(daemon.url + PATH, 2, 64, SCRIPT, prepared(Path(folder), 0, 2))  # all are known then
                await until_published(daemon)
                for number in range(1, rounds + 1):
                    pushes = prepared(Path(folder), number, seconds)
                    theirs.append(await load.run(url, seconds, 64, SCRIPT, pushes))
                    ours.append(await load.run(daemon.url + PATH, seconds, 64, SCRIPT, pushes))
                    await until_published(daemon)
    return ours, theirs


def prepared(folder: Path, number: int, seconds: int) -> str:
    """A file of pushes that no other has."""
    path = folder / f"{number}.txt"
    count = seconds * _MOST_PER_SECOND
    path.write_text("\n".join(pushes(number * 10_000_000, count)))
    return str(path)


def pushes(first: int, count: int) -> Iterator[str]:
    peer, now = Peer(), int(time.time())
    for n in range(first, first + count):
        request = peer.push(_MESSAGE.format(user=n % _USERS, time=now, n=n).encode(), at=now, nonce=f"{n}")
        assert isinstance(request.body, bytes)
        yield f"{urlencode(dict(request.query))}\t{request.body.decode()}"


@asynccontextmanager
async def bare() -> AsyncIterator[str]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.bench.barewechat", str(port))
    try:
        await until_open(port)
        yield f"http://127.0.0.1:{port}{PATH}"
    finally:
        process.kill()
        await process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.wechat", description=__doc__)
    parser.add_argument("--seconds", type=int, default=4, help="of every load")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    asyncio.run(main(given.seconds, given.rounds))
