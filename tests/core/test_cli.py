"""The command line, without a daemon."""

import json
import shutil
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import connectors
from gateway import template
from gateway.__main__ import main
from gateway.schema import config_schema, envelope_schema
from tests.daemon import ROOT, free_port

FORM = {"type": "webform", "title": "Help", "fields": [{"name": "text", "type": "textarea", "label": "Text"}]}
PIGEON = """
from pydantic import SecretStr
from gateway.contract import ChannelSettings, Connector as Base
from gateway.errors import ConfigError, Unavailable

class PigeonSettings(ChannelSettings):
    mood: str
    token: SecretStr

class Connector(Base):
    Settings = PigeonSettings
    redelivers = False

    def __init__(self, name, settings, context):
        super().__init__(name, settings, context)
        if settings.mood == "dead":
            raise ConfigError(f"channels.{name}: the pigeon is dead; get another")

    async def probe(self):
        token = self.settings.token.get_secret_value()
        if self.settings.mood == "tired":
            raise Unavailable("unavailable", "later", reason=f"the pigeon sleeps on {token}")
        if self.settings.mood == "odd":
            raise RuntimeError(f"feathers {token}")
"""


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


Huiru = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, with none of the tester's settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HUIRU_CONFIG", raising=False)


@pytest.fixture
def huiru(capfd: pytest.CaptureFixture[str]) -> Huiru:
    """Runs a command in this process."""

    def run(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Outcome(int(caught.value.code or 0), out, err)

    return run


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Writes a configuration and returns its path."""

    def write(**sections: Any) -> Path:
        document = {"state_dir": str(tmp_path / "state"), "channels": {"support": FORM}} | sections
        path = tmp_path / "g.yaml"
        path.write_text(json.dumps(document))
        return path

    return write


@pytest.fixture
def pigeon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A channel type whose probe does as its settings say."""
    (tmp_path / "pigeon.py").write_text(PIGEON)
    monkeypatch.setattr(connectors, "__path__", [*connectors.__path__, str(tmp_path)])
    yield
    sys.modules.pop("connectors.pigeon", None)


# Everywhere


COMMANDS = ("run", "check", "tail", "status", "quarantine", "replay", "reload", "qr", "schema", "new-channel")


def test_help_names_every_command(huiru: Huiru) -> None:
    outcome = huiru("--help")

    assert outcome.status == 0
    assert all(f" {command} " in outcome.out for command in COMMANDS)


@pytest.mark.parametrize(
    "command", [*COMMANDS, *(f"quarantine {verb}" for verb in ("list", "show", "retry", "discard"))]
)
def test_every_command_has_help(huiru: Huiru, command: str) -> None:
    outcome = huiru(*command.split(), "--help")

    assert outcome.status == 0
    assert f"huiru {command}" in outcome.out


def test_the_version(huiru: Huiru) -> None:
    outcome = huiru("--version")

    assert outcome.status == 0
    assert outcome.out.startswith("huiru ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["status", "--loud"],
        ["status", "more"],
        ["tail", "--from", "yesterday"],
        ["tail", "--count", "0"],
        ["replay"],
        ["replay", "--since", "soon"],
        ["replay", "--since", ""],
        ["quarantine", "retry"],
        ["quarantine", "retry", "abc", "--all"],
        ["quarantine", "show"],
        ["quarantine", "show", "../x"],
        ["quarantine", "list", "--limit", "0"],
        ["qr", "support", "-o", "x.gif"],
        ["qr", "support"],
        ["schema", "music"],
        ["new-channel"],
    ],
)
def test_wrong_usage(huiru: Huiru, config: Callable[..., Path], arguments: list[str]) -> None:
    config()

    outcome = huiru(*arguments)

    assert outcome.status == 2
    assert "Usage: huiru" in outcome.err
    assert outcome.out == ""


@pytest.mark.parametrize(
    "arguments", ["status", "reload", "replay --since 1h", "quarantine list", "quarantine show ab"]
)
def test_without_a_daemon_it_says_so(huiru: Huiru, config: Callable[..., Path], arguments: str, tmp_path: Path) -> None:
    outcome = huiru(*arguments.split(), "--config", config())

    assert outcome.status == 1
    assert outcome.err == (
        f"no huiru is running on {tmp_path}/state; start it by `huiru run`, or name its configuration by --config\n"
    )


def test_a_socket_that_is_not_ours_to_open(huiru: Huiru, config: Callable[..., Path], short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as nobody_listens:
        nobody_listens.bind(str(short_path / "admin.sock"))
        outcome = huiru("status", "--config", config(state_dir=str(short_path)))

    assert outcome.status == 1
    assert "no huiru is running" in outcome.err


@pytest.mark.parametrize("command", ["run", "check", "tail", "status"])
def test_a_wrong_configuration_has_a_status_of_its_own(
    huiru: Huiru, config: Callable[..., Path], command: str, tmp_path: Path
) -> None:
    outcome = huiru(command, "--config", config(redis={"urll": "x"}))

    assert outcome.status == 78
    assert outcome.err == f"{tmp_path}/g.yaml:1: redis.urll: unknown key; did you mean url?\n"
    assert outcome.out == ""


def test_a_tool_does_not_need_the_secrets_of_the_channels(huiru: Huiru, config: Callable[..., Path]) -> None:
    path = config(secret="${NOT_SET_HERE}", channels={"support": "${file:/none}"})

    assert huiru("status", "--config", path).status == 1  # it got as far as looking for the daemon
    assert huiru("check", "--config", path).status == 78


def test_where_the_configuration_is(
    huiru: Huiru, config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a file at the last of the default places, and another in $HUIRU_CONFIG
    (tmp_path / "config").mkdir()
    shutil.copy(config(name="by-default"), tmp_path / "config" / "gateway.yaml")
    by_option = config(name="by-option")
    by_variable = shutil.copy(config(name="by-variable"), tmp_path / "v.yaml")
    config(name="by-option")

    assert "by-default" in huiru("check").out
    monkeypatch.setenv("HUIRU_CONFIG", str(by_variable))
    assert "by-variable" in huiru("check").out
    assert "by-option" in huiru("check", "-c", by_option).out


def test_without_any_configuration_it_says_how_to_name_one(huiru: Huiru) -> None:
    outcome = huiru("check")

    assert outcome.status == 78
    assert outcome.err == (
        "config/gateway.yaml: cannot be read: No such file or directory; "
        "name another file by --config or $HUIRU_CONFIG\n"
    )


# check


def test_check_of_a_good_file(huiru: Huiru, config: Callable[..., Path], tmp_path: Path) -> None:
    outcome = huiru("check", "--config", config(name="acme"))

    assert outcome.status == 0
    assert outcome.out.splitlines() == [
        f"{tmp_path}/g.yaml: ok",
        "gateway   acme",
        f"state     {tmp_path}/state",
        "redis     embedded",
        "stream    tickets",
        "",
        "support   webform   http://127.0.0.1:8080/c/support",
    ]


def test_check_tells_programs(huiru: Huiru, config: Callable[..., Path]) -> None:
    path = config()
    outcome = huiru("check", "--json", "--config", path)

    assert outcome.status == 0
    assert json.loads(outcome.out) == {
        "ok": True,
        "file": str(path),
        "channels": [{"name": "support", "type": "webform", "address": "http://127.0.0.1:8080/c/support"}],
        "probes": [],
    }


def test_check_tells_programs_of_faults(huiru: Huiru, config: Callable[..., Path]) -> None:
    path = config(name="A b", stream={"batch": 0})
    outcome = huiru("check", "--json", "--config", path)

    assert outcome.status == 78
    assert json.loads(outcome.out) == {
        "ok": False,
        "file": str(path),
        "faults": [
            f"{path}:1: name: a name is 1 to 63 characters of a-z, 0-9 and -",
            f"{path}:1: stream.batch: must be greater than or equal to 1",
        ],
    }


@pytest.mark.usefixtures("pigeon")
def test_check_makes_the_connectors(huiru: Huiru, config: Callable[..., Path]) -> None:
    outcome = huiru("check", "-c", config(channels={"loft": {"type": "pigeon", "mood": "dead", "token": "t"}}))

    assert outcome.status == 78
    assert outcome.err == "channels.loft: the pigeon is dead; get another\n"


def test_check_probes_the_embedded_redis(huiru: Huiru, config: Callable[..., Path]) -> None:
    outcome = huiru("check", "--probe", "-c", config())

    assert outcome.status == 0
    assert "ok   redis     embedded: not running now, the daemon will start /" in outcome.out
    assert "ok   support   webform: listens only, there is nothing to reach" in outcome.out


def test_check_says_what_an_embedded_redis_needs(
    huiru: Huiru, config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    outcome = huiru("check", "--probe", "-c", config())

    assert outcome.status == 1
    assert "failed   redis     embedded: there is no server to start; install redis-server or valkey-ser" in outcome.out


def test_check_says_that_redis_is_not_there(huiru: Huiru, config: Callable[..., Path]) -> None:
    url = f"redis://bob:hunter2@127.0.0.1:{free_port()}/0"
    outcome = huiru("check", "--probe", "--json", "-c", config(redis={"url": url}))
    redis = json.loads(outcome.out)["probes"][0]

    assert outcome.status == 1
    assert redis["well"] is False
    assert redis["text"].startswith(f"redis://{url.partition('@')[2]}: ")
    assert redis["text"].endswith("start it, or correct redis.url")
    assert "hunter2" not in outcome.out


@pytest.fixture
def redis_server(short_path: Path) -> Iterator[str]:
    """The address of a real Redis that wants a password, keeps nothing and may evict."""
    path = short_path / "r.sock"
    options = ["--port", "0", "--save", "", "--requirepass", "sesame", "--maxmemory", "64mb"]
    command = ["redis-server", *options, "--maxmemory-policy", "allkeys-lru", "--unixsocket", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=short_path, text=True) as server:
        assert server.stdout is not None
        next(line for line in server.stdout if "ready to accept" in line.lower())
        yield f"unix://{path}"
        server.kill()


def test_check_reaches_redis(huiru: Huiru, config: Callable[..., Path], redis_server: str) -> None:
    outcome = huiru("check", "--probe", "-c", config(redis={"url": redis_server, "password": "sesame"}))

    assert outcome.status == 0
    assert "it may evict tickets: set maxmemory-policy noeviction" in outcome.out
    assert "a restart of it would lose tickets: set appendonly yes" in outcome.out


@pytest.mark.parametrize("given", [{}, {"password": "open"}])
def test_check_says_that_the_password_is_wrong(
    huiru: Huiru, config: Callable[..., Path], redis_server: str, given: dict[str, str]
) -> None:
    outcome = huiru("check", "--probe", "-c", config(redis={"url": redis_server} | given))

    assert outcome.status == 1
    assert "check username and password" in outcome.out


def test_tail_gives_up_where_waiting_does_not_help(
    huiru: Huiru, config: Callable[..., Path], redis_server: str
) -> None:
    outcome = huiru("tail", "-c", config(redis={"url": redis_server}))

    assert outcome.status == 1
    assert outcome.err.startswith("Redis refuses: ")


@pytest.mark.usefixtures("pigeon")
@pytest.mark.parametrize(
    ("mood", "said"),
    [
        ("well", "ok       loft    pigeon: its server answered, the credentials are good"),
        ("tired", "failed   loft    the pigeon sleeps on [hidden]"),
        ("odd", "failed   loft    RuntimeError: feathers [hidden]"),
    ],
)
def test_check_probes_every_channel(huiru: Huiru, config: Callable[..., Path], mood: str, said: str) -> None:
    channels = {
        "loft": {"type": "pigeon", "mood": mood, "token": "n0t-t0-be-seen"},
        "dark": {"type": "pigeon", "mood": "odd", "token": "n0t-t0-be-seen-either"},
    }
    outcome = huiru("check", "--probe", "-c", config(channels=channels))

    assert outcome.status == 1
    assert said in outcome.out
    assert "n0t" not in outcome.out + outcome.err


# qr


@pytest.mark.parametrize(
    ("source", "url"),
    [
        (None, "https://acme.cn/c/support"),
        ("shop-12", "https://acme.cn/c/support?source=shop-12"),
    ],
)
def test_qr_draws_a_forms_address(
    huiru: Huiru, config: Callable[..., Path], tmp_path: Path, source: str | None, url: str
) -> None:
    path = config(http={"public_url": "https://acme.cn"}, channels={"support": FORM | {"sources": ["shop-12"]}})
    option = ["--source", source] if source else []

    svg = huiru("qr", "support", *option, "-o", tmp_path / "a.svg", "-c", path)
    png = huiru("qr", "support", *option, "-o", tmp_path / "a.png", "-c", path)

    assert (svg.status, png.status) == (0, 0)
    assert svg.out == f"{tmp_path}/a.svg: {url}\n"
    assert svg.err == ""
    assert ET.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("qr supprt -o a.svg", "there is no channel supprt; did you mean support?\n"),
        ("qr zzz -o a.svg", "there is no channel zzz; there are: loft, support\n"),
        ("qr support --source shop-13 -o a.svg", "support declares no source shop-13; did you mean shop-12?\n"),
        ("qr support --source mars -o a.svg", "support declares no source mars; add it to its `sources`\n"),
        ("qr loft -o a.svg", "loft is of type pigeon; only a form has an address\n"),
        ("qr support -o none/a.svg", "[Errno 2] No such file or directory: 'none/a.svg'\n"),
    ],
)
@pytest.mark.usefixtures("pigeon")
def test_qr_that_cannot_be(huiru: Huiru, config: Callable[..., Path], arguments: str, said: str) -> None:
    loft = {"type": "pigeon", "mood": "well", "token": "t"}
    path = config(channels={"support": FORM | {"sources": ["shop-12"]}, "loft": loft})

    outcome = huiru(*arguments.split(), "-c", path)

    assert outcome.status == 1
    assert outcome.err == said
    assert not Path("a.svg").exists()


def test_qr_warns_of_an_address_nobody_can_open(huiru: Huiru, config: Callable[..., Path]) -> None:
    outcome = huiru("qr", "support", "-o", "a.svg", "-c", config())

    assert outcome.status == 0
    assert outcome.err == "http.public_url is not set: this address works on this machine only\n"


# schema


@pytest.mark.parametrize(("of", "schema"), [("envelope", envelope_schema), ("config", config_schema)])
def test_schema_prints_it(huiru: Huiru, of: str, schema: Callable[[], Any]) -> None:
    outcome = huiru("schema", of)

    assert outcome.status == 0
    assert json.loads(outcome.out) == schema()


# new-channel


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this checkout."""
    root = tmp_path / "checkout"
    for folder in ("gateway", "connectors", "normalizers", "config", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    monkeypatch.chdir(root)
    return root


def test_a_new_channel_is_made(huiru: Huiru, checkout: Path) -> None:
    """That it passes its tests is seen in test_new_channel.py."""
    outcome = huiru("new-channel", "pigeon")

    assert outcome.status == 0
    assert (checkout / "config/channels/pigeon.example.yaml").is_file()
    assert not any("echo" in path.read_text("utf-8").lower() for path in checkout.glob("*/**/*pigeon*"))


def test_a_new_channel_overwrites_nothing(huiru: Huiru, checkout: Path) -> None:
    mine = checkout / "tests/normalizers/test_pigeon.py"
    mine.write_text("mine")

    outcome = huiru("new-channel", "pigeon")

    assert outcome.status == 1
    assert outcome.err == f"{mine} is there already; choose another name or remove it\n"
    assert mine.read_text() == "mine"
    assert not (checkout / "connectors/pigeon.py").exists()


@pytest.mark.parametrize("name", ["Pigeon", "a", "7up", "carrier-pigeon", "../x", "a.b", "class", "pigeon_post", "鸽"])
def test_a_new_channel_needs_a_proper_name(huiru: Huiru, checkout: Path, name: str) -> None:
    outcome = huiru("new-channel", name)

    assert outcome.status == 1
    assert "a channel type is 2 to 31 characters of a-z and 0-9" in outcome.err


def test_a_new_channel_needs_a_new_name(huiru: Huiru, checkout: Path) -> None:
    outcome = huiru("new-channel", "echo")

    assert outcome.status == 1
    assert outcome.err == "the channel type echo is there already; choose another name\n"


def test_a_new_channel_needs_a_checkout(huiru: Huiru, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "_HERE", tmp_path)

    outcome = huiru("new-channel", "pigeon")

    assert outcome.status == 1
    assert "is not the top of a checkout of huiru" in outcome.err
