"""The daemon in this process, with one channel of its example configuration: everything real, and all on loopback."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client import generate_latest
from redis.asyncio import Redis
from ruamel.yaml import YAML
from yarl import URL

from gateway.app import Gateway
from gateway.contract import Accept, Connector, RunningConnector, StoredMessage
from gateway.envelope import Envelope
from gateway.settings import GatewaySettings, load, secret_values
from tests.contract.driver import Answer, Call, Driver, RunningDriver, WebhookDriver
from tests.contract.watch import Log

Check = Callable[["Rig"], Coroutine[Any, Any, None]]
OpenRig = Callable[[Driver], AbstractAsyncContextManager["Rig"]]
STOP_SECS = 1
_SLACK_SECS = 4
UP_SECS = 10
_BLOWN = "the rig blew the fuse"
_DEFECTS = {"request_failed", "refusal_failed", "task_died", "failed"}  # log lines that tell of one


def example(driver: Driver) -> tuple[str, dict[str, Any]]:
    """The one channel of a type's example: its name and its block."""
    ((name, block),) = YAML(typ="safe", pure=True).load(driver.example)["channels"].items()
    return name, block


def load_with(folder: Path, driver: Driver, channels: dict[str, Any], **sections: Any) -> GatewaySettings:
    """The settings of these channels, on loopback, read from a file in `folder`."""
    config = {
        "name": "rig",
        "state_dir": str(folder / "state"),
        "http": {"listen": "127.0.0.1:0", "body_timeout_secs": 1},
        "admin": {"listen": "127.0.0.1:0"},
        "shutdown_secs": STOP_SECS,
        "channels": channels,
        **sections,
    }
    path = folder / "gateway.yaml"
    path.write_text(json.dumps(config, default=str))  # JSON is YAML
    return load(path, driver.env)


class Rig:
    """`folder` is empty; `redis_url` is a real server. What the composition keeps to itself is touched here alone."""

    def __init__(self, driver: Driver, folder: Path, redis_url: str, log: Log) -> None:
        self.driver = driver
        self.folder = folder
        self.log = log
        self.answers: list[Answer] = []
        self.channel, self._block = example(driver)
        self._redis_url = redis_url
        self._stream = f"tickets-{folder.name}"

    # Life

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Rig"]:
        """As `Gateway.run` does it, without signals. At its end the books balance, and nothing secret was let out."""
        async with AsyncExitStack() as world:
            if isinstance(self.driver, RunningDriver):
                await world.enter_async_context(self.driver.world())
            self._http = await world.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()))
            self._redis = await world.enter_async_context(Redis.from_url(self._redis_url, decode_responses=True))
            self.gateway = Gateway(self.folder / "gateway.yaml", self._settings(), self.log.redactor)
            self._stack = AsyncExitStack()
            try:
                await self.gateway._start(self._stack)
                if isinstance(self.driver, WebhookDriver):
                    await self.driver.prepare(self.send)
                yield self
            finally:
                await self.stop()
            self._audit()

    def _settings(self) -> GatewaySettings:
        """Without a rate limit: a check asks often."""
        block = {**self._block, "rate": None, **self.driver.overrides()}
        redis, stream = {"url": self._redis_url}, {"name": self._stream}
        return load_with(self.folder, self.driver, {self.channel: block}, redis=redis, stream=stream)

    async def stop(self) -> None:
        """As at a SIGTERM. Raises TimeoutError when it takes too long."""
        async with asyncio.timeout(STOP_SECS + _SLACK_SECS):
            await self._stack.aclose()

    @property
    def connector(self) -> Connector:
        return self.gateway._connectors[self.channel]

    # As a sender

    @property
    def url(self) -> str:
        return f"{self.gateway.public_url}/c/{self.channel}"

    async def send(self, call: Call, *, chunked: bool = False) -> Answer:
        """By an ordinary client; `chunked`: without saying beforehand how much it will be."""
        body = _chunks(call.body) if chunked else call.body
        request = self._http.request(
            call.method, URL(self.url + call.path, encoded=True), headers=call.headers, data=body, allow_redirects=False
        )
        async with request as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            return self._noted(Answer(response.status, headers, await response.read()))

    async def shout(self, call: Call) -> Answer | None:
        """By a client that sends anything; the answer is without its headers, and None when there was none."""
        reader, writer = await asyncio.open_connection("127.0.0.1", URL(self.url).port)
        try:
            writer.write(self._as_bytes(call, len(call.body)))
            said = await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()
        head, _, body = said.partition(b"\r\n\r\n")
        return self._noted(Answer(int(head.split(b" ", 2)[1]), {}, body)) if said else None

    @asynccontextmanager
    async def half_sent(self, call: Call) -> AsyncIterator[None]:
        """A client that does not send the end of its request."""
        _, writer = await asyncio.open_connection("127.0.0.1", URL(self.url).port)
        try:
            writer.write(self._as_bytes(call, len(call.body) + 1))
            await writer.drain()
            yield
        finally:
            writer.transport.abort()

    def _as_bytes(self, call: Call, length: int) -> bytes:
        lines = [f"{call.method} /c/{self.channel}{call.path} HTTP/1.1", "Host: rig", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in call.headers.items()]
        return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode("latin-1") + call.body

    def _noted(self, answer: Answer) -> Answer:
        self.answers.append(answer)
        return answer

    # As a consumer and an operator

    async def tickets(self) -> list[dict[str, Any]]:
        """The stream's entries, once all that was accepted is settled; `event` is an Envelope."""
        await self.gateway._pipeline.drained()
        entries: list[tuple[str, dict[str, str]]] = await self._redis.xrange(self._stream)  # type: ignore[assignment]  # with decode_responses
        return [{**fields, "event": Envelope.model_validate_json(fields["event"])} for _, fields in entries]

    async def only_ticket(self) -> dict[str, Any]:
        tickets = await self.tickets()
        assert len(tickets) == 1, f"one ticket was expected, there are {len(tickets)}"
        return tickets[0]

    async def stored(self) -> list[StoredMessage]:
        """What was published, as a normalizer gets it."""
        await self.gateway._pipeline.drained()
        return [row.message for row in await self.gateway._spool.published_since(0, 0, 1000, 1 << 30)]

    def count(self, entry: str) -> int:
        """Of the ledger: `accepted`, `published`, `duplicate`, `quarantined`; or `waiting`."""
        if entry == "waiting":
            return self.gateway._spool.waiting(self.channel)
        return self.gateway._spool.ledger[self.channel, entry]

    @property
    def files(self) -> list[Path]:
        """Of bodies, whether they were accepted or are on their way."""
        return [path for path in (self.folder / "state/spool").glob("*/*") if path.is_file()]

    def nothing_was_accepted(self) -> bool:
        return self.count("accepted") == 0 and not self.files

    async def metrics(self) -> dict[str, float]:
        """`name{labels}` -> value."""
        async with self._http.get(f"http://{self.gateway.admin_address}/metrics") as response:
            lines = (await response.text()).splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}

    async def is_ready(self) -> bool:
        async with self._http.get(f"http://{self.gateway.admin_address}/readyz") as response:
            return response.status == 200

    # When things go wrong

    @contextmanager
    def full_spool(self) -> Iterator[None]:
        """`spool.max_bytes` is reached."""
        intake = self.gateway._intake
        room, intake._max_bytes = intake._max_bytes, 0
        try:
            yield
        finally:
            intake._max_bytes = room

    @contextmanager
    def failing_spool(self) -> Iterator[None]:
        """The journal takes nothing, as at its end."""
        journal = self.gateway._spool._journal
        journal._closing = True
        try:
            yield
        finally:
            journal._closing = False

    async def break_connector(self) -> None:
        """The running connector's run fails once; returns when it is down."""
        supervisor, connector = self.gateway._supervisor, self.connector
        assert isinstance(connector, RunningConnector)
        await supervisor.stop([self.channel])
        fuse = _Fuse(connector)
        supervisor.start(fuse)
        await self.until_up()
        fuse.blown.set()
        await self._until_up_is(False)

    @property
    def is_up(self) -> bool:
        """As `huiru_channel_up` says it."""
        return bool(self.gateway._metrics.registry.get_sample_value("huiru_channel_up", {"channel": self.channel}))

    async def until_up(self) -> None:
        await self._until_up_is(True)

    async def _until_up_is(self, wanted: bool) -> None:
        async with asyncio.timeout(UP_SECS):
            while self.is_up != wanted:
                await asyncio.sleep(0.01)

    @contextmanager
    def bodies_as_files(self) -> Iterator[None]:
        """Every body goes through a file, as large ones do."""
        web = self.gateway._web
        kept, web._settings = web._settings, web._settings.model_copy(update={"memory_body_bytes": 0})
        try:
            yield
        finally:
            web._settings = kept

    def limit_requests(self, max_bytes: int) -> None:
        self.connector.settings = self.connector.settings.model_copy(update={"max_request_bytes": max_bytes})

    # What holds after every check

    def _audit(self) -> None:
        settled = sum(map(self.count, ("published", "duplicate", "quarantined", "discarded", "waiting")))
        assert self.count("accepted") == settled, "the ledger does not balance"
        assert self.count("quarantined") == 0, "a message that was accepted cannot be normalised"
        assert not list((self.folder / "state/spool/incoming").iterdir()), "a refused body was left behind"
        defects = _DEFECTS.intersection(self.log.events)
        assert not defects, f"logged as a defect: {defects}\n{self.log.written}"
        tracebacks = [line for line in self.log.written.splitlines() if "Traceback" in line and _BLOWN not in line]
        assert not tracebacks
        for where, text in self._let_out():
            shown = [secret for secret in self._secrets() if secret in text]
            assert not shown, f"{where} shows a secret: {shown}"

    def _secrets(self) -> set[str]:
        return {*secret_values(self.gateway.settings), *self.driver.secrets}

    def _let_out(self) -> Iterator[tuple[str, str]]:
        """Whatever others may read."""
        yield "a log line", "\n".join(self.log.given)
        yield "a log line that was written", self.log.written
        yield "the metrics", generate_latest(self.gateway._metrics.registry).decode()
        for answer in self.answers:
            yield "an answer", answer.body.decode("utf-8", "replace")
            yield "an answer's headers", repr(answer.headers)


class _Fuse(RunningConnector):
    """The same connector, whose first run fails when the fuse is blown."""

    def __init__(self, connector: RunningConnector) -> None:
        super().__init__(connector.name, connector.settings, connector.context)
        self._connector = connector
        self.blown = asyncio.Event()

    async def run(self, accept: Accept, up: Callable[[bool], None]) -> None:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(self._connector.run(accept, up))
            if self.blown.is_set():
                return
            running.add_done_callback(lambda _: self.blown.set())
            await self.blown.wait()
            raise ConnectionError(_BLOWN)


async def _chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 1 << 16):
        yield body[start : start + (1 << 16)]
