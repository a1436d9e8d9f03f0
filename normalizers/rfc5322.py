"""A mail, from whatever way it came.

    theirs                              ours
    From (else Sender)                  sender: the first mailbox
    Sender, where it is another         fields.sender
    To, Cc, Bcc, Reply-To               recipients with their names
    Delivered-To, X-Original-To         recipients, delivered_to
    envelope's recipients (facts)       recipients, envelope
    Date                                sent_at
    Subject                             subject; a reference number in it is fields.reference_hint
    text/plain, else text/html          full_text; text without quoted history and signature
    text/html                           html, sanitised
    every other part                    parts
    Message-ID, In-Reply-To, References thread; its root is the conversation
    Importance, X-Priority              priority; without them that of the recipient (facts)
    List-Id                             fields.list_id

A reference number in a subject is a hint, as anyone may write one; fields.reference is one that came back in an address
which we signed.
The facts are what the channel knew: `mail_from`, `rcpt_to`, `authserv_ids`, `authentication`, `reference`, `tags`,
`queue`, `priority`, `size` and `truncated`, `unreadable`, `limits`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import unquote

from gateway import contract
from gateway.contract import Draft, StoredMessage
from gateway.envelope import Authentication, Identity, Message, Omission, Recipient, Sender, Thread
from gateway.errors import Rejected
from gateway.mail import addresses, authentication, auto, content, crypto, dates, identity, language, quoting
from gateway.mail.addresses import Address
from gateway.mail.content import Block, Content
from gateway.mail.html import to_text
from gateway.mail.message import Headers, Limits, Part, header_block, parse
from gateway.text import file_name, one_line, plain_text, sanitise_html

Role = Literal["to", "cc", "bcc", "reply_to", "delivered_to", "envelope"]

_ROLES: Sequence[tuple[str, Role]] = (
    ("To", "to"),
    ("Cc", "cc"),
    ("Bcc", "bcc"),
    ("Reply-To", "reply_to"),
    ("Delivered-To", "delivered_to"),
)
_ORIGINAL_TO: tuple[str, Role] = ("X-Original-To", "delivered_to")  # Postfix' word, before its aliases
_MAX_SUBJECT_CHARS = 10_000
_MAX_NAME_CHARS = 300
_MAX_ID_CHARS = 998  # a line of RFC 5322
_PRIORITIES = {"1": "high", "2": "high", "4": "low", "5": "low", "high": "high", "urgent": "high", "low": "low"}
_PRIORITIES |= {"non-urgent": "low"}
_BRACKETED = re.compile(r"<([^<>]{1,2000})>")
_REFERENCE = re.compile(r"(?<![0-9A-Za-z-])((?:[0-9A-HJKMNP-TV-Z]{4}-){2}[0-9A-HJKMNP-TV-Z]{4})(?![0-9A-Za-z-])")
_LANGUAGE = re.compile("[A-Za-z]{2,3}(?:-[A-Za-z0-9]{2,8}){0,3}")
_CID = re.compile(r"""cid:([^"'\s<>)]{1,500})""", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"\bHTML\b.{0,60}(?:e-?mail|message|format|view|capable|邮件|格式)|(?:not|n't|不)\s?(?:support|display|支持|显示).{0,20}HTML",
    re.IGNORECASE | re.DOTALL,
)
_PLACEHOLDER_CHARS = 400
_MAX_LETTER_CHARS = 1 << 18


def normalize(raw: StoredMessage) -> Draft:
    """Raises Rejected only for a mail that the mailbox could not give."""
    facts = raw.facts
    if reason := facts.get("unreadable"):
        raise Rejected("unreadable", reason=str(reason))
    limits = Limits(**facts.get("limits", {}))
    mail = parse(raw.body, limits)
    found = content.read(mail, limits)
    omissions = [*_left_out(mail, facts, limits)]
    html = _html(found, limits, omissions)
    pieces = _readable(found, limits, omissions)
    whole = "\n\n".join(pieces)
    text = "\n\n".join(filter(None, map(_written_now, pieces)))
    parts = tuple(_parts(found, html or "", limits, omissions))
    thread = _thread(mail.headers, limits)
    author = _authentication(mail.headers, facts)
    verdict = auto.classify(mail, whole, facts.get("mail_from"))
    message = Message(
        conversation=_root(thread),
        sent_at=dates.parse(mail.headers.first("Date")),
        sender=_sender(mail.headers, verified=author.verdict == "pass"),
        recipients=tuple(_recipients(mail.headers, facts, limits, omissions)),
        subject=_subject(mail.headers, omissions),
        text=text,
        full_text=whole,
        html=html,
        language=_language(mail.headers, text or whole),
        fields=_fields(mail.headers, facts) | dict(verdict.fields),
        priority=_priority(mail.headers) or facts.get("priority"),
        tags=tuple(facts.get("tags", ())),
        queue=facts.get("queue"),
        auto=verdict.auto,
        authentication=author,
        thread=thread,
        omissions=tuple(omissions),
        warnings=(*found.oddities, *crypto.seals(mail, whole)),
    )
    return Draft(message, parts)


# People


def _sender(headers: Headers, *, verified: bool) -> Sender:
    author = next((_mailboxes(headers, name, 1) for name in ("From", "Sender") if headers.first(name)), [])
    if not author:
        return Sender()
    first = author[0]
    identities = (Identity(kind="email", value=first.address, verified=verified),) if first.address else ()
    return Sender(name=first.name[:_MAX_NAME_CHARS] or None, identities=identities)


def _mailboxes(headers: Headers, name: str, limit: int) -> list[Address]:
    """Of every header of that name: a second To is forbidden, and its people are addressed all the same."""
    found: list[Address] = []
    for value in headers.all(name):
        if len(found) < limit:
            found += addresses.parse(value, headers.charset, limit - len(found))
    return found


def _recipients(
    headers: Headers, facts: Mapping[str, Any], limits: Limits, omissions: list[Omission]
) -> Iterator[Recipient]:
    """Each address once in a role. The envelope's come first: they are few, and what the queue depends on."""
    left = limits.recipients
    for value in facts.get("rcpt_to", ()):
        left -= 1
        yield Recipient(value=one_line(value), role="envelope")
    seen: set[tuple[str, str]] = set()
    for header, role in _ROLES if "Delivered-To" in headers else (*_ROLES, _ORIGINAL_TO):
        people = _mailboxes(headers, header, left + 1) if left >= 0 and header in headers else []
        for person in people:
            if not person.address or (role, person.address) in seen:
                continue
            if left <= 0:
                reason = f"more than {limits.recipients} recipients"
                omissions.append(Omission(what="recipients", reason=reason))
                return
            left -= 1
            seen.add((role, person.address))
            yield Recipient(value=person.address, role=role, name=person.name[:_MAX_NAME_CHARS] or None)


def _fields(headers: Headers, facts: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if list_id := headers.text("List-Id"):
        inner = _BRACKETED.search(list_id)
        fields["list_id"] = one_line(inner[1] if inner else list_id)[:_MAX_NAME_CHARS]
    if (sender := _mailboxes(headers, "Sender", 1)) and sender[0].address:
        author = _mailboxes(headers, "From", 1)
        if author and author[0].address != sender[0].address:
            fields["sender"] = sender[0].address
    if reference := facts.get("reference"):
        fields["reference"] = reference
    if hint := _REFERENCE.search(headers.text("Subject")[:_MAX_SUBJECT_CHARS]):
        fields["reference_hint"] = hint[1]
    return fields


def _priority(headers: Headers) -> str | None:
    """`X-Priority: 1 (Highest)`, `Importance: High`, `Priority: urgent` (RFC 2156)."""
    for name in ("Importance", "X-Priority", "Priority", "X-MSMail-Priority"):
        if value := headers.first(name):
            word = value.split(None, 1)[0].lower().decode("ascii", "replace")
            if priority := _PRIORITIES.get(word):
                return priority
    return None


def _subject(headers: Headers, omissions: list[Omission]) -> str | None:
    subject = one_line(headers.text("Subject"))
    if len(subject) > _MAX_SUBJECT_CHARS:
        reason = f"longer than {_MAX_SUBJECT_CHARS} characters"
        omissions.append(Omission(what="subject", reason=reason, size=len(subject)))
    return subject[:_MAX_SUBJECT_CHARS] or None


def _language(headers: Headers, text: str) -> str | None:
    """The text decides; Content-Language (RFC 3282) is often that of the program, and believed where they agree."""
    guessed = language.guess(text)
    said = one_line(headers.text("Content-Language"))
    agree = _LANGUAGE.fullmatch(said) and guessed in {None, said.partition("-")[0].lower()}
    return said if agree and text else guessed


def _authentication(headers: Headers, facts: Mapping[str, Any]) -> Authentication:
    """What the channel evaluated itself goes before what another server says."""
    if evaluation := facts.get("authentication"):
        return authentication.own(evaluation)
    return authentication.trusted(headers, facts.get("authserv_ids", ()))


# Place in a conversation


def _thread(headers: Headers, limits: Limits) -> Thread:
    references = _ids(headers, "References")
    if len(references) > limits.references:  # the root and the latest tell most
        references = [references[0], *references[1 - limits.references :]]
    answered = _ids(headers, "In-Reply-To")[: limits.references]
    own = identity.message_id(headers)
    return Thread(message_id=own or None, in_reply_to=tuple(answered), references=tuple(references))


def _ids(headers: Headers, name: str) -> list[str]:
    """Between angle brackets, as RFC 5322 (3.6.4) has it; else the words with an @."""
    if not (text := headers.text(name)):
        return []
    found = (_id(id_) for id_ in _BRACKETED.findall(text))
    if "<" not in text:
        found = (one_line(word).strip(",;\"'") for word in text.split() if "@" in word)
    return [id_ for id_ in dict.fromkeys(found) if id_ and len(id_) <= _MAX_ID_CHARS]


def _id(text: str) -> str:
    """Without the blanks that folding left, but for those in quotes."""
    id_ = one_line(text)
    return id_ if '"' in id_ else "".join(id_.split())


def _root(thread: Thread) -> str | None:
    return next(iter((*thread.references, *thread.in_reply_to)), None) or thread.message_id


# Text


def _readable(found: Content, limits: Limits, omissions: list[Omission]) -> list[str]:
    """The text of each block that has any, without blank lines around it; as much as the limit lets in."""
    texts = [text for text in map(_plain, found.blocks) if text]
    left = limits.text_chars
    kept: list[str] = []
    for text in texts:
        kept.append(text[:left])
        left -= len(kept[-1])
    if sum(map(len, kept)) < (size := sum(map(len, texts))):
        omissions.append(Omission(what="text", reason=f"longer than {limits.text_chars} characters", size=size))
    return list(filter(None, kept))


def _plain(block: Block) -> str:
    if block.html and (not block.plain.strip() or _is_placeholder(block.plain)):
        return to_text(block.html)
    return plain_text(block.plain)


def _written_now(text: str) -> str:
    """A text that is too long to be a letter is not searched for quotes."""
    return quoting.split(text).text if len(text) <= _MAX_LETTER_CHARS else text


def _is_placeholder(plain: str) -> bool:
    return len(plain) < _PLACEHOLDER_CHARS and _PLACEHOLDER.search(plain) is not None


def _html(found: Content, limits: Limits, omissions: list[Omission]) -> str | None:
    html = content.joined_html(found.blocks)
    if len(html) > limits.text_chars:
        reason = f"longer than {limits.text_chars} characters"
        omissions.append(Omission(what="html", reason=reason, size=len(html)))
        html = html[: limits.text_chars]
    return sanitise_html(html) or None if html.strip() else None


# Files


def _parts(found: Content, html: str, limits: Limits, omissions: list[Omission]) -> Iterator[contract.Part]:
    shown = {unquote(cid) for cid in _CID.findall(html)} if "cid:" in html else set()
    left = limits.attachment_bytes
    for number, part in enumerate(found.files):
        name, size = _file_name(part), len(part.body)
        if number >= limits.attachments or size > left:
            over = f"more than {limits.attachments} files" if size <= left else f"over {limits.attachment_bytes} bytes"
            omissions.append(Omission(what="attachment", reason=over, filename=name or None, size=size))
            continue
        left -= size
        cid = one_line(part.content_id or "")[:_MAX_ID_CHARS]
        related = bool(cid) and id(part) in found.related and part.disposition != "attachment"
        inline = related or cid in shown or _is_picture_inline(part)
        yield contract.Part(part.body, name, part.content_type, inline, cid or None)


def _is_picture_inline(part: Part) -> bool:
    return part.disposition == "inline" and part.content_type.startswith("image/")


def _file_name(part: Part) -> str:
    """As the sender meant it; a mail without a name has its subject's."""
    name = file_name(part.filename)
    if name or part.content_type != "message/rfc822":
        return name
    inner, _ = header_block(part.body)
    subject = file_name(one_line(inner.text("Subject")).replace("/", "_").replace("\\", "_"))
    return f"{subject[:100].strip(' .')}.eml" if subject else "message.eml"


# What is missing


def _left_out(mail: Part, facts: Mapping[str, Any], limits: Limits) -> Iterator[Omission]:
    if facts.get("truncated"):
        yield Omission(
            what="message", reason="larger than the channel takes; the rest was not read", size=facts.get("size")
        )
    if mail.headers.omitted:
        yield Omission(what="header", reason="longer than is read", size=mail.headers.omitted)
    if lost := sum(part.omitted for part in _walk(mail)):
        yield Omission(what="attachment", reason=f"{lost} parts beyond {limits.parts} parts or {limits.depth} levels")


def _walk(mail: Part) -> Iterator[Part]:
    pending = [mail]
    while pending:
        part = pending.pop()
        yield part
        pending += part.children
