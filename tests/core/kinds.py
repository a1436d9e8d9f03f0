"""Normalizers for tests of the core. They import little: workers do it too."""

import os
import re
import time
from collections.abc import Callable

from gateway.contract import Draft, Part, StoredMessage, Wanted
from gateway.envelope import Identity, Message, Sender, Thread
from gateway.errors import Rejected
from normalizers import attachment

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0" * 40


def note(raw: StoredMessage) -> Draft:
    """Text that says what it is."""
    sender = Sender(name="张三", identities=(Identity(kind="user_id", value="u1", verified=True),))
    return Draft(Message(sender=sender, conversation=raw.facts.get("with"), text=raw.body.decode()))


def album(raw: StoredMessage) -> Draft:
    """A message with files."""
    parts = (Part(PNG, "打印机.txt", "text/plain"), Part(b"some words", content_type="text/plain"))
    return Draft(Message(text="see the files"), parts)


def tagged(raw: StoredMessage) -> Draft:
    return Draft(Message(tags=("vip", "shop"), queue="own queue", priority="high"))


def rejected(raw: StoredMessage) -> Draft:
    raise Rejected("malformed", "the bytes are no message", reason="byte 7")


def defective(raw: StoredMessage) -> Draft:
    raise ZeroDivisionError("a defect of ours")


def which_process(raw: StoredMessage) -> Draft:
    return Draft(Message(text=str(os.getpid())))


def endless(raw: StoredMessage) -> Draft:
    while True:
        time.sleep(60)


def spinning(raw: StoredMessage) -> Draft:
    re.match("(a|a)*b", "a" * 64)  # holds the interpreter's lock for longer than anybody lives
    raise AssertionError


def talkative(raw: StoredMessage) -> Draft:
    print("a library says something", flush=True)  # noqa: T201
    return Draft(Message(text="said"))


def greedy(raw: StoredMessage) -> Draft:
    hoard: list[bytes] = []
    while True:
        hoard.append(bytes(16 << 20))


def deadly(raw: StoredMessage) -> Draft:
    os._exit(3)


def mail(raw: StoredMessage) -> Draft:
    """What its facts say: `from`, and what else of a message."""
    facts = {**raw.facts}
    sender = Sender(name=facts.pop("name", None), identities=(Identity(kind="email", value=facts.pop("from")),))
    thread = Thread(message_id=f"{raw.native_id}@customer.example", **facts.pop("thread", {}))
    more = {key: facts[key] for key in ("subject", "language", "auto") if key in facts}
    return Draft(Message(sender=sender, text=raw.body.decode(), thread=thread, **more))


def letterhead(raw: StoredMessage) -> Draft:
    """Text and things to fetch: a source a line, after the text; `name` is the sender's profile."""
    text, *sources = raw.body.decode().split("\n")
    wanted = tuple(
        Wanted("profile" if one == "name" else "image", one, filename="" if one == "name" else f"{one}.png")
        for one in sources
    )
    sender = Sender(identities=(Identity(kind="user_id", value="u1"),))
    return Draft(Message(text=text, sender=sender, conversation="c1"), wanted=wanted, updates=raw.facts.get("updates"))


NORMALIZERS: dict[str, Callable[[StoredMessage], Draft]] = {
    "note": note,
    "album": album,
    "tagged": tagged,
    "rejected": rejected,
    "defective": defective,
    "process": which_process,
    "endless": endless,
    "spinning": spinning,
    "talkative": talkative,
    "greedy": greedy,
    "deadly": deadly,
    "mail": mail,
    "letterhead": letterhead,
    "attachment": attachment.normalize,
}


def normalizer(kind: str) -> Callable[[StoredMessage], Draft]:
    """As registry.normalizer, for a worker: it finds this by its name."""
    return NORMALIZERS[kind]
