"""Sends the letters that wait, through the configured submission server. Nobody waits for it.

A letter is struck off when the server has taken it. If we die in between, it is sent again with the same Message-ID.
A refusal of the letter is final (5xx) or makes it wait (4xx). Whatever is wrong with the server or with our login makes
all wait, longer each time, and none is lost for it before it is a day old.
"""

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime

import aiosmtplib
import structlog

from gateway.acknowledgement import MAX_AGE
from gateway.contract import ChannelSettings
from gateway.errors import Rejected, Unavailable
from gateway.letter import Letter, Templates, compose
from gateway.letterbox import Waiting
from gateway.settings import OutgoingMail
from gateway.spool import Spool

log = structlog.get_logger()

_BATCH = 50
_IDLE_SECS = 60.0
_FIRST_WAIT_SECS, _LONGEST_WAIT_SECS = 2.0, 300.0  # while the server is away
_FIRST_RETRY_SECS, _LONGEST_RETRY_SECS = 60.0, 3600.0  # for one letter: greylisting takes minutes
_FORGET_SECS = 3600.0
_STOP_SECS = 5.0
_NOT_THE_LETTER = {421, 530, 535, 538}  # it is closing (RFC 5321, 3.8); it wants another login (RFC 4954, 6)


class ServerTrouble(Exception):
    """Nothing can be sent now, whatever the letter."""


class Outbox:
    """`settings` and `channels` are asked each time: a reload may change them. `key` signs reply addresses."""

    def __init__(
        self,
        spool: Spool,
        settings: Callable[[], OutgoingMail | None],
        channels: Callable[[], Mapping[str, ChannelSettings]],
        key: bytes,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.trouble = ""  # why nothing can be sent; "" when it can, or nobody knows
        self._letters = spool.letters
        self._settings = settings
        self._channels = channels
        self._key = key
        self._templates = Templates()
        self._clock = clock
        self._taken: list[Letter] = []  # by the server, and not struck off yet
        self._failures = 0  # of the server, one after another
        self._forget_at = 0.0
        self._stopping = False
        self._nudged = asyncio.Event()
        self._ended = asyncio.Event()

    # Life

    async def run(self) -> None:
        """Until `stop`, or until cancelled."""
        try:
            while not self._stopping:
                self._nudged.clear()
                self._letters.arrived.clear()
                pause = await self._turn()
                await self._wait(pause)
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """Lets the letter that is being sent be sent, so that it is not sent twice; but not for long."""
        self._stopping = True
        self.nudge()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), _STOP_SECS)

    def nudge(self) -> None:
        """Tries again at once: the settings may have changed."""
        self._nudged.set()
        self._letters.arrived.set()

    async def _turn(self) -> float:
        """A step that never fails: the seconds until the next."""
        try:
            return await self.step()
        except Unavailable as error:  # the spool: it may come back
            log.error("outbox.held_up", reason=error.reason)
        except Exception as error:  # a defect: publication goes on
            log.error("outbox.failed", exc_info=error)
        return _IDLE_SECS

    async def _wait(self, seconds: float) -> None:
        """Less, when a letter arrives; but a server that is away is left in peace."""
        event = self._nudged if self._failures else self._letters.arrived
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()

    async def step(self) -> float:
        """Sends what is due; returns the seconds until there may be more."""
        await self._strike_off()
        await self._forget()
        due = await self._without_expired(await self._letters.due(_BATCH))
        settings = self._settings()
        if settings is None:
            return _IDLE_SECS
        if not due:
            return await self._until_due()
        try:
            await self._send_all(settings, due)
        except ServerTrouble as error:
            return self._note_trouble(settings, str(error))
        self._note_well(settings)
        return 0.0

    async def _forget(self) -> None:
        if self._clock() >= self._forget_at:
            await self._letters.forget()
            self._forget_at = self._clock() + _FORGET_SECS

    async def _until_due(self) -> float:
        moment = await self._letters.next_due()
        return _IDLE_SECS if moment is None else min(max(moment - self._clock(), 0.1), _IDLE_SECS)

    async def _without_expired(self, due: list[Waiting]) -> list[Waiting]:
        oldest = self._clock() - MAX_AGE.total_seconds()
        for one in due:
            if one.written_at < oldest:
                await self._drop(one, "expired", "it could not be sent for a day")
        return [one for one in due if one.written_at >= oldest]

    # The server

    async def _send_all(self, settings: OutgoingMail, due: list[Waiting]) -> None:
        async with connected(settings) as server:
            for one in due:
                if self._stopping:
                    return
                await self._send(server, settings, one)

    async def _send(self, server: aiosmtplib.SMTP, settings: OutgoingMail, one: Waiting) -> None:
        letter = one.letter
        channel = self._channels().get(letter.channel)
        if channel is None or channel.acknowledge is None:
            return await self._drop(one, "channel_gone", "the channel acknowledges no longer")
        now = datetime.fromtimestamp(self._clock(), UTC)
        try:
            mail = compose(letter, channel.acknowledge, self._key, now, self._templates)
            await _submit(server, settings.return_path or "", letter.recipient, mail)
        except Rejected as error:
            await self._drop(one, error.code, error.reason)
        except Unavailable as error:
            await self._postpone(one, error.reason)
        except (aiosmtplib.SMTPServerDisconnected, aiosmtplib.SMTPTimeoutError) as error:
            await self._postpone(one, str(error))  # perhaps because of this letter: the others are not to wait for it
            raise
        except (aiosmtplib.SMTPException, OSError, ServerTrouble):
            raise
        except Exception as error:  # a defect, perhaps with this letter alone
            log.error("acknowledgement.failed", id=letter.id, channel=letter.channel, exc_info=error)
            await self._postpone(one, f"{type(error).__name__}: {error}")
        else:
            log.info("acknowledged", id=letter.id, channel=letter.channel)
            self._taken.append(letter)
            await self._strike_off()

    async def _strike_off(self) -> None:
        """What the server has taken. As long as the disk refuses, nothing else is sent: it would be sent again."""
        while self._taken:
            await self._letters.sent(self._taken[0])
            del self._taken[0]

    async def _drop(self, one: Waiting, code: str, reason: str) -> None:
        letter = one.letter
        log.warning("acknowledgement.dropped", id=letter.id, channel=letter.channel, code=code, reason=reason)
        await self._letters.drop(letter, code)

    async def _postpone(self, one: Waiting, reason: str) -> None:
        letter, wait = one.letter, min(_FIRST_RETRY_SECS * 2.0**one.tries, _LONGEST_RETRY_SECS)
        log.info("acknowledgement.postponed", id=letter.id, channel=letter.channel, seconds=wait, reason=reason)
        await self._letters.postpone(letter, self._clock() + wait)

    def _note_trouble(self, settings: OutgoingMail, trouble: str) -> float:
        """The seconds until the next try."""
        if trouble != self.trouble:
            log.warning("outbox.server_trouble", host=settings.host, reason=trouble)
        self.trouble = trouble
        wait = min(_FIRST_WAIT_SECS * 2.0 ** min(self._failures, 16), _LONGEST_WAIT_SECS)
        self._failures += 1
        return wait * random.uniform(0.5, 1)  # noqa: S311 - jitter

    def _note_well(self, settings: OutgoingMail) -> None:
        if self.trouble:
            log.info("outbox.server_well", host=settings.host)
        self.trouble, self._failures = "", 0


async def _submit(server: aiosmtplib.SMTP, return_path: str, recipient: str, mail: bytes) -> None:
    """Raises Rejected for a letter that is refused for good, Unavailable for now, ServerTrouble for all letters."""
    try:
        await server.sendmail(return_path, [recipient], mail)
    except aiosmtplib.SMTPRecipientsRefused as error:
        raise _refusal(error.recipients[0]) from error
    except aiosmtplib.SMTPSenderRefused as error:
        wants_sender = error.code >= 500 and not return_path
        hint = "; a server that insists on a sender needs outgoing_mail.return_path" if wants_sender else ""
        raise ServerTrouble(f"the sender was refused: {error.code} {error.message}{hint}") from error
    except aiosmtplib.SMTPResponseException as error:
        raise _refusal(error) from error


def _refusal(error: aiosmtplib.SMTPResponseException) -> Exception:
    text = f"{error.code} {error.message}"
    if error.code in _NOT_THE_LETTER:
        return ServerTrouble(text)
    return Rejected("refused", reason=text) if error.code >= 500 else Unavailable(reason=text)


@contextlib.asynccontextmanager
async def connected(settings: OutgoingMail) -> AsyncIterator[aiosmtplib.SMTP]:
    """A session with the server, logged in. Raises ServerTrouble, also when the session breaks."""
    try:
        async with await _session(settings) as server:
            try:
                yield server
            except asyncio.CancelledError:
                server.close()  # else it would be told QUIT, and be waited for
                raise
    except aiosmtplib.SMTPAuthenticationError as error:
        raise ServerTrouble(f"the login was refused: {error.code} {error.message}") from error
    except (aiosmtplib.SMTPException, OSError) as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise ServerTrouble(f"{type(error).__name__}: {error}{cause}") from error


async def _session(settings: OutgoingMail) -> aiosmtplib.SMTP:
    context = None
    if settings.tls != "none":  # reading all the system's certificates takes its time
        context = await asyncio.to_thread(ssl.create_default_context, cafile=settings.ca_file)
    return aiosmtplib.SMTP(
        hostname=settings.host,
        port=settings.port_number,
        username=settings.username,
        password=settings.password.get_secret_value() if settings.password else None,
        local_hostname=settings.helo,
        timeout=settings.timeout_secs,
        use_tls=settings.tls == "implicit",
        start_tls=settings.tls == "starttls",
        tls_context=context,
    )
