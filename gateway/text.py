"""Text and HTML as customers send them, made harmless: pure functions that several normalizers share."""

import html as entities
import re
from collections.abc import Iterator

import nh3

MAX_DEPTH = 96  # deeper elements lose their tags, never their text
_MAX_FILENAME_CHARS = 200
_TEXT_NODE_CHARS = 4096  # nh3 takes quadratic time over a text node; an empty comment, which it drops, ends one

_LINE_ENDS = re.compile("\r\n|[\r\x85\u2028\u2029]")
# C0 but tab and newline, DEL, C1, lone surrogates, noncharacters: no database and no terminal is the better for them.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_REORDERING = re.compile(r"[\u202a-\u202e\u2066-\u2069]")  # they make `exe.jpg` out of `gpj.exe`

_BREAKS = frozenset({"br", "hr", "tr", "li", "dt", "dd", "caption"})
_PARAGRAPHS = frozenset(
    re.findall(
        r"\w+",
        "address article aside blockquote center div dl figcaption figure footer h1 h2 h3 h4 h5 h6 header main nav ol p"
        " pre section table ul",
    )
)
_INLINE = frozenset(
    re.findall(
        r"\w+",
        "a abbr b bdi bdo big cite code del dfn em font i img ins kbd mark q s samp small span strike strong sub sup"
        " tbody td tfoot th thead tt u var wbr",
    )
)
_TAGS = _BREAKS | _PARAGRAPHS | _INLINE
_VOID = frozenset({"br", "hr", "img", "wbr"})
_CELLS = frozenset({"td", "th"})
_TABLE = frozenset({"caption", "table", "tbody", "td", "tfoot", "th", "thead", "tr"})
_ATTRIBUTES = {
    "*": {"dir", "lang", "title"},
    "a": {"href"},
    "img": {"alt", "height", "src", "width"},
    "ol": {"start"},
    "td": {"align", "colspan", "rowspan"},
    "th": {"align", "colspan", "rowspan"},
}
# What an opening tag ends without saying so (HTML, 13.1.2.4 "Optional tags").
_ENDS = {
    **dict.fromkeys(_PARAGRAPHS, frozenset({"p"})),
    "li": frozenset({"li", "p"}),
    **dict.fromkeys(("dt", "dd"), frozenset({"dt", "dd", "p"})),
    **dict.fromkeys(_CELLS, frozenset({"td", "th", "p"})),
    **dict.fromkeys(("tr", "tbody", "tfoot"), frozenset({"td", "th", "tr", "p"})),
}
_TOO_LONG = re.compile("&#(?:x[0-9a-f]{9,}+|[0-9]{9,}+);?", re.IGNORECASE)
_BARE_AMPERSAND = re.compile(r"&(?!#?[A-Za-z0-9]{1,32};)")
_LINK = re.compile(r"https?://|mailto:|tel:", re.IGNORECASE)
_OWN_IMAGE = re.compile(r"cid:|data:image/(?:png|jpeg|gif|webp);base64,", re.IGNORECASE)

# Each alternative consumes what it looked at, or gives up within 64 quotes: the time is linear for any input.
_TOKEN = re.compile(
    r"""<!--(?:-?>|.*?(?:--!?>|\Z))
    |   <(?P<raw>script|style|title|template|iframe|noembed|noframes)\b.*?(?:</(?P=raw)\b[^>]*+(?:>|\Z)|\Z)
    |   <[!?][^>]*+(?:>|\Z)
    |   <(?P<end>/?)(?P<name>[a-z][^\s/<>"']*+)
        (?P<attributes>(?:[^<>"']*+(?:"[^"]*"|'[^']*')){0,64}+[^<>"']*+)>
    |   (?P<text>[^<]++|<)""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_ATTRIBUTE = re.compile(r"""(?<![^\s/"'])([a-z]++)\s*+=\s*+(?:"([^"]*)"|'([^']*)'|([^\s"'<>]++))""", re.IGNORECASE)


def without_controls(text: str) -> str:
    r"""With `\n` for every line end and no other control character but the tab."""
    if text.replace("\n", "").isprintable():  # many times faster than to look with a pattern
        return text
    return _CONTROLS.sub("", _LINE_ENDS.sub("\n", text))


def plain_text(text: str) -> str:
    """Like `without_controls`, without blank lines around it and blanks after it."""
    return without_controls(text).strip("\n").rstrip()


def one_line(text: str) -> str:
    """Like `plain_text`, with a blank for each tab and line end, and no blanks around it."""
    return plain_text(text).replace("\n", " ").replace("\t", " ").strip()


def file_name(path: str) -> str:
    """The last part of a path of any system, its last 200 characters; "" when nothing is left."""
    last = _REORDERING.sub("", one_line(path)).replace("\\", "/").rpartition("/")[2].strip()
    return "" if last in {".", ".."} else last[-_MAX_FILENAME_CHARS:]


def sanitise_html(html: str) -> str:
    """HTML that can be shown: no scripts, no styles, no remote loads, no relative links.

    nh3 decides what is safe. It builds the tree that a browser would, and in that a few kilobytes of tags left open
    cost gigabytes (nh3 0.3.8); so it is given the same text with every element closed, at most MAX_DEPTH deep.
    """
    return _CLEANER.clean(_balanced(html))


def tokens(html: str) -> Iterator[re.Match[str]]:
    """The page from its beginning to its end, in linear time: groups `text`, or `name`, `end` ("/") and `attributes`.

    A match without any of them is to be left out: a comment, or a script, style or title with its content.
    """
    return _TOKEN.finditer(html)


def attributes_of(source: str) -> dict[str, str]:
    """The attributes that have a value: names in lower case, entities as they are; of two with one name the first."""
    found = _ATTRIBUTE.findall(source)
    return {name.lower(): double or single or bare for name, double, single, bare in reversed(found)}


def unescape(text: str) -> str:
    """HTML's character references as characters; a number that is too long to be one does not raise."""
    return entities.unescape(_TOO_LONG.sub("\ufffd", text) if "&#" in text else text)


def _balanced(html: str) -> str:
    out: list[str] = []
    open_: list[str] = []
    for token in tokens(html):
        name = (token["name"] or "").lower()
        if token["text"]:
            out.append(_escaped(token["text"]))
        elif name in _TAGS and token["end"]:
            out.extend(_close(open_, name))
        elif name in _TAGS:
            out.extend(_open(open_, name, token["attributes"]))
    return "".join(out) + "".join(f"</{name}>" for name in reversed(open_))


def _open(open_: list[str], name: str, attributes: str) -> Iterator[str]:
    ended = _ENDS.get(name, frozenset())
    while open_ and open_[-1] in ended:
        yield f"</{open_.pop()}>"
    if name not in _VOID:
        if len(open_) >= MAX_DEPTH:
            return
        open_.append(name)
    allowed = _ATTRIBUTES["*"] | _ATTRIBUTES.get(name, set())
    kept = ((key, value) for key, value in attributes_of(attributes).items() if key in allowed)
    yield "".join((f"<{name}", *(f' {key}="{_quoted(value)}"' for key, value in kept), ">"))


def _close(open_: list[str], name: str) -> Iterator[str]:
    """Ends the innermost element of that name and all in it; a stray end tag in a cell cannot end the table."""
    if name not in _reachable(open_, name):
        return
    while (last := open_.pop()) != name:
        yield f"</{last}>"
    yield f"</{name}>"


def _reachable(open_: list[str], name: str) -> Iterator[str]:
    for candidate in reversed(open_):
        yield candidate
        if candidate in _CELLS and name not in _TABLE:
            return


def _escaped(text: str) -> str:
    plain = unescape(text)
    chunks = (plain[at : at + _TEXT_NODE_CHARS] for at in range(0, len(plain), _TEXT_NODE_CHARS))
    return "".join(f"{entities.escape(chunk, quote=False)}<!---->" for chunk in chunks)


def _quoted(value: str) -> str:
    return _BARE_AMPERSAND.sub("&amp;", value).replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def _safe_attribute(tag: str, name: str, value: str) -> str | None:
    """`data:` would be safe for pictures only; a remote picture tells its sender who opened the ticket, and when."""
    pattern = {"href": _LINK, "src": _OWN_IMAGE}.get(name)
    return value if pattern is None or pattern.match(value) else None


_CLEANER = nh3.Cleaner(
    tags=_TAGS,
    attributes=_ATTRIBUTES,
    attribute_filter=_safe_attribute,
    url_schemes={"http", "https", "mailto", "tel", "cid", "data"},
    url_relative="deny",
)
