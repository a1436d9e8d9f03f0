"""What people see: aligned, short, and without anything that plays with a terminal."""

import json
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType

from gateway import console

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def shown(what: RenderableType, width: int = 120) -> list[str]:
    file = StringIO()
    Console(file=file, width=width, highlight=False, markup=False).print(what)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def event(**data: Any) -> dict[str, Any]:
    whole = {
        "reference": "7K3M-9QX2-4WPD",
        "channel": {"name": "web", "type": "webform"},
        "kind": "form",
        "received_at": "2026-11-23T09:30:00.120Z",
        "sender": {"name": None, "identities": [{"kind": "email", "value": "zhang@acme.cn"}]},
        "subject": "打印机坏了",
        "text": "不能打印",
        "attachments": [],
        "auto": None,
        "conflict_with": None,
        "tags": [],
    }
    return {"data": whole | data}


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a\r\nb\tc  d", "a b c d"),
        ("\x1b[31mred\x1b[0m\x07", "[31mred[0m"),
        ("\u202egnp.exe\u2066", "gnp.exe"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("\x9b2J\x85next\u2028line", "2J next line"),
        ("\ud800half", "half"),
        ("打印机 🖨", "打印机 🖨"),
    ],
)
def test_texts_of_customers_cannot_play_with_a_terminal(raw: str, clean: str) -> None:
    assert console.clean(raw) == clean


@given(st.text())
def test_a_clean_text_is_one_printable_line(text: str) -> None:
    clean = console.clean(text)

    assert clean == console.clean(clean)
    assert not any(ord(char) < 32 or char in "\x7f\x85\u2028\u2029\u202e" for char in clean)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_escaped_json_means_the_same_and_is_printable(text: str) -> None:
    escaped = console.escaped(json.dumps([text], ensure_ascii=False))

    assert json.loads(escaped) == [text]
    assert escaped.isprintable()


@pytest.mark.parametrize(
    ("seconds", "words"), [(-1, "0 s"), (0.4, "0 s"), (59.9, "59 s"), (60, "1 min"), (7200, "2 h"), (180_000, "2 d")]
)
def test_ages(seconds: float, words: str) -> None:
    assert console.age(seconds) == words


def test_how_long_ago() -> None:
    assert console.ago("2026-11-23T11:55:00.000Z", NOW) == "5 min ago"
    assert console.ago(None, NOW) == "never"


def test_a_ticket_is_one_line() -> None:
    line = console.ticket_line(event(text="first\nsecond", attachments=[1, 2], tags=["vip"], auto="bounce"), NOW)

    assert line.plain == (
        "09:30:00     web             7K3M-9QX2-4WPD  zhang@acme.cn       "
        "[2 files] [bounce] [vip] 打印机坏了 — first second"
    )


def test_a_ticket_of_another_day_has_its_date() -> None:
    assert console.ticket_line(event(), NOW + timedelta(days=2)).plain.startswith("11-23 09:30  ")


def test_columns_stay_aligned_whatever_the_script() -> None:
    chinese = {"name": "欧阳张三李四王五赵六孙七周八吴九", "identities": []}
    lines = [
        console.ticket_line(event(sender=sender, subject="S"), NOW).plain
        for sender in (chinese, {"name": "Li", "identities": []}, {"name": None, "identities": []})
    ]

    assert len({cell_len(line[: line.index("S —")]) for line in lines}) == 1


def test_a_ticket_shows_no_control_characters() -> None:
    nasty = "\x1b]0;owned\x07\u202e"
    line = console.ticket_line(
        event(text=nasty, subject=nasty, tags=[nasty], sender={"name": nasty, "identities": []}, reference=nasty), NOW
    )

    assert line.plain.isprintable()


@pytest.mark.parametrize("broken", [{}, {"data": 1}, {"data": {}}, {"data": event()["data"] | {"received_at": "soon"}}])
def test_what_is_no_ticket_is_told(broken: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        console.ticket_line(broken, NOW)


CHANNEL = {
    "name": "web",
    "type": "webform",
    "up": True,
    "trouble": "",
    "accepted": 1234,
    "published": 1230,
    "duplicate": 0,
    "quarantined": 3,
    "discarded": 0,
    "waiting": 1,
    "last_message_at": "2026-11-23T11:00:00.000Z",
}
STATUS: dict[str, Any] = {
    "gateway": "acme",
    "version": "1.0",
    "uptime_seconds": 90,
    "ready": True,
    "reasons": [],
    "redis": {"up": True, "url": "redis://h:1/0", "trouble": ""},
    "stream": {"name": "tickets", "length": 1, "replaying": False},
    "spool": {"bytes": 1 << 20, "damaged": False},
    "outbox": {"waiting": 0, "trouble": ""},
    "channels": [CHANNEL],
}


def test_status_of_a_healthy_gateway() -> None:
    assert shown(console.status(STATUS, NOW)) == [
        "acme  ready  up 1 min  version 1.0",
        "redis   redis://h:1/0 up",
        "stream  tickets, 1 ticket",
        "spool   1.0 MiB",
        "",
        "channel  type     accepted  published  duplicate  quarantined  waiting     last",
        "web      webform     1,234      1,230          0            3        1  1 h ago",
    ]


def test_status_shows_what_is_wrong() -> None:
    ill = STATUS | {
        "ready": False,
        "reasons": ["the spool is full"],
        "redis": {"up": False, "url": "redis://h:1/0", "trouble": "refused\x1b[2J"},
        "stream": {"name": "tickets", "length": None, "replaying": True},
        "spool": {"bytes": 0, "damaged": True},
        "outbox": {"waiting": 2, "trouble": "no route\x1b[2J"},
        "channels": [CHANNEL | {"up": False, "trouble": "no\x1b network", "discarded": 2, "last_message_at": None}],
    }
    lines = shown(console.status(ill, NOW))

    assert "NOT READY: the spool is full" in lines[0]
    assert lines[1] == "redis   redis://h:1/0 DOWN: refused[2J"
    assert lines[2] == "stream  tickets, an unknown number of tickets, some being published again"
    assert "damaged" in lines[4]
    assert lines[5] == "outbox  2 acknowledgements waiting, FAILING: no route[2J"
    assert "discarded" in lines[7]
    assert "webform DOWN" in lines[8]
    assert lines[8].endswith("never")
    assert lines[9] == "web: no network"


ITEM = {
    "id": "abc",
    "reference": "7K3M-9QX2-4WPD",
    "channel": "web",
    "kind": "form",
    "code": "malformed",
    "reason": "no\x1b[31m JSON",
    "received_at": "2026-11-23T11:00:00.000Z",
    "tries": 1,
    "size": 12345,
}


def test_the_quarantine_as_a_table() -> None:
    assert shown(console.quarantine({"total": 1, "items": [ITEM]}, NOW)) == [
        "reference       channel  code       reason       received  tries   bytes",
        "7K3M-9QX2-4WPD  web      malformed  no[31m JSON  1 h ago       1  12,345",
    ]


def test_a_page_of_the_quarantine_says_that_there_is_more() -> None:
    assert shown(console.quarantine({"total": 9, "items": [ITEM]}, NOW))[-1] == "1 of 9; more by --limit and --offset"


def test_an_empty_quarantine() -> None:
    assert shown(console.quarantine({"total": 0, "items": []}, NOW)) == ["nothing in quarantine"]


def test_one_message_of_the_quarantine() -> None:
    lines = shown(console.quarantined(ITEM | {"native_id": None, "facts": {"source": "shop"}}))

    assert "id             abc" in lines
    assert "reason         no[31m JSON" in lines
    assert "native_id      -" in lines
    assert "facts.source   shop" in lines


def test_verdicts_are_aligned() -> None:
    assert shown(console.verdicts([(True, "redis", "well"), (False, "mailbox", "wrong password")])) == [
        "ok       redis     well",
        "failed   mailbox   wrong password",
    ]
