"""Runs the channels that run on their own: back-off, restart, readiness, an end in time (R11)."""

import asyncio
import random
from collections.abc import Callable

import structlog

from gateway.contract import Accept, RunningConnector
from gateway.telemetry import Metrics

log = structlog.get_logger()

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0


class Supervisor:
    """`door(channel)` is the channel's only power. A connector that ends or fails is started again, later each time;
    a run that was up makes the next wait short again."""

    def __init__(self, door: Callable[[str], Accept], metrics: Metrics) -> None:
        self.up: dict[str, bool] = {}
        self._door = door
        self._metrics = metrics
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, connector: RunningConnector) -> None:
        name = connector.name
        self._note(name, up=False)
        self._tasks[name] = asyncio.create_task(self._run(connector), name=f"channel-{name}")

    async def stop(self, names: list[str] | None = None) -> None:
        """Cancels these channels, or all, and waits for their end."""
        tasks = [self._tasks.pop(name) for name in (list(self._tasks) if names is None else names)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, connector: RunningConnector) -> None:
        name, wait = connector.name, _FIRST_WAIT
        while True:
            was_up = False

            def note(up: bool) -> None:
                nonlocal was_up
                was_up = was_up or up
                self._note(name, up=up)

            try:
                await connector.run(self._door(name), note)
                log.warning("channel.ended", channel=name)
            except Exception as error:
                log.error("channel.failed", channel=name, exc_info=error)
            finally:
                self._note(name, up=False)
            wait = _FIRST_WAIT if was_up else min(2 * wait, _LONGEST_WAIT)
            await asyncio.sleep(wait * random.uniform(0.5, 1))  # noqa: S311 - jitter

    def _note(self, name: str, *, up: bool) -> None:
        self.up[name] = up
        self._metrics.channel_up.labels(name).set(up)
