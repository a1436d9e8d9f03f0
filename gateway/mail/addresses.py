"""Address lists (RFC 5322, 3.4 and 4.4; RFC 6532): groups, comments, routes, and what mailers write in their place.

Read as well: commas in names without quotes, encoded words in quotes, semicolons for commas, an address without angle
brackets beside its name, a name that is itself an address.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from gateway.mail import words
from gateway.text import one_line

_MAX_BYTES = 1 << 17  # of one list
_MAX_ADDRESS_CHARS = 320  # RFC 5321, 4.5.3.1: 64 + 1 + 255

_SIMPLE = re.compile(
    rb'[ \t]*+(?:"([^"\\<>]*+)"|([^"\\(<>,;:@\[\]]*+))[ \t]*+<([^\s<>()",;:\\@]++@[^\s<>()",;:\\@]++)>'
)
_BARE = re.compile(rb'[^\s<>()",;:\\@\[\]=]++@[^\s<>()",;:\\@\[\]]++')
_TOKEN = re.compile(
    rb"""(?P<word>=\?[^?\s]{1,60}\?[bBqQ]\?[^?]*+\?=)
    |   "(?P<quoted>(?:[^"\\]|\\.)*+)"(?P<at>@[^\s<>()",;:]*+)?
    |   <(?P<angle>[^<>]*+)>
    |   (?P<literal>\[[^\[\]]*+\])
    |   (?P<mark>[,;:()])
    |   (?P<text>[^",;:()<\[=]++|.)""",
    re.VERBOSE | re.DOTALL,
)
_UNQUOTED = re.compile(_TOKEN.pattern.replace(rb'"(?P<quoted>(?:[^"\\]|\\.)*+)"', rb"(?P<quoted>(?!))"), _TOKEN.flags)
_PARENTHESIS = re.compile(rb"\\.|[()]", re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_SEPARATORS = (b",", b";")
_FULL_WIDTH = str.maketrans("＜＞＠", "<>@")  # typed by hand
_COMMENT = re.compile(r"\([^()]*\)")
_BLANKS_AROUND = re.compile(r"\s*([@.])\s*")
_ADDRESS = re.compile(
    r"""(?<![^\s<>()",;:\\@\[\]'])[^\s<>()",;:\\@\[\]']++@(?:[^\s<>()",;:\\@\[\]']+|\[[^\[\]\s]*\])"""
)


@dataclass(frozen=True, slots=True)
class Address:
    """`address` has its domain in lower case, and is "" where there is only a name."""

    name: str
    address: str


@dataclass(slots=True)
class _Mailbox:
    """What was read of one entry so far."""

    text: list[bytes] = field(default_factory=list)
    comments: list[bytes] = field(default_factory=list)
    angle: bytes | None = None
    quoted_local: bytes = b""

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.comments or self.angle or self.quoted_local)

    @property
    def may_name_group(self) -> bool:
        return self.angle is None and not any(b"@" in piece for piece in self.text)

    def take(self, token: re.Match[bytes]) -> None:
        if token["angle"] is not None:
            if self.angle and b"@" not in self.angle:
                self.text.append(b"<" + self.angle + b">")  # a nickname
            self.angle = self.angle if self.angle and b"@" in self.angle else token["angle"]
        elif token["quoted"] is not None and token["at"]:
            self.quoted_local = token[0]
        elif token["quoted"] is not None:
            self.text.append(_ESCAPED.sub(rb"\1", token["quoted"]))
        else:
            self.text.append(token[0])

    def take_comment(self, raw: bytes, at: int, end: int) -> int:
        """Where to go on. `end` is 0 for a parenthesis that does not close: it is one of the characters then."""
        if end:
            self.comments.append(raw[at : end - 1])
        else:
            self.text.append(b"(")
        return end or at


def parse(raw: bytes, hint: str = "", limit: int = 1000) -> list[Address]:
    """The addresses of a list, at most `limit`. `hint`: the label of the body, for raw 8-bit text. Never raises."""
    simple = _SIMPLE.fullmatch(raw)
    if simple:
        return [Address(_name(simple[1] or simple[2] or b"", hint), _address(words.decode(simple[3], hint)))]
    if raw.isascii() and _BARE.fullmatch(raw):
        return [Address("", _address(words.decode(raw, hint)))]
    found: list[Address] = []
    held: list[bytes] = []  # of a name that a comma cut in two
    for mailbox, ended in _mailboxes(raw[:_MAX_BYTES]):
        if held and mailbox.angle is not None and mailbox.text:
            mailbox.text = [b", ".join((*held, b"".join(mailbox.text).strip()))]
            held = []
        address = _read(mailbox, hint)
        if address.address:
            found += [Address(_name(name, hint), "") for name in held]
            held = []
            found.append(address)
        elif ended == b"," and mailbox.angle is None and len(held) < 3 and (text := b"".join(mailbox.text).strip()):
            held.append(text)
        elif address.name:
            found.append(address)
        if len(found) >= limit:
            return found[:limit]
    return found + [Address(_name(name, hint), "") for name in held if name]


def _mailboxes(raw: bytes) -> Iterator[tuple[_Mailbox, bytes]]:
    """Each entry that is not empty, and the mark that ended it."""
    mailbox = _Mailbox()
    grouped = raw.rfind(b";")
    pattern, comments = _TOKEN, True
    at = 0
    while token := pattern.match(raw, at):
        at = token.end()
        mark = token["mark"]
        if mark in _SEPARATORS:
            if not mailbox.is_empty:
                yield mailbox, mark
                mailbox = _Mailbox()
        elif mark == b"(" and comments:
            end = _comment_end(raw, at)
            comments = end > 0
            at = mailbox.take_comment(raw, at, end)
        elif mark == b":" and at <= grouped and mailbox.may_name_group:
            mailbox = _Mailbox()
        else:
            mailbox.take(token)
            if token[0] == b'"':
                pattern = _UNQUOTED  # no end to this quotation, nor to one within it
    yield mailbox, b""


def _comment_end(raw: bytes, at: int) -> int:
    """Past the parenthesis that ends a comment; 0 if it never ends. Comments nest."""
    depth = 1
    for mark in _PARENTHESIS.finditer(raw, at):
        depth += {b"(": 1, b")": -1}.get(mark[0], 0)
        if depth == 0:
            return mark.end()
    return 0


def _read(mailbox: _Mailbox, hint: str) -> Address:
    text = b"".join(mailbox.text)
    comment = b" ".join(mailbox.comments)
    if mailbox.angle and (address := _in_angles(mailbox.angle, hint)):
        return Address(_name(text.strip(b" \t<>") or comment, hint), address)
    if mailbox.quoted_local:
        return Address(_name(comment or text, hint), _address(words.decode(mailbox.quoted_local, hint)))
    plain = words.decode(text, hint).translate(_FULL_WIDTH).strip().removeprefix("mailto:")
    found = _ADDRESS.search(plain) or _ADDRESS.search(plain := _BLANKS_AROUND.sub(r"\1", plain))
    if not found:
        return Address(_cleaned(plain) or _name(comment, hint), "")
    beside = _cleaned(plain[: found.start()].rstrip(" <") + plain[found.end() :].lstrip(" >"))
    return Address(beside or _name(comment, hint), _address(found[0]))


def _in_angles(angle: bytes, hint: str) -> str:
    """Without a route (RFC 5322, 4.4) and without blanks."""
    text = words.decode(angle.strip(), hint)
    if text.startswith("@"):
        text = text.partition(":")[2]
    if '"' not in text:
        text = "".join(_COMMENT.sub("", text).split())
    return _address(text.removeprefix("mailto:").strip("'"))


def _address(text: str) -> str:
    local, at, domain = one_line(text).rpartition("@")
    return f"{local}{at}{domain.lower().rstrip('.')}"[:_MAX_ADDRESS_CHARS]


def _name(raw: bytes, hint: str) -> str:
    return _cleaned(words.decode(raw, hint)) if raw else ""


def _cleaned(name: str) -> str:
    """Without the quotes that some mailers put into the quotes."""
    plain = " ".join(one_line(name).split()).strip(" ,;")
    for quote in ("''", '""', "<>", "[]", "()"):
        if len(plain) > 1 and plain[0] == quote[0] and plain[-1] == quote[1]:
            plain = plain[1:-1].strip()
    return "" if plain in {'"', "'", "<", ">", "[]", "()", "<>"} else plain
