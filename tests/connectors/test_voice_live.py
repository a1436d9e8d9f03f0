"""Calls at a real daemon: the callbacks of every preset, in and out of order and twice; a crash between two of them,
Redis away; recordings from a server that has conditions."""

import hmac
import json
import os
import signal
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode
from zoneinfo import ZoneInfo

import aiohttp
import pytest
from aiohttp import web

from gateway.envelope import UPDATE_TYPE, Envelope
from tests.daemon import Daemon, free_port

StartDaemon = Callable[..., Awaitable[Daemon]]

SECRET = "the-secret-path-of-the-live-tests"
PASSWORD = "the-password-of-the-live-tests"
AUTH_TOKEN = "the-auth-token-of-the-live-tests"
CALLER, CALLEE = "13800138000", "4008001234"
STARTED = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=5)  # an old call would not be remembered
ENDED = STARTED + timedelta(seconds=20)
UNIX, UNIX_END = (str(int(moment.timestamp())) for moment in (STARTED, ENDED))
LOCAL, LOCAL_END = (f"{moment.astimezone(ZoneInfo('Asia/Shanghai')):%Y-%m-%d %H:%M:%S}" for moment in (STARTED, ENDED))
SOUND = b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(1000)
BASIC = {"Authorization": f"Basic {b64encode(f'vendor:{PASSWORD}'.encode()).decode()}"}


@dataclass(frozen=True)
class Callback:
    """A request to `/c/<preset><path>`; a form to be signed has its values beside."""

    path: str = ""
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    form: dict[str, str] = field(default_factory=dict)


def as_json(document: Any, path: str = "", **headers: str) -> Callback:
    return Callback(path, json.dumps(document).encode(), {"Content-Type": "application/json", **headers})


def as_form(values: dict[str, str], path: str = "", **headers: str) -> Callback:
    headers = {"Content-Type": "application/x-www-form-urlencoded", **headers}
    return Callback(path, urlencode(values).encode(), headers, values)


# What each vendor sends of a call that nobody took


def generic(id_: str, sounds: str) -> list[Callback]:
    call = {"call_id": id_, "direction": "inbound", "caller": CALLER, "callee": CALLEE}
    at = f"/{SECRET}"
    return [
        as_json({**call, "event": "ring", "started_at": LOCAL}, at),
        as_json({**call, "event": "ended", "result": "missed", "ended_at": LOCAL_END}, at),
        as_json({"call_id": id_, "event": "recording", "recording_id": "R1", "recording_url": f"{sounds}/R1.wav"}, at),
    ]


def twilio(id_: str, sounds: str) -> list[Callback]:
    call = {"CallSid": id_, "AccountSid": "AC1", "From": f"+86{CALLER}", "To": "+18005551212", "Direction": "inbound"}
    sound = {"CallSid": id_, "RecordingSid": f"RE{id_}", "RecordingUrl": f"{sounds}/RE{id_}", "RecordingDuration": "9"}
    return [
        as_form({**call, "CallStatus": "ringing"}),
        as_form({**call, "CallStatus": "no-answer", "SequenceNumber": "2", "CallbackSource": "call-progress-events"}),
        as_form({**sound, "RecordingStatus": "completed"}),
    ]


def tccc(id_: str, sounds: str) -> list[Callback]:
    record = {
        "SdkAppId": 1400,
        "SessionId": id_,
        "Caller": f"0086{CALLER}",
        "Callee": CALLEE,
        "Direction": 0,
        "StartTimestamp": int(UNIX),
        "EndedTimestamp": int(UNIX_END),
        "EndStatus": 103,
        "IVRKeyPressed": ["1", "2"],
    }
    sound = {"SdkAppId": 1400, "RecordId": f"r-{id_}", "SessionId": id_, "RecordURL": f"{sounds}/{id_}.wav"}
    return [
        as_json(record, "?action=cdr&version=1", **{"X-TCCC-PUSH-UUID": f"u-{id_}", **BASIC}),
        as_json(sound, "?action=record&version=1", **BASIC),
    ]


def aliyun(id_: str, sounds: str) -> list[Callback]:
    record = {
        "call_id": id_,
        "caller": CALLER,
        "callee": CALLEE,
        "start_time": LOCAL,
        "end_time": LOCAL_END,
        "duration": 0,
        "status_code": "200010",
    }
    sound = {"call_id": id_, "record_file": f"{sounds}/{id_}.wav"}
    return [as_json([record, {"start_time": LOCAL}], f"/{SECRET}"), as_json([sound], f"/{SECRET}")]


def clink(id_: str, sounds: str) -> list[Callback]:
    call = {"cdr_main_unique_id": id_, "cdr_customer_number": CALLER, "cdr_number_trunk": CALLEE, "cdr_call_type": "1"}
    ring = {**call, "cdr_start_time": UNIX}
    end = {**ring, "cdr_end_time": UNIX_END, "cdr_status": "2", "cdr_bridge_time": "", "level": "VIP"}
    return [as_form(ring, f"/{SECRET}"), as_form(end, f"/{SECRET}")]


def moor(id_: str, sounds: str) -> list[Callback]:
    call = {"CallSheetID": id_, "CallNo": CALLER, "CalledNo": CALLEE, "CallType": "normal"}
    ring = {**call, "CallState": "Ring", "Ring": LOCAL}
    end = {**ring, "CallState": "Hangup", "End": LOCAL_END, "State": "notDeal", "IVRKEY": "3"}
    return [Callback(f"/{SECRET}?{urlencode(values)}") for values in (ring, end)]


def udesk(id_: str, sounds: str) -> list[Callback]:
    call = {
        "conversation_id": id_,
        "call_id": "s-1",
        "customer_phone": CALLER,
        "display_number": CALLEE,
        "workflow": "in",
        "customer_ring_at": f"{LOCAL} +0800",
        "nick_name": "张三",
    }
    end = {**call, "event": "end", "call_result": "排队放弃", "queue_name": "售后", "record_url": f"{sounds}/{id_}.wav"}
    return [as_json({**call, "event": "start"}, f"/{SECRET}"), as_json(end, f"/{SECRET}")]


def freeswitch(id_: str, sounds: str) -> list[Callback]:
    def leg(uuid: str, direction: str, **profile: Any) -> dict[str, Any]:
        numbers = {"caller_id_number": CALLER, "caller_id_name": quote("张三"), "destination_number": CALLEE}
        variables = {
            "uuid": uuid,
            "direction": direction,
            "hangup_cause": "NO_ANSWER",
            "start_epoch": UNIX,
            "answer_epoch": "0",
            "end_epoch": UNIX_END,
            "billsec": "0",
        }
        flow = [{"caller_profile": {"uuid": uuid, **numbers, **profile}}]
        return {"channel_data": {"direction": direction}, "variables": variables, "callflow": flow}

    originator = {"originator_caller_profiles": [{"uuid": id_}]}
    first = json.dumps(leg(id_, "inbound"))
    second = json.dumps(leg(f"b-{id_}", "outbound", destination_number="8001", originator=originator))
    return [
        as_form({"cdr": second}, f"?uuid=b-{id_}", **BASIC),
        as_json(json.loads(first), f"?uuid=a_{id_}", **BASIC),
    ]


def asterisk(id_: str, sounds: str) -> list[Callback]:
    call = {"linkedid": id_, "uniqueid": id_, "src": CALLER, "dst": CALLEE, "direction": "in"}
    end = {**call, "start": LOCAL, "end": LOCAL_END, "disposition": "NO ANSWER"}
    voice = {"linkedid": id_, "uniqueid": id_, "event": "voicemail", "recording": f"{sounds}/{id_}.wav"}
    return [as_form({**call, "event": "ring"}, **BASIC), as_form(end, **BASIC), as_form(voice, **BASIC)]


@dataclass(frozen=True)
class Vendor:
    """`answer` is what it wants to hear when there is no reference in it."""

    calls: Callable[[str, str], list[Callback]]
    answer: bytes
    result: str
    authentication: dict[str, Any] = field(default_factory=lambda: {"scheme": "path", "secret": SECRET})
    sounds: int = 1


WITH_PASSWORD = {"scheme": "basic", "username": "vendor", "password": PASSWORD}
VENDORS = {
    "generic": Vendor(generic, b'{"ok":true', "missed"),
    "twilio": Vendor(twilio, b"<Response/>", "missed", {"scheme": "twilio", "auth_token": AUTH_TOKEN}),
    "tccc": Vendor(tccc, b'{"ErrCode":0,"ErrMsg":""}', "abandoned_in_queue", WITH_PASSWORD),
    "aliyun": Vendor(aliyun, b'"code":0', "missed"),
    "clink": Vendor(clink, b'{"result":"success"}', "missed", sounds=0),
    "7moor": Vendor(moor, b"success", "missed", sounds=0),
    "udesk": Vendor(udesk, b'"message":"success"', "abandoned_in_queue"),
    "freeswitch": Vendor(freeswitch, b"ok", "missed", WITH_PASSWORD, sounds=0),
    "asterisk": Vendor(asterisk, b"", "voicemail", WITH_PASSWORD),
}


def channel(preset: str, **more: Any) -> dict[str, Any]:
    recordings = {"username": "sounds", "password": PASSWORD, "hosts": ["127.0.0.1"], "plain_http": True}
    authentication = VENDORS[preset].authentication
    return {"type": "voice", "preset": preset, "authentication": authentication, "recordings": recordings, **more}


# The world


@dataclass
class Sounds:
    """A vendor's server: wants a password, and has nothing the first time it is asked."""

    url: str = ""
    asked: dict[str, int] = field(default_factory=dict)
    ready_after: int = 0

    async def answer(self, request: web.Request) -> web.Response:
        expected = f"Basic {b64encode(f'sounds:{PASSWORD}'.encode()).decode()}"
        if request.headers.get("Authorization") != expected:
            return web.Response(status=401)
        self.asked[request.path] = self.asked.get(request.path, 0) + 1
        if "gone" in request.path:
            return web.Response(status=410)
        if self.asked[request.path] <= self.ready_after:
            return web.Response(status=404)
        return web.Response(body=SOUND, content_type="audio/x-wav")


@pytest.fixture
async def sounds() -> AsyncIterator[Sounds]:
    server, port = Sounds(), free_port()
    app = web.Application()
    app.router.add_get("/{name:.*}", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    server.url = f"http://127.0.0.1:{port}"
    yield server
    await runner.cleanup()


MEDIA = {"allow_networks": ["127.0.0.0/8"], "wait_secs": 20}


async def call_back(http: aiohttp.ClientSession, daemon: Daemon, preset: str, one: Callback) -> tuple[int, bytes]:
    url = f"{daemon.url}/c/{preset}{one.path}"
    headers = dict(one.headers)
    if preset == "twilio":
        text = url + "".join(f"{name}{value}" for name, value in sorted(one.form.items()))
        mac = hmac.digest(AUTH_TOKEN.encode(), text.encode(), "sha1")
        headers["X-Twilio-Signature"] = b64encode(mac).decode()
    method = "GET" if one.body is None else "POST"
    async with http.request(method, url, headers=headers, data=one.body) as response:
        return response.status, await response.read()


async def settled(daemon: Daemon, n: int) -> list[Envelope]:
    """The events, once everything that was accepted is in the stream, in `n` of them at least."""
    await daemon.until_tickets(n)
    await daemon.until_status(lambda status: all(one["waiting"] == 0 for one in status["channels"]))
    return [Envelope.model_validate(event) for event in await daemon.tickets()]


ORDERS: dict[str, Callable[[Sequence[Callback]], list[Callback]]] = {
    "as it is": list,
    "backwards": lambda calls: list(reversed(calls)),
    "twice": lambda calls: [one for one in calls for _ in range(2)],
    "twice, backwards": lambda calls: [*reversed(calls), *calls],
}


async def test_a_missed_call_of_every_vendor_in_every_order(
    start_daemon: StartDaemon, http: aiohttp.ClientSession, sounds: Sounds
) -> None:
    daemon = await start_daemon({preset: channel(preset) for preset in VENDORS}, media=MEDIA)

    for preset, vendor in VENDORS.items():
        for n, order in enumerate(ORDERS.values()):
            for one in order(vendor.calls(f"call-{n}", sounds.url)):
                status, body = await call_back(http, daemon, preset, one)
                assert (status, vendor.answer in body) == (200, True), (preset, body)

    events = await settled(daemon, len(ORDERS) * len(VENDORS))
    for preset, vendor in VENDORS.items():
        for n, order_name in enumerate(ORDERS):
            of_call = [one for one in events if (one.data.channel.name, _call_id(one)) == (preset, f"call-{n}")]
            _demand_one_ticket(of_call, vendor, f"{preset}, {order_name}")
    assert {event.data.conversation for event in events if event.type != UPDATE_TYPE} <= _conversations(len(ORDERS))


def _call_id(event: Envelope) -> str:
    return str(event.data.fields["call_id"])


def _conversations(n: int) -> set[str]:
    """By the caller; by the call where a voicemail came first, that tells no caller."""
    return {f"phone:+86{CALLER}", *(f"call:call-{n}" for n in range(n))}


def _demand_one_ticket(events: list[Envelope], vendor: Vendor, order: str) -> None:
    (ticket,) = [event for event in events if event.type != UPDATE_TYPE]
    updates = [event for event in events if event.type == UPDATE_TYPE]
    calls = [event.data.call for event in events]
    assert ticket.data.kind == "call"
    assert {event.data.conversation for event in events} == {ticket.data.conversation}, order
    assert all(one.data.updates is not None and one.data.updates.id == ticket.id for one in updates), order
    assert any(call and (call.result, call.caller) == (vendor.result, f"+86{CALLER}") for call in calls), order
    files = [file for event in events for file in event.data.attachments]
    assert len(files) == vendor.sounds, order
    assert all(file.content_type == "audio/wav" and file.size == len(SOUND) for file in files)
    assert not any(event.data.omissions for event in events)


async def test_a_bad_element_is_in_quarantine_and_its_neighbours_are_not(
    start_daemon: StartDaemon, http: aiohttp.ClientSession
) -> None:
    daemon = await start_daemon({"aliyun": channel("aliyun")})
    first, second = (aliyun(f"call-{n}", "https://oss.example")[0] for n in range(2))
    assert first.body
    assert second.body
    records = [json.loads(first.body)[0], json.loads(second.body)[0]]
    body = f"[{json.dumps(records[0])}, 17, {{broken, {json.dumps(records[1])}]".encode()

    status, _ = await call_back(http, daemon, "aliyun", Callback(f"/{SECRET}", body))

    assert status == 200
    await daemon.until_status(lambda status: status["channels"][0]["quarantined"] >= 1)
    events = await settled(daemon, 1)
    assert "call-0" in {_call_id(event) for event in events}


# When something fails between two callbacks


async def test_a_crash_between_two_callbacks(
    start_daemon: StartDaemon, http: aiohttp.ClientSession, sounds: Sounds
) -> None:
    daemon = await start_daemon({"generic": channel("generic")}, media=MEDIA)
    ring, end, recording = generic("before", sounds.url)
    early, late = generic("after", sounds.url)[2], generic("after", sounds.url)[1]
    for one in (ring, end, early):
        assert (await call_back(http, daemon, "generic", one))[0] == 200

    await daemon.kill()
    await daemon.start()
    for one in (recording, late):
        assert (await call_back(http, daemon, "generic", one))[0] == 200

    events = await settled(daemon, 3)
    found = {(_call_id(event), event.type == UPDATE_TYPE): event.data for event in events}
    assert found.keys() == {("before", False), ("before", True), ("after", False)}
    assert found["before", True].updates is not None
    assert found["before", True].updates.reference == found["before", False].reference
    assert [len(found[key].attachments) for key in sorted(found)] == [1, 0, 1]


async def test_redis_away(start_daemon: StartDaemon, http: aiohttp.ClientSession, sounds: Sounds) -> None:
    """Nothing waits for it, no ticket is lost, and no recording."""
    daemon = await start_daemon({"generic": channel("generic")}, media=MEDIA)
    ring, end, recording = generic("c-1", sounds.url)
    await call_back(http, daemon, "generic", ring)
    async with daemon.redis() as redis:
        pid = (await redis.info("server"))["process_id"]
    os.kill(pid, signal.SIGSTOP)

    try:
        answers = [await call_back(http, daemon, "generic", one) for one in (end, recording, end)]
    finally:
        os.kill(pid, signal.SIGCONT)

    assert [status for status, _ in answers] == [200, 200, 200]
    events = await settled(daemon, 2)
    (ticket,) = [event for event in events if event.type != UPDATE_TYPE]
    (update,) = [event for event in events if event.type == UPDATE_TYPE]
    assert ticket.data.call
    assert (ticket.data.call.result, update.data.updates and update.data.updates.id) == ("missed", ticket.id)
    assert len(update.data.attachments) == 1


async def test_a_full_spool_is_told_in_the_vendors_words(
    start_daemon: StartDaemon, http: aiohttp.ClientSession
) -> None:
    daemon = await start_daemon(
        {"tccc": channel("tccc"), "freeswitch": channel("freeswitch")},
        spool={"max_bytes": 1 << 20, "min_free_bytes": 1 << 60},
    )

    answers = [
        await call_back(http, daemon, "tccc", tccc("c-1", "https://cos.example")[0]),
        await call_back(http, daemon, "freeswitch", freeswitch("c-1", "")[1]),
    ]

    assert [status for status, _ in answers] == [503, 503]
    assert json.loads(answers[0][1])["ErrCode"] != 0


# Recordings


async def test_a_recording_that_is_not_ready_yet(
    start_daemon: StartDaemon, http: aiohttp.ClientSession, sounds: Sounds
) -> None:
    sounds.ready_after = 1
    daemon = await start_daemon({"generic": channel("generic")}, media=MEDIA)

    for one in reversed(generic("c-1", sounds.url)[1:]):
        await call_back(http, daemon, "generic", one)

    (event,) = await settled(daemon, 1)
    assert [file.filename for file in event.data.attachments] == ["R1.wav"]
    assert sounds.asked == {"/R1.wav": 2}
    assert sounds.url not in event.model_dump_json(), "the vendor's address is in the ticket"


async def test_a_recording_that_is_gone(start_daemon: StartDaemon, http: aiohttp.ClientSession, sounds: Sounds) -> None:
    recordings = {**channel("generic")["recordings"], "urls": True}
    daemon = await start_daemon({"generic": channel("generic", recordings=recordings)}, media=MEDIA)

    for one in reversed(generic("c-1", f"{sounds.url}/gone")[1:]):
        await call_back(http, daemon, "generic", one)

    (event,) = await settled(daemon, 1)
    assert [one.what for one in event.data.omissions] == ["recording"]
    assert event.data.fields["recording_urls"] == [f"{sounds.url}/gone/R1.wav"]


# Who may call


async def test_what_is_counted_and_who_is_refused(start_daemon: StartDaemon, http: aiohttp.ClientSession) -> None:
    open_to_all = {"type": "voice", "preset": "generic", "authentication": {"scheme": "none"}}
    daemon = await start_daemon({"generic": channel("generic"), "open": open_to_all, "tccc": channel("tccc")})
    record = as_json({"call_id": "c-1", "direction": "inbound", "caller": CALLER, "result": "answered"})

    answers = [
        await call_back(http, daemon, "generic", record),
        await call_back(http, daemon, "generic", Callback(f"/{SECRET}x", record.body, record.headers)),
        await call_back(http, daemon, "tccc", record),
        await call_back(http, daemon, "generic", Callback(f"/{SECRET}", record.body, record.headers)),
        await call_back(http, daemon, "open", record),
    ]

    assert [status for status, _ in answers] == [404, 404, 401, 200, 200]
    metrics = await daemon.metrics()
    assert metrics['huiru_messages_ignored_total{channel="generic",code="answered"}'] == 1
    assert [line["channel"] for line in daemon.events("unauthenticated")] == ["open"]
    assert await daemon.tickets() == []
