"""The `wechat` channel of a real daemon, from WeChat's push to the stream, with WeChat's server on loopback."""

import asyncio
import json
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from ruamel.yaml import YAML

from gateway.envelope import Envelope
from tests.core.redis_process import RedisProcess, servers
from tests.daemon import ROOT, Daemon
from tests.wechat.peer import AES_KEY, OTHER_AES_KEY, TOKEN, Peer, fields
from tests.wechatserver import APPID, SECRET, STABLE_TOKEN, USER, WeChatServer

EXAMPLE = Path(__file__).parents[2] / "config/channels/wechat.example.yaml"
PEER, NEW_PEER = Peer(TOKEN, AES_KEY, APPID), Peer(TOKEN, OTHER_AES_KEY, APPID)
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0\x90wS\xde"
AMR = b"#!AMR\n" + bytes(range(64))
MP4 = b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(64)
DEADLINE_SECS = 5

StartDaemon = Callable[..., Awaitable[Daemon]]
Push = Callable[..., Awaitable[bytes]]


@pytest.fixture
async def wechat() -> AsyncIterator[WeChatServer]:
    async with WeChatServer() as server:
        yield server


@pytest.fixture
def channel(wechat: WeChatServer) -> dict[str, Any]:
    """The example's, at the server on loopback."""
    block: dict[str, Any] = YAML(typ="safe", pure=True).load(EXAMPLE)["channels"]["wechat-main"]
    account = {"appid": APPID, "token": TOKEN, "aes_key": AES_KEY, "secret": SECRET}
    return {**block, **account, "api_base_url": wechat.url}


@pytest.fixture
def start(start_daemon: StartDaemon, channel: dict[str, Any]) -> StartDaemon:
    async def start(**sections: Any) -> Daemon:
        media = {"allow_networks": ["127.0.0.0/8"], **sections.pop("media", {})}
        return await start_daemon({"wechat-main": channel}, media=media, **sections)

    return start


@pytest.fixture
def push(http: aiohttp.ClientSession) -> Push:
    """`await push(daemon, MsgType="text", …)`: the answer, within WeChat's patience."""

    async def push(daemon: Daemon, peer: Peer = PEER, status: int = 200, **named: object) -> bytes:
        request = peer.push(message(**named), at=int(time.time()), nonce=secrets.token_hex(8))
        timeout = aiohttp.ClientTimeout(total=DEADLINE_SECS)
        url = f"{daemon.url}/c/wechat-main"
        async with http.post(url, params=request.query, data=request.body, timeout=timeout) as answer:
            assert answer.status == status, await answer.text()
            return await answer.read()

    return push


def message(**named: object) -> bytes:
    known = {"ToUserName": "gh_aa11", "FromUserName": "oUser01", "CreateTime": int(time.time())}
    elements = (f"<{name}>{value}</{name}>" for name, value in {**known, **named}.items())
    return f"<xml>{''.join(elements)}</xml>".encode()


def told(answer: bytes, peer: Peer = PEER) -> str:
    content: str = fields(peer.read(answer))["Content"]
    return content


def counted(status: dict[str, Any], *names: str) -> list[int]:
    (channel,) = status["channels"]
    return [channel[name] for name in names]


async def content(http: aiohttp.ClientSession, attachment: dict[str, Any]) -> bytes:
    async with http.get(attachment["url"]) as response:
        assert response.status == 200
        return await response.read()


async def test_pictures_voices_and_videos_come_with_their_tickets(
    start: StartDaemon, push: Push, wechat: WeChatServer, http: aiohttp.ClientSession
) -> None:
    wechat.add_media("M-image", PNG, "image/jpeg", "M-image.jpg")
    wechat.add_media("M-voice", AMR, "audio/amr", "M-voice.amr")
    wechat.add_media("M-video", MP4, "video/mp4", "M-video.mp4")
    wechat.add_media("M-thumb", PNG, "image/png", "M-thumb.png")
    wechat.users["oUser01"] = {"nickname": "张三", "language": "zh_CN", "unionid": "oUnion01"}
    daemon = await start()

    await push(daemon, MsgType="event", Event="SCAN", EventKey="counter-12")
    answer = await push(daemon, MsgType="image", PicUrl="http://mmbiz.qpic.cn/a", MediaId="M-image", MsgId=1)
    quiet = await push(daemon, MsgType="voice", MediaId="M-voice", Format="amr", Recognition="打印机坏了", MsgId=2)
    await push(daemon, MsgType="video", MediaId="M-video", ThumbMediaId="M-thumb", MsgId=3)
    await push(daemon, MsgType="voice", MediaId="M-gone", Format="amr", MsgId=4)

    events = {event["data"]["native_id"][-1]: event for event in await daemon.until_tickets(4)}
    picture, voice, video, gone = (Envelope.model_validate(events[id_]).data for id_ in "1234")
    assert [[await content(http, one) for one in events[id_]["data"]["attachments"]] for id_ in "123"] == [
        [PNG],
        [AMR],
        [MP4, PNG],
    ]
    assert [(one.what, one.reason) for one in gone.omissions] == [("voice", "WeChat no longer has this file")]
    assert [one.content_type for one in (*picture.attachments, *voice.attachments)] == ["image/png", "audio/amr"]
    assert (voice.text, picture.fields["source"], video.omissions) == ("打印机坏了", "counter-12", ())
    assert (picture.sender.name, picture.language) == ("张三", "zh-CN")
    assert {one.kind: one.value for one in picture.sender.identities} == {
        "wechat_openid": "oUser01",
        "wechat_unionid": "oUnion01",
    }
    assert picture.conversation == f"wechat:{APPID}:oUser01"
    assert picture.reference in told(answer)
    assert quiet == b"success"
    assert wechat.times(STABLE_TOKEN) == 1
    assert wechat.times(USER) <= 4
    ignored = 'huiru_messages_ignored_total{channel="wechat-main",code="event_scan"}'
    assert (await daemon.metrics())[ignored] == 1


async def test_three_tries_are_one_ticket_and_one_answer(start: StartDaemon, push: Push) -> None:
    daemon = await start()
    text = {"MsgType": "text", "Content": "你好", "MsgId": 24500000000000001, "CreateTime": int(time.time())}

    answers = [await push(daemon, **text) for _ in range(3)]

    (event,) = await daemon.until_tickets(1)
    replies = [fields(PEER.read(answer)) for answer in answers]
    assert replies[0] == replies[1] == replies[2]
    assert event["data"]["reference"] in replies[0]["Content"]
    assert counted(await daemon.status(), "accepted", "duplicate") == [3, 2]


async def test_the_aes_key_is_exchanged_while_it_runs(start: StartDaemon, push: Push, channel: dict[str, Any]) -> None:
    daemon = await start()
    await push(daemon, NEW_PEER, status=403, MsgType="text", Content="too early", MsgId=1)

    new = {**channel, "aes_key": OTHER_AES_KEY, "previous_aes_key": AES_KEY}
    daemon.config["channels"]["wechat-main"] = new
    daemon.write_config()
    assert (await daemon.admin("POST", "/api/reload"))["status"] == "reloaded"
    to_old = await push(daemon, MsgType="text", Content="old", MsgId=2, FromUserName="o2")
    to_new = await push(daemon, NEW_PEER, MsgType="text", Content="new", MsgId=3, FromUserName="o3")

    events = await daemon.until_tickets(2)
    references = {event["data"]["text"]: event["data"]["reference"] for event in events}
    assert references.keys() == {"old", "new"}
    assert references["old"] in told(to_old)
    assert references["new"] in told(to_new, NEW_PEER)


async def test_the_probe_finds_what_the_console_would_refuse(start: StartDaemon, channel: dict[str, Any]) -> None:
    daemon = await start()
    well = await probed(daemon)
    daemon.config["channels"]["wechat-main"] = {**channel, "token": "another-token"}
    other = await probed(daemon)

    assert well["well"], well
    assert "another token" in other["text"]
    assert SECRET not in f"{well}{other}"


async def probed(daemon: Daemon) -> dict[str, Any]:
    """What `huiru check --probe` says of the channel, by the file as it is now."""
    daemon.write_config()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "check", "--probe", "--json", "--config", str(daemon.config_path)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 30)
    (verdict,) = [one for one in json.loads(said)["probes"] if one["what"] == "wechat-main"]
    return dict(verdict)


async def test_what_cannot_be_read_is_kept_and_taken(
    start: StartDaemon, push: Push, http: aiohttp.ClientSession
) -> None:
    daemon = await start()
    request = PEER.push(b"<xml><MsgType>text", at=int(time.time()))

    async with http.post(f"{daemon.url}/c/wechat-main", params=request.query, data=request.body) as answer:
        assert (answer.status, await answer.read()) == (200, b"success")

    await daemon.until_status(lambda status: counted(status, "accepted", "quarantined") == [1, 1])


async def test_without_wechats_server_texts_go_on_and_files_follow(
    start: StartDaemon, push: Push, wechat: WeChatServer
) -> None:
    wechat.add_media("M-1", PNG, "image/png", "M-1.png")
    wechat.say_once(STABLE_TOKEN, b"", status=502)
    daemon = await start(media={"wait_secs": 0.2})

    await push(daemon, MsgType="image", MediaId="M-1", MsgId=1)
    await push(daemon, MsgType="text", Content="你好", MsgId=2, FromUserName="o2")

    events = await daemon.until_tickets(3, 40)
    (update,) = [event for event in events if event["type"] == "huiru.message.update.v1"]
    picture, text = sorted((event["data"] for event in events if event is not update), key=lambda data: data["text"])
    assert (text["text"], text["omissions"]) == ("你好", [])
    assert (picture["attachments"], [one["what"] for one in picture["omissions"]]) == ([], ["image"])
    assert update["data"]["updates"]["reference"] == picture["reference"]
    assert len(update["data"]["attachments"]) == 1


async def test_without_redis_wechat_is_answered_in_time(start: StartDaemon, push: Push, short_path: Path) -> None:
    redis = await asyncio.to_thread(RedisProcess, servers()[0], short_path / "redis")
    await redis.start()
    daemon = await start(redis={"url": f"redis://127.0.0.1:{redis.port}/0"})
    redis.kill()

    answers = [await push(daemon, MsgType="text", Content="x", MsgId=id_) for id_ in (1, 1, 2)]
    await redis.start()
    try:
        events = await daemon.until_tickets(2, 30)
        async with asyncio.timeout(10):  # Redis is given a moment before it is asked again
            while await push(daemon, MsgType="text", Content="x", MsgId=2) == b"success":
                await asyncio.sleep(0.1)
    finally:
        redis.kill()

    assert answers == [b"success"] * 3
    assert sorted(event["data"]["native_id"][-1] for event in events) == ["1", "2"]
