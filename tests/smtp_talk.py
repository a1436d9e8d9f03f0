"""A raw SMTP conversation, for what well-behaved libraries do not say; and a certificate for it."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path


class Talk:
    """One connection. A reply is its lines, without the line ends; empty when there was none."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes | str) -> None:
        self.writer.write(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)
        await self.writer.drain()

    async def reply(self) -> str:
        lines = []
        while line := await self.reader.readline():
            lines.append(line.decode().rstrip("\r\n"))
            if line[3:4] != b"-":
                break
        return "\n".join(lines)

    async def say(self, *lines: bytes | str) -> str:
        """The reply to the last of these lines; the others get theirs too."""
        said = ""
        for line in lines:
            await self.send((line.encode("utf-8", "surrogateescape") if isinstance(line, str) else line) + b"\r\n")
            said = await self.reply()
        return said

    async def hand_over(self, body: bytes, to: Iterable[str], sender: str = "zhang@example.com") -> list[str]:
        """The replies to a whole transaction: of each RCPT, and of the message, if it got that far."""
        await self.say(f"MAIL FROM:<{sender}>")
        replies = [await self.say(f"RCPT TO:<{one}>") for one in to]
        if (await self.say("DATA")).startswith("354"):
            replies.append(await self.say(stuffed(body) + b"."))
        return replies

    async def start_tls(self) -> None:
        assert (await self.say("STARTTLS")).startswith("220")
        await self.writer.start_tls(unchecked())

    async def rest(self) -> str:
        """What is said until the end of the connection."""
        try:
            return (await self.reader.read()).decode()
        except ConnectionError:
            return ""


@asynccontextmanager
async def talk(port: int, *, tls: bool = False, hello: str = "EHLO client.example") -> AsyncIterator[Talk]:
    """After the greeting, and after `hello` unless it is empty."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=unchecked() if tls else None)
    one = Talk(reader, writer)
    try:
        await one.reply()
        if hello:
            await one.say(hello)
        yield one
    finally:
        writer.transport.abort()


def stuffed(body: bytes) -> bytes:
    """As it goes over the wire: RFC 5321 section 4.5.2."""
    return (b"\r\n" + body).replace(b"\r\n.", b"\r\n..")[2:]


def unchecked() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def make_certificate(folder: Path, name: str = "mx.test", days: int = 30) -> tuple[Path, Path]:
    """A self-signed one, in PEM: chain and key."""
    chain, key = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", f"/CN={name}", "-days", str(days), "-keyout", str(key), "-out", str(chain)),
        ],
        check=True,
        capture_output=True,
    )
    return chain, key
