"""Clients that post messages, try again as real clients do, and remember every answer."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp
import orjson

_ANSWER_SECS = 4
_RETRY_SECS = (0.02, 0.6)
_LONGEST_PAUSE_SECS = 0.3
_BURST = 6
_HEADERS = {"Accept": "application/json"}
WORDS = (
    "打印机坏了",
    "请尽快回复",
    "order 7788",
    "never arrived",
    "😀",
    "第二行\n第三行",
    '"quoted"',
    "<b>&amp;</b>",
    "\\",
)
API_KEY = "a key for the tests"  # whoever reads this may post to a daemon that lives for a minute
ORIGIN = "https://shop.example"


@dataclass(slots=True, eq=False)
class Sent:
    """One message: what was sent, and what its sender was told."""

    key: str
    channel: str
    text: str
    files: tuple[bytes, ...] = ()
    conflicts_with: str | None = None  # the id of a message that was sent before under the same idempotency key
    bodies: set[str] = field(default_factory=set)  # SHA-256 of every body that went out for it
    id: str | None = None  # as acknowledged; of a mail the beginning, "" when that was not told

    @property
    def token(self) -> str:
        """What finds the message by its text."""
        return self.text.partition(" ")[0]


@dataclass(slots=True)
class Record:
    """Everything the clients know."""

    sent: list[Sent] = field(default_factory=list)
    acknowledged: list[Sent] = field(default_factory=list)
    yes: Counter[str] = field(default_factory=Counter)  # channel -> requests answered 2xx
    again: Counter[str] = field(default_factory=Counter)  # of those, answered "known already"
    unanswered: Counter[str] = field(default_factory=Counter)  # channel -> requests whose fate is not known
    refused: Counter[int] = field(default_factory=Counter)  # status -> requests told to come again
    wrong: list[str] = field(default_factory=list)  # answers that must not be

    def acknowledge(self, message: Sent, id_: str = "") -> None:
        if message.id is None:
            self.acknowledged.append(message)
        elif message.id and id_ and message.id != id_:
            self.wrong.append(f"{message.key} was acknowledged as {message.id} and then as {id_}")
        message.id = message.id or id_


class Load:
    """`workers` clients, each with bursts of messages and pauses, on the channels of `CHANNELS`."""

    def __init__(self, base_url: str, rng: Random, record: Record, *, workers: int = 4) -> None:
        self._record = record
        self._old: list[Sent] = []  # acknowledged
        self._base_url = base_url
        self._rng = rng
        self._workers = workers
        self._numbers: Iterator[int] = iter(range(1 << 40))
        self._run = f"{rng.getrandbits(40):010x}"
        self._files = [rng.randbytes(rng.randint(1, 60_000)) for _ in range(5)]  # some are sent again and again
        self._http: aiohttp.ClientSession | None = None
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECS)
        self._http = aiohttp.ClientSession(timeout=timeout, headers=_HEADERS)
        self._stopping.clear()
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._workers)]

    async def finish(self) -> None:
        """No new messages; returns when every one that is not given up has been acknowledged."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        await self.stop()

    async def stop(self) -> None:
        """At once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._http is not None:
            await self._http.close()

    async def post_some(self, n: int) -> list[Sent]:
        """Messages that must be taken at once, without a retry."""
        async with aiohttp.ClientSession(headers=_HEADERS) as http:
            messages = [self._new() for _ in range(n)]
            for message in messages:
                assert await self._post(http, message), f"a fresh message was not taken: {self._record.refused}"
        return messages

    async def _work(self) -> None:
        while not self._stopping.is_set():
            await asyncio.gather(*(self._deliver(message) for message in self._burst()))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._rng.uniform(0, _LONGEST_PAUSE_SECS)):
                    await self._stopping.wait()

    def _burst(self) -> list[Sent]:
        return [self._next() for _ in range(self._rng.randint(1, _BURST))]

    def _next(self) -> Sent:
        old = self._old
        chance = self._rng.random()
        if old and chance < 0.08:  # a client that is not sure, or somebody who clicks twice
            return self._rng.choice(old)
        if old and chance < 0.11:
            first = self._rng.choice(old)
            if first.channel == "form" and first.conflicts_with is None:
                return self._new(first)
        return self._new()

    def _new(self, conflicts_with: Sent | None = None) -> Sent:
        number = next(self._numbers)
        key = conflicts_with.key if conflicts_with else f"{self._run}-{number}"
        channel = conflicts_with.channel if conflicts_with else self._rng.choice(list(CHANNELS))
        shape = self._rng.random()
        words = 8_000 if shape < 0.08 else self._rng.randint(1, 60)
        text = " ".join([f"{self._run}:{number}", *self._rng.choices(WORDS, k=words)])
        files = tuple(self._file() for _ in range(self._rng.randint(1, 3))) if shape > 0.9 else ()
        message = Sent(key, channel, text, files, conflicts_with.id if conflicts_with else None)
        self._record.sent.append(message)
        return message

    def _file(self) -> bytes:
        return self._rng.choice([*self._files, self._rng.randbytes(self._rng.randint(1, 90_000))])

    async def _deliver(self, message: Sent) -> None:
        """Tries until it is acknowledged; some clients give up before."""
        assert self._http is not None
        while not await self._post(self._http, message):
            if message.id is None and self._rng.random() < 0.02:
                return
            await asyncio.sleep(self._rng.uniform(*_RETRY_SECS))

    async def _post(self, http: aiohttp.ClientSession, message: Sent) -> bool:
        body, headers = request(message, self._rng)
        message.bodies.add(hashlib.sha256(body).hexdigest())
        try:
            async with http.post(f"{self._base_url}/c/{message.channel}", data=body, headers=headers) as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            self._record.unanswered[message.channel] += 1
            return False
        return self._note(message, response.status, answer)

    def _note(self, message: Sent, status: int, answer: bytes) -> bool:
        record = self._record
        if status in (200, 202):
            record.yes[message.channel] += 1
            record.again[message.channel] += status == 200
            self._old += [message] if message.id is None else []
            record.acknowledge(message, orjson.loads(answer)["id"])
            return True
        record.refused[status] += 1
        if status not in (408, 503):  # what a client in this harness may ever be told
            record.wrong.append(f"{message.key} on {message.channel} was answered {status}: {answer[:300]!r}")
        return False


# Requests

CHANNELS: dict[str, Any] = {
    "form": {
        "type": "webform",
        "title": "Support",
        "rate": None,
        "allowed_origins": [ORIGIN],
        "fields": [
            {"name": "text", "type": "textarea", "label": "Text", "required": True, "max_length": 100_000},
            {"name": "files", "type": "file", "label": "Files"},
        ],
    },
    "app": {"type": "api", "keys": [{"name": "load", "sha256": hashlib.sha256(API_KEY.encode()).hexdigest()}]},
}


def request(message: Sent, rng: Random) -> tuple[bytes, dict[str, str]]:
    """A body and its headers. The multipart boundary is another one at every try, as it is with real clients."""
    headers = {"Idempotency-Key": f'"{message.key}"'}
    headers |= {"Origin": ORIGIN} if message.channel == "form" else {"Authorization": f"Bearer {API_KEY}"}
    if not message.files:
        return orjson.dumps({"text": message.text}), headers | {"Content-Type": "application/json"}
    boundary = f"----{rng.getrandbits(64):016x}"
    body = b"".join(_part(boundary, *part) for part in _parts(message)) + f"--{boundary}--\r\n".encode()
    return body, headers | {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def _parts(message: Sent) -> Iterator[tuple[str, str, bytes]]:
    if message.channel == "form":
        yield 'name="text"', "text/plain; charset=utf-8", message.text.encode()
    else:
        yield 'name="message"', "application/json", orjson.dumps({"text": message.text})
    for n, content in enumerate(message.files):
        yield f'name="files"; filename="文件-{n}.bin"', "application/octet-stream", content


def _part(boundary: str, disposition: str, content_type: str, content: bytes) -> bytes:
    head = f"--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\nContent-Type: {content_type}\r\n\r\n"
    return head.encode() + content + b"\r\n"
