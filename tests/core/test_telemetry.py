"""Logs without secrets, each line JSON; metrics under the names that are promised."""

import io
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from prometheus_client import generate_latest

from gateway.telemetry import CredentialCollector, LedgerCollector, Lossy, Metrics, Redactor, set_up_logging

SECRET = "s3cret-of-the-shop"


@pytest.fixture(autouse=True)
def reset() -> Iterator[None]:
    """Logging is the process's own: as it was, after each test."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.root.handlers[:], logging.root.level = handlers, level


class Lines:
    """What is written to standard error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = io.StringIO()
        self.redactor = Redactor()
        self._monkeypatch = monkeypatch

    def start(self, form: str = "json", level: str = "info", *secrets: str) -> Any:
        self._monkeypatch.setattr(sys, "stderr", self.file)
        self.redactor.learn(secrets)
        set_up_logging(form, level, self.redactor)
        return structlog.get_logger()

    @property
    def text(self) -> str:
        return self.file.getvalue()

    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.split("\n")[:-1]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    return Lines(monkeypatch)


# --- lines ------------------------------------------------------------------------------------------------------------


def test_a_line_is_json_with_time_and_level(lines: Lines) -> None:
    lines.start().info("accepted", channel="微信", ids=["a", "b"], size=7, up=True, nothing=None)

    (line,) = lines.json()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "accepted",
        "level": "info",
        "channel": "微信",
        "ids": ["a", "b"],
        "size": 7,
        "up": True,
        "nothing": None,
    }
    assert "微信" in lines.text


@pytest.mark.parametrize("value", ["\ud800", "a\nb\u2028c\0", 2**80, b"\xff", {1: object()}, {"a": "\udcff"}])
def test_whatever_is_logged_is_one_line(lines: Lines, value: object) -> None:
    lines.start().info("odd", value=value)

    assert [line["event"] for line in lines.json()] == ["odd"]


def test_an_exception_is_within_its_line(lines: Lines) -> None:
    log = lines.start()
    try:
        raise ValueError("坏了")
    except ValueError as error:
        log.error("failed", exc_info=error)

    (line,) = lines.json()
    assert "Traceback" in line["exception"]
    assert "ValueError: 坏了" in line["exception"]


def test_what_is_below_the_level_is_not_written(lines: Lines) -> None:
    log = lines.start("json", "warning")

    log.info("quiet")
    log.warning("loud")

    assert [line["event"] for line in lines.json()] == ["loud"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_librarys_warnings_are_lines_too(lines: Lines, form: str) -> None:
    lines.start(form, "info", SECRET)

    logging.getLogger("some.library").info("chatter")
    logging.getLogger("some.library").warning("it is %s", SECRET)

    assert "it is [hidden]" in lines.text
    assert "chatter" not in lines.text
    assert SECRET not in lines.text


def test_a_line_on_the_console_is_for_people(lines: Lines) -> None:
    lines.start("console").info("accepted", channel="微信")

    assert "accepted" in lines.text
    assert "channel=微信" in lines.text


def test_without_a_terminal_auto_is_json(lines: Lines) -> None:
    lines.start("auto").info("accepted")

    assert lines.json()[0]["event"] == "accepted"


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_log_on_a_full_disk_stops_nobody() -> None:
    file = Lossy(FullDisk())

    assert file.write("a line") == 6
    file.flush()


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_reaches_a_line(lines: Lines, form: str) -> None:
    log = lines.start(form, "info", SECRET)

    log.info(f"text with {SECRET}")
    log.info("value", url=f"redis://:{SECRET}@host", listed=[SECRET], nested={"a": {"b": SECRET}}, raw=SECRET.encode())
    log.info("object", value=ValueError(SECRET))
    try:
        try:
            raise ValueError(f"inner {SECRET}")
        except ValueError as inner:
            raise RuntimeError("outer") from inner
    except RuntimeError as error:
        log.error("failed", exc_info=error)

    assert "inner [hidden]" in lines.text
    assert SECRET not in lines.text


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize(
    "key", ["password", "redis_password", "Authorization", "access_token", "aes_key", "Cookie", "signature", "api_key"]
)
def test_what_stands_under_a_telling_key_is_hidden(lines: Lines, form: str, key: str) -> None:
    lines.start(form).info("request", **{key: "unknown to us"}, other="seen")

    assert "unknown to us" not in lines.text
    assert "seen" in lines.text


def test_a_secret_within_another_is_hidden_whole(lines: Lines) -> None:
    lines.start("json", "info", "secret", "secret-and-more").info("value", text="secret-and-more, secret")

    assert lines.json()[0]["text"] == "[hidden], [hidden]"


def test_a_secret_with_signs_in_it_is_taken_as_it_is(lines: Lines) -> None:
    lines.start("json", "info", "a.c+(e").info("value", text="a.c+(e abc+(e")

    assert lines.json()[0]["text"] == "[hidden] abc+(e"


def test_a_short_secret_does_not_make_the_log_unreadable(lines: Lines) -> None:
    lines.start("json", "info", "", "1", "abc").info("value", text="1 abc")

    assert lines.json()[0]["text"] == "1 abc"


def test_secrets_can_be_learned_later(lines: Lines) -> None:
    log = lines.start()
    log.info("before", text=SECRET)

    lines.redactor.learn([SECRET])
    log.info("after", text=SECRET)

    assert [line["text"] for line in lines.json()] == [SECRET, "[hidden]"]


# --- metrics ----------------------------------------------------------------------------------------------------------


def collected(ledger: dict[tuple[str, str], int], channels: list[str]) -> Metrics:
    metrics = Metrics()
    entries = Counter(ledger)

    def waiting(channel: str) -> int:
        return entries[channel, "accepted"] - entries[channel, "published"]

    metrics.registry.register(
        LedgerCollector(lambda: entries, lambda: channels, waiting, lambda: {"shop": 1000.5}, lambda: (4096, True))
    )
    return metrics


def test_every_metric_has_its_promised_name() -> None:
    ledger = {
        ("shop", "quarantined_total:malformed"): 2,
        ("shop", "acknowledgement_sent"): 3,
        ("shop", "acknowledgement_suppressed:robot"): 4,
        ("shop", "acknowledgement_failed:refused"): 5,
        ("shop", "acknowledgement_waiting"): 6,
    }
    metrics = collected(ledger, ["shop"])
    metrics.refused.labels("shop", "busy").inc()
    metrics.accept_seconds.labels("shop").observe(1)
    metrics.publish_lag_seconds.labels("shop").observe(1)
    metrics.channel_up.labels("shop").set(1)
    metrics.registry.register(CredentialCollector(lambda: {"shop": 1}))

    text = generate_latest(metrics.registry).decode()

    for line in (
        'huiru_messages_accepted_total{channel="shop"}',
        'huiru_messages_published_total{channel="shop"}',
        'huiru_messages_duplicate_total{channel="shop"}',
        'huiru_messages_quarantined_total{channel="shop",code="malformed"} 2.0',
        'huiru_messages_refused_total{channel="shop",code="busy"}',
        'huiru_acknowledgements_sent_total{channel="shop"} 3.0',
        'huiru_acknowledgements_suppressed_total{channel="shop",code="robot"} 4.0',
        'huiru_acknowledgements_failed_total{channel="shop",code="refused"} 5.0',
        'huiru_acknowledgements_waiting{channel="shop"} 6.0',
        'huiru_messages_waiting{channel="shop"}',
        'huiru_accept_seconds_bucket{channel="shop",le=',
        'huiru_publish_lag_seconds_bucket{channel="shop",le=',
        'huiru_last_message_timestamp_seconds{channel="shop"} 1000.5',
        "huiru_spool_bytes 4096.0",
        "huiru_spool_damaged 1.0",
        "huiru_redis_up 0.0",
        'huiru_channel_up{channel="shop"}',
        'huiru_credential_expiry_timestamp_seconds{channel="shop"}',
    ):
        assert f"\n{line}" in text
    assert "_created" not in text


def test_the_ledger_is_shown_for_every_channel_also_before_its_first_message() -> None:
    metrics = collected({("shop", "accepted"): 5, ("shop", "published"): 3}, ["app", "shop"])

    def value(name: str, channel: str) -> float | None:
        return metrics.registry.get_sample_value(f"huiru_{name}", {"channel": channel})

    assert (value("messages_accepted_total", "shop"), value("messages_accepted_total", "app")) == (5, 0)
    assert (value("messages_waiting", "shop"), value("messages_waiting", "app")) == (2, 0)


def test_two_daemons_in_one_process_do_not_share_metrics() -> None:
    one, other = Metrics(), Metrics()

    one.redis_up.set(1)

    assert other.registry.get_sample_value("huiru_redis_up") == 0
