"""A normalizer has the message and nothing else (R12)."""

import builtins
import datetime as datetimes
import io
import os
import random
import secrets
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest

_FORBIDDEN = (
    *(builtins.open, os.open, os.urandom, socket.socket, socket.create_connection, socket.getaddrinfo),
    *(subprocess.Popen, time.time, time.time_ns, time.monotonic, uuid.uuid1, uuid.uuid4),
    *(secrets.token_bytes, secrets.token_hex, secrets.token_urlsafe, secrets.randbelow, secrets.choice),
    *(random.random, random.randint, random.randrange, random.choice, random.uniform, random.getrandbits),
)


class _Timeless(datetime):
    @classmethod
    def now(cls, *_: Any) -> "_Timeless":
        raise AssertionError("a normalizer looked at the clock")

    utcnow = today = now


@contextmanager
def deprived() -> Iterator[None]:
    """Without clock, chance, files and network, also where they were imported by name."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a normalizer is a pure function")

    libraries = (builtins, datetimes, io, os, socket, subprocess, time, uuid, secrets, random)
    ours = [module for name, module in sys.modules.items() if name.partition(".")[0] in ("gateway", "normalizers")]
    with pytest.MonkeyPatch.context() as patch:
        for module in (*libraries, *ours):
            for name, value in list(vars(module).items()):
                if value is datetime:
                    patch.setattr(module, name, _Timeless)
                elif any(value is one for one in _FORBIDDEN):
                    patch.setattr(module, name, forbidden)
        yield
