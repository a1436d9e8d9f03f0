"""A real daemon, and around it WeChat: its server, its pushes, and a mini-program that runs the example page."""

import asyncio
import json
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from ruamel.yaml import YAML

from tests.daemon import ROOT, Daemon, free_port
from tests.wechat.peer import AES_KEY, TOKEN, Peer, envelope
from tests.wechatserver import APPID, MEDIA, SECRET, WeChatServer

NAME = "mini-shop"
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(5000)
PEER = Peer(appid=APPID)
Start = Callable[..., Awaitable[Daemon]]


class MiniProgram:
    """The example page in Node. `user` is what one fills in."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def fill_in(self, **user: Any) -> dict[str, Any]:
        """What the page shows when it was sent."""
        assert self._process.stdin
        assert self._process.stdout
        given = {"codes": [], "values": {}, "phone": "", "photos": [], **user}
        self._process.stdin.write(json.dumps(given).encode() + b"\n")
        async with asyncio.timeout(20):
            shown: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return shown


@asynccontextmanager
async def mini_program(daemon: Daemon) -> AsyncIterator[MiniProgram]:
    process = await asyncio.create_subprocess_exec(
        *("node", str(Path(__file__).with_name("miniprogram_wx.mjs")), f"{daemon.url}/c/{NAME}"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield MiniProgram(process)
    finally:
        assert process.stdin
        process.stdin.close()
        await process.wait()


@pytest.fixture
async def wechat() -> AsyncIterator[WeChatServer]:
    async with WeChatServer() as server:
        yield server


@pytest.fixture
def example(wechat: WeChatServer) -> dict[str, Any]:
    """The example configuration, at the stand-in for WeChat's server."""
    path = ROOT / "config/channels/miniprogram.example.yaml"
    block = YAML(typ="safe", pure=True).load(path)["channels"][NAME]
    return {**block, "token": TOKEN, "aes_key": AES_KEY, "secret": SECRET, "api_base_url": wechat.url}


async def push(daemon: Daemon, http: aiohttp.ClientSession, message: dict[str, Any]) -> tuple[int, bytes]:
    common = {"ToUserName": "gh_aa11", "FromUserName": "oUser01", "CreateTime": int(time.time())}
    encrypted = PEER.encrypt(json.dumps(common | message).encode())
    query = PEER.sealed_query(encrypted, int(time.time()), secrets.token_hex(8))
    async with http.post(f"{daemon.url}/c/{NAME}", params=query, data=envelope(encrypted, "json")) as answer:
        return answer.status, await answer.read()


async def test_the_example_page_hands_in_a_form(
    start_daemon: Start, wechat: WeChatServer, example: dict[str, Any], tmp_path: Path
) -> None:
    daemon = await start_daemon({NAME: example})
    photo = tmp_path / "照片.png"
    photo.write_bytes(PNG)
    phone = wechat.phone_code("13812345678")
    values = {"text": "坏了", "order_no": "77880001"}

    async with mini_program(daemon) as page:
        wrong = await page.fill_in(codes=[wechat.login("oUser01", "uUser01")], values={"text": "", "order_no": "12"})
        sent = await page.fill_in(values=values, phone=phone, photos=[str(photo)])
        await _end_sessions(daemon)
        later = await page.fill_in(codes=[wechat.login("oUser01")], values={"text": "还是坏的"}, photos=[str(photo)])

    assert set(wrong["errors"]) == {"text", "order_no"}
    first, second = [event["data"] for event in await daemon.until_tickets(2)]
    assert [sent["reference"], later["reference"]] == [first["reference"], second["reference"]]
    assert (first["text"], first["fields"], first["kind"]) == ("坏了", {"order_no": "77880001"}, "form")
    assert [(one["filename"], one["size"]) for one in first["attachments"]] == [("照片.png", len(PNG))]
    assert {one["kind"]: (one["value"], one["verified"]) for one in first["sender"]["identities"]} == {
        "wechat_openid": ("oUser01", True),
        "wechat_unionid": ("uUser01", True),
        "phone": ("+8613812345678", True),
    }
    assert first["conversation"] == second["conversation"] == f"wechat:{APPID}:oUser01"
    assert [one["size"] for one in second["attachments"]] == [len(PNG)]
    assert not [secret for secret in (SECRET, TOKEN, AES_KEY, phone, "session_key") if secret in daemon.log()]


async def _end_sessions(daemon: Daemon) -> None:
    async with daemon.redis() as redis:
        keys = [key async for key in redis.scan_iter("*:visit:*")]
        assert keys
        await redis.delete(*keys)


async def test_a_picture_in_the_chat_is_a_ticket_with_its_file(
    start_daemon: Start, wechat: WeChatServer, example: dict[str, Any], http: aiohttp.ClientSession
) -> None:
    daemon = await start_daemon({NAME: example})
    wechat.add_media("M1", PNG, "image/png", "a.png")
    wechat.fail_once(MEDIA, 42001)
    entered = {"MsgType": "event", "Event": "user_enter_tempsession", "SessionFrom": "support-page"}
    image = {"MsgType": "image", "MediaId": "M1", "MsgId": "49d72d67_1555684067"}

    answers = [await push(daemon, http, message) for message in (entered, image, image)]

    assert answers == [(200, b"success")] * 3
    (event,) = await daemon.until_tickets(1)
    ticket = event["data"]
    assert ticket["fields"]["source"] == "support-page"
    assert [(one["content_type"], one["size"]) for one in ticket["attachments"]] == [("image/png", len(PNG))]
    assert ticket["conversation"] == f"wechat:{APPID}:oUser01"
    metrics = await daemon.metrics()
    ignored = f'huiru_messages_ignored_total{{channel="{NAME}",code="event_user_enter_tempsession"}}'
    assert metrics[ignored] == 1
    assert metrics[f'huiru_messages_duplicate_total{{channel="{NAME}"}}'] == 1


async def test_while_redis_is_away_the_chat_goes_on_and_the_form_comes_again(
    start_daemon: Start, wechat: WeChatServer, example: dict[str, Any], http: aiohttp.ClientSession
) -> None:
    daemon = await start_daemon({NAME: example}, redis={"url": f"redis://127.0.0.1:{free_port()}/0"})

    chat = await push(daemon, http, {"MsgType": "text", "Content": "坏了", "MsgId": "1"})
    headers = {"Authorization": f"Bearer {'A' * 43}", "Idempotency-Key": "k-1"}
    async with http.post(f"{daemon.url}/c/{NAME}/messages", json={"text": "坏了"}, headers=headers) as answer:
        form = (answer.status, int(answer.headers["Retry-After"]) > 0)

    assert chat == (200, b"success")
    assert form == (503, True)


async def test_the_check_reaches_wechats_server_and_the_own_address(
    start_daemon: Start, wechat: WeChatServer, example: dict[str, Any]
) -> None:
    daemon = await start_daemon({NAME: example})

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "check", "--probe", "--config", str(daemon.config_path)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()

    assert process.returncode == 0, said.decode()
    assert f" ok {NAME} " in " ".join(said.decode().split())
