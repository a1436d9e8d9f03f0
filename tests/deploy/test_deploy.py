"""What deploy/ holds, as far as a test can tell without systemd and a container engine.

With them: build_image.sh, try_image.sh and try_unit.sh beside this file.
"""

import asyncio
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError
from ruamel.yaml import YAML

from gateway.settings import GatewaySettings, load
from tests.daemon import ROOT, Daemon, free_port

DEPLOY = ROOT / "deploy"
UNIT = (DEPLOY / "huiru.service").read_text()
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = YAML(typ="safe").load(DEPLOY / "compose.yaml")
# Exposure in tenths, as systemd-analyze(1) counts it: what is left is a network service's network.
MAX_EXPOSURE = 15
FORM = {
    "form": {
        "type": "webform",
        "title": "Contact",
        "fields": [{"name": "text", "type": "textarea", "label": "Text", "required": True}],
    }
}


def unit(key: str) -> list[str]:
    """Every value of a key of the unit."""
    return re.findall(rf"^{key}=(.*)$", UNIT, re.MULTILINE)


def instructions(name: str) -> list[str]:
    """The arguments of an instruction of the Dockerfile, wherever it stands."""
    lines = re.sub(r"\\\n(\s*#.*\n)*", " ", DOCKERFILE).splitlines()
    return [line.removeprefix(name).strip() for line in lines if line.startswith(f"{name} ")]


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


# The systemd unit


@pytest.fixture
def unit_file(tmp_path: Path) -> Path:
    """The unit, with a program that exists here in the place of the installed one."""
    path = tmp_path / "huiru.service"
    path.write_text(UNIT.replace("/opt/huiru/bin/huiru", sys.executable))
    return path


def systemd_analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_systemd_finds_no_fault_in_the_unit(unit_file: Path) -> None:
    verified = systemd_analyze("verify", "--man=no", "--recursive-errors=no", unit_file)

    assert verified.returncode == 0, verified.stdout
    assert unit_file.name not in verified.stdout  # a misspelt key is only warned of


def test_the_unit_is_hardened(unit_file: Path) -> None:
    judged = systemd_analyze("security", "--offline=yes", f"--threshold={MAX_EXPOSURE}", unit_file)

    assert judged.returncode == 0, judged.stdout


def test_the_unit_runs_the_daemon() -> None:
    program, *arguments = shlex.split(unit("ExecStart")[0])

    assert Path(program).name == "huiru"
    assert arguments == ["run", "--config", "/etc/huiru/gateway.yaml"]
    assert f"/var/lib/{unit('StateDirectory')[0]}" == str(GatewaySettings.model_fields["state_dir"].default)


def test_a_stop_has_the_time_it_needs() -> None:
    needed = 2 * GatewaySettings.model_fields["shutdown_secs"].default  # for the requests, then for the pipeline

    assert seconds(unit("TimeoutStopSec")[0]) > needed
    assert seconds(COMPOSE["services"]["gateway"]["stop_grace_period"]) > needed


class Manager:
    """What systemd is to the daemon: the socket of sd_notify(3)."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(address.replace("@", "\0", 1))

    async def hears(self) -> dict[str, str]:
        """The next thing it is told."""
        async with asyncio.timeout(20):
            told = await asyncio.get_running_loop().sock_recv(self.socket, 4096)
        return dict(line.split("=", 1) for line in told.decode().splitlines())


@pytest.fixture(params=["path", "abstract"])
def notify_address(request: pytest.FixtureRequest, short_path: Path) -> str:
    return {"path": f"{short_path}/notify", "abstract": f"@{short_path.name}"}[request.param]


@pytest.fixture
def manager(notify_address: str) -> Iterator[Manager]:
    manager = Manager(notify_address)
    yield manager
    manager.socket.close()


@pytest.fixture
async def managed(make_daemon: Callable[..., Daemon], manager: Manager, notify_address: str) -> Daemon:
    """A daemon that systemd starts."""
    daemon = make_daemon(channels=FORM)
    daemon.env["NOTIFY_SOCKET"] = notify_address
    return await daemon.start(ready=False)


async def test_systemd_hears_of_start_reload_and_stop(
    managed: Daemon, manager: Manager, http: aiohttp.ClientSession
) -> None:
    # when it says that it is ready, then it is
    assert await manager.hears() == {"READY": "1"}
    async with http.get(f"{managed.url}/c/form") as page:
        assert page.status == 200

    # when it reloads, then it says so, with the time that Type=notify-reload wants, and says when it is done
    before = time.monotonic_ns() // 1000
    managed.signal(signal.SIGHUP)
    told = await manager.hears()
    assert told.pop("RELOADING") == "1"
    assert before <= int(told.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
    assert not told
    assert await manager.hears() == {"READY": "1"}

    # when it is stopped, then it says so, and ends well
    managed.signal(signal.SIGTERM)
    assert await manager.hears() == {"STOPPING": "1"}
    async with asyncio.timeout(20):
        assert managed.process is not None
        assert await managed.process.wait() == 0


# The image


def test_the_dockerfile_copies_what_there_is_and_dockerignore_lets_through() -> None:
    wanted = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [path for line in instructions("COPY") if "--from" not in line for path in line.split()[:-1]]

    assert [path for path in copied if not (ROOT / path).exists()] == []
    assert sorted(f"!{path}" for path in copied) == sorted(line for line in wanted if line.startswith("!"))


def test_the_image_has_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]

    assert {f"{name} {name}" for name in packages} <= set(instructions("COPY"))
    assert f"VERSION={project['project']['version']}" in instructions("ARG")


def test_everything_from_a_package_index_is_locked() -> None:
    installs = re.findall(r"pip \S+.*?(?=&&|$)", " ".join(instructions("RUN")))
    from_an_index = [line for line in installs if " install " in line and "--no-index" not in line]

    assert len(from_an_index) == 3
    assert all("--require-hashes" in line and ".lock" in line for line in from_an_index)


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "requirements.lock", "mail.lock", "build.lock"])
def test_no_registry_is_named(name: str) -> None:
    text = (DEPLOY / name).read_text()

    assert re.findall(r"https?://(?!127\.0\.0\.1)[^\s/]+|\b[\w-]+\.(?:io|com|net|cn|dev|org)\b(?!\.)", text) == []


def test_the_image_does_not_run_as_root() -> None:
    assert all(int(number) > 0 for number in instructions("USER")[-1].split(":"))


async def test_the_health_check_sees_the_daemon_alive_and_gone(start_daemon: Callable[..., Awaitable[Daemon]]) -> None:
    # given
    daemon = await start_daemon(channels=FORM)
    command = json.loads(instructions("HEALTHCHECK")[0].partition(" CMD ")[2])
    port = daemon.config["admin"]["listen"].rpartition(":")[2]
    check = [sys.executable, *command[1:-1], command[-1].replace("9090", port)]
    assert port in check[-1]

    # when, then
    assert await exit_status(check) == 0
    await daemon.stop()
    assert await exit_status(check) != 0


async def exit_status(command: list[str]) -> int:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    return await process.wait()


@pytest.mark.parametrize("env", [{}, {"REDIS_URL": "redis://redis:6379/0", "REDIS_PASSWORD": "secret"}])
def test_the_image_starts_with_a_right_configuration(env: dict[str, str]) -> None:
    settings = load(DEPLOY / "gateway.container.yaml", env)

    check_in_container(settings)
    assert settings.redis.is_embedded is not bool(env)


def check_in_container(settings: GatewaySettings) -> None:
    """What the Dockerfile promises of the ports and the volume holds."""
    assert instructions("VOLUME") == [str(settings.state_dir)]
    listeners = [settings.http.listen, settings.admin.listen]
    assert all(listener.is_wildcard for listener in listeners)
    assert instructions("EXPOSE") == [" ".join(str(listener.port) for listener in listeners)]


# Compose


def test_compose_names_what_there_is() -> None:
    binds, volumes = [], set()
    for service in COMPOSE["services"].values():
        sources = [volume.partition(":")[0] for volume in service["volumes"]]
        binds += [source for source in sources if source.startswith(".")]
        volumes |= {source for source in sources if not source.startswith(".")}
        assert set(service["secrets"]) <= set(COMPOSE["secrets"])

    assert binds
    assert [path for path in binds if not (DEPLOY / path).exists()] == []
    assert volumes == set(COMPOSE["volumes"])
    build = COMPOSE["services"]["gateway"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_is_confined_and_kept_up(name: str) -> None:
    service = COMPOSE["services"][name]

    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["restart"] == "unless-stopped"
    assert all("127.0.0.1" in port for port in service["ports"])


class ComposeRedis:
    """The Redis of the compose file: its own command and health check, on a port and in a folder of the test."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.secret = folder / "redis_password"
        self.secret.write_text("a password of the test\n".replace(" ", "-"))
        self._folder = folder / "data"
        self._folder.mkdir()
        self._service = COMPOSE["services"]["redis"]

    def _here(self, script: str) -> str:
        paths = {"$$": "$", "/run/secrets/redis_password": str(self.secret), "dir /data": f"dir {self._folder}"}
        for theirs, ours in paths.items():
            script = script.replace(theirs, ours)
        return script

    async def start(self) -> asyncio.subprocess.Process:
        shell, option, script = self._service["command"]
        script = self._here(script).replace("appendonly", f"port {self.port}\nbind 127.0.0.1\nappendonly", 1)
        process = await asyncio.create_subprocess_exec(shell, option, script, stdout=asyncio.subprocess.DEVNULL)
        async with asyncio.timeout(20):
            while await self.health() != 0:
                await asyncio.sleep(0.05)
        return process

    async def health(self) -> int:
        """The health check's exit status."""
        kind, script = self._service["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        return await exit_status(["sh", "-c", self._here(script).replace("redis-cli", f"redis-cli -p {self.port}")])

    def client(self, password: str | None) -> Redis:
        return Redis(port=self.port, password=password, protocol=2, decode_responses=True)


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[ComposeRedis]:
    server = ComposeRedis(tmp_path)
    process = await server.start()
    yield server
    process.terminate()
    await process.wait()


def compose_config(redis: ComposeRedis) -> str:
    text = (DEPLOY / "gateway.compose.yaml").read_text()
    return text.replace("/run/secrets/redis_password", str(redis.secret))


async def test_its_redis_keeps_what_it_is_given(redis: ComposeRedis) -> None:
    async with redis.client(redis.secret.read_text().strip()) as client:
        kept = {key: (await client.config_get(key))[key] for key in ("appendonly", "appendfsync", "maxmemory-policy")}

    assert kept == {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
    async with redis.client(None) as stranger:
        with pytest.raises(AuthenticationError):
            await stranger.ping()


async def test_its_health_check_needs_the_password(redis: ComposeRedis) -> None:
    assert await redis.health() == 0
    redis.secret.write_text("another")
    assert await redis.health() != 0


async def test_its_gateway_publishes_to_its_redis(
    redis: ComposeRedis, tmp_path: Path, make_daemon: Callable[..., Daemon], http: aiohttp.ClientSession
) -> None:
    # given the configuration of the compose file, with what is the container's replaced
    path = tmp_path / "gateway.yaml"
    path.write_text(compose_config(redis))
    check_in_container(load(path, {}))
    config = YAML(typ="safe").load(path)
    url = config["redis"]["url"].replace("redis:6379", f"127.0.0.1:{redis.port}")
    daemon = make_daemon(config["channels"], redis={**config["redis"], "url": url})
    await daemon.start()

    # when
    message = {"subject": "from compose", "text": "你好"}
    async with http.post(f"{daemon.url}/c/support", json=message) as answer:
        assert answer.status == 202, await answer.text()
        id_ = (await answer.json())["id"]

    # then
    await daemon.until_status(lambda status: status["stream"]["length"] == 1)
    async with redis.client(redis.secret.read_text().strip()) as client:
        entries = await client.xrange("tickets")
    assert [fields["id"] for _, fields in entries] == [id_]
    assert await daemon.stop() == 0
