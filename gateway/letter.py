"""A letter to a customer: what the outbox keeps of it, and the mail that is made of that when it is sent.

The mail is made anew for every try, with the templates of that moment, and always has the same Message-ID: one that was
sent twice, because we died between the server's yes and our note of it, is known as one.
"""

import html
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any

from jinja2 import StrictUndefined, Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.contract import Acknowledge
from gateway.errors import Rejected
from gateway.mail import replyaddress
from gateway.text import one_line, plain_text, without_controls

SIGNED = "signed"
HEADER = "X-Huiru-Acknowledgement"
_POLICY = SMTP.clone(cte_type="7bit")  # needs no 8BITMIME of anybody on the way
_MOST_REFERENCES = 20
_LONGEST_SUBJECT = 200
_PLAIN_CHARS = 66  # with `Subject: ` a line of 75
_MOST_COMPILED = 256
_LONGEST_QUOTE = 100  # of what a stranger wrote, and somebody else may be sent
_LONGEST_ADDRESS, _LONGEST_DOMAIN = 320, 253
# RFC 5321, 4.1.2, without quoted local parts and address literals.
_LOCAL_PART = re.compile(r"(?=.{1,64}\Z)[\w!#$%&'*+/=?^`{|}~-]++(?:\.[\w!#$%&'*+/=?^`{|}~-]++)*+", re.ASCII)
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_MAILBOX = re.compile(r"(?P<name>[^<>]*)<(?P<address>[^<>\s]+)>|(?P<bare>[^<>\s]+)")
_MESSAGE_ID = re.compile(r"[!-;=?-~]{1,500}", re.ASCII)  # what clients write; printable, neither < nor >
_OURS = re.compile(r"acknowledgement\.([0-9a-z]{26})@[^@]+", re.ASCII)

# RFC 3834, 3.1.5, asks for the hint in the subject; both are such as auto-responders look for.
_SUBJECT = {
    "zh": "自动回复：已收到 [{{ reference }}]{% if subject %} {{ subject }}{% endif %}",
    "en": "Auto: received [{{ reference }}]{% if subject %} {{ subject }}{% endif %}",
}
_TEXT = {
    "zh": """\
您好：

我们已经收到您的消息，受理编号是 {{ reference }}，会尽快回复您。

再次联系我们时，请告知此编号，以便我们更快找到您的记录。

{{ sender }}

（这是系统自动发出的邮件。）
""",
    "en": """\
Hello,

we have received your message and will reply as soon as we can. Its reference number is {{ reference }}.

Please mention this number when you contact us about it again, so that we find it at once.

{{ sender }}

(This is an automatic message.)
""",
}
_SAMPLE = {"reference": "7K3M-9QX2-4WPD", "subject": "打印机坏了", "name": "张三", "channel": "web", "sender": "ACME"}


class Templates:
    """Operators' templates, in a sandbox; each is compiled once."""

    def __init__(self) -> None:
        # StrictUndefined: a name that is written wrong is a fault when the file is read, not a gap in every letter.
        options: Any = {"undefined": StrictUndefined, "keep_trailing_newline": True}
        self._plain = ImmutableSandboxedEnvironment(**options)
        self._html = ImmutableSandboxedEnvironment(autoescape=True, **options)
        self._compiled: OrderedDict[tuple[str, bool], Template] = OrderedDict()

    def render(self, template: str, words: Mapping[str, Any], *, as_html: bool = False) -> str:
        """Raises whatever the template comes to."""
        key = (template, as_html)
        compiled = self._compiled.pop(key, None) or (self._html if as_html else self._plain).from_string(template)
        self._compiled[key] = compiled
        if len(self._compiled) > _MOST_COMPILED:
            self._compiled.popitem(last=False)
        return compiled.render(words)


@dataclass(frozen=True, slots=True)
class Letter:
    """A letter that is to be sent. `seq` and `id` are those of the message it acknowledges. All texts are clean."""

    seq: int
    id: str
    channel: str
    recipient: str  # an ASCII address
    reference: str
    language: str = ""  # zh, en, or unknown
    subject: str = ""
    name: str = ""
    in_reply_to: str = ""  # without angle brackets, as are `references`
    references: tuple[str, ...] = ()
    text_digest: bytes = b""
    max_per_sender: int = 1
    max_per_domain: int = 1


@dataclass(frozen=True, slots=True)
class Suppressed:
    """A letter that is not written, and why."""

    seq: int
    channel: str
    code: str


def mailbox(text: str) -> Address:
    """`ACME Support <support@acme.cn>` or the bare address. Raises ValueError."""
    match = _MAILBOX.fullmatch(text.strip())
    name, address = (match["name"] or "", match["address"] or match["bare"]) if match else ("", "")
    return Address(one_line(name).strip('" '), addr_spec=ascii_address(address))


def ascii_address(text: str) -> str:
    """The address as every mail server takes it: an international domain as xn--…. Raises ValueError."""
    local, _, domain = text.rpartition("@")
    if len(text) <= _LONGEST_ADDRESS and _LOCAL_PART.fullmatch(local):
        try:
            domain = domain.lower() if domain.isascii() else domain.encode("idna").decode()
        except UnicodeError:
            domain = ""
        if len(domain) <= _LONGEST_DOMAIN and _DOMAIN.fullmatch(domain):
            return f"{local}@{domain}"
    raise ValueError("is no e-mail address that every server takes")


def without_detail(address: str) -> str:
    """In lower case and without a subaddress (RFC 5233): one person's, however they vary it."""
    local, _, domain = address.lower().rpartition("@")
    return f"{local.partition('+')[0]}@{domain}"


def faults(acknowledge: Acknowledge) -> Iterator[tuple[str, str]]:
    """What is wrong with these settings: the key, and what to tell of it."""
    yield from _address_faults(acknowledge)
    templates = Templates()
    for key in ("subject", "text", "html"):
        for language, template in getattr(acknowledge, key):
            try:
                templates.render(template or "", _SAMPLE, as_html=key == "html")
            except Exception as error:  # it may do anything
                names = ", ".join(sorted(_SAMPLE))
                yield f"{key}.{language}", f"the template cannot be used: {error}; it may use {names}"


def _address_faults(acknowledge: Acknowledge) -> Iterator[tuple[str, str]]:
    try:
        sender = mailbox(acknowledge.sender)
    except ValueError as error:
        yield "from", f"{error}; write support@example.com or Example Support <support@example.com>"
        return
    if acknowledge.reply_to == SIGNED:
        if len(sender.username) > replyaddress.LONGEST_BASE:
            limit = replyaddress.LONGEST_BASE
            yield "reply_to", f"signed needs an address in `from` with at most {limit} characters before the @"
    elif acknowledge.reply_to is not None:
        try:
            ascii_address(acknowledge.reply_to)
        except ValueError as error:
            yield "reply_to", f"{error}; give an address, or signed"


def message_id(id_: str, domain: str) -> str:
    """Of the acknowledgement of a message, without angle brackets."""
    return f"acknowledgement.{id_}@{domain}"


def is_ours(message_id: str) -> bool:
    """Whether it has the form of an acknowledgement's Message-ID."""
    return _OURS.fullmatch(message_id.strip("<>")) is not None


def usable_ids(given: Sequence[str]) -> tuple[str, ...]:
    """Those that can stand in a header of ours, without angle brackets: the first and the last of many."""
    bare = [one.strip().removeprefix("<").removesuffix(">") for one in given]
    usable = [one for one in bare if _MESSAGE_ID.fullmatch(one)]
    return tuple(usable[:1] + usable[1:][1 - _MOST_REFERENCES :])


def compose(letter: Letter, acknowledge: Acknowledge, key: bytes, now: datetime, templates: Templates) -> bytes:
    """The mail. `key` signs reply addresses. Raises Rejected("template") when the templates fail on this letter."""
    sender = mailbox(acknowledge.sender)
    language = letter.language or acknowledge.language
    try:
        subject, text, html_ = _texts(letter, acknowledge, language, sender.display_name or sender.addr_spec, templates)
    except Exception as error:  # an operator's template may do anything
        raise Rejected("template", reason=f"{type(error).__name__}: {error}") from error
    mail = EmailMessage(policy=_POLICY)
    mail["From"] = sender
    if acknowledge.reply_to:
        mail["Reply-To"] = _reply_to(acknowledge.reply_to, sender.addr_spec, letter.reference, key)
    mail["Date"] = format_datetime(now)
    mail["Message-ID"] = f"<{message_id(letter.id, sender.domain)}>"
    mail["Auto-Submitted"] = "auto-replied"  # RFC 3834, 5
    mail["X-Auto-Response-Suppress"] = "All"  # Exchange: [MS-OXCMAIL] 2.1.3.2.16
    mail[HEADER] = letter.reference
    mail.set_content(text)
    mail.add_alternative(html_, subtype="html")
    mail["Content-Language"] = language
    return _by_hand(letter, subject) + bytes(mail)


def _reply_to(setting: str, sender: str, reference: str, key: bytes) -> Address:
    address = replyaddress.make(sender, reference, key) if setting == SIGNED else ascii_address(setting)
    return Address(addr_spec=address)


def _by_hand(letter: Letter, subject: str) -> bytes:
    """The headers with what strangers wrote.

    EmailMessage (Python 3.11) would decode an encoded word in a value that we give it: `=?utf-8?q?=0D=0ABcc:_…?=` in a
    subject would be a header of its own. And of an id longer than a line it would make an encoded word.
    """
    lines = [f"To: {letter.recipient}", f"Subject: {_encoded(subject)}"]
    if parent := usable_ids([letter.in_reply_to]):  # RFC 5322, 3.6.4
        known = dict.fromkeys([*usable_ids(letter.references), *parent])
        lines += [f"In-Reply-To: <{parent[0]}>", "References: " + "\r\n ".join(f"<{one}>" for one in known)]
    return "".join(f"{line}\r\n" for line in lines).encode("ascii")


def _encoded(text: str) -> str:
    """One line of text as RFC 2047 has it."""
    if text.isascii() and text.isprintable() and len(text) <= _PLAIN_CHARS and "=?" not in text:
        return text
    return Header(text, "utf-8", header_name="Subject").encode(linesep="\r\n")


def _texts(
    letter: Letter, acknowledge: Acknowledge, language: str, sender: str, templates: Templates
) -> tuple[str, str, str]:
    words = {
        "reference": letter.reference,
        "subject": one_line(letter.subject)[:_LONGEST_QUOTE],
        "name": one_line(letter.name)[:_LONGEST_QUOTE],
        "channel": letter.channel,
        "sender": sender,
    }
    subject = templates.render(getattr(acknowledge.subject, language) or _SUBJECT[language], words)
    text = plain_text(templates.render(getattr(acknowledge.text, language) or _TEXT[language], words))
    template = getattr(acknowledge.html, language)
    html_ = templates.render(template, words, as_html=True) if template else _as_html(text, letter.reference, language)
    return one_line(subject)[:_LONGEST_SUBJECT], text + "\n", without_controls(html_)


def _as_html(text: str, reference: str, language: str) -> str:
    paragraphs = (html.escape(one).replace("\n", "<br>\n") for one in re.split(r"\n{2,}", text))
    body = "\n".join(f"<p>{one}</p>" for one in paragraphs).replace(reference, f"<strong>{reference}</strong>")
    return f'<!DOCTYPE html>\n<html lang="{language}">\n<body>\n{body}\n</body>\n</html>\n'
