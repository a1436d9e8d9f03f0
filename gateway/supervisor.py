"""Runs the channels that run on their own: back-off, restart, readiness, an end in time."""

import asyncio
import random
from collections.abc import Callable

import structlog

from gateway.contract import Accept, RunningConnector
from gateway.errors import HuiruError
from gateway.telemetry import Metrics

log = structlog.get_logger()

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
_STOP_SECS, _STOP_TRIES = 5.0, 5


class Supervisor:
    """`door(channel)` is the channel's way in. A connector that ends or fails is started again, later each time;
    a run that was up makes the next wait short again."""

    def __init__(self, door: Callable[[str], Accept], metrics: Metrics) -> None:
        self.up: dict[str, bool] = {}
        self.troubles: dict[str, str] = {}  # why a channel's last run failed, until it is up again
        self._door = door
        self._metrics = metrics
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, connector: RunningConnector) -> None:
        name = connector.name
        self._tasks[name] = asyncio.create_task(self._run(connector), name=name)
        self._note(name, up=False)

    async def stop(self, names: list[str] | None = None) -> None:
        """Cancels these channels, or all, waits for their end, but not for long, and forgets them."""
        tasks = [self._tasks.pop(name) for name in (list(self._tasks) if names is None else names)]
        late, tries = set(tasks), _STOP_TRIES
        while late and tries:
            for task in late:
                task.cancel()  # more than once: a connector, or asyncio.wait_for of Python 3.11, may lose one
            _, late = await asyncio.wait(late, timeout=_STOP_SECS / _STOP_TRIES)
            tries -= 1
        for task in late:
            log.error("channel.does_not_end", channel=task.get_name())
        for task in tasks:
            del self.up[task.get_name()]
            self.troubles.pop(task.get_name(), None)
            self._metrics.channel_up.remove(task.get_name())

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
                trouble = ""
            except HuiruError as error:  # foreseen: no network, a server that is away
                log.warning("channel.failed", channel=name, reason=error.reason)
                trouble = error.reason
            except Exception as error:
                log.error("channel.failed", channel=name, exc_info=error)
                trouble = type(error).__name__
            finally:
                self._note(name, up=False)
            if self._tasks.get(name) is not asyncio.current_task():
                return  # stopped, though the connector took the cancellation for itself
            self.troubles[name] = trouble
            wait = _FIRST_WAIT if was_up else min(2 * wait, _LONGEST_WAIT)
            await asyncio.sleep(wait * random.uniform(0.5, 1))  # noqa: S311 - jitter

    def _note(self, name: str, *, up: bool) -> None:
        if name in self._tasks:
            self.up[name] = up
            if up:
                self.troubles.pop(name, None)
            self._metrics.channel_up.labels(name).set(up)
