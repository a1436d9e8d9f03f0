"""What the daemon asks of its machine: a lock, sockets, a word to the service manager."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.address import Address
from gateway.errors import ConfigError, Unavailable

_SOCKET_PATH_BYTES = 107  # of sockaddr_un, unix(7)


def socket_path(state_dir: Path, *names: str) -> Path:
    """A path for a unix socket. Raises ConfigError when the operating system would not take it."""
    path = state_dir.absolute().joinpath(*names)
    if len(str(path).encode()) > _SOCKET_PATH_BYTES:
        raise ConfigError(f"state_dir: {state_dir} is too long a path for a unix socket; choose a shorter one")
    return path


@contextmanager
def lock(state_dir: Path) -> Iterator[None]:
    """The state folder belongs to one daemon at a time. Raises Unavailable when another has it."""
    with (state_dir / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise Unavailable(reason=f"{state_dir} is in use by another huiru (pid {owner})") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def listen(address: Address) -> Iterator[socket.socket]:
    """A listening TCP socket. Raises Unavailable, naming the address, when it cannot be had."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        listener = socket.create_server((address.host, address.port), family=family, backlog=1024)
    except OSError as error:
        raise Unavailable(reason=f"cannot listen on {address}: {error.strerror or error}") from error
    with listener:
        yield listener


@contextmanager
def unix_socket(path: Path) -> Iterator[socket.socket]:
    """A listening unix socket for our own user alone. One left behind by a crash is replaced: we hold the lock."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen()
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def notify(state: str) -> None:
    """Tells systemd, if it started us, how we are: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(state.encode())
