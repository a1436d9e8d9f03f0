"""What the command line shows to people. Texts of customers lose what could play with a terminal."""

import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any

from rich.cells import set_cell_size
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 240  # columns where there is no window to fit into
_LONGEST_TEXT = 400
_UNITS = (("d", 86400), ("h", 3600), ("min", 60))
_COUNTS = {
    "accepted": "",
    "published": "",
    "duplicate": "",
    "quarantined": "bold yellow",
    "discarded": "",
    "waiting": "yellow",
}
_CHANNEL_CELLS, _SENDER_CELLS = 14, 18


def screen(*, stderr: bool = False) -> Console:
    """Colours and the window's width on a terminal; plain and wide elsewhere."""
    file = sys.stderr if stderr else sys.stdout
    width = None if file.isatty() else _PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def clean(text: object) -> str:
    """One line without control, formatting and bidirectional override characters."""
    return " ".join("".join(_visible(char) for char in str(text)).split())


def clean_lines(text: str) -> str:
    """The same, but line breaks stay."""
    return "\n".join(clean(line) for line in text.splitlines())


def escaped(json: str) -> str:
    """A JSON text in which everything that is not printable is a `\\u` escape; its meaning is the same."""
    return "".join(char if char.isprintable() else _json_escape(char) for char in json)


def age(seconds: float) -> str:
    """`42 s`, `5 min`, `3 h`, `2 d`."""
    for unit, length in _UNITS:
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def ago(moment: str | None, now: datetime) -> str:
    """How long ago an RFC 3339 time was."""
    if moment is None:
        return "never"
    return f"{age((now - datetime.fromisoformat(moment)).total_seconds())} ago"


def counted(number: int, noun: str) -> str:
    """`1 message`, `2 messages`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


# A ticket


def ticket_line(event: Mapping[str, Any], now: datetime) -> Text:
    """Time, channel, reference, sender, subject and text. Raises KeyError, TypeError or ValueError: it is no ticket."""
    data = event["data"]
    received = datetime.fromisoformat(data["received_at"]).astimezone(now.tzinfo)
    clock = f"{received:%H:%M:%S}" if received.date() == now.date() else f"{received:%m-%d %H:%M}"
    channel, sender = clean(data["channel"]["name"]), clean(_sender(data["sender"]))
    return Text.assemble(
        (f"{clock:<11}  ", "dim"),
        (set_cell_size(channel, _CHANNEL_CELLS), "cyan"),
        f"  {clean(data['reference'])}  ",
        (set_cell_size(sender, _SENDER_CELLS), "green"),
        "  ",
        (_marks(data), "yellow"),
        (clean(data["subject"] or ""), "bold"),
        " — " if data["subject"] and data["text"] else "",
        clean(data["text"][:_LONGEST_TEXT]),
    )


def _sender(sender: Mapping[str, Any]) -> str:
    identities = sender["identities"]
    return sender["name"] or (identities[0]["value"] if identities else "-")


def _marks(data: Mapping[str, Any]) -> str:
    files = len(data["attachments"])
    marks = [
        data["kind"] if data["kind"] not in {"message", "form"} else "",
        counted(files, "file") if files else "",
        data["auto"] or "",
        "conflict" if data["conflict_with"] else "",
        *data["tags"],
    ]
    return "".join(f"[{clean(mark)}] " for mark in marks if mark)


# The daemon's state


def status(state: Mapping[str, Any], now: datetime) -> RenderableType:
    """The answer of `/api/status`."""
    counts = [name for name in _COUNTS if name != "discarded" or any(one[name] for one in state["channels"])]
    table = _table("channel", "type")
    for name in (*counts, "last"):
        table.add_column(name, justify="right")
    for channel in state["channels"]:
        table.add_row(*_channel_cells(channel, counts, now))
    lines = (*_spool_lines(state["spool"]), *_outbox_lines(state["outbox"]))
    return Group(_headline(state), _redis_line(state), *lines, "", table, *_troubles(state["channels"]))


def _troubles(channels: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    for channel in channels:
        if channel["trouble"]:
            yield Text(f"{channel['name']}: {clean(channel['trouble'])}", "bold red")


def _headline(state: Mapping[str, Any]) -> Text:
    ready = ("ready", "green") if state["ready"] else (f"NOT READY: {', '.join(state['reasons'])}", "bold red")
    return Text.assemble(
        (state["gateway"], "bold"), "  ", ready, f"  up {age(state['uptime_seconds'])}  version {state['version']}"
    )


def _redis_line(state: Mapping[str, Any]) -> Text:
    redis, stream = state["redis"], state["stream"]
    up = ("up", "green") if redis["up"] else (f"DOWN: {clean(redis['trouble'])}", "bold red")
    length = "an unknown number of tickets" if stream["length"] is None else counted(stream["length"], "ticket")
    again = ", some being published again" if stream["replaying"] else ""
    return Text.assemble(f"redis   {redis['url']} ", up, f"\nstream  {stream['name']}, {length}{again}")


def _spool_lines(spool: Mapping[str, Any]) -> Iterator[Text]:
    yield Text(f"spool   {spool['bytes'] / (1 << 20):,.1f} MiB")
    if spool["damaged"]:
        yield Text("the spool was damaged at a start; what it held was set aside: see the log", "bold red")


def _outbox_lines(outbox: Mapping[str, Any]) -> Iterator[Text]:
    if outbox["waiting"] or outbox["trouble"]:
        trouble = f", FAILING: {clean(outbox['trouble'])}" if outbox["trouble"] else ""
        yield Text.assemble(f"outbox  {counted(outbox['waiting'], 'acknowledgement')} waiting", (trouble, "bold red"))


def _channel_cells(channel: Mapping[str, Any], counts: Sequence[str], now: datetime) -> Iterator[Text]:
    yield Text(channel["name"], "bold")
    yield Text(channel["type"]) if channel["up"] else Text(f"{channel['type']} DOWN", "bold red")
    for name in counts:
        yield Text(f"{channel[name]:,}", _COUNTS[name] if channel[name] else "dim")
    yield Text(ago(channel["last_message_at"], now))


# The quarantine


def quarantine(listing: Mapping[str, Any], now: datetime) -> RenderableType:
    """The answer of `/api/quarantine`."""
    items = listing["items"]
    if not items:
        return Text("nothing in quarantine")
    table = _table("reference", "channel", "code", "reason", "received")
    for name in ("tries", "bytes"):
        table.add_column(name, justify="right")
    for item in items:
        texts = (item["reference"], item["channel"], item["code"], clean(item["reason"]), ago(item["received_at"], now))
        table.add_row(*(Text(text) for text in texts), Text(str(item["tries"])), Text(f"{item['size']:,}"))
    more = Text(f"{len(items):,} of {listing['total']:,}; more by --limit and --offset", "dim")
    return Group(table, more) if listing["total"] > len(items) else table


def quarantined(item: Mapping[str, Any]) -> RenderableType:
    """The answer of `/api/quarantine/{id}`: one key a line."""
    facts = [(f"facts.{name}", value) for name, value in (item.get("facts") or {}).items()]
    rows = [(name, value) for name, value in item.items() if name != "facts"] + facts
    return pairs((name, "-" if value is None or value == "" else value) for name, value in rows)


# An import


def imported(tally: Mapping[str, Any]) -> RenderableType:
    """How much was, and what was not and why."""
    counts = f"imported {tally['imported']:,}, duplicates {tally['duplicates']:,}, unreadable {tally['unreadable']:,}"
    left_out = [Text.assemble((clean(one["file"]), "bold"), f": {clean(one['why'])}") for one in tally["left_out"]]
    lines = [Text(counts), *left_out]
    if tally["unreadable"] > len(tally["left_out"]):
        lines.append(Text(f"and {tally['unreadable'] - len(tally['left_out']):,} more", "dim"))
    if tally["stopped"]:
        lines.append(Text(f"{clean(tally['stopped'])}; run it again to go on", "bold red"))
    return Text("\n").join(lines)


# Small things


def pairs(rows: Iterable[Sequence[object]]) -> Text:
    """Names and their values, aligned."""
    return _lines((Text(clean(name), "dim"), *(Text(clean(value)) for value in values)) for name, *values in rows)


def verdicts(rows: Iterable[tuple[bool, str, str]]) -> Text:
    """Whether it is well, what, and what is to be said of it."""
    return _lines(
        (Text("ok", "green") if well else Text("failed", "bold red"), Text(what), Text(clean(text)))
        for well, what, text in rows
    )


def _lines(rows: Iterable[Sequence[Text]]) -> Text:
    """Cells under each other, without the blanks a table has at its right."""
    cells = list(rows)
    widths = [max(text.cell_len for text in column) + 3 for column in zip_longest(*cells, fillvalue=Text())]
    for row in cells:
        for text, width in zip(row[:-1], widths, strict=False):
            text.pad_right(width - text.cell_len)
    return Text("\n").join(Text.assemble(*row) for row in cells)


def now() -> datetime:
    """With the machine's own time zone."""
    return datetime.now(UTC).astimezone()


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def _visible(char: str) -> str:
    category = unicodedata.category(char)
    return " " if char in "\t\n\r\v\f\x85" or category in {"Zl", "Zp"} else "" if category[0] == "C" else char


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
