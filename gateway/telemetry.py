"""Logs and metrics. Metric names are constants of this module; they are part of the outside interface."""

import contextlib
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, TextIO, cast

import orjson
import structlog
from aiohttp.http import HttpProcessingError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

ACCEPTED = "huiru_messages_accepted"
PUBLISHED = "huiru_messages_published"
DUPLICATE = "huiru_messages_duplicate"
DISCARDED = "huiru_messages_discarded"
QUARANTINED = "huiru_messages_quarantined"
WAITING = "huiru_messages_waiting"
IN_QUARANTINE = "huiru_quarantine_messages"
LAST_MESSAGE = "huiru_last_message_timestamp_seconds"
SPOOL_BYTES = "huiru_spool_bytes"
REFUSED = "huiru_messages_refused"
IGNORED = "huiru_messages_ignored"
MEDIA_FETCHED = "huiru_media_fetches"
ACCEPT_SECONDS = "huiru_accept_seconds"
PUBLISH_LAG_SECONDS = "huiru_publish_lag_seconds"
REDIS_UP = "huiru_redis_up"
CHANNEL_UP = "huiru_channel_up"
CREDENTIAL_EXPIRY = "huiru_credential_expiry_timestamp_seconds"
MISSING = "huiru_messages_missing"
REPUBLISHED = "huiru_messages_republished"
SPOOL_DAMAGED = "huiru_spool_damaged"
ACKNOWLEDGED = "huiru_acknowledgements_sent"
NOT_ACKNOWLEDGED = "huiru_acknowledgements_suppressed"
ACKNOWLEDGING_FAILED = "huiru_acknowledgements_failed"
ACKNOWLEDGEMENTS_WAITING = "huiru_acknowledgements_waiting"

_HIDDEN = "[hidden]"
_TELLTALE = ("password", "secret", "token", "authorization", "cookie", "aes_key", "signature", "api_key")
_SHORTEST_SECRET = 6


class Metrics:
    """What the parts of the daemon count. What the ledger knows comes from the ledger: see LedgerCollector."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's gap
        self.registry = CollectorRegistry()
        ours: Any = {"registry": self.registry}
        self.refused = Counter(REFUSED, "Messages not accepted, by cause", ["channel", "code"], **ours)
        self.ignored = Counter(
            IGNORED, "Understood, and no message by the channel's settings, by kind", ["channel", "code"], **ours
        )
        self.media_fetched = Counter(
            MEDIA_FETCHED,
            "Tries to fetch what messages refer to: fetched, failed, given_up",
            ["channel", "result"],
            **ours,
        )
        self.republished = Counter(REPUBLISHED, "Messages published again because Redis had lost them", **ours)
        self.accept_seconds = Histogram(
            ACCEPT_SECONDS,
            "From the whole request to the receipt",
            ["channel"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            **ours,
        )
        self.publish_lag_seconds = Histogram(
            PUBLISH_LAG_SECONDS,
            "From acceptance to the stream",
            ["channel"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 120, 600, 3600, 86400),
            **ours,
        )
        self.redis_up = Gauge(REDIS_UP, "1 when Redis answered last time", **ours)
        self.channel_up = Gauge(CHANNEL_UP, "1 when the channel receives", ["channel"], **ours)


class LedgerCollector(Collector):
    """The ledger of the spool as metrics: counters that go on where they were before a restart."""

    def __init__(
        self,
        entries: Callable[[], Mapping[tuple[str, str], int]],
        channels: Callable[[], Iterable[str]],
        waiting: Callable[[str], int],
        last_message: Callable[[], Mapping[str, float]],
        spool: Callable[[], tuple[int, bool]],
    ) -> None:
        self._entries = entries
        self._channels = channels
        self._waiting = waiting
        self._last_message = last_message
        self._spool = spool

    def collect(self) -> Iterator[Metric]:
        entries, channels = dict(self._entries()), sorted(self._channels())
        for name, entry, text in (
            (ACCEPTED, "accepted", "Messages made durable"),
            (PUBLISHED, "published", "Messages in the stream"),
            (DUPLICATE, "duplicate", "Deliveries of a message that was there already"),
            (DISCARDED, "discarded", "Quarantined messages an operator gave up"),
            (ACKNOWLEDGED, "acknowledgement_sent", "Acknowledgements that the mail server took"),
        ):
            counter = CounterMetricFamily(name, text, labels=["channel"])
            for channel in channels:
                counter.add_metric([channel], entries.get((channel, entry), 0))
            yield counter
        for name, entry, text in (
            (QUARANTINED, "quarantined_total", "Messages put into quarantine, by cause"),
            (NOT_ACKNOWLEDGED, "acknowledgement_suppressed", "Messages not acknowledged, by cause"),
            (ACKNOWLEDGING_FAILED, "acknowledgement_failed", "Acknowledgements given up, by cause"),
        ):
            yield _by_code(name, entry, text, entries)
        yield _gauge(WAITING, "Messages on their way to the stream", {c: self._waiting(c) for c in channels})
        letters = {c: entries.get((c, "acknowledgement_waiting"), 0) for c in channels}
        yield _gauge(ACKNOWLEDGEMENTS_WAITING, "Acknowledgements not sent yet", letters)
        held = {c: entries.get((c, "quarantined"), 0) for c in channels}
        yield _gauge(IN_QUARANTINE, "Messages in quarantine now", held)
        yield _gauge(LAST_MESSAGE, "When the channel's newest message was accepted", self._last_message())
        size, damaged = self._spool()
        yield GaugeMetricFamily(SPOOL_BYTES, "Size of the messages in the spool", value=size)
        yield GaugeMetricFamily(SPOOL_DAMAGED, "1 when a damaged spool was set aside since the start", value=damaged)


class CredentialCollector(Collector):
    """When the channels' credentials expire, as their connectors know it now."""

    def __init__(self, expiries: Callable[[], Mapping[str, float]]) -> None:
        self._expiries = expiries

    def collect(self) -> Iterator[Metric]:
        yield _gauge(CREDENTIAL_EXPIRY, "When the channel's certificate or token expires", self._expiries())


class MissingCollector(Collector):
    """What the channels' servers hold and we do not, as their connectors found it last."""

    def __init__(self, missing: Callable[[], Mapping[str, float]]) -> None:
        self._missing = missing

    def collect(self) -> Iterator[Metric]:
        yield _gauge(MISSING, "Messages that the channel's server holds and that were not accepted", self._missing())


def _by_code(name: str, entry: str, text: str, entries: Mapping[tuple[str, str], int]) -> Metric:
    """Of the ledger's entries that are called `ENTRY:CODE`."""
    counter = CounterMetricFamily(name, text, labels=["channel", "code"])
    for (channel, key), n in sorted(entries.items()):
        kind, _, code = key.partition(":")
        if kind == entry and code:
            counter.add_metric([channel, code], n)
    return counter


def _gauge(name: str, text: str, values: Mapping[str, float]) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=["channel"])
    for channel, value in values.items():
        gauge.add_metric([channel], value)
    return gauge


class Redactor:
    """A structlog processor: no secret reaches a log line (R17), neither under a telling key nor inside a text."""

    def __init__(self) -> None:
        self._secret = re.compile(r"(?!)")  # matches nothing
        self._telling: dict[str, bool] = {}

    def learn(self, secrets: Iterable[str]) -> None:
        """Hides these from now on, instead of those before."""
        # The longest first: one secret may contain another.
        texts = sorted({s for s in secrets if len(s) >= _SHORTEST_SECRET}, key=len, reverse=True)
        self._secret = re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    def __call__(self, _: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for key, value in event.items():
            if self._tells(key):
                event[key] = _HIDDEN
            elif not isinstance(value, int | float | None):
                event[key] = self._clean(value)
        return event

    def _tells(self, key: str) -> bool:
        if key not in self._telling:  # keys are written in the code, so they are few
            self._telling[key] = any(word in key.lower() for word in _TELLTALE)
        return self._telling[key]

    def _clean(self, value: Any) -> Any:
        text = value if isinstance(value, str) else str(value)
        return self._secret.sub(_HIDDEN, text) if self._secret.search(text) else value


class Lossy:
    """A file for log lines, which may lie on a full disk: what cannot be written is lost, and its writer goes on."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()


def set_up_logging(form: str, level: str, redact: Redactor) -> None:
    """One line an event on standard error: `json`, `console`, or `auto` (console on a terminal)."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    number = getattr(logging, level.upper())
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
    ]
    # A traceback is made to text before it is redacted; a prettier one would show the values of variables.
    plain = structlog.dev.plain_traceback
    pretty = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)
    last: list[Any] = [structlog.processors.format_exc_info, redact, pretty if console else _render_json]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, Lossy(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
        )
    )
    handler.addFilter(_is_ours_to_tell)
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)


def _is_ours_to_tell(record: logging.LogRecord) -> bool:
    """Not aiohttp's word on bytes that are no HTTP: a traceback for each, which shows the header, perhaps a key."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def _render_json(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    try:
        return orjson.dumps(event, default=str).decode()
    except TypeError:  # half a character, a huge number: what a customer sends must not make a log line an error
        return json.dumps({key: str(value) for key, value in event.items()})
