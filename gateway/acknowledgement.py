"""Who is sent an acknowledgement: the customer, and never a machine (RFC 3834).

The address is the sender's, a mail's From. RFC 3834, 4, lets a responder that offers a service use it, and advises
against Reply-To, which may name a list; the envelope's sender is looked at only to find out that nobody wants answers.
How many letters a sender and a domain get is the outbox' matter: it remembers.
"""

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from hashlib import sha256

import structlog

from gateway.contract import Acknowledge, ChannelSettings, StoredMessage
from gateway.envelope import Message
from gateway.identity import reference
from gateway.letter import SIGNED, Letter, Suppressed, ascii_address, is_ours, mailbox, usable_ids, without_detail
from gateway.text import one_line

log = structlog.get_logger()

MAX_AGE = timedelta(hours=24)  # a letter that could not be sent by then would only puzzle its reader
_LONGEST_ADDRESS = 320
_COMPARED_CHARS, _KEPT_CHARS = 100_000, 500
_WORDS = re.compile(r"[a-z0-9]+")
# RFC 3834, 2, names owner-…, …-request and MAILER-DAEMON; the rest is what robots call themselves.
_ROBOT_WORDS = frozenset({"bounce", "bounces", "daemon", "listserv", "majordomo", "postmaster"})
_ROBOT_NAMES = ("noreply", "donotreply", "dontreply", "mailerdaemon", "autoreply", "autoresponder")
_LIST_ENDS = ("-request", "-owner", "-errors")


class Acknowledgements:
    """Called for every message that is about to be published. `channels` is asked each time: a reload changes it."""

    def __init__(self, channels: Callable[[], Mapping[str, ChannelSettings]], now: Callable[[], datetime]) -> None:
        self._channels = channels
        self._now = now
        self._addresses: frozenset[str] = frozenset()
        self._of: Mapping[str, ChannelSettings] | None = None  # the channels that these are made of

    def __call__(self, seq: int, raw: StoredMessage, message: Message) -> Letter | Suppressed | None:
        """The letter, why there is none, or None where the channel acknowledges nothing."""
        channels = self._channels()
        channel = channels.get(raw.channel)
        if channel is None or channel.acknowledge is None:
            return None
        try:
            return self._decide(seq, raw, message, channel.acknowledge, channels)
        except Exception as error:  # a defect here must not keep the message from the stream
            log.error("acknowledgement.failed", id=raw.id, channel=raw.channel, exc_info=error)
            return Suppressed(seq, raw.channel, "internal")

    def _decide(
        self,
        seq: int,
        raw: StoredMessage,
        message: Message,
        settings: Acknowledge,
        channels: Mapping[str, ChannelSettings],
    ) -> Letter | Suppressed:
        address = next((one.value for one in message.sender.identities if one.kind == "email"), "")
        if code := self._objection(raw, message, address, channels):
            return Suppressed(seq, raw.channel, code)
        return _letter(seq, raw, message, address, settings)

    def _objection(
        self, raw: StoredMessage, message: Message, address: str, channels: Mapping[str, ChannelSettings]
    ) -> str:
        """Why this message is not acknowledged; "" when it may be."""
        if self._now() - raw.received_at > MAX_AGE:
            return "late"
        return _of_message(raw, message) or _of_address(address) or self._of_ours(message, address, channels)

    def _of_ours(self, message: Message, address: str, channels: Mapping[str, ChannelSettings]) -> str:
        mine = {ascii_address(address).lower(), without_detail(ascii_address(address))}
        # To and Cc are the sender's word: who sends themselves a copy is a customer all the same.
        delivered = {
            without_detail(one.value) for one in message.recipients if one.role in {"envelope", "delivered_to"}
        }
        if mine & (self._own(channels) | delivered):
            return "own_address"
        return "own_address" * any(channel.receives(one) for channel in channels.values() for one in mine)

    def _own(self, channels: Mapping[str, ChannelSettings]) -> frozenset[str]:
        """What the settings name as ours."""
        if self._of is not channels:
            blocks = [channel.acknowledge for channel in channels.values() if channel.acknowledge]
            named = [mailbox(block.sender).addr_spec for block in blocks]
            named += [ascii_address(block.reply_to) for block in blocks if block.reply_to and block.reply_to != SIGNED]
            self._addresses, self._of = frozenset(map(without_detail, named)), channels
        return self._addresses


def _of_message(raw: StoredMessage, message: Message) -> str:
    if raw.facts.get("imported"):
        return "imported"
    if message.auto is not None:
        return "automatic"
    if raw.facts.get("mail_from") == "":
        return "null_sender"
    if _is_robot(str(raw.facts.get("mail_from") or "")):
        return "robot"
    if message.authentication.verdict == "fail":
        return "unauthenticated"
    if raw.facts.get("suspect"):  # of a form, which a robot fills in with the addresses of others
        return "suspected_spam"
    thread = message.thread
    if raw.facts.get("reference") or any(map(is_ours, (*thread.in_reply_to, *thread.references))):
        return "follow_up"  # they have a number; and most answers of robots end here
    return ""


def _of_address(address: str) -> str:
    if not address:
        return "no_address"
    if _is_robot(address):
        return "robot"
    try:
        ascii_address(address)
    except ValueError:
        return "unsendable"
    return ""


def _is_robot(address: str) -> bool:
    whole = address[:_LONGEST_ADDRESS].lower()
    local = (whole.rpartition("@")[0] or whole).partition("+")[0]
    if local.startswith("owner-") or local.endswith(_LIST_ENDS):
        return True
    words = _WORDS.findall(local)
    joined = "".join(words)
    return not _ROBOT_WORDS.isdisjoint(words) or any(name in joined for name in _ROBOT_NAMES)


def _letter(seq: int, raw: StoredMessage, message: Message, address: str, settings: Acknowledge) -> Letter:
    words = " ".join(message.text[:_COMPARED_CHARS].casefold().split()) or raw.id  # a picture alone is not the next one
    thread = message.thread
    return Letter(
        seq=seq,
        id=raw.id,
        channel=raw.channel,
        recipient=ascii_address(address),
        reference=reference(raw.id),
        language=_language(message.language),
        subject=one_line(message.subject or "")[:_KEPT_CHARS],
        name=one_line(message.sender.name or "")[:_KEPT_CHARS],
        in_reply_to="".join(usable_ids([thread.message_id or ""])),
        references=usable_ids(thread.references or thread.in_reply_to),
        text_digest=sha256(words.encode("utf-8", "surrogatepass")).digest()[:16],
        max_per_sender=settings.max_per_sender_per_hour,
        max_per_domain=settings.max_per_domain_per_hour,
    )


def _language(tag: str | None) -> str:
    primary = (tag or "").partition("-")[0].lower()
    return primary if primary in {"zh", "en"} else ""
