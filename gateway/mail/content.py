"""What of a mail is read and what is a file: the blocks of text in their order, and the parts that are kept.

RFC 2046, 5.1 (mixed, alternative, digest), RFC 2387 (related), RFC 1847 (signed, encrypted), RFC 6522 (report).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from gateway import contract
from gateway.envelope import Oddity
from gateway.mail import charset, crypto, flowed, tnef, transfer, words
from gateway.mail.message import Headers, Limits, Part, parse
from gateway.text import one_line

_SHOWN = frozenset({"text/plain", "text/html"})
_NEVER_SHOWN = frozenset({"text/calendar", "text/x-amp-html", "text/rfc822-headers", "text/directory", "text/vcard"})
_SIGNED_ENVELOPES = frozenset({"application/pkcs7-mime", "application/x-pkcs7-mime"})
_ENRICHED = frozenset({"text/enriched", "text/richtext"})
_MARKUP = re.compile(r"<[^<>]{0,60}>")
_DOUBTED_LABELS = frozenset({"us-ascii", "ascii", "unknown-8bit", "x-unknown", "iso-8859-1"})
_MAX_ODDITIES = 20
_NO_HEADERS = Headers([])


@dataclass(slots=True)
class Block:
    """Text of one place: plain, or HTML, or the same in both."""

    plain: str = ""
    html: str = ""


@dataclass(slots=True)
class Content:
    """`files` are leaves in their order; `related` are the ones among them that belong to an HTML text."""

    blocks: list[Block] = field(default_factory=list)
    files: list[Part] = field(default_factory=list)
    related: set[int] = field(default_factory=set)  # by id()
    oddities: list[Oddity] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A part, and where it stands: the outermost alternative (by id, 0: none) and which of its forms; beside a root."""

    part: Part
    choice: int = 0
    form: int = 0
    related: bool = False


def read(mail: Part, limits: Limits) -> Content:
    """Every leaf is in a block or in the files, but for what an alternative has in a form that nobody shows."""
    content = _read(mail)
    for part in list(content.files):
        if part.content_type in _SIGNED_ENVELOPES and (inside := crypto.signed_content(part.body)):
            inner = _read(parse(inside, limits))
            content.blocks += inner.blocks
            content.files += inner.files
            content.related |= inner.related
    return content


def _read(mail: Part) -> Content:
    content = Content()
    leaves = list(_leaves(mail))
    texts = [leaf for leaf in leaves if _is_text(leaf, len(leaves))]
    shown = {id(leaf.part) for leaf in texts}
    for leaf in leaves:
        if id(leaf.part) not in shown and not _is_other_form(leaf):
            content.files.append(leaf.part)
            if leaf.related:
                content.related.add(id(leaf.part))
    for group in _groups(texts):
        content.blocks += _blocks(group, content)
    _unpack(content)
    return content


def _leaves(mail: Part) -> Iterator[_Leaf]:
    pending = [_Leaf(mail)]
    while pending:
        leaf = pending.pop()
        part = leaf.part
        if not part.is_multipart:
            yield leaf
            continue
        root = _root(part) if part.content_type == "multipart/related" else None
        opens = part.content_type == "multipart/alternative" and not leaf.choice
        for at, child in reversed(list(enumerate(part.children))):
            choice, form = (id(part), at + 1) if opens else (leaf.choice, leaf.form)
            pending.append(_Leaf(child, choice, form, leaf.related or (root is not None and child is not root)))


def _root(part: Part) -> Part:
    """RFC 2387, 3.2: named by `start`, else the first; but no picture has companions."""
    start = part.params.get("start", "").strip("<> ")
    named = [child for child in part.children if start and child.content_id == start]
    texts = [child for child in part.children if child.content_type in _SHOWN or child.is_multipart]
    return (named or texts or list(part.children))[0]


def _is_text(leaf: _Leaf, of: int) -> bool:
    part = leaf.part
    if part.disposition == "attachment" or leaf.related or not part.content_type.startswith("text/"):
        return False
    if part.filename and not (part.content_type in _SHOWN and (leaf.choice or of == 1)):
        return False
    return part.content_type not in _NEVER_SHOWN


def _is_other_form(leaf: _Leaf) -> bool:
    """Something that says the same in a way of its own, like AMP."""
    part = leaf.part
    return bool(leaf.choice) and part.content_type == "text/x-amp-html" and part.disposition != "attachment"


def _groups(texts: list[_Leaf]) -> Iterator[list[_Leaf]]:
    """The leaves of one alternative together, each other one alone."""
    group: list[_Leaf] = []
    for leaf in texts:
        if group and (not leaf.choice or leaf.choice != group[0].choice):
            yield group
            group = []
        group.append(leaf)
    if group:
        yield group


def _blocks(group: list[_Leaf], content: Content) -> list[Block]:
    read_ = [(leaf, _text(leaf.part, content)) for leaf in group]
    read_ = [(leaf, text) for leaf, text in read_ if text.strip()]
    if not group[0].choice:
        return [_block(leaf.part, text) for leaf, text in read_]
    html = max((leaf.form for leaf, _ in read_ if leaf.part.content_type == "text/html"), default=0)
    other = [leaf for leaf, _ in read_ if leaf.part.content_type != "text/html" and leaf.form != html]
    plain = min(other, key=_plainness).form if other else 0
    if not plain or not html:
        return [_block(leaf.part, text) for leaf, text in read_ if leaf.form == (html or plain)]
    # Both forms: the plain one is the text. Where the HTML form is in several pieces, their order is kept.
    pieces = [_block(leaf.part, text) for leaf, text in read_ if leaf.form == html]
    whole = "\n\n".join(text for leaf, text in read_ if leaf.form == plain)
    return [Block(whole, joined_html(pieces))]


def _plainness(leaf: _Leaf) -> tuple[bool, int]:
    return leaf.part.content_type != "text/plain", leaf.form


def _block(part: Part, text: str) -> Block:
    return Block(html=text) if part.content_type == "text/html" else Block(plain=text)


def joined_html(blocks: list[Block]) -> str:
    """One text of HTML out of blocks, "" when none of them has any."""
    if not any(block.html for block in blocks):
        return ""
    return "\n".join(block.html or _as_html(block.plain) for block in blocks)


def _as_html(plain: str) -> str:
    escaped = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "<p>" + escaped.replace("\r\n", "\n").replace("\n", "<br>\n") + "</p>"


def _text(part: Part, content: Content) -> str:
    """The part's text by the charset that its bytes bear out."""
    body, label = part.body, part.params.get("charset", "")
    if part.content_type == "text/plain" and b"begin" in body:
        body = _without_files(body, content)
    hint = part.headers.charset
    if part.content_type == "text/html" and (not label or label.lower() in _DOUBTED_LABELS):
        label, hint = charset.meta_charset(body) or label, label
    decoded = charset.decode(body, label, (hint,) if hint else ())
    _note(decoded, part.params.get("charset", ""), content)
    text = decoded.text.replace("\r\n", "\n")
    if part.content_type == "text/plain" and part.params.get("format", "").lower() == "flowed":
        return flowed.unfold(text, part.params.get("delsp", "").lower() == "yes")
    return _MARKUP.sub("", text) if part.content_type in _ENRICHED else text


def _unpack(content: Content) -> None:
    """Outlook's winmail.dat with what is in it behind it; its text is read where the mail has no other."""
    files: list[Part] = []
    for part in content.files:
        files.append(part)
        for inner in tnef.unpack(part.body) if tnef.is_tnef(part.body) else ():
            if not _is_body(inner):
                files.append(_file(inner.content, inner.filename, inner.content_type, inner.content_id))
            elif not any(block.plain.strip() or block.html.strip() for block in content.blocks):
                text = charset.decode(inner.content, "utf-8").text
                content.blocks.append(Block(html=text) if inner.content_type.startswith("text/html") else Block(text))
    content.files = files


def _is_body(inner: contract.Part) -> bool:
    return inner.inline and not inner.filename and inner.content_type.startswith("text/")


def _file(body: bytes, name: str, content_type: str, content_id: str | None = None) -> Part:
    return Part(_NO_HEADERS, content_type, {}, "attachment", name, content_id, body)


def _note(decoded: charset.Decoded, label: str, content: Content) -> None:
    if len(content.oddities) >= _MAX_ODDITIES:
        return
    if decoded.charset not in charset.codecs_of(label or "us-ascii") and not decoded.text.isascii():
        said = f"labelled {one_line(label[:60])}" if label else "not labelled"
        content.oddities.append(Oddity(code="charset", detail=f"{said}, read as {decoded.charset}"))
    if decoded.replaced:
        detail = f"{decoded.replaced} unreadable in {decoded.charset}"
        content.oddities.append(Oddity(code="replaced_characters", detail=detail))


def _without_files(body: bytes, content: Content) -> bytes:
    """A text without the files that were encoded into it before there was MIME; they go to the files."""
    kept: list[bytes] = []
    at = 0
    for file in transfer.uuencoded(body):
        kept.append(body[at : file.start])
        at = file.end
        content.files.append(_file(file.content, words.plain(file.name), "application/octet-stream"))
    return b"".join((*kept, body[at:])) if at else body
