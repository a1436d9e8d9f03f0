"""HTML mail as text that reads as the mail looks: lines, lists, rows, links, and ">" before what is quoted.

The tokens are those of `gateway.text`, whose time is linear for any input. A tree would say no more that is needed, and
the libraries that build one fail on hostile mail: selectolax (lexbor) takes more than ten seconds for 200,000 elements
left open, lxml (and inscriptis on it) drops the text in elements that are too deep, html2text writes Markdown and is
GPL. So there is a stack of open elements, no recursion, and each step looks at a bounded number of them.

Containers of quotes are told by name, class or id (`_QUOTES`): those of Gmail, Apple Mail, Thunderbird, Yahoo, Proton,
Zoho, QQ邮箱, 网易, Foxmail and 飞书. Where one says in words that it is one (Outlook's header block, "原始邮件"),
the words are enough for `gateway.mail.quoting`. Gmail's `gmail_quote` is none: who answers between the lines writes
in it.
"""

import re
from dataclasses import dataclass, field
from itertools import islice
from unicodedata import east_asian_width

from gateway.text import attributes_of, one_line, plain_text, tokens, unescape, without_controls

_MAX_QUOTE_DEPTH = 8
_MAX_CELL_DEPTH = 16  # text in deeper cells is not joined to rows: a line is copied once for each cell around it
_MAX_LIST_DEPTH = 8
_LOOK_BACK = 64  # how many open elements an end tag may close
_MAX_LINK_CHARS = 2000
_RULE = "--------"

_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
)
_LINES = frozenset(
    re.findall(
        r"\w+",
        "address article aside body caption center dd details dialog dir div dt fieldset figcaption footer form header"
        " html legend li main menu nav optgroup option section summary table tr includetail",
    )
)
_PARAGRAPHS = frozenset({"blockquote", "dl", "figure", "h1", "h2", "h3", "h4", "h5", "h6", "p", "pre", "ul", "ol"})
_BLOCKS = _LINES | _PARAGRAPHS
_LISTS = frozenset({"ul", "ol", "menu", "dir"})
_CELLS = frozenset({"td", "th"})
# What an opening tag ends (HTML, 13.1.2.4), and what it must not look beyond.
_ENDS = {
    **dict.fromkeys(_BLOCKS, (frozenset({"p"}), frozenset({"div", "td", "th", "table", "li", "blockquote"}))),
    "li": (frozenset({"li"}), frozenset({"ul", "ol", "menu", "dir", "table"})),
    **dict.fromkeys(("dt", "dd"), (frozenset({"dt", "dd"}), frozenset({"dl", "table"}))),
    **dict.fromkeys(_CELLS, (_CELLS, frozenset({"tr", "table"}))),
    **dict.fromkeys(("tr", "tbody", "thead", "tfoot"), (frozenset({"tr"}), frozenset({"table"}))),
}

_HIDES = re.compile(
    r"(?:^|[;\s])(?:display\s*:\s*none|visibility\s*:\s*hidden|mso-hide\s*:\s*all|max-height\s*:\s*0(?:px)?\s*(?:;|!|$))",
    re.IGNORECASE,
)
_CLOSE_LINES = re.compile(r"(?:^|[;\s])margin(?:-top|-bottom)?\s*:\s*0(?![.\d]*[1-9])", re.IGNORECASE)
_KEEPS_LINES = re.compile(r"white-space\s*:\s*(?:pre|break-spaces)", re.IGNORECASE)
_NO_BULLET = re.compile(r"list-style(?:-type)?\s*:\s*none", re.IGNORECASE)
_INDENTS = re.compile(r"border(?:-left)?\s*:\s*(?:none|0)", re.IGNORECASE)  # Gmail's button for it makes a blockquote
_QUOTES = re.compile(
    r"\b(?:gmail_attr|yahoo_quoted|yahoo-quoted|moz-cite-prefix|protonmail_quote|zmail_extra|zmail_quote|mail-origin"
    r"|history-quote-wrapper|history-quote|lark-mail-quote|isreplycontent|replycontent|ntes-mailmaster-quote"
    r"|ntes-[\w-]*(?:quote|reply|origin)[\w-]*|origin(?:al)?-?mail-?content|ali(?:yun)?_?quote|tutanota_quote)\b",
    re.IGNORECASE,
)
_HIDDEN_ATTRIBUTE = re.compile(r"(?:^|\s)hidden(?=\s|/|$)", re.IGNORECASE)
_QUOTED_VALUE = re.compile("\"[^\"]*\"|'[^']*'")
_HAS_LAYOUT = re.compile(r"<(?:br|p|div|table|tr|li|h[1-6]|pre|blockquote|center|section|article)\b", re.IGNORECASE)

_BLANKS = re.compile(r"[ \t\r\n\f]+")
_UNSEEN = re.compile("[\u00ad\u034f\u200b\u2060\ufeff]|\u200c(?=[\\s\u200c\u200d]|$)")
_REACHES = re.compile(r"(https?://|mailto:|tel:)(.*)", re.IGNORECASE | re.DOTALL)
_ENCLOSED = re.compile(r"cid:([^@]{1,200}\.[A-Z0-9]{2,5})(?:@|$)", re.IGNORECASE)


def to_text(html: str) -> str:
    r"""The text; lines end in `\n`, no two empty lines follow each other. Not empty if the page has any text."""
    page = _Page(hides=True)
    page.read(html)
    if text := page.text():
        return text
    page = _Page(hides=False)  # all of it was hidden: better to show that than nothing
    page.read(html)
    return page.text()


@dataclass(slots=True)
class _Element:
    """An open element, and what was true before it began."""

    name: str
    hidden: bool
    depth: int
    kept: bool  # white space is
    opened: str = ""  # "list", "row" or "cell"


@dataclass(slots=True)
class _List:
    bullets: bool
    number: int | None  # of the next item, in a list that counts


@dataclass(slots=True)
class _Flow:
    """Lines below each other: the page's, or a cell's."""

    base: int  # the depth of quotes where it began
    lines: list[str] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)  # of the line that is being written
    gap: bool = False  # the next line is to have an empty one above it
    depth: int = 0  # of the last line


@dataclass(slots=True)
class _Link:
    href: str
    text: list[str] = field(default_factory=list)
    chars: int = 0


class _Page:
    """What was read so far, and what is open."""

    def __init__(self, *, hides: bool) -> None:
        self.hides = hides
        self.open: list[_Element] = []
        self.flows = [_Flow(base=0)]
        self.rows: list[list[list[str]]] = []
        self.lists: list[_List] = []
        self.bullet = ""
        self.link: _Link | None = None
        self.hidden = self.kept = False
        self.depth = 0

    def read(self, html: str) -> None:
        self.kept = not _HAS_LAYOUT.search(html)  # plain text that is called HTML: its line ends are all it has
        for token in tokens(html):
            name = (token["name"] or "").lower()
            if token["text"]:
                self.write(token["text"])
            elif "@" in name or name in {"http:", "https:"}:
                self.write(token[0])  # <a@b.c>, written by a program that escapes nothing
            elif token["end"]:
                self.end(name)
            elif name:
                self.start(name, token["attributes"])
        while self.open:
            self.close()

    def text(self) -> str:
        self.end_link()
        self.end_line()
        return plain_text("\n".join(self.flows[0].lines))

    # Elements

    def start(self, name: str, source: str) -> None:
        self.end_what_ends(name)
        if name == "br":
            self.end_line(even_if_empty=True)
        elif name == "hr":
            self.end_line()
            self.put(_RULE)
            self.end_line()
        elif name == "img":
            self.picture(attributes_of(source))
        elif name == "a":
            self.start_link(attributes_of(source))
        elif name not in _VOID:
            self.enter(name, attributes_of(source) if source and not source.isspace() else {}, source)

    def enter(self, name: str, attributes: dict[str, str], source: str) -> None:
        element = _Element(name, self.hidden, self.depth, self.kept)
        self.open.append(element)
        style = attributes.get("style", "")
        if name in _BLOCKS:
            self.end_line()
            self.space(name, attributes)
        if self.hides and (_HIDES.search(style) or _is_hidden(source)):
            self.hidden = True
        if _is_quote(name, attributes):
            self.end_line()
            self.depth = min(self.depth + 1, _MAX_QUOTE_DEPTH)
        if "white-space" in style.lower():
            self.kept = _KEEPS_LINES.search(style) is not None
        self.open_structure(element, attributes)

    def open_structure(self, element: _Element, attributes: dict[str, str]) -> None:
        name = element.name
        if name in {"pre", "textarea"}:
            self.kept = True
        elif name in _LISTS:
            self.lists.append(_List(not _NO_BULLET.search(attributes.get("style", "")), _start(name, attributes)))
            element.opened = "list"
        elif name == "li":
            self.item(attributes)
        elif name in {"table", "tr"}:  # a table without rows may have cells
            self.rows.append([])
            element.opened = "row"
        elif name in _CELLS and len(self.flows) <= _MAX_CELL_DEPTH:
            self.flows.append(_Flow(base=self.depth))
            element.opened = "cell"
        elif name in _CELLS and self.flows[-1].pieces:
            self.put("\t")

    def end(self, name: str) -> None:
        if name == "a":
            self.end_link()
        elif name == "br":
            self.end_line(even_if_empty=True)
        elif name == "p" and not self.within(frozenset({"p"}), _CELLS):
            self.end_line()
            self.flows[-1].gap = True
        else:
            beyond = frozenset() if name in {"table", "tr", "tbody", "thead", "tfoot"} else _CELLS - {name}
            self.close_to(frozenset({name}), beyond)

    def end_what_ends(self, name: str) -> None:
        if name in _ENDS:
            self.close_to(*_ENDS[name])

    def within(self, names: frozenset[str], beyond: frozenset[str]) -> int:
        """How many elements are to be closed to end the innermost of these; 0 if it is none of the nearest."""
        for count, element in enumerate(islice(reversed(self.open), _LOOK_BACK), start=1):
            if element.name in names:
                return count
            if element.name in beyond:
                break
        return 0

    def close_to(self, names: frozenset[str], beyond: frozenset[str]) -> None:
        for _ in range(self.within(names, beyond)):
            self.close()

    def close(self) -> None:
        element = self.open.pop()
        if element.name in _BLOCKS or element.opened or self.depth != element.depth:
            self.end_line()
        if element.name in _PARAGRAPHS and self.flows[-1].lines and not self._is_close(element):
            self.flows[-1].gap = True
        self.hidden, self.depth, self.kept = element.hidden, element.depth, element.kept
        if element.name == "li":
            self.bullet = ""
        if element.opened == "list":
            self.lists.pop()
        elif element.opened == "cell":
            self.end_cell()
        elif element.opened == "row":
            self.end_row()

    def _is_close(self, element: _Element) -> bool:
        return element.opened == "close" or (element.name in _LISTS and len(self.lists) > 1)

    def space(self, name: str, attributes: dict[str, str]) -> None:
        """An empty line above a paragraph, but for one without margins, as Outlook and Chinese editors write them."""
        if name not in _PARAGRAPHS or (name in _LISTS and self.lists) or self.bullet:
            return
        if name == "p" and (
            attributes.get("class", "").startswith("Mso") or _CLOSE_LINES.search(attributes.get("style", ""))
        ):
            self.open[-1].opened = "close"
            return
        self.flows[-1].gap = True

    # Lines

    def write(self, source: str) -> None:
        if self.hidden:
            return
        text = _UNSEEN.sub("", without_controls(unescape(source)))
        if self.kept and (text.strip() or self.flows[-1].pieces):
            first, *others = text.split("\n")
            self.put(first)
            for line in others:
                self.end_line(even_if_empty=True)
                self.put(line)
        else:
            self.put(_folded(text))

    def put(self, text: str) -> None:
        if self.hidden:
            return
        pieces = self.flows[-1].pieces
        if not self.kept and (not pieces or pieces[-1].endswith(" ")):
            text = text.lstrip(" ")
        if not text:
            return
        if self.bullet and text.strip():
            pieces.append(self.bullet)
            self.bullet = ""
        pieces.append(text)
        if self.link is not None and self.link.chars < _MAX_LINK_CHARS:
            self.link.text.append(text)
            self.link.chars += len(text)

    def end_line(self, *, even_if_empty: bool = False) -> None:
        flow = self.flows[-1]
        if not flow.pieces and not even_if_empty:
            return
        raw = "".join(flow.pieces).replace("\xa0", " ")
        flow.pieces = []
        line = raw.rstrip()
        self.add("-- " if line == "--" and raw.startswith("-- ") else line)

    def add(self, line: str) -> None:
        flow = self.flows[-1]
        depth = self.depth - flow.base
        if line and flow.gap and flow.lines and _is_full(flow.lines[-1]):
            flow.lines.append(">" * min(depth, flow.depth))
        if line or (flow.lines and _is_full(flow.lines[-1])):
            flow.lines.append(_quoted(line, depth))
        flow.gap, flow.depth = False if line else flow.gap, depth

    def picture(self, attributes: dict[str, str]) -> None:
        """Its description, as programs without pictures show it; for an enclosed one without, its name."""
        if self.hides and _HIDES.search(attributes.get("style", "")):
            return
        source, described = attributes.get("src", ""), one_line(unescape(attributes.get("alt", "")))
        name = _ENCLOSED.match(source)
        if not described and name:
            described = f"[image: {one_line(unescape(name[1]))}]"
        self.put(_UNSEEN.sub("", described))

    # Lists, rows, links

    def item(self, attributes: dict[str, str]) -> None:
        level = min(len(self.lists), _MAX_LIST_DEPTH)
        indent = "  " * (level - 1)
        inner = self.lists[-1] if self.lists else _List(bullets=True, number=None)
        if inner.number is None:
            self.bullet = f"{indent}• " if inner.bullets else ""
            return
        number = _number(attributes.get("value", ""), inner.number)
        inner.number = number + 1
        self.bullet = f"{indent}{number}. " if inner.bullets else ""

    def end_cell(self) -> None:
        lines = self.flows.pop().lines
        while lines and not _is_full(lines[-1]):
            lines.pop()
        if self.rows:
            self.rows[-1].append(lines)
        else:
            self.stack([lines])

    def end_row(self) -> None:
        """Cells of one line stand beside each other; of longer ones, as of a page's layout, each below the other."""
        cells = self.rows.pop()
        if any(len(lines) > 1 for lines in cells):
            self.stack(cells)
        elif row := "\t".join(lines[0] if lines else "" for lines in cells).strip("\t"):
            self.end_line()
            self.add(row)

    def stack(self, cells: list[list[str]]) -> None:
        self.end_line()
        for line in (line for lines in cells for line in lines):
            self.add(line)

    def start_link(self, attributes: dict[str, str]) -> None:
        self.end_link()
        href = one_line(unescape(attributes.get("href", "")))
        if len(href) <= _MAX_LINK_CHARS and _REACHES.match(href):
            self.link = _Link(href)

    def end_link(self) -> None:
        link, self.link = self.link, None
        if link is None:
            return
        text = "".join(link.text).strip()
        if text and not _says(text, link.href):
            pieces = self.flows[-1].pieces
            blank = " " if pieces and pieces[-1].endswith(" ") else ""
            self.put(f"{'' if blank else ' '}<{_shown(link.href)}>{blank}")


def _is_hidden(source: str) -> bool:
    return "hidden" in source.lower() and _HIDDEN_ATTRIBUTE.search(_QUOTED_VALUE.sub('""', source)) is not None


def _is_quote(name: str, attributes: dict[str, str]) -> bool:
    named = " ".join(filter(None, (attributes.get("class"), attributes.get("id"), attributes.get("name"))))
    if name == "blockquote":
        return bool(named or attributes.get("type")) or not _INDENTS.search(attributes.get("style", ""))
    return name == "includetail" or _QUOTES.search(named) is not None


def _start(name: str, attributes: dict[str, str]) -> int | None:
    return _number(attributes.get("start", ""), 1) if name == "ol" else None


def _number(digits: str, default: int) -> int:
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 7 else default


def _quoted(line: str, depth: int) -> str:
    if not depth:
        return line
    return ">" * depth + (line if not line or line.startswith(">") else f" {line}")


def _is_full(line: str) -> bool:
    return line.strip("> ") != ""


def _folded(text: str) -> str:
    """White space as a browser shows it; a line end between two Chinese characters is none."""
    if "\n" not in text:
        return _BLANKS.sub(" ", text)
    return _BLANKS.sub(lambda run: _between(text, run), text)


def _between(text: str, run: re.Match[str]) -> str:
    start, end = run.span()
    joins = start > 0 and end < len(text) and "\n" in run[0] and _is_wide(text[start - 1]) and _is_wide(text[end])
    return "" if joins else " "


def _is_wide(character: str) -> bool:
    return east_asian_width(character) in {"W", "F"}


def _says(text: str, href: str) -> bool:
    """Whether the text of a link is where it leads."""
    return _bare(text) == _bare(href) or _bare(text) == _bare(_shown(href))


def _bare(address: str) -> str:
    reach = _REACHES.match(address)
    return (reach[2] if reach else address).strip("<>[]() ").removesuffix("/").casefold()


def _shown(href: str) -> str:
    reach = _REACHES.match(href)
    if reach is None or reach[1].lower().startswith("http"):
        return href
    return reach[2].partition("?")[0]
