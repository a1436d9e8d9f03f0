"""An IMAP server that does what a real one should not: for what Dovecot cannot be brought to do."""

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress


class StandIn:
    """Serves `mails` by UID. `instead[command]` answers in the place of the usual one: with bytes, `{tag}` for the tag;
    with a function of the tag and the arguments; or, as None, by closing the connection."""

    def __init__(self, mails: dict[int, bytes] | None = None) -> None:
        self.mails = mails or {}
        self.greeting = b"* OK ready\r\n"
        self.capabilities = "IMAP4rev1 UIDPLUS MOVE"
        self.instead: dict[str, bytes | Callable[[str, str], bytes | None] | None] = {}
        self.commands: list[str] = []
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> "StandIn":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()
        await asyncio.sleep(0)

    def names(self) -> list[str]:
        return [command.partition(" ")[0] for command in self.commands]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(ConnectionError):
            writer.write(self.greeting)
            while line := await reader.readline():
                tag, _, command = line.decode("latin-1").strip().partition(" ")
                self.commands.append(command)
                answer = self._answer(tag, command)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        self._writers.discard(writer)
        writer.close()

    def _answer(self, tag: str, command: str) -> bytes | None:
        name = command.removeprefix("UID ").split(" ")[0].upper()
        if name in self.instead:
            given = self.instead[name]
            given = given(tag, command) if callable(given) else given
            return given.replace(b"{tag}", tag.encode()) if given is not None else None
        done = f"{tag} OK done\r\n".encode()
        if name == "CAPABILITY":
            return f"* CAPABILITY {self.capabilities}\r\n".encode() + done
        if name in ("SELECT", "EXAMINE"):
            top = max(self.mails, default=0) + 1
            return f"* {len(self.mails)} EXISTS\r\n* OK [UIDVALIDITY 7] x\r\n* OK [UIDNEXT {top}] x\r\n".encode() + done
        if name == "SEARCH":
            return f"* SEARCH {' '.join(map(str, self._among(command)))}".rstrip().encode() + b"\r\n" + done
        if name == "FETCH":
            return b"".join(self._fetched(uid, command) for uid in self._among(command)) + done
        return done

    def _among(self, command: str) -> list[int]:
        sets = re.search(r"(?:FETCH|UID|SEARCH UID) ([\d:,*]+)", command.partition("UID ")[2] or command)
        wanted: set[int] = set()
        for one in sets[1].split(",") if sets else ["1:*"]:
            first, _, last = one.partition(":")
            end = max(self.mails, default=0) if last == "*" else int(last or first)
            wanted.update(uid for uid in self.mails if min(int(first), end) <= uid <= max(int(first), end))
        return sorted(wanted)

    def _fetched(self, uid: int, command: str) -> bytes:
        body = self.mails[uid]
        if "RFC822.SIZE" in command:
            return b"* %d FETCH (UID %d RFC822.SIZE %d)\r\n" % (uid, uid, len(body))
        if part := re.search(r"<(\d+)\.(\d+)>", command):
            start = int(part[1])
            body = body[start : start + int(part[2])]
            return b"* %d FETCH (UID %d BODY[]<%d> {%d}\r\n%b)\r\n" % (uid, uid, start, len(body), body)
        return b"* %d FETCH (UID %d BODY[] {%d}\r\n%b)\r\n" % (uid, uid, len(body), body)
