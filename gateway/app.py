"""The composition root: builds everything in order, stops it in reverse with a deadline."""

import asyncio
import contextlib
import gc
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import structlog
from aiohttp import web

from gateway import host, registry, secret
from gateway.acknowledgement import Acknowledgements
from gateway.address import Address
from gateway.admin import AdminApi, health_application
from gateway.blobs import Blobs
from gateway.contract import (
    ChannelSettings,
    Connector,
    Context,
    Receipt,
    RunningConnector,
    Uploads,
    WebhookConnector,
)
from gateway.errors import ConfigError, HuiruError, Rejected, Unavailable
from gateway.fetch import Fetcher
from gateway.intake import Intake
from gateway.lease import Leases
from gateway.mail import archive
from gateway.media import Media
from gateway.outbox import Outbox
from gateway.pipeline import Pipeline
from gateway.publisher import Publisher
from gateway.redis_server import RedisServer
from gateway.settings import GatewaySettings, load, secret_values
from gateway.shared import SharedState
from gateway.spool import NEWEST, Spool
from gateway.supervisor import Supervisor
from gateway.telemetry import CredentialCollector, LedgerCollector, Metrics, MissingCollector, Redactor, set_up_logging
from gateway.upkeep import Upkeep
from gateway.web import Web, WebChannel
from gateway.workers import Workers

log = structlog.get_logger()

ADMIN_SOCKET = "admin.sock"
_SPOOL_ID = "spool_id"
_IN_THREAD_BYTES = 64 << 10  # of an old mail, whose identity is a digest of it all
# What a reload can change; every other key waits for a restart.
_RELOADABLE = frozenset({"channels", "outgoing_mail"})


def main(config: Path, announce: Callable[["Gateway"], None] = lambda gateway: None) -> int:
    """Runs the daemon until SIGTERM or SIGINT. The exit status: 0 stopped, 1 failed, 78 configuration error."""
    try:
        settings = load(config, os.environ)
        redactor = Redactor()
        set_up_logging(settings.log.format, settings.log.level, redactor)
        asyncio.run(Gateway(config, settings, redactor).run(announce))
    except ConfigError as error:
        print(error.public, file=sys.stderr)  # noqa: T201 - a person reads this, not a log collector
        return os.EX_CONFIG
    except (Unavailable, OSError) as error:
        log.critical("failed", reason=error.reason if isinstance(error, Unavailable) else str(error))
        return 1
    return 0


class Gateway:
    """The daemon. `run` is its whole life."""

    def __init__(self, config: Path, settings: GatewaySettings, redactor: Redactor) -> None:
        redactor.learn(secret_values(settings))
        self.name = settings.name
        self.redis_url = settings.redis.shown_url
        self.stream_name = settings.stream.name
        self.started = time.time()
        self.settings = settings
        self.public_url = ""
        self._config = config
        self._redactor = redactor
        self._stop = asyncio.Event()
        self._died = ""  # the task that ended all
        self._deadline = 0.0  # of the stop, by the event loop's clock
        self._reloading = asyncio.Lock()
        self._metrics = Metrics()
        self._connectors: dict[str, Connector] = {}

    async def run(self, announce: Callable[["Gateway"], None]) -> None:
        """Raises ConfigError, Unavailable or OSError when it cannot start."""
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._listen_to_signals()
            host.notify("READY=1")
            announce(self)
            # What was built until now stays: the collector need not look at it again, nor look so often.
            gc.freeze()
            gc.set_threshold(50_000, 20, 50)
            await self._stop.wait()
            self._deadline = asyncio.get_running_loop().time() + self.settings.shutdown_secs
            host.notify("STOPPING=1")
            log.info("stopping")
        if self._died:
            raise Unavailable(reason=f"{self._died} has died")
        log.info("stopped")

    # Start: what is entered last is left first

    async def _start(self, stack: AsyncExitStack) -> None:
        settings, state = self.settings, self.settings.state_dir
        self._take_state(stack, settings, state)
        listener = stack.enter_context(host.listen(settings.http.listen))
        self.public_url = settings.http.base_url(listener.getsockname()[1])
        await self._start_parts(stack, settings, state)
        self._connect(settings)
        self._start_outbox(stack)
        await self._start_pipeline(stack)
        await self._serve_admin(stack, settings, state)
        await self._serve_channels(stack, listener)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """The daemon without listeners and channels: what `take_mail` accepts meanwhile is published.

        At its end nobody is waited for: see `drained`. Raises as `run` does.
        """
        async with AsyncExitStack() as stack:
            settings, state = self.settings, self.settings.state_dir
            self._take_state(stack, settings, state)
            self.public_url = settings.http.base_url()
            await self._start_parts(stack, settings, state)
            await self._start_pipeline(stack)
            yield

    def _take_state(self, stack: AsyncExitStack, settings: GatewaySettings, state: Path) -> None:
        state.mkdir(parents=True, exist_ok=True, mode=0o750)
        stack.enter_context(host.lock(state))
        self._secrets = secret.load(state, settings.secret.get_secret_value() if settings.secret else None)

    async def _start_parts(self, stack: AsyncExitStack, settings: GatewaySettings, state: Path) -> None:
        await self._start_redis(stack, settings, state)
        memo = await self._open_spool(stack, settings, state)
        self._build(settings, state, memo)
        stack.push_async_callback(self._publisher.close)
        stack.push_async_callback(self._leases.close)
        stack.push_async_callback(self._shared.close)
        stack.push_async_callback(self._fetcher.close)
        stack.push_async_callback(self._workers.close)

    async def _start_redis(self, stack: AsyncExitStack, settings: GatewaySettings, state: Path) -> None:
        if settings.redis.is_embedded:
            server = RedisServer(state, settings.redis.embedded_port)
            await server.start()
            stack.push_async_callback(server.stop)

    async def _open_spool(self, stack: AsyncExitStack, settings: GatewaySettings, state: Path) -> Mapping[str, str]:
        self._spool = Spool(state / "spool", inline_bytes=settings.spool.inline_bytes)
        self._spool.open()
        stack.push_async_callback(self._spool.close)
        memo = await self._spool.recall()
        if _SPOOL_ID not in memo:
            memo[_SPOOL_ID] = secrets.token_hex(8)
            await self._spool.memorise(memo)
        return memo

    def _build(self, settings: GatewaySettings, state: Path, memo: Mapping[str, str]) -> None:
        self._publisher = Publisher(
            settings.redis,
            settings.stream,
            state,
            bookmark=memo.get(NEWEST, ""),
            changed=lambda up: self._metrics.redis_up.set(up),
        )
        self._leases = Leases(settings.redis, settings.stream.name, state, spool=memo[_SPOOL_ID])
        self._shared = SharedState(settings.redis, settings.stream.name, state)
        self._fetcher = Fetcher(settings.media)
        self._blobs = Blobs(
            state / "blobs",
            settings.blobs.url,
            public_url=self.public_url,
            key=self._secrets.key("files"),
            url_ttl_hours=settings.blobs.url_ttl_hours,
        )
        self._intake = Intake(
            self._spool,
            self._metrics,
            gateway=settings.name,
            max_bytes=settings.spool.max_bytes,
            min_free_bytes=settings.spool.min_free_bytes,
        )
        self._workers = Workers(
            registry.normalizer,
            size=settings.normalize.workers,
            timeout_secs=settings.normalize.timeout_secs,
            memory_bytes=settings.normalize.memory_bytes,
        )
        self._media = Media(
            self._spool.media,
            self._blobs,
            self._metrics,
            settings.media,
            connectors=lambda: self._connectors,
            door=self._intake.door,
            wake=self._intake.arrived.set,
            max_tries=settings.spool.max_tries,
        )
        self._pipeline = Pipeline(
            self._spool,
            self._publisher,
            self._blobs,
            self._metrics,
            self._workers,
            self._media,
            spool_id=memo[_SPOOL_ID],
            source=self._intake.source,
            channels=lambda: self.settings.channels,
            arrived=self._intake.arrived,
            batch=settings.stream.batch,
            light_bytes=settings.normalize.in_process_bytes,
            max_tries=settings.spool.max_tries,
            acknowledge=Acknowledgements(lambda: self.settings.channels, lambda: datetime.now(UTC)),
        )
        self._outbox = Outbox(
            self._spool,
            lambda: self.settings.outgoing_mail,
            lambda: self.settings.channels,
            self._secrets.key("reply-address"),
        )
        self._web = Web(settings.http, self._intake, self._spool, self._blobs, self.public_url)
        self._supervisor = Supervisor(self._intake.door, self._metrics)
        self._metrics.registry.register(
            LedgerCollector(
                lambda: self._spool.ledger,
                lambda: self.settings.channels,
                self._spool.waiting,
                lambda: self._spool.last_message,
                lambda: (self._spool.bytes, self._spool.damaged is not None),
            )
        )
        self._metrics.registry.register(CredentialCollector(self._credential_expiries))
        self._metrics.registry.register(MissingCollector(self._missing))

    def _start_outbox(self, stack: AsyncExitStack) -> None:
        task = asyncio.create_task(self._outbox.run(), name="outbox")
        task.add_done_callback(self._on_end)
        stack.push_async_callback(_cancel, [task])
        stack.push_async_callback(self._outbox.stop)

    async def _start_pipeline(self, stack: AsyncExitStack) -> None:
        upkeep = Upkeep(self._spool, self._blobs, self._publisher, self.settings, self._pipeline.wake)
        tasks = [
            asyncio.create_task(self._pipeline.run(), name="pipeline"),
            asyncio.create_task(self._media.run(), name="media"),
            *(asyncio.create_task(duty, name="upkeep") for duty in upkeep.duties()),
        ]
        for task in tasks:
            task.add_done_callback(self._on_end)
        stack.push_async_callback(lambda: _cancel(self._pipeline.in_work() + self._media.in_work()))
        stack.push_async_callback(_cancel, tasks)
        stack.push_async_callback(self._drain)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            log.critical("task_died", task=task.get_name(), exc_info=error)
            self._died = task.get_name()
            self._stop.set()  # the service manager starts us again; nothing that was accepted is lost

    async def _drain(self) -> None:
        """Publishes what is waiting, as long as the deadline allows; the rest stays in the spool."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._deadline):
                await self._pipeline.drained()

    async def _finish_requests(self) -> None:
        # Before aiohttp stops: from then on it drops what still arrives of a request's body.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._deadline):
                await self._web.finish()

    async def _serve_admin(self, stack: AsyncExitStack, settings: GatewaySettings, state: Path) -> None:
        api = AdminApi(self, self._spool, self._publisher, self._pipeline, self._outbox)
        socket_ = stack.enter_context(host.unix_socket(state / ADMIN_SOCKET))
        await _serve(stack, web.AppRunner(api.application(), access_log=None), socket_)
        health = stack.enter_context(host.listen(settings.admin.listen))
        self.admin_address = Address(settings.admin.listen.host, health.getsockname()[1])
        await _serve(stack, web.AppRunner(health_application(self, self._metrics), access_log=None), health)

    async def _serve_channels(self, stack: AsyncExitStack, listener: socket.socket) -> None:
        stack.push_async_callback(self._supervisor.stop)
        for connector in self._connectors.values():
            if isinstance(connector, RunningConnector):
                self._supervisor.start(connector)
        server = web.Server(self._web.handle, access_log=None)
        await _serve(stack, web.ServerRunner(server, shutdown_timeout=1), listener)
        stack.push_async_callback(self._finish_requests)

    # Channels

    def _connect(self, settings: GatewaySettings) -> None:
        """Makes the connectors of these settings; raises ConfigError before anything is changed."""
        made = {name: self._connector(name, channel) for name, channel in settings.channels.items()}
        self._connectors = made
        webs = {name: one for name, one in made.items() if isinstance(one, WebhookConnector)}
        self._web.channels = {name: WebChannel.of(connector) for name, connector in webs.items()}
        self._metrics.channel_up.clear()
        for name in webs:
            self._metrics.channel_up.labels(name).set(1)

    def _connector(self, name: str, channel: ChannelSettings) -> Connector:
        context = Context(
            self.name,
            self.public_url,
            self._secrets.key,
            lambda: datetime.now(UTC),
            self._spool.memory(name),
            self._leases.of(name),
            self._spool.scratch,
            self._shared,
            self._fetcher,
            _Uploads(self._blobs),
        )
        return registry.connector(channel.type)(name, channel, context)

    def channels(self) -> dict[str, tuple[str, bool, str]]:
        """Channel name -> its type, whether it receives, and what is wrong with it."""
        supervisor = self._supervisor
        return {
            name: (connector.settings.type, supervisor.up.get(name, True), self._trouble(name, connector))
            for name, connector in self._connectors.items()
        }

    def _trouble(self, name: str, connector: Connector) -> str:
        return connector.trouble or self._supervisor.troubles.get(name, "")

    def _missing(self) -> dict[str, int]:
        counts = {name: connector.missing for name, connector in self._connectors.items()}
        return {name: n for name, n in counts.items() if n is not None}

    def _credential_expiries(self) -> dict[str, float]:
        expiries = {name: connector.credential_expires_at for name, connector in self._connectors.items()}
        return {name: expiry for name, expiry in expiries.items() if expiry is not None}

    def troubles(self) -> list[str]:
        """Why no messages can be accepted; empty when they can."""
        return ["stopping"] if self._stop.is_set() else self._intake.troubles()

    # Old mail

    def largest_mail(self, channel: str) -> int:
        """The largest mail that a channel takes. Raises Rejected when it is not there or takes none."""
        if channel not in self.settings.channels:
            names = sorted(self.settings.channels)
            hint = registry.closest(channel, names) or f"there are: {', '.join(names)}"
            raise Rejected("not_found", f"there is no channel {channel}; {hint}")
        largest = archive.largest(self.settings.channels[channel])
        if largest is None:
            type_ = self.settings.channels[channel].type
            raise Rejected("invalid", f"{channel} is of type {type_}; only a mail channel takes old mail")
        return largest

    async def take_mail(self, channel: str, content: bytes, received_at: datetime | None) -> Receipt:
        """Old mail, through its channel. Raises Rejected, and Unavailable when it is to be tried again."""
        if len(content) > self.largest_mail(channel):
            raise Rejected("too_large", f"{channel} takes {self.largest_mail(channel):,} bytes")
        if self._stop.is_set():
            raise Unavailable("stopping")
        make, settings = archive.raw_message, self.settings.channels[channel]
        in_thread = len(content) > _IN_THREAD_BYTES
        raw = (
            await asyncio.to_thread(make, settings, content, received_at)
            if in_thread
            else make(settings, content, received_at)
        )
        return await self._intake.door(channel)(raw)

    async def drained(self) -> None:
        """Returns when everything that can be published now is."""
        await self._pipeline.drained()

    # Reload

    async def reload(self) -> list[str]:
        """Takes the configuration file again; returns the keys whose change waits for a restart.

        Raises ConfigError when the file is wrong; then nothing has changed.
        """
        async with self._reloading:
            new = load(self._config, os.environ)
            old, connectors = self.settings, dict(self._connectors)
            self._redactor.learn([*secret_values(old), *secret_values(new)])
            self._connect(new)
            self.settings = old.model_copy(update={key: getattr(new, key) for key in _RELOADABLE})
            self._outbox.nudge()
            await self._exchange_running(connectors)
            changed = [key for key in type(new).model_fields if getattr(old, key) != getattr(new, key)]
            waiting = [key for key in changed if key not in _RELOADABLE]
            log.info("reloaded", channels=sorted(new.channels), needs_restart=waiting)
            return waiting

    async def _exchange_running(self, old: Mapping[str, Connector]) -> None:
        running = {name for name, one in old.items() if isinstance(one, RunningConnector)}
        await self._supervisor.stop(sorted(running))
        for connector in self._connectors.values():
            if isinstance(connector, RunningConnector):
                self._supervisor.start(connector)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: loop.create_task(self._reload_or_keep()))

    async def _reload_or_keep(self) -> None:
        host.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            await self.reload()
        except HuiruError as error:
            log.error("reload_refused", reason=error.public)
        host.notify("READY=1")


class _Uploads(Uploads):
    """Files that come before their message lie among the attachments."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    async def keep(self, content: bytes, /) -> str:
        return await self._blobs.put(content)

    async def get(self, digest: str, /) -> bytes:
        return await self._blobs.get(digest)


async def _serve(stack: AsyncExitStack, runner: web.BaseRunner, listener: socket.socket) -> None:
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.SockSite(runner, listener, backlog=1024).start()


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        # Again: Python 3.11 can lose a cancellation in wait_for, which redis-py uses (cpython issue 86296).
        _, pending = await asyncio.wait(pending, timeout=0.1)
