"""Locks, sockets and the service manager, as the operating system really has them."""

import os
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from gateway import host
from gateway.address import Address
from gateway.errors import ConfigError, Unavailable
from tests.daemon import free_port

OWNER = """
import pathlib, sys
from gateway.host import lock
with lock(pathlib.Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


def loopbacks() -> list[tuple[str, socket.AddressFamily]]:
    """The addresses of this machine's loopback; not every machine has IPv6."""
    found = [("127.0.0.1", socket.AF_INET)]
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        found.append(("::1", socket.AF_INET6))
    return found


def test_a_state_folder_belongs_to_one_daemon(tmp_path: Path) -> None:
    with (
        host.lock(tmp_path),
        pytest.raises(Unavailable, match=f"in use by another huiru .pid {os.getpid()}."),
        host.lock(tmp_path),
    ):
        raise AssertionError("two have it")

    with host.lock(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_a_lock_is_free_when_its_owner_was_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"in\n"
        with pytest.raises(Unavailable, match=str(owner.pid)), host.lock(tmp_path):
            raise AssertionError("two have it")
        owner.kill()
        owner.wait()

        with host.lock(tmp_path):
            assert (tmp_path / "lock").read_text() == str(os.getpid())


@pytest.mark.parametrize(("name", "family"), loopbacks())
def test_it_listens(name: str, family: socket.AddressFamily) -> None:
    with host.listen(Address(name, 0)) as listener, socket.socket(family) as client:
        client.connect(listener.getsockname()[:2])


def test_an_address_that_is_taken_is_named() -> None:
    port = free_port()

    with (
        host.listen(Address("127.0.0.1", port)),
        pytest.raises(Unavailable, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*in use"),
        host.listen(Address("127.0.0.1", port)),
    ):
        raise AssertionError("two have it")


def test_an_address_that_cannot_be_had_is_named() -> None:
    with (
        pytest.raises(Unavailable, match=r"cannot listen on 192\.0\.2\.1:0: "),
        host.listen(Address("192.0.2.1", 0)),
    ):
        raise AssertionError("it is not ours")


def test_a_unix_socket_is_our_own_and_gone_afterwards(short_path: Path) -> None:
    path = short_path / "admin.sock"

    with host.unix_socket(path), socket.socket(socket.AF_UNIX) as client:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        client.connect(str(path))

    assert not path.exists()


def test_a_unix_socket_that_a_crash_left_behind_is_replaced(short_path: Path) -> None:
    path = short_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))

    with host.unix_socket(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_path_too_long_for_a_socket_is_a_configuration_error() -> None:
    assert host.socket_path(Path("/var/lib/huiru"), "redis", "redis.sock") == Path("/var/lib/huiru/redis/redis.sock")

    with pytest.raises(ConfigError, match=r"state_dir: .* is too long"):
        host.socket_path(Path("/var/lib") / ("汇入" * 20), "redis", "redis.sock")


@pytest.mark.parametrize("abstract", [False, True], ids=["file", "abstract"])
def test_the_service_manager_is_told(short_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    with ExitStack() as stack:
        manager = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        name = f"huiru-test-{os.getpid()}" if abstract else str(short_path / "notify")
        manager.bind("\0" + name if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)

        host.notify("READY=1")

        assert manager.recv(100) == b"READY=1"


def test_without_a_service_manager_nobody_is_told(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    host.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(short_path / "nobody"))
    host.notify("READY=1")
