"""Mail servers that hand over mails by SMTP and LMTP, and remember every 250.

Those of ours send one mail after another over a connection, wait for each answer, and come again on a temporary one or
none, as RFC 5321 (4.5.4.1) has it. Beside them Postfix's smtp-source sends copies of one mail over several connections.
"""

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from gateway.identity import id_prefix
from tests.faults.letters import Letter, Letters
from tests.faults.load import Record
from tests.smtp_talk import Talk, stuffed

RECIPIENTS = ("support@acme.cn", "orders@acme.cn")
CHANNELS: Mapping[str, Any] = {
    "mx": {"type": "smtp", "domains": ["acme.cn"]},
    "lmtp": {"type": "smtp", "protocol": "lmtp", "domains": ["acme.cn"]},
}
_ANSWER_SECS = 4
_RETRY_SECS = (0.02, 0.3)
_LONGEST_PAUSE_SECS = 0.15
_A_CONNECTION = 6  # mails over one, at most
_LATER = {421, 450, 451, 452}  # what a mail server in this harness may be told but yes
_ACCEPTED = re.compile(r"250 2\.0\.0 Accepted as ([0-9A-Z-]+)")
# What smtp-source says of an answer that it did not want.
_SOURCE_REFUSED = re.compile(r"(?:rejected|reject|bad startup|handshake).*?: (\d{3})")


class Gone(Exception):
    """The connection ended, or nothing came over it in time."""


class Mail:
    """`ports`: channel -> where to connect."""

    def __init__(
        self, ports: Mapping[str, int], rng: Random, letters: Letters, record: Record, folder: Path, *, workers: int = 2
    ) -> None:
        self.in_data = 0  # mails of which the body is on its way, or the answer to it
        self._ports = ports
        self._rng = rng
        self._letters = letters
        self._record = record
        self._folder = folder
        self._workers = workers
        self._old: dict[str, list[Letter]] = {channel: [] for channel in CHANNELS}  # acknowledged
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        works = [self._work() for _ in range(self._workers)]
        self._tasks = [asyncio.create_task(work) for work in (*works, self._work_of_postfix())]

    async def finish(self) -> None:
        """No new mails; returns when every one that is not given up has been acknowledged."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        """At once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def send_some(self, n: int) -> list[Letter]:
        """Mails that must be taken at once, without a retry."""
        letters = [self._letters.new(self._rng.choice(list(CHANNELS))) for _ in range(n)]
        for letter in letters:
            await self._hand_over_some([(letter, {*RECIPIENTS})])
            assert letter.id, f"a fresh mail was not taken: {self._record.refused}"
        return letters

    async def _work(self) -> None:
        while not self._stopping.is_set():
            channel = self._rng.choice(list(CHANNELS))
            queue = [self._next(channel) for _ in range(self._rng.randint(1, _A_CONNECTION))]
            while queue:
                await self._hand_over_some(queue)
                # Some are given up, as a mail server does after days.
                queue = [(one, to) for one, to in queue if to and (one.id or self._rng.random() > 0.02)]
                await asyncio.sleep(self._rng.uniform(*_RETRY_SECS) if queue else 0)
            await self._pause()

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._rng.uniform(0, _LONGEST_PAUSE_SECS)):
                await self._stopping.wait()

    def _next(self, channel: str) -> tuple[Letter, set[str]]:
        """A mail and to whom it still has to go. Some come again, which a mail server does that is not sure."""
        old = self._old[channel]
        letter = self._rng.choice(old) if old and self._rng.random() < 0.08 else self._letters.new(channel)
        return letter, set(RECIPIENTS[: self._rng.randint(1, 2)])

    # A connection of our own

    async def _hand_over_some(self, queue: list[tuple[Letter, set[str]]]) -> None:
        """Takes from each mail the recipients who have it now."""
        channel = queue[0][0].channel
        writer = None
        try:
            async with asyncio.timeout(_ANSWER_SECS):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._ports[channel])
                talk = Talk(reader, writer)
                await self._yes(channel, await _reply(talk))
                await self._yes(channel, await _say(talk, f"{'LHLO' if channel == 'lmtp' else 'EHLO'} mta.example"))
            for letter, recipients in queue:
                async with asyncio.timeout(_ANSWER_SECS):
                    await self._hand_over(talk, letter, recipients)
            async with asyncio.timeout(_ANSWER_SECS):
                await _say(talk, "QUIT")
        except (OSError, Gone):  # TimeoutError is an OSError
            pass
        finally:
            if writer is not None:
                writer.transport.abort()

    async def _hand_over(self, talk: Talk, letter: Letter, recipients: set[str]) -> None:
        channel, to = letter.channel, sorted(recipients)
        for line in ("MAIL FROM:<zhang@example.com>", *(f"RCPT TO:<{one}>" for one in to), "DATA"):
            await self._yes(channel, await _say(talk, line))
        self._record.unanswered[channel] += 1  # until there is an answer
        self.in_data += 1
        try:
            await self._send(talk, stuffed(letter.raw) + b".\r\n")
            await self._hear(talk, letter, recipients)
        finally:
            self.in_data -= 1

    async def _send(self, talk: Talk, body: bytes) -> None:
        """Mostly at once."""
        if self._rng.random() < 0.2:
            first, body = body[: len(body) // 2], body[len(body) // 2 :]
            await talk.send(first)
            await asyncio.sleep(self._rng.uniform(0, _LONGEST_PAUSE_SECS))
        await talk.send(body)

    async def _hear(self, talk: Talk, letter: Letter, recipients: set[str]) -> None:
        """The answer to a mail, by LMTP one for each recipient."""
        channel, to = letter.channel, sorted(recipients)
        first = True
        for some in [[one] for one in to] if channel == "lmtp" else [to]:
            said = await _reply(talk)
            if first and said[:3] != "421":  # which may come in the place of an answer
                self._record.unanswered[channel] -= 1
                self._record.yes[channel] += said[:1] == "2"
            first = False
            if self._is_yes(channel, said):
                self._acknowledge(letter, said)
                recipients.difference_update(some)

    async def _yes(self, channel: str, said: str) -> None:
        """Raises Gone on any other answer: the mail server hangs up, and comes again."""
        if not self._is_yes(channel, said):
            raise Gone

    def _is_yes(self, channel: str, said: str) -> bool:
        if said[:1] in {"2", "3"}:
            return True
        self._refused(channel, said)
        return False

    def _refused(self, channel: str, said: str) -> None:
        status = int(said[:3])
        self._record.refused[status] += 1
        if status not in _LATER:
            self._record.wrong.append(f"a mail server on {channel} was told {said[:300]!r}")

    def _acknowledge(self, letter: Letter, said: str) -> None:
        accepted = _ACCEPTED.fullmatch(said)
        if accepted is None:
            self._record.wrong.append(f"{letter.key} on {letter.channel} was answered {said[:300]!r}")
            return
        self._old[letter.channel] += [letter] if letter.id is None else []
        self._record.acknowledge(letter, id_prefix(accepted[1]))

    # smtp-source

    async def _work_of_postfix(self) -> None:
        while not self._stopping.is_set():
            letter = self._letters.new(self._rng.choice(list(CHANNELS)))
            letter.bodies = {hashlib.sha256(letter.raw + b"\r\n").hexdigest()}  # it adds an empty line
            while not await self._blast(letter) and self._rng.random() > 0.02:
                await asyncio.sleep(self._rng.uniform(*_RETRY_SECS))
            await self._pause()

    async def _blast(self, letter: Letter) -> bool:
        """Whether a copy was acknowledged. It tells how many bodies it has sent, and ends with the first refusal."""
        sessions, copies = self._rng.randint(1, 3), self._rng.randint(1, 6)
        file = self._folder / "letter"
        file.write_bytes(letter.raw.replace(b"\r\n", b"\n")[:-1])
        options = ["-c", "-s", str(sessions), "-m", str(copies), "-F", str(file), "-f", "a@example.com"]
        options += ["-d"] if self._rng.random() < 0.5 else []
        options += ["-L", "-r", "2"] if letter.channel == "lmtp" else []
        status, said = await _smtp_source(*options, "-t", RECIPIENTS[0], f"127.0.0.1:{self._ports[letter.channel]}")
        sent = max(map(int, re.findall(r"(\d+)\r", said)), default=0)
        yes = copies if status == 0 else max(0, sent - sessions)
        self._record.yes[letter.channel] += yes
        self._record.unanswered[letter.channel] += copies - yes
        for refusal in _SOURCE_REFUSED.finditer(said):
            self._refused(letter.channel, refusal[1])
        if yes:
            self._record.acknowledge(letter)
        return yes > 0


async def _reply(talk: Talk) -> str:
    """The last line of an answer. Raises Gone when the connection ends before it does."""
    while (line := await talk.reader.readline())[-1:] == b"\n":
        if line[3:4] != b"-":
            return line.decode().rstrip()
    raise Gone


async def _say(talk: Talk, line: str) -> str:
    await talk.send(f"{line}\r\n")
    return await _reply(talk)


async def _smtp_source(*options: str) -> tuple[int, str]:
    """Its status and words; it is ended when it waits too long."""
    found = shutil.which("smtp-source", path=f"{os.environ['PATH']}:/usr/sbin")
    assert found, "the harness needs smtp-source: apt-get install postfix"
    process = await asyncio.create_subprocess_exec(
        *(found, *options), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    told = asyncio.ensure_future(process.communicate())
    try:
        async with asyncio.timeout(_ANSWER_SECS):
            await asyncio.shield(told)
    except TimeoutError:
        pass
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        said, _ = await told
    return process.returncode or 0, said.decode(errors="replace")
