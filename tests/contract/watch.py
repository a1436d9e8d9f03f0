"""What a channel must not let out: log lines with secrets, connections to the outside world."""

import io
import logging
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, redirect_stderr
from ipaddress import ip_address
from typing import Any

import pytest
import structlog

from gateway.telemetry import Redactor, set_up_logging

_OURS = {"gateway", "connectors", "normalizers"}


class Log:
    """Every line of the process while it is being watched: as the code gave it, and as it would be written."""

    def __init__(self) -> None:
        self.redactor = Redactor()
        self.given: list[str] = []
        self.events: list[str] = []
        self._file = io.StringIO()

    @property
    def written(self) -> str:
        return self._file.getvalue()

    @contextmanager
    def watching(self) -> Iterator["Log"]:
        root = logging.getLogger()
        handlers, level, root.handlers = root.handlers, root.level, []
        with redirect_stderr(self._file):
            set_up_logging("json", "debug", self.redactor)
            structlog.configure(processors=[self._note, *structlog.get_config()["processors"]])
        try:
            with _fresh_loggers():
                yield self
        finally:
            structlog.reset_defaults()
            root.handlers, root.level = handlers, level

    def _note(self, _: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Before the redactor: a channel does not rely on it."""
        self.events.append(str(event["event"]))
        self.given.append(repr(event))
        return event


@contextmanager
def _fresh_loggers() -> Iterator[None]:
    """A logger that has been used keeps the configuration that it had then: ours are new, and put back afterwards."""
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in _OURS]
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            if hasattr(module, "log"):
                patch.setattr(module, "log", structlog.get_logger())
        yield


class Fence:
    """Nothing leaves loopback while it is `up`: an attempt fails, and is noted, whatever the code makes of that.

    By the interpreter's audit events (PEP 578), which no library passes by. A hook cannot be taken away again.
    """

    def __init__(self) -> None:
        self.up = False
        self.attempts: list[str] = []
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.up and event in _REACHING and not _is_loopback(_REACHING[event](arguments)):
            self.attempts.append(f"{event} {arguments[-1] if event == 'socket.connect' else arguments}")
            raise ConnectionRefusedError(f"{event}: a test stays on loopback")


# Audit event -> whom it reaches.
_REACHING = {
    "socket.connect": lambda arguments: arguments[1],
    "socket.sendto": lambda arguments: arguments[1],
    "socket.sendmsg": lambda arguments: arguments[1],
    "socket.getaddrinfo": lambda arguments: arguments[:1],
    "socket.gethostbyname": lambda arguments: arguments[:1],
}


def _is_loopback(address: Any) -> bool:
    """A unix socket's path is."""
    host = address[0] if isinstance(address, tuple) else None
    if host in (None, "", b"", "localhost"):
        return True
    try:
        return ip_address(host.decode() if isinstance(host, bytes) else host).is_loopback
    except ValueError:
        return False
