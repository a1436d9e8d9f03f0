"""The command line's side of the admin API: a question to the running daemon over its unix socket."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

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

    async def exchange() -> bytes:
        async with Line(state_dir) as line:
            return await line.ask_bytes(method, path, query, json=body)

    return asyncio.run(exchange())


class NotRunning(Unavailable):
    """Nobody listens on the socket."""


class Line:
    """An open line, for many questions, and so many at a time."""

    def __init__(self, state_dir: Path, connections: int = 1) -> None:
        self._socket = state_dir / ADMIN_SOCKET
        self._connections = connections

    async def __aenter__(self) -> Self:
        connector = aiohttp.UnixConnector(str(self._socket), limit=self._connections)
        self._http = aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def ask(self, method: str, path: str, query: Mapping[str, str] | None = None, data: bytes = b"") -> Any:
        """The answer's JSON. Raises as the function `ask` does."""
        return orjson.loads(await self.ask_bytes(method, path, query, data=data or None))

    async def ask_bytes(self, method: str, path: str, query: Mapping[str, str] | None = None, **body: Any) -> bytes:
        try:
            async with self._http.request(method, f"http://huiru{path}", params=query, **body) as response:
                status, content = response.status, await response.read()
        except aiohttp.ClientConnectorError as error:
            raise _unreachable(self._socket, error.os_error) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(reason=f"the daemon did not answer: {error or type(error).__name__}") from error
        if status >= 400:
            raise _refusal(status, content)
        return content


def _unreachable(socket: Path, error: OSError) -> Unavailable:
    if isinstance(error, PermissionError):
        return Unavailable(reason=f"{socket}: not allowed; use the daemon's own user or root")
    return NotRunning(
        reason=f"no huiru is running on {socket.parent}; start it by `huiru run`, or name its configuration by --config"
    )


def _refusal(status: int, content: bytes) -> Rejected | Unavailable:
    try:
        problem = orjson.loads(content)
        code, detail = str(problem["code"]), str(problem["detail"])
        wait = int(problem.get("retry_after", 5))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return Unavailable(reason=f"the daemon answered {status}")
    return Rejected(code, detail) if status < 500 else Unavailable(code, reason=detail, retry_after=wait)
