"""Compares what the clients know with what the daemon made of it."""

import asyncio
import hashlib
import json
import math
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp
from redis.asyncio import Redis

from tests.daemon import Daemon
from tests.faults.load import Record, Sent

_PAGE = 500
_FETCHERS = 16
_SMALL_RAW_STEP = 20  # every so manieth small message has its raw bytes fetched; of the large ones each
_SMALL_BYTES = 4096
_BAD = {"error", "critical"}
_EXCUSED = {"spool.commit_failed", "pipeline.held_up", "outbox.held_up"}  # by a full disk
Event = dict[str, Any]


@dataclass(slots=True)
class Outcome:
    """What there is: every event of the stream in its order, and the raw bytes of what lies in quarantine."""

    events: list[Event]
    quarantine: dict[str, str]  # id -> SHA-256


async def stream(redis: Redis, name: str = "tickets") -> AsyncIterator[tuple[str, dict[str, str]]]:
    """All entries, oldest first."""
    start = "-"
    while page := cast(list[tuple[str, dict[str, str]]], await redis.xrange(name, start, "+", count=_PAGE)):
        for entry in page:
            yield entry
        start = f"({page[-1][0]}"


async def outcome(daemon: Daemon, redis: Redis) -> tuple[Outcome, list[str]]:
    """What there is, and what is wrong with the entries in themselves."""
    events: list[Event] = []
    faults: list[str] = []
    async for entry_id, fields in stream(redis):
        event = json.loads(fields.pop("event"))
        expected = {
            "id": event["id"],
            "type": event["type"],
            "channel": event["data"]["channel"]["name"],
            "conversation": event["subject"],
        }
        if fields != expected:
            faults.append(f"entry {entry_id} has the fields {fields} and the event {expected}")
        events.append(event)
    listed = await daemon.admin("GET", "/api/quarantine?limit=10000")
    quarantine = {item["id"]: await _raw_in_quarantine(daemon, item["id"]) for item in listed["items"]}
    return Outcome(events, quarantine), faults


async def _raw_in_quarantine(daemon: Daemon, id_: str) -> str:
    connector = aiohttp.UnixConnector(str(daemon.state_dir / "admin.sock"))
    async with (
        aiohttp.ClientSession(connector=connector) as http,
        http.get(f"http://admin/api/quarantine/{id_}/raw") as response,
    ):
        return hashlib.sha256(await response.read()).hexdigest()


def compare(record: Record, found: Outcome) -> Iterator[str]:
    """Every message once, as it was sent, and nothing else."""
    yield from record.wrong
    by_token = {message.token: message for message in record.sent}
    times = Counter(event["id"] for event in found.events)
    yield from (f"{id_} stands {n} times in the stream" for id_, n in times.items() if n > 1)
    yield from (f"{id_} is in the stream and in quarantine" for id_ in found.quarantine if id_ in times)
    for event in found.events:
        message = by_token.get(token(event))
        if message is None:
            yield f"{event['id']} was never sent: {event['data']['text'][:80]!r}"
        else:
            yield from _differences(message, event)
    tokens = Counter(map(token, found.events))
    # A message must not stand in the stream under two ids either.
    yield from (f"the message {one} stands {n} times in the stream" for one, n in tokens.items() if n > 1)
    for message in record.acknowledged:
        yield from _absence(message, tokens, found.quarantine)


def token(event: Event) -> str:
    """See `Sent.token`."""
    text: str = event["data"]["text"]
    return text.partition(" ")[0]


def _absence(message: Sent, tokens: Counter[str], quarantine: dict[str, str]) -> Iterator[str]:
    """Its id, if it was told, is compared with that of the event."""
    if message.id and message.id in quarantine:
        if quarantine[message.id] not in message.bodies:
            yield f"{message.id} ({message.key}) is in quarantine with other bytes than were sent"
    elif message.token not in tokens and message.bodies.isdisjoint(quarantine.values()):
        yield f"{message.id} ({message.key} on {message.channel}) was acknowledged and is nowhere"


def _differences(message: Sent, event: Event) -> Iterator[str]:
    data = event["data"]
    what = f"{event['id']} ({message.key} on {message.channel})"
    digests = [hashlib.sha256(content).hexdigest() for content in message.files]
    pairs = {
        "the id": (event["id"][: len(message.id or "")], message.id or ""),
        "the channel": (data["channel"]["name"], message.channel),
        "the text": (data["text"], message.text),
        "the files": ([file["sha256"] for file in data["attachments"]], digests),
        "the sizes": ([file["size"] for file in data["attachments"]], [len(content) for content in message.files]),
        "the conflict": (data["conflict_with"], message.conflicts_with),
    }
    for name, (is_, should_be) in pairs.items():
        if is_ != should_be:
            yield f"{what}: {name} is {str(is_)[:120]}, not {str(should_be)[:120]}"
    if data["raw"]["sha256"] not in message.bodies:
        yield f"{what}: the raw bytes are none that were sent"


# What the signed addresses give


async def fetch(events: list[Event]) -> list[str]:
    """Faults of the attachments, and of the raw bytes (of small messages some)."""
    wanted = iter(_addresses(events))
    async with aiohttp.ClientSession() as http:
        found = await asyncio.gather(*(_fetch(http, wanted) for _ in range(_FETCHERS)))
    return [fault for faults in found for fault in faults]


def _addresses(events: list[Event]) -> Iterator[tuple[str, str]]:
    for n, event in enumerate(events):
        raw = event["data"]["raw"]
        if raw["size"] > _SMALL_BYTES or n % _SMALL_RAW_STEP == 0:
            yield raw["url"], raw["sha256"]
        yield from ((file["url"], file["sha256"]) for file in event["data"]["attachments"])


async def _fetch(http: aiohttp.ClientSession, wanted: Iterator[tuple[str, str]]) -> list[str]:
    faults = []
    for url, sha256 in wanted:
        async with http.get(url) as response:
            content = await response.read()
        if response.status != 200 or hashlib.sha256(content).hexdigest() != sha256:
            faults.append(f"{url} answers {response.status} and {len(content)} other bytes")
    return faults


# The books


def ledger(record: Record, status: Event, found: Outcome, read: set[str]) -> Iterator[str]:
    """R6, against what the clients counted and what lies in the stream. Channels in `read` fetch their messages, nobody
    knows how often.
    """
    in_stream = Counter(event["data"]["channel"]["name"] for event in found.events)
    for channel in status["channels"]:
        name = channel["name"]
        entries = {key: channel[key] for key in ("published", "duplicate", "quarantined", "waiting", "discarded")}
        if channel["accepted"] != sum(entries.values()):
            yield f"ledger of {name}: accepted {channel['accepted']} is not the sum of {entries}"
        if channel["waiting"]:
            yield f"ledger of {name}: {channel['waiting']} wait for ever"
        if channel["published"] != in_stream[name]:
            yield f"ledger of {name}: published {channel['published']}, in the stream {in_stream[name]}"
        yes, unanswered = record.yes[name], record.unanswered[name]
        most = math.inf if name in read else yes + unanswered
        if not yes <= channel["accepted"] <= most:
            yield f"ledger of {name}: accepted {channel['accepted']}; clients: {yes} yes, {unanswered} unanswered"
        if channel["duplicate"] < record.again[name]:
            yield f"ledger of {name}: duplicate {channel['duplicate']}, {record.again[name]} clients were told so"
    yield from _foreign(found.quarantine, status)


def _foreign(quarantine: dict[str, str], status: Event) -> Iterator[str]:
    counted = sum(channel["quarantined"] for channel in status["channels"])
    if counted != len(quarantine):
        yield f"the ledger has {counted} in quarantine, its list {len(quarantine)}"


def complaints(log: str) -> Iterator[str]:
    """Log lines that no fault of the harness excuses. (On a full disk a line may be torn.)"""
    for line in log.splitlines():
        if line.startswith("Traceback") or _is_complaint(line):
            yield f"log: {line[:500]}"


def _is_complaint(line: str) -> bool:
    try:
        event = json.loads(line)
    except ValueError:
        return False
    return event["event"] == "quarantined" or (event["level"] in _BAD and event["event"] not in _EXCUSED)


def left_behind(state_dir: Path) -> list[str]:
    """Faults of a stopped daemon's folder: the rows against the ledger, and files that belong to no row."""
    spool = state_dir / "spool"
    with sqlite3.connect(f"file:{spool / 'spool.db'}?mode=ro", uri=True) as db:
        rows = dict(db.execute("SELECT state, count(*) FROM message GROUP BY state").fetchall())
        books = dict(db.execute("SELECT entry, sum(n) FROM ledger GROUP BY entry").fetchall())
        large = {id_ for (id_,) in db.execute("SELECT id FROM message WHERE seq NOT IN (SELECT seq FROM body)")}
        check = db.execute("PRAGMA integrity_check").fetchone()[0]
    db.close()
    files = {path.name for path in (spool / "raw").iterdir()}
    faults = [] if check == "ok" else [f"the database: {check}"]
    faults += [
        f"state {state}: {rows.get(state, 0)} rows, {books.get(name, 0)} in the ledger"
        for state, name in ((1, "published"), (3, "quarantined"))
        if rows.get(state, 0) != books.get(name, 0)
    ]
    faults += [f"raw/{name} is missing" for name in large - files]
    faults += [f"raw/{name} belongs to no message" for name in files - large]
    faults += [f"{path} was left" for path in (spool / "incoming").iterdir()]
    return faults
