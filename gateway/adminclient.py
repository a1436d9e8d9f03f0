"""The command line's side of the admin API: a question to the running daemon over its unix socket."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from gateway.errors import Rejected, Unavailable

ADMIN_SOCKET = "admin.sock"
_TIMEOUT = aiohttp.ClientTimeout(total=120, sock_connect=5)


def ask(state_dir: Path, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Any = None) -> Any:
    """The answer's JSON. Raises Rejected, what the daemon refused; Unavailable, the daemon does not answer."""
    return orjson.loads(ask_bytes(state_dir, method, path, query=query, body=body))


def ask_bytes(
    state_dir: Path, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Any = None
) -> bytes:
    """The answer as it is. Raises as `ask` does."""
    socket = state_dir / ADMIN_SOCKET
    try:
        status, content = asyncio.run(_exchange(socket, method, path, query, body))
    except aiohttp.ClientConnectorError as error:
        raise Unavailable(reason=_why(socket, error.os_error)) from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unavailable(reason=f"the daemon did not answer: {error or type(error).__name__}") from error
    if status >= 400:
        raise _refusal(status, content)
    return content


async def _exchange(
    socket: Path, method: str, path: str, query: Mapping[str, str] | None, body: Any
) -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket)), timeout=_TIMEOUT) as http,
        http.request(method, f"http://huiru{path}", params=query, json=body) as response,
    ):
        return response.status, await response.read()


def _why(socket: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"{socket}: not allowed; use the daemon's own user or root"
    return f"no huiru is running on {socket.parent}; start it by `huiru run`, or name its configuration by --config"


def _refusal(status: int, content: bytes) -> Rejected | Unavailable:
    try:
        problem = orjson.loads(content)
        code, detail = str(problem["code"]), str(problem["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return Unavailable(reason=f"the daemon answered {status}")
    return Rejected(code, detail) if status < 500 else Unavailable(reason=detail)
