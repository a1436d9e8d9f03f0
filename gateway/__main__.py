"""The command line. Exit status: 0 well, 1 failed, 2 wrong usage, 78 configuration error."""

import asyncio
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import urlsplit

import orjson
import typer
from redis.exceptions import RedisError

from gateway import __version__, console, follow, registry, template
from gateway.adminclient import ask, ask_bytes
from gateway.errors import ConfigError, HuiruError, Rejected, Unavailable
from gateway.publisher import connect
from gateway.redis_server import redis_socket
from gateway.schema import config_schema, envelope_schema
from gateway.settings import GatewaySettings, Whereabouts, load, locate

if TYPE_CHECKING:
    from gateway.app import Gateway
    from gateway.check import Verdict

# `app`, `check` and `oldmail` are imported by the commands that need them: who only asks the daemon waits half as long.
_PLACES = (Path("/etc/huiru/gateway.yaml"), Path("config/gateway.yaml"))
_DURATION = re.compile(r"([0-9]{1,6}[dhms]){1,4}")
_UNIT_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        envvar="HUIRU_CONFIG",
        show_default=False,
        help=f"The configuration. Default: {_PLACES[0]}, else {_PLACES[1]}.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


def _entry_id(text: str | None) -> str | None:
    if text is not None and not follow.is_entry_id(text):
        raise typer.BadParameter("a stream id looks like 1764000000000-0; 0 means all")
    return text


def _message_id(text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"[0-9A-Za-z -]{1,64}", text):
        raise typer.BadParameter("an id or a reference is made of letters, digits and dashes")
    return text


def _time_span(text: str) -> str:
    if not _DURATION.fullmatch(text):
        raise typer.BadParameter("write a time such as 90s, 15m, 1h, 2d or 1h30m")
    return text


def _picture(path: Path) -> Path:
    if path.suffix.lower() not in {".svg", ".png"}:
        raise typer.BadParameter("the picture is a .svg or a .png")
    return path


_MESSAGE_ID = typer.Argument(metavar="ID", help="An id, the start of one, or a reference.", callback=_message_id)

cli = typer.Typer(
    help="huiru (汇入): every customer message, from any channel, becomes one ticket in a Redis stream.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
quarantine = typer.Typer(help="Messages that could not become tickets.", no_args_is_help=True)
cli.add_typer(quarantine, name="quarantine")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that knows no Chinese is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        cli(arguments, prog_name="huiru")
    except ConfigError as error:
        _complain(error.public)
        sys.exit(os.EX_CONFIG)
    except HuiruError as error:
        _complain(error.reason)
    except OSError as error:
        _complain(str(error))
    sys.exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"huiru {__version__}")
        raise typer.Exit


@cli.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@cli.command()
def run(config: Config = None) -> None:
    """Run the daemon in the foreground."""
    from gateway import app

    file = _file(config)
    raise typer.Exit(app.main(file, lambda gateway: _announce(gateway, file)))


@cli.command("check")
def check_(
    config: Config = None,
    probe: Annotated[bool, typer.Option("--probe", help="Reach Redis and each channel's server too.")] = False,
    json: Json = False,
) -> None:
    """Validate the configuration; say file, line, key and remedy of what is wrong."""
    from gateway import check

    file = _file(config)
    try:
        settings = load(file, os.environ)
        check.connectors(settings)
    except ConfigError as error:
        if json:
            _print_json({"ok": False, "file": str(file), "faults": error.public.splitlines()})
            raise typer.Exit(os.EX_CONFIG) from error
        raise
    verdicts = asyncio.run(check.everything(settings)) if probe else []
    well = all(verdict.well for verdict in verdicts)
    if json:
        channels = [
            {"name": name, "type": type_, "address": at}
            for name, type_, at in check.addresses(settings, settings.http.base_url())
        ]
        probes = [asdict(verdict) for verdict in verdicts]
        _print_json({"ok": well, "file": str(file), "channels": channels, "probes": probes})
    else:
        _show_check(file, settings, verdicts)
    raise typer.Exit(0 if well else 1)


@cli.command()
def tail(
    config: Config = None,
    channel: Annotated[str | None, typer.Option("--channel", help="Of this channel only.")] = None,
    after: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="ID",
            callback=_entry_id,
            help="Entries after this stream id; 0: all. Default: new ones.",
        ),
    ] = None,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="Stop after so many.")] = None,
    json: Json = False,
) -> None:
    """Follow the stream: one line for each ticket, or with --json its event."""
    try:
        asyncio.run(_tail(_whereabouts(config), channel, after, count, json=json))
    except RedisError as error:
        raise Unavailable(reason=f"Redis refuses: {error}") from error
    except KeyboardInterrupt:
        raise typer.Exit from None


@cli.command()
def status(config: Config = None, json: Json = False) -> None:
    """Show what each channel has received, and what became of it."""
    answer = ask(_whereabouts(config).state_dir, "GET", "/api/status")
    _print_json(answer) if json else console.screen().print(console.status(answer, console.now()))


@cli.command()
def replay(
    since: Annotated[
        str,
        typer.Option(
            "--since", metavar="TIME", callback=_time_span, help="How far back, such as 90s, 15m, 1h, 2d or 1h30m."
        ),
    ],
    config: Config = None,
) -> None:
    """Publish what was published since then again; the stream takes only what it has lost."""
    seconds = _seconds(since)
    answer = ask(_whereabouts(config).state_dir, "POST", "/api/replay", body={"since_seconds": seconds})
    print(f"{console.counted(answer['scheduled'], 'message')} will be published again")


@cli.command()
def reload(config: Config = None) -> None:
    """Make the daemon take its configuration file again. When the file is wrong, nothing changes."""
    try:
        answer = ask(_whereabouts(config).state_dir, "POST", "/api/reload")
    except Rejected as error:
        raise ConfigError(error.public) from error
    print("reloaded")
    if answer["needs_restart"]:
        print(f"changed, but only a restart will take it: {', '.join(answer['needs_restart'])}")


@cli.command()
def qr(
    channel: Annotated[str, typer.Argument(metavar="CHANNEL", help="A web form's channel.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", callback=_picture, help="A .svg or a .png.")
    ],
    source: Annotated[str | None, typer.Option("--source", help="Lands in the ticket's `source` field.")] = None,
    config: Config = None,
) -> None:
    """Draw the QR code of a form's address."""
    settings = load(_file(config), os.environ)
    form = _form(settings, channel)
    url = _form_url(settings, form, channel, source)
    form.write_qr(url, output)
    print(f"{output}: {url}")
    if settings.http.public_url is None:
        _complain("http.public_url is not set: this address works on this machine only")


@cli.command("import")
def import_(
    channel: Annotated[str, typer.Argument(metavar="CHANNEL", help="A mail channel.")],
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH…", exists=True, help="mbox files, Maildirs, .eml files, folders of them."),
    ],
    config: Config = None,
    json: Json = False,
) -> None:
    """Bring old mail into the stream, whether the daemon runs or not. Run again, it goes on where it ended."""
    from gateway import oldmail

    tally = oldmail.bring(_file(config), _whereabouts(config), channel, paths)
    _print_json(asdict(tally)) if json else console.screen().print(console.imported(asdict(tally)))
    raise typer.Exit(0 if tally.well else 1)


class Of(StrEnum):
    """What there is a schema of."""

    envelope = "envelope"
    config = "config"


@cli.command()
def schema(of: Annotated[Of, typer.Argument(help="The tickets' envelope, or the configuration file.")]) -> None:
    """Print a JSON Schema (2020-12)."""
    document = envelope_schema() if of is Of.envelope else config_schema()
    sys.stdout.buffer.write(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


@cli.command("new-channel")
def new_channel(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new channel type: letters and digits.")],
) -> None:
    """Copy the template connector with its normalizer, tests and example, in a checkout."""
    made = template.copy(name, Path.cwd())
    print("\n".join(f"made {path}" for path in made))
    print(
        f"next: describe the protocol in {made[0]}, then write it\n"
        f"      python -m pytest {made[2]} {made[3]} tests/contract -k {name}\n"
        f"      python -m gateway schema config > config/gateway.schema.json"
    )


# The quarantine


@quarantine.command("list")
def quarantine_list(
    config: Config = None,
    channel: Annotated[str | None, typer.Option("--channel", help="Of this channel only.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most so many.")] = 100,
    offset: Annotated[int, typer.Option("--offset", min=0, help="Without the first so many.")] = 0,
    json: Json = False,
) -> None:
    """List them, the newest first."""
    query = {"limit": str(limit), "offset": str(offset), **({"channel": channel} if channel else {})}
    answer = ask(_whereabouts(config).state_dir, "GET", "/api/quarantine", query=query)
    _print_json(answer) if json else console.screen().print(console.quarantine(answer, console.now()))


@quarantine.command("show")
def quarantine_show(
    id_: Annotated[str, _MESSAGE_ID],
    config: Config = None,
    raw: Annotated[bool, typer.Option("--raw", help="Write the bytes as they came.")] = False,
    json: Json = False,
) -> None:
    """Show one: why it is here, and what is known of it."""
    state_dir, path = _whereabouts(config).state_dir, _message_path(id_)
    if raw:
        _write_raw(ask_bytes(state_dir, "GET", f"{path}/raw"))
        return
    answer = ask(state_dir, "GET", path)
    _print_json(answer) if json else console.screen().print(console.quarantined(answer))


@quarantine.command("retry")
def quarantine_retry(
    id_: Annotated[str | None, _MESSAGE_ID] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    config: Config = None,
) -> None:
    """Try again to make tickets of them."""
    if (id_ is None) != everything:
        raise typer.BadParameter("give either an ID or --all")
    path = "/api/quarantine" if id_ is None else _message_path(id_)
    answer = ask(_whereabouts(config).state_dir, "POST", f"{path}/retry")
    print(f"{console.counted(answer['retried'], 'message')} will be tried again")


@quarantine.command("discard")
def quarantine_discard(
    id_: Annotated[str, _MESSAGE_ID],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: Config = None,
) -> None:
    """Give one up. It is counted as discarded, and its bytes are deleted."""
    state_dir, path = _whereabouts(config).state_dir, _message_path(id_)
    if sys.stdin.isatty() and not yes:
        console.screen().print(console.quarantined(ask(state_dir, "GET", path)))
        typer.confirm("Discard it?", abort=True)
    answer = ask(state_dir, "POST", f"{path}/discard")
    print(f"discarded {answer['discarded']}")


# What the commands share


def _file(config: Path | None) -> Path:
    return config or next((place for place in _PLACES if place.exists()), _PLACES[-1])


def _whereabouts(config: Path | None) -> Whereabouts:
    return locate(_file(config), os.environ)


def _complain(text: str) -> None:
    print(console.clean_lines(text), file=sys.stderr)


def _print_json(document: Any) -> None:
    print(console.escaped(orjson.dumps(document).decode()), flush=True)


def _seconds(span: str) -> int:
    parts = re.findall(r"(\d+)([dhms])", span)
    return sum(int(number) * _UNIT_SECONDS[unit] for number, unit in parts)


def _message_path(id_: str) -> str:
    return f"/api/quarantine/{id_.replace(' ', '')}"


def _write_raw(content: bytes) -> None:
    if sys.stdout.isatty():  # to a terminal only what cannot play with it
        print(console.clean_lines(content.decode("utf-8", "replace")))
    else:
        sys.stdout.buffer.write(content)


def _announce(gateway: "Gateway", file: Path) -> None:
    """Where everything is, for whoever just started it; but not among JSON lines."""
    from gateway import check

    if gateway.settings.log.format == "json":
        return
    at = gateway.admin_address
    admin = f"http://{replace(at, host='127.0.0.1') if at.is_wildcard else at}"
    rows = [
        *((name, address) for name, _, address in check.addresses(gateway.settings, gateway.public_url) if address),
        ("tickets", f"{_redis_cli(gateway.settings)} XREAD COUNT 10 STREAMS {gateway.stream_name} 0"),
        ("", f"{_program()} tail --config {file}"),
        ("health", f"{admin}/healthz  {admin}/readyz"),
        ("metrics", f"{admin}/metrics"),
    ]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {text}" for name, text in rows), flush=True)


def _program() -> str:
    """As this command was called: in a checkout it may not be in the PATH."""
    return sys.argv[0] if Path(sys.argv[0]).name == "huiru" else "huiru"


def _redis_cli(where: Whereabouts) -> str:
    redis = where.redis
    if redis.is_embedded and redis.embedded_port:
        return f"redis-cli -p {redis.embedded_port}"
    if redis.is_embedded:
        return f"redis-cli -s {redis_socket(where.state_dir)}"
    if redis.url.startswith("unix:"):
        return f"redis-cli -s {urlsplit(redis.url).path}"
    return f"redis-cli -u {redis.shown_url}"


def _show_check(file: Path, settings: GatewaySettings, verdicts: Sequence["Verdict"]) -> None:
    from gateway import check

    screen = console.screen()
    channels = check.addresses(settings, settings.http.base_url())
    rows = [
        ("gateway", settings.name),
        ("state", settings.state_dir),
        ("redis", settings.redis.shown_url),
        ("stream", settings.stream.name),
    ]
    screen.print(f"{file}: ok", style="green")
    screen.print(console.pairs(rows))
    screen.print()
    screen.print(console.pairs(channels))
    if verdicts:
        screen.print()
        screen.print(console.verdicts([(verdict.well, verdict.what, verdict.text) for verdict in verdicts]))


async def _tail(where: Whereabouts, channel: str | None, after: str | None, count: int | None, *, json: bool) -> None:
    wanted, shown = channel.encode() if channel else None, 0
    patience = where.redis.timeout_secs + 2  # a read waits for entries
    async with (
        connect(where.redis, where.state_dir, socket_timeout=patience) as redis,
        aclosing(follow.entries(redis, where.stream.name, after, _on_trouble)) as found,
    ):
        async for entry_id, fields in found:
            if wanted in (None, fields.get(b"channel")) and _show_entry(entry_id, fields, json=json):
                shown += 1
            if shown == count:
                return


def _on_trouble(trouble: str) -> None:
    _complain(f"waiting for Redis: {trouble}" if trouble else "Redis is back")


def _show_entry(entry_id: str, fields: Mapping[bytes, bytes], *, json: bool) -> bool:
    """Whether it was a ticket of ours."""
    screen = console.screen()
    try:
        event = orjson.loads(fields[b"event"])
        line = console.ticket_line(event, console.now())
    except (KeyError, TypeError, ValueError, AttributeError):
        _complain(f"entry {entry_id} is no ticket of ours")
        return False
    if json:
        _print_json(event)
    else:
        screen.print(line, soft_wrap=not screen.is_terminal, no_wrap=True, overflow="ellipsis")
    return True


def _form_url(settings: GatewaySettings, form: ModuleType, channel: str, source: str | None) -> str:
    declared = [one.name for one in getattr(settings.channels[channel], "sources", ())]
    if source is not None and source not in declared:
        hint = registry.closest(source, declared)
        raise Rejected("not_found", f"{channel} declares no source {source}; {hint or 'add it to its `sources`'}")
    return str(form.form_url(settings.http.base_url(), channel, source))


def _form(settings: GatewaySettings, channel: str) -> ModuleType:
    """The module of a channel that offers a form: `form_url` and `write_qr`."""
    if channel not in settings.channels:
        names = sorted(settings.channels)
        hint = registry.closest(channel, names) or f"there are: {', '.join(names)}"
        raise Rejected("not_found", f"there is no channel {channel}; {hint}")
    module = registry.connector_module(settings.channels[channel].type)
    if not hasattr(module, "form_url"):
        raise Rejected("invalid", f"{channel} is of type {settings.channels[channel].type}; only a form has an address")
    return module


if __name__ == "__main__":
    main()
