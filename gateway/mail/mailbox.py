"""A conversation with an IMAP server (RFC 3501), by aioimaplib with what that leaves to its user.

Whatever the server does, an answer comes in bounded time and memory: it is a result, `Refused` (the server said NO or
BAD), or Unavailable: the connection is dead. Only here aioimaplib (GPL-3.0, extra `imap`) is imported.
"""

import asyncio
import re
import ssl
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import structlog
from aioimaplib import aioimaplib

from gateway.errors import Unavailable

log = structlog.get_logger()

_LINES_AT_A_TIME = 200
_MAX_ANSWER_BYTES = 64 << 20
_FETCH = re.compile(rb"\d+ FETCH \(")
_UID = re.compile(rb"\bUID (\d+)")
_SIZE = re.compile(rb"\bRFC822\.SIZE (\d+)")
_QUOTED_BODY = re.compile(rb'\bBODY\[\](?:<\d+>)? "((?:[^"\\]|\\.)*)"')
_ITEM = r"\[%s (\d+)\]"
# RFC 5530, and what is written in its place: the account is well, the server is not.
_TEMPORARY = re.compile(
    r"\[(UNAVAILABLE|INUSE|LIMIT|SERVERBUG|OVERQUOTA|THROTTLED)\]|too many|try again|temporar|internal|busy",
    re.IGNORECASE,
)


class Refused(Exception):
    """The server said NO or BAD; the connection is well."""


class LoginRefused(Exception):
    """By its word, because of the credentials."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where the mailbox is. `ca_file`: certificates to trust in the place of the system's."""

    host: str
    port: int
    tls: Literal["implicit", "starttls", "none"]
    ca_file: Path | None
    timeout_secs: float


@dataclass(frozen=True, slots=True)
class Selected:
    """A folder at the moment it was opened. `next_uid` is None where the server does not say."""

    validity: int
    next_uid: int | None


class _Protocol(aioimaplib.IMAP4ClientProtocol):  # type: ignore[misc]  # untyped
    """Feeds the library piece by piece, because it recurses for every line (its issue 118), and keeps it from harm."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lost: Callable[[Exception | None], None]) -> None:
        super().__init__(loop, lost)
        self.news = asyncio.Event()  # the server told of messages since it was cleared
        self.heard = 0  # bytes since the last command
        self.fault = ""

    def data_received(self, data: bytes) -> None:
        self.heard += len(data)
        if self.heard > _MAX_ANSWER_BYTES:
            self._give_up("an answer without end")
            return
        try:
            for piece in _pieces(data):
                super().data_received(piece)
        except Exception as error:  # whatever the library makes of it, it is no IMAP
            self._give_up(f"no IMAP: {type(error).__name__}")

    def _give_up(self, fault: str) -> None:
        self.fault = self.fault or fault
        self.transport.abort()

    async def welcome(self, command: bytes) -> None:
        try:
            await super().welcome(command)
        except Exception:
            self._give_up(f"it was greeted by {_readable(command)}")

    def _untagged_response(self, line: bytes) -> Any:
        if line.endswith(b" EXISTS"):
            self.news.set()
        return super()._untagged_response(line)

    def _continuation(self, line: bytes) -> None:
        pending = self.pending_sync_command
        if pending is not None and pending.name == "AUTHENTICATE":
            self.send("")  # XOAUTH2: a challenge says why; the NO comes when it is answered
        else:
            super()._continuation(line)


class _Client(aioimaplib.IMAP4):  # type: ignore[misc]  # untyped
    def create_client(
        self,
        host: str,
        port: int,
        loop: asyncio.AbstractEventLoop | None,
        conn_lost_cb: Callable[[Exception | None], None],
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        loop = loop or asyncio.get_running_loop()
        self.protocol = _Protocol(loop, conn_lost_cb)
        self._client_task = loop.create_task(loop.create_connection(lambda: self.protocol, host, port, ssl=ssl_context))

    def abandon(self) -> None:
        """Leaves nothing running."""
        if self.protocol.transport is not None:
            self.protocol.transport.abort()
        if self._idle_waiter is not None:
            self._idle_waiter.cancel()
        for task in (self._client_task, *self.tasks, *self.protocol.tasks):
            task.cancel()


class Mailbox:
    """`await Mailbox.reach(server)`, then a login; `close` at the end, whatever happened."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        context = self._tls() if server.tls == "implicit" else None
        self._client = _Client(server.host, server.port, None, server.timeout_secs, self._on_lost, context)
        self._protocol: _Protocol = self._client.protocol

    @classmethod
    async def reach(cls, server: Server) -> "Mailbox":
        """A connection, encrypted as the server's entry says. Raises Unavailable."""
        mailbox = cls(server)
        try:
            await mailbox._bounded(mailbox._client.wait_hello_from_server())
            if server.tls == "starttls":
                await mailbox._start_tls()
            await mailbox._know_capabilities()
        except BaseException:
            mailbox.close()
            raise
        return mailbox

    def close(self) -> None:
        self._client.abandon()
        self._on_lost(None)

    def offers(self, capability: str) -> bool:
        return capability in self._protocol.capabilities

    # Login

    async def login(self, user: str, password: str) -> None:
        """Raises LoginRefused."""
        if self.offers("LOGINDISABLED"):
            raise LoginRefused("the server takes no password without TLS; set tls")
        await self._log_in(self._protocol.login(_quoted(user), password), password)

    async def login_by_token(self, user: str, token: str) -> None:
        """XOAUTH2 (developers.google.com/gmail/imap/xoauth2-protocol). Raises LoginRefused."""
        await self._log_in(self._protocol.xoauth2(user, token), token)

    async def _log_in(self, command: Awaitable[Any], secret: str) -> None:
        try:
            await self._ask(command)
        except Refused as refusal:
            said = str(refusal).replace(secret, "[hidden]")  # some servers repeat what they do not like
            if _TEMPORARY.search(said):
                raise Unavailable(reason=f"login: {said}") from None
            raise LoginRefused(said) from None
        except ValueError:  # of the library: a line end in it
            raise LoginRefused("user name or password cannot be sent: a control character in it") from None
        await self._know_capabilities()

    async def identify(self, **facts: str) -> None:
        """Says who we are (RFC 2971). NetEase (163, 126) refuses to open a folder to who does not: "Unsafe Login"."""
        if self.offers("ID"):
            try:
                await self._ask(self._protocol.id(**facts))
            except Refused as refusal:
                log.info("imap.id_refused", answer=str(refusal))

    async def logout(self) -> None:
        await self._ask(self._protocol.logout())

    # A folder

    async def select(self, folder: str, *, read_only: bool) -> Selected:
        """Opens a folder, by its name as people read it."""
        name = _quoted(encoded(folder))
        command = self._protocol.simple_command("EXAMINE", name) if read_only else self._protocol.select(name)
        lines = await self._ask(command)
        self._protocol.state = aioimaplib.SELECTED  # the library does not know that EXAMINE selects too
        text = b"\n".join(lines).decode("latin-1")
        validity, next_uid = (re.search(_ITEM % name, text, re.IGNORECASE) for name in ("UIDVALIDITY", "UIDNEXT"))
        if validity is None:
            raise Refused("the server gives no UIDVALIDITY: messages cannot be told apart")
        return Selected(int(validity[1]), int(next_uid[1]) if next_uid else None)

    async def search(self, criteria: str) -> list[int]:
        """UIDs in ascending order."""
        self._protocol.news.clear()
        lines = await self._ask(self._protocol.search(criteria, charset=None, by_uid=True))
        return sorted({int(word) for line in lines if re.fullmatch(rb"[\d ]*", line) for word in line.split()})

    async def sizes(self, uids: Sequence[int]) -> dict[int, int]:
        """What the server says of each message's size; without those it does not have any more."""
        lines = await self._fetch(uids, "(UID RFC822.SIZE)")
        found = ((_UID.search(text), _SIZE.search(text)) for text, _ in _items(lines))
        return {int(uid[1]): int(size[1]) for uid, size in found if uid and size}

    async def bodies(self, uids: Sequence[int]) -> dict[int, bytes]:
        """The messages as they are; without those that the server does not have, or does not give."""
        return self._bodies(await self._fetch(uids, "(UID BODY.PEEK[])"))

    async def part(self, uid: int, start: int, length: int) -> bytes | None:
        """So many bytes of a message, fewer at its end; None when the server does not have it, or does not give it."""
        return self._bodies(await self._fetch([uid], f"(UID BODY.PEEK[]<{start}.{length}>)")).get(uid)

    def _bodies(self, lines: list[bytes]) -> dict[int, bytes]:
        found = {}
        for text, literal in _items(lines):
            uid, quoted = _UID.search(text), _QUOTED_BODY.search(text)
            body = literal if literal is not None else re.sub(rb"\\(.)", rb"\1", quoted[1]) if quoted else None
            if uid and body is not None:
                found[int(uid[1])] = body
        return found

    async def _fetch(self, uids: Sequence[int], what: str) -> list[bytes]:
        return await self._ask(self._protocol.fetch(uid_set(uids), what, by_uid=True))

    # What changes a message

    async def mark_seen(self, uids: Sequence[int]) -> None:
        await self._ask(self._protocol.store(uid_set(uids), "+FLAGS.SILENT", r"(\Seen)", by_uid=True))

    async def move(self, uids: Sequence[int], folder: str) -> None:
        """In one step (RFC 6851), where the server offers MOVE."""
        await self._ask(self._protocol.move(uid_set(uids), _quoted(encoded(folder)), by_uid=True))

    async def copy(self, uids: Sequence[int], folder: str) -> None:
        await self._ask(self._protocol.copy(uid_set(uids), _quoted(encoded(folder)), by_uid=True))

    async def delete(self, uids: Sequence[int]) -> None:
        """Without UIDPLUS (RFC 4315) they are only marked: a plain EXPUNGE would remove what others have marked too."""
        await self._ask(self._protocol.store(uid_set(uids), "+FLAGS.SILENT", r"(\Deleted)", by_uid=True))
        if self.offers("UIDPLUS"):
            await self._ask(self._protocol.expunge(uid_set(uids), by_uid=True))

    # Waiting

    async def wait(self, secs: float) -> None:
        """Until the server tells of messages (RFC 2177), which one without IDLE does not, or for so long."""
        idle = await self._idle(secs) if self.offers("IDLE") else None
        await self._until_lost_or(self._protocol.news.wait(), secs)
        if idle:
            self._client.idle_done()
            await self._ask(idle)

    async def _idle(self, secs: float) -> Awaitable[Any] | None:
        try:
            idle: Awaitable[Any] = await self._bounded(self._client.idle_start(2 * secs + 60))
        except Unavailable:
            if self._lost.done() or self._client.has_pending_idle():
                raise
            self._protocol.capabilities.discard("IDLE")  # offered, and refused
            return None
        return idle

    async def _until_lost_or(self, event: Awaitable[Any], secs: float) -> None:
        task = asyncio.ensure_future(event)
        try:
            await asyncio.wait({task, self._lost}, timeout=secs, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
        if self._lost.done():
            raise self._gone()

    # Asking

    async def _ask(self, command: Awaitable[Any]) -> list[bytes]:
        """The lines of the answer without its last. Raises Refused or Unavailable."""
        self._protocol.heard = 0
        response = await self._bounded(command)
        if response.result != "OK":
            raise Refused(f"{response.result} {_readable(response.lines[-1] if response.lines else b'')}")
        return list(response.lines[:-1])

    async def _bounded(self, awaitable: Awaitable[Any]) -> Any:
        """Its result; Unavailable when the connection is lost meanwhile, or when it takes too long."""
        task = asyncio.ensure_future(awaitable)
        try:
            waited = {task, self._lost}
            await asyncio.wait(waited, timeout=self._server.timeout_secs, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        except (aioimaplib.AioImapException, OSError) as error:
            raise self._gone(f"{type(error).__name__}: {error}") from None
        finally:
            task.cancel()
        if self._lost.done():
            raise self._gone()
        raise self._gone(f"no answer in {self._server.timeout_secs:g} seconds")

    def _on_lost(self, error: Exception | None) -> None:
        if not self._lost.done():
            self._lost.set_result(None)

    def _gone(self, why: str = "") -> Unavailable:
        where = f"{self._server.host}:{self._server.port}"
        return Unavailable(reason=f"{where}: {self._protocol.fault or why or 'the server closed the connection'}")

    # TLS

    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self._server.ca_file)

    async def _start_tls(self) -> None:
        protocol, loop = self._protocol, asyncio.get_running_loop()
        if protocol.state != aioimaplib.NONAUTH:  # PREAUTH in clear: the way round STARTTLS (nostarttls.secvuln.info)
            raise self._gone("it logs us in before TLS")
        try:
            await self._ask(protocol.execute(aioimaplib.Command("STARTTLS", protocol.new_tag(), loop=loop)))
        except Refused as refusal:
            raise self._gone(f"no STARTTLS: {refusal}") from None
        if protocol.incomplete_line:
            raise self._gone("there was text in clear behind STARTTLS")
        started = loop.start_tls(protocol.transport, protocol, self._tls(), server_hostname=self._server.host)
        protocol.transport = await self._bounded(started)

    async def _know_capabilities(self) -> None:
        """Again: they change with TLS and with the login, and what was said in clear is not to be believed."""
        if self._protocol.state != aioimaplib.LOGOUT:
            await self._bounded(self._capability())

    async def _capability(self) -> None:
        try:
            await self._protocol.capability()
        except (IndexError, UnicodeDecodeError) as error:
            raise aioimaplib.Error("no capabilities") from error
        self._protocol.capabilities = {name.upper() for name in self._protocol.capabilities}


def encoded(folder: str) -> str:
    """A folder's name in the modified UTF-7 of RFC 3501, 5.1.3: 收件箱 is `&ZTZO9nux-`."""

    def shifted(match: re.Match[str]) -> str:
        code = b64encode(match[0].encode("utf-16-be", "surrogatepass")).decode().rstrip("=")
        return f"&{code.replace('/', ',')}-"

    return re.sub(r"[^\x20-\x7e]+", shifted, folder.replace("&", "&-"))


def uid_set(uids: Sequence[int]) -> str:
    """`1:3,7`."""
    runs: list[list[int]] = []
    for uid in sorted(uids):
        if runs and runs[-1][1] == uid - 1:
            runs[-1][1] = uid
        else:
            runs.append([uid, uid])
    return ",".join(str(first) if first == last else f"{first}:{last}" for first, last in runs)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _items(lines: Sequence[bytes]) -> Iterator[tuple[bytes, bytes | None]]:
    """Of each message in the answer to a FETCH, its text and its literal; a literal is the library's only bytearray."""
    text, literal = b"", None
    for line in lines:
        if isinstance(line, bytearray):
            literal = bytes(line)
        elif _FETCH.match(line):
            if text:
                yield text, literal
            text, literal = line, None
        else:
            text += b" " + line
    if text:
        yield text, literal


def _pieces(data: bytes) -> Iterator[bytes]:
    start = 0
    while data.count(b"\n", start) > _LINES_AT_A_TIME:
        end = start
        for _ in range(_LINES_AT_A_TIME):
            end = data.index(b"\n", end) + 1
        yield data[start:end]
        start = end
    yield data[start:]


def _readable(line: bytes) -> str:
    text = line[:300].decode("utf-8", "replace")
    return "".join(char if char.isprintable() else " " for char in text).strip()
