"""A mailbox at any provider, read by IMAP (RFC 3501).

Protocol: one connection; IDLE (RFC 2177) watches the first folder, all are looked at every `poll_secs`. Messages are
fetched by UID and left unread; where we stand is told by UIDVALIDITY and UID alone: see gateway/mail/position.py.
Authentication: password over TLS, or XOAUTH2 with tokens of Google, Microsoft 365 or another: gateway/mail/oauth.py.
Redelivery: a message stays in its mailbox until it has been accepted; what is done with it then is `after`. What comes
again, after a crash or a change of UIDVALIDITY, is known by its Message-ID and content. A lease keeps every other
gateway from the mailbox; whoever takes it over goes on where the last one was.
Limits: messages over `max_message_bytes` are cut, and say so; one that cannot be fetched in `fetch_tries` tries becomes
an entry in the quarantine, under its UID, and the others go on.
Source: RFC 3501, 2177, 2971, 4315, 6851; the providers' pages, which are named where they are departed from.
"""

import asyncio
import random
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Literal, Self

import structlog
from pydantic import ByteSize, Field, SecretStr, model_validator

from gateway.contract import Accept, ChannelSettings, Context, Hold, RawMessage, Receipt, RunningConnector, Settings
from gateway.errors import Rejected, Unavailable
from gateway.mail.folder import Folder, Wishes
from gateway.mail.mailbox import LoginRefused, Mailbox, Refused, Server
from gateway.mail.oauth import OAuth, Tokens

log = structlog.get_logger()

_LONGEST_WAIT = 3600.0  # between two logins that are refused


class Move(Settings):
    """Accepted messages leave the folder."""

    move: str = Field(min_length=1, description="the folder they go to; it must exist")


class ImapSettings(ChannelSettings):
    """The keys of an `imap` channel."""

    type: Literal["imap"]
    host: str = Field(min_length=1, description="the IMAP server")
    port: int | None = Field(default=None, ge=1, le=65535, description="null: 993, or 143 unless tls is implicit")
    tls: Literal["implicit", "starttls", "none"] = Field(default="implicit", description="none: all is sent in clear")
    ca_file: Path | None = Field(default=None, description="certificates to trust in the place of the system's, PEM")
    username: str = Field(min_length=1, description="as the provider wants it, mostly the whole address")
    password: SecretStr | None = Field(default=None, description="at 163, 126 and QQ the authorisation code")
    oauth: OAuth | None = Field(default=None, description="in the place of a password")
    folder: str | tuple[str, ...] = Field(default="INBOX", description="a folder as people read its name, or several")
    start: Literal["now", "all"] | date = Field(
        default="now",
        description="what is read of a folder that was never read: what is new, everything, or since a day",
    )
    after: Literal["nothing", "seen", "delete"] | Move = Field(
        default="nothing", description="what is done with an accepted message: nothing, seen, {move: FOLDER} or delete"
    )
    max_message_bytes: ByteSize = Field(
        default=ByteSize(50 << 20), ge=1 << 16, description="of larger messages only the beginning is fetched"
    )
    authserv_ids: tuple[str, ...] = Field(
        default=(), description="whose Authentication-Results are believed: the provider's name in them"
    )
    poll_secs: float = Field(default=60, gt=0, le=3600, description="how often the folders are looked at without IDLE")
    idle_secs: float = Field(
        default=300, gt=0, le=540, description="how often IDLE is renewed and the folder looked at"
    )
    timeout_secs: float = Field(
        default=60, gt=0, le=600, description="for an answer; then the connection counts as dead"
    )
    login_retry_secs: float = Field(
        default=60, gt=0, le=3600, description="wait after a refused login, doubled each time up to an hour"
    )
    fetch_tries: int = Field(default=6, ge=1, le=100, description="for a message, before it goes to quarantine")
    fetch_retry_secs: float = Field(default=60, gt=0, le=3600, description="before the third try, doubled each time")

    @model_validator(mode="after")
    def _one_credential(self) -> Self:
        if (self.password is None) == (self.oauth is None):
            raise ValueError("give password or oauth, one of them")
        if not self.folders or len(set(self.folders)) < len(self.folders) or not all(self.folders):
            raise ValueError("folder: give a name, or different names")
        return self

    @property
    def folders(self) -> tuple[str, ...]:
        return (self.folder,) if isinstance(self.folder, str) else self.folder

    @property
    def where(self) -> str:
        return f"{'imaps' if self.tls == 'implicit' else 'imap'}://{self.server.host}:{self.server.port}"

    def receives(self, address: str) -> bool:
        return address == self.username.lower()

    @property
    def server(self) -> Server:
        port = self.port or (993 if self.tls == "implicit" else 143)
        return Server(self.host, port, self.tls, self.ca_file, self.timeout_secs)

    @property
    def wishes(self) -> Wishes:
        return Wishes(
            start=self.start,
            after="move" if isinstance(self.after, Move) else self.after,
            target=self.after.move if isinstance(self.after, Move) else "",
            max_message_bytes=self.max_message_bytes,
            authserv_ids=self.authserv_ids,
            fetch_tries=self.fetch_tries,
            fetch_retry_secs=self.fetch_retry_secs,
        )


class Connector(RunningConnector):
    """`imap`: see the module."""

    Settings = ImapSettings
    redelivers = True
    settings: ImapSettings

    def __init__(self, name: str, settings: ImapSettings, context: Context) -> None:
        super().__init__(name, settings, context)
        self._tokens = Tokens(settings.oauth, context.memory) if settings.oauth else None
        self._troubles: dict[str, str] = {}  # folder, or "" for all of them
        self._missing: dict[str, int] = {}
        self._login_wait = settings.login_retry_secs

    @property
    def credential_expires_at(self) -> float | None:
        return self._tokens.expires_at if self._tokens else None

    @property
    def trouble(self) -> str:
        return "; ".join(": ".join(filter(None, item)) for item in self._troubles.items())

    @property
    def missing(self) -> int | None:
        return sum(self._missing.values()) if self._missing else None

    async def probe(self) -> None:
        """Opens each folder for reading alone, and the one that messages are moved to."""
        mailbox = await self._enter()
        try:
            after = self.settings.after
            for folder in (*self.settings.folders, *([after.move] if isinstance(after, Move) else [])):
                try:
                    await mailbox.select(folder, read_only=True)
                except Refused as refusal:
                    raise Rejected("not_found", reason=f"folder {folder}: {refusal}") from None
            await mailbox.logout()
        finally:
            mailbox.close()

    async def run(self, accept: Accept, up: Callable[[bool], None]) -> None:
        def down(reason: str) -> None:
            if self._troubles.get("") != reason:
                log.warning("imap.down", channel=self.name, reason=reason)
            self._troubles[""] = reason
            up(False)

        async with self.context.lease.hold(down) as hold:
            while True:
                self._troubles.clear()
                try:
                    await self._read(hold, accept, up)
                except Rejected as refusal:
                    # Slower each time: providers lock an account that is knocked at. A new configuration starts anew.
                    wait, self._login_wait = self._login_wait, min(2 * self._login_wait, _LONGEST_WAIT)
                    down(f"{refusal.reason}; the next login is tried in {wait:g} seconds")
                    await asyncio.sleep(wait * random.uniform(0.8, 1))  # noqa: S311 - jitter

    async def _read(self, hold: Hold, accept: Accept, up: Callable[[bool], None]) -> None:
        """Until the connection breaks (Unavailable: the supervisor tries again), or the login is refused (Rejected)."""
        mailbox = await self._enter()
        self._login_wait = self.settings.login_retry_secs
        first, *others = self.settings.folders
        wishes = self.settings.wishes

        async def take(raw: RawMessage) -> Receipt:
            receipt = await accept(raw)
            up(True)
            return receipt

        folders = [
            Folder(self.name, name, wishes, self.context, mailbox, hold, take)
            for name in (*others, first)  # the last one is watched by IDLE
        ]
        try:
            while True:
                dues = [await self._look_into(folder) for folder in folders]
                up(True)  # not with the login: a server that breaks off behind it is tried less and less often
                await self._stay_welcome()
                await mailbox.wait(min(self._pause(mailbox), *dues))
        finally:
            mailbox.close()

    def _pause(self, mailbox: Mailbox) -> float:
        alone = len(self.settings.folders) == 1 and mailbox.offers("IDLE")
        return self.settings.idle_secs if alone else self.settings.poll_secs

    async def _look_into(self, folder: Folder) -> float:
        """In how many seconds it has to be looked into again."""
        try:
            await folder.read()
            self._troubles.pop(folder.name, None)
        except Refused as refusal:  # by the server's word: the others may be well
            if folder.name not in self._troubles:
                log.error("imap.folder_refused", channel=self.name, folder=folder.name, answer=str(refusal))
            self._troubles[folder.name] = str(refusal)
        self._missing[folder.name] = folder.missing
        return folder.next_due()

    async def _enter(self) -> Mailbox:
        """A connection that is logged in. Raises Rejected("unauthenticated"), or Unavailable."""
        token = await self._tokens.access() if self._tokens else ""
        mailbox = await Mailbox.reach(self.settings.server)
        try:
            if self._tokens:
                await mailbox.login_by_token(self.settings.username, token)
            elif self.settings.password:
                await mailbox.login(self.settings.username, self.settings.password.get_secret_value())
            await mailbox.identify(name="huiru", vendor="huiru")
        except BaseException as error:
            mailbox.close()
            if not isinstance(error, LoginRefused):
                raise
            if self._tokens:
                self._tokens.forget()
            raise Rejected("unauthenticated", reason=f"login refused: {error}") from None
        return mailbox

    async def _stay_welcome(self) -> None:
        """Renews the token while the old one is good; a connection that was let in stays, whatever becomes of that."""
        if self._tokens:
            try:
                await self._tokens.access()
                self._troubles.pop("token", None)
            except (Rejected, Unavailable) as error:
                log.warning("imap.token_not_renewed", channel=self.name, reason=error.reason)
                self._troubles["token"] = error.reason
