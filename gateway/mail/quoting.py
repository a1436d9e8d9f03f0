"""What a mail says now, apart from the mails it answers and from its signature. Plain text only; the marks are in
`gateway.mail.quotemarks`, HTML becomes such text in `gateway.mail.html`.

A line that was kept in vain is read twice; a line that was cut in vain is a customer who was not heard. So what is not
clearly a quote or a signature stays:

- a mail program's header block, "-----Original Message-----" or an attribution with a date begins a quote that goes to
  the end, unless nothing stands above it (then it is a forwarded mail, or the answer is below it), or what stands above
  sends the reader on ("see below", "请看下面");
- a message marked as forwarded is content;
- lines with ">" are a quote where they begin or end the message; between lines that were written now they are what is
  being answered, and stay;
- a signature is what stands under "-- " at the end, or under another rule where it looks like an address; and "Sent
  from my iPhone".

The time is linear in the length of the text: each step looks at a line, or at a bounded number of lines around it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gateway.mail import quotemarks as marks
from gateway.text import without_controls

_ATTRIBUTION_LINES = 5
_HEADER_LINES = 40
_FOLDED_LINES = 8  # of one header field: a long list of recipients
_SIGNATURE_LINES = 25
_CARD_LINES = 12  # of a signature that RFC 3676's "-- " does not announce
_CARD_CHARS = 120
_NAME_LINES, _NAME_CHARS, _NAME_BLANKS = 3, 24, 2  # of one that has a name alone
_WRAPPED_AT = 56  # a program that wraps quoted lines leaves the rest of one without ">"
_WRAPPED_REST = 44

_TEXT, _QUOTED, _SIGNATURE = "text", "quoted", "signature"


@dataclass(frozen=True, slots=True)
class Split:
    """Each line of the message that is not empty is in one of the three, in its order; lines end in `\\n`.

    `text` is empty only when the message is.
    """

    text: str
    quoted: str
    signature: str


@dataclass(frozen=True, slots=True)
class _Quote:
    """Lines `start` to `end`; those before `body` say who wrote the rest. A quote `to_end` has no mark on its lines."""

    start: int
    body: int
    end: int
    to_end: bool


def split(text: str) -> Split:
    """Never raises; `Split` says what holds for the parts."""
    lines = without_controls(text).split("\n")
    message = _Message(lines)
    message.label()
    if not message.part(_TEXT):
        return Split(text="\n".join(lines).strip("\n").rstrip(), quoted="", signature="")
    return Split(message.part(_TEXT), message.part(_QUOTED), message.part(_SIGNATURE))


class _Message:
    """The lines, how they look, and what each of them is."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.views = [marks.view(line) for line in lines]
        self.fields: dict[int, tuple[str, str]] = {}
        self.labels = [_TEXT] * len(lines)
        self.next_full = _next(list(map(bool, self.views)))
        self.next_marked = _next([marks.may_introduce(view) for view in self.views])

    def part(self, label: str) -> str:
        chosen = (line for line, its in zip(self.lines, self.labels, strict=True) if its == label)
        return "\n".join(chosen).strip("\n").rstrip()

    def label(self) -> None:
        quotes = list(self._quotes())
        if len(quotes) == 1 and self._is_comparison(quotes[0]):
            quotes = []
        if quotes:  # what ends the message may be a signature alone, and then nothing was written under the last quote
            self._cut_signature(quotes[-1].end, len(self.views))
        gaps = self._written_between(quotes)
        inner = gaps[1:-1]
        if quotes and quotes[-1].to_end:
            cut = self._cut_to_end(quotes, gaps)
        elif any(inner) or (gaps[0] and gaps[-1] and len(quotes) == 1 and quotes[0].start == quotes[0].body):
            cut = self._cut_interleaved(quotes, gaps)
        else:
            cut = quotes
        if cut and self._points_below(cut[0].start, gaps[0]):
            cut = []
        for quote in cut:
            self._mark(quote.start, quote.end, _QUOTED)
        self._cut_signatures(cut)

    # Quotes

    def _quotes(self) -> Iterator[_Quote]:
        """In their order. One that is forwarded is not among them, and none after it: it is content."""
        at, count = 0, len(self.views)
        while at < count:
            line = self.views[at]
            near = self.next_marked[at] < min(count, at + _ATTRIBUTION_LINES)
            body = self._quoted_introduction(at) if line.startswith(">") else None
            if body is None and line and near:
                body = self._introduction(at)
            if body is None:
                at += 1
                continue
            if body < 0:
                return
            first = self.next_full[body]
            if first < count and self.views[first].startswith(">"):
                if self._is_forwarded(first):
                    return
                end = self._quoted_until(first)
                if body > at or not self._is_prompt(first, end):
                    yield _Quote(at, first, end, to_end=False)
                at = end
            elif body > at:
                yield _Quote(at, body, count, to_end=True)
                return

    def _quoted_introduction(self, at: int) -> int:
        """Where the body begins of a quote whose attribution is quoted with it, as Apple Mail does; else this line."""
        line, body = self.views[at].lstrip("> "), at + 1
        if not (marks.ends_attribution(line) and marks.is_attribution(line, quote_follows=False)):
            return at
        while body < len(self.views) and self.views[body] == ">":
            body += 1
        return body if body < len(self.views) and self.views[body].startswith(">") else at

    def _introduction(self, at: int) -> int | None:
        """Where the body of the quote begins that is introduced at this line; None: it is not; -1: it is forwarded."""
        line = self.views[at]
        if marks.is_reply_above(line):
            return at + 1
        if kind := marks.separator(line):
            return -1 if kind == "forward" else self._header_block(self._full(at + 1), 2) or at + 1
        if marks.is_rule(line):
            return self._header_block(self._full(at + 1), 2)
        if marks.runs_on(line):
            return at + 1
        return self._header_block(at, 3) or self._attribution(at)

    def _full(self, at: int) -> int:
        """The line itself or the first one below it that is not empty, at most two below."""
        full = self.next_full[at] if at < len(self.views) else at
        return full if full - at <= 2 else at

    def _header_block(self, at: int, needed: int) -> int | None:
        """Where the block of header fields ends that begins here.

        It names a sender and as many kinds of field as are `needed`, and has an address, or the sender first and date
        and subject too: a customer who writes "From: Shanghai, To: Hamburg" books a transport.
        """
        if at >= len(self.views) or not self._field(at)[0]:
            return None
        roles = marks.fields_in_one(self.views[at])
        if {"from", "subject"} <= roles and len(roles) >= 3:
            return at + 1
        found, end, address = self._fields(at)
        if "from" not in found or len(found) < needed:
            return None
        first = self._field(at)[0] == "from"
        return end if address or (first and {"date", "subject"} <= found) else None

    def _field(self, at: int) -> tuple[str, str]:
        """Of each line once, however many blocks could begin above it."""
        if at not in self.fields:
            self.fields[at] = marks.field(self.views[at])
        return self.fields[at]

    def _fields(self, at: int) -> tuple[set[str], int, bool]:
        """The roles of the fields from this line on, where the last of them ends, and whether they have an address."""
        found: set[str] = set()
        address, end, line = False, at, at
        while line < min(at + _HEADER_LINES, len(self.views)):
            role, value = self._field(line)
            if role and (role not in found or role in {"cc", "to"}):
                found.add(role)
                address = address or "@" in value
                end = line + 1
            elif not self._goes_on(line, end, bool(found)):
                break
            elif "@" in self.views[line]:
                address = True
            line += 1
        return found, end, address

    def _goes_on(self, at: int, end: int, value_below: bool) -> bool:
        """Whether a line without a name is between fields: empty, folded, or the value of the one above."""
        if not self.views[at]:
            return at == end and at + 1 < len(self.views) and bool(self._field(at + 1)[0])
        if at == end and value_below and self.views[at - 1].endswith((":", "：")):
            return True
        folded = self.lines[at][:1] in {" ", "\t"} or "@" in self.views[at] or self.views[at].endswith(";")
        return folded and at - end < _FOLDED_LINES

    def _attribution(self, at: int) -> int | None:
        """Where the attribution ends that begins here, on this line or one of the next."""
        line = self.views[at]
        if not line or len(line) > marks.MAX_CHARS:
            return None
        begins = marks.starts_attribution(line) or marks.is_named_address(line)
        joined = ""
        for end in range(at, min(at + _ATTRIBUTION_LINES, len(self.views))):
            part = self.views[end]
            joined = f"{joined} {part}" if joined else part
            if not part or len(joined) > marks.MAX_CHARS or part.startswith(">"):
                return None
            if marks.ends_attribution(part) and marks.is_attribution(joined, self._quote_follows(end)):
                return end + 1 if begins or end == at or self._alone_too_little(at, end) else None
        return None

    def _alone_too_little(self, at: int, end: int) -> bool:
        """Whether the lines below the first would not be an attribution without it."""
        rest = " ".join(self.views[at + 1 : end + 1])
        return not marks.is_attribution(rest, quote_follows=False) and marks.is_attribution(
            " ".join(self.views[at : end + 1]), quote_follows=False
        )

    def _quote_follows(self, at: int) -> bool:
        following = self.next_full[at + 1] if at + 1 < len(self.views) else len(self.views)
        return following < len(self.views) and following - at <= 3 and self.views[following].startswith(">")

    def _is_forwarded(self, at: int) -> bool:
        return marks.separator(self.views[at].lstrip("> ")) == "forward"

    def _quoted_until(self, at: int) -> int:
        """Behind the last line with ">", over empty lines and over what a program has wrapped."""
        end = at + 1
        while end < len(self.views):
            following = self.next_full[end]
            if following >= len(self.views):
                break
            if self.views[following].startswith(">") or (following == end and self._is_wrapped(end)):
                end = following + 1
            else:
                break
        return end

    def _is_wrapped(self, at: int) -> bool:
        """Whether this line is the rest of the quoted one above it, which was too long for a program."""
        if at + 1 >= len(self.views) or not self.views[at + 1].startswith(">"):
            return False
        above, rest = self.views[at - 1], self.views[at]
        cut_off = above.startswith(">") and len(above) >= _WRAPPED_AT and above[-1] not in ".?!:;,。？！：；"
        return cut_off and len(rest) <= _WRAPPED_REST and rest[0].islower()

    def _is_prompt(self, start: int, end: int) -> bool:
        return all(view.startswith(">>> ") for view in self.views[start:end] if view)

    def _is_comparison(self, quote: _Quote) -> bool:
        """Whether it is one line that goes on with a sentence: "more than\\n> 5 kg"."""
        alone = quote.start == quote.body and quote.end - quote.start == 1
        return alone and quote.start > 0 and self.views[quote.start - 1] != ""

    def _written_between(self, quotes: list[_Quote]) -> list[list[int]]:
        """The lines that are not empty before, between and after the quotes."""
        edges = [0, *(edge for quote in quotes for edge in (quote.start, quote.end)), len(self.views)]
        pairs = zip(edges[::2], edges[1::2], strict=True)
        return [[at for at in range(start, end) if self.views[at] and self.labels[at] == _TEXT] for start, end in pairs]

    def _cut_to_end(self, quotes: list[_Quote], gaps: list[list[int]]) -> list[_Quote]:
        """All of the last one, if anything was written above it; of those before, what would be cut without it."""
        above = [gap for gap in gaps if any(self._says(at) for at in gap)]
        if not above:
            return []
        before = quotes[:-1]
        interleaved = any(gaps[1:-2]) or (
            len(before) == 1 and gaps[0] and gaps[1] and before[0].start == before[0].body
        )
        kept = self._cut_interleaved(before, gaps[:-1]) if interleaved else before
        return [*kept, quotes[-1]]

    def _says(self, at: int) -> bool:
        return not (marks.is_rule(self.views[at]) or marks.is_added(self.views[at]))

    def _cut_interleaved(self, quotes: list[_Quote], gaps: list[list[int]]) -> list[_Quote]:
        """The last one if nothing follows it, and of the others the lines that say who wrote them."""
        cut = [
            _Quote(quote.start, quote.body, quote.body, to_end=False) for quote in quotes if quote.body > quote.start
        ]
        if quotes and not any(self._says(at) for at in gaps[-1]):
            cut = [quote for quote in cut if quote.start < quotes[-1].start]
            cut.append(quotes[-1])
        return cut

    def _points_below(self, start: int, above: list[int]) -> bool:
        written = [self.views[at] for at in above if at < start and self._says(at)]
        return marks.points_below(written)

    def _mark(self, start: int, end: int, label: str) -> None:
        """With the rules and empty lines above."""
        while start and (not self.views[start - 1] or marks.is_rule(self.views[start - 1])):
            start -= 1
        for at in range(start, end):
            if self.labels[at] == _TEXT:
                self.labels[at] = label

    # Signatures

    def _cut_signatures(self, cut: list[_Quote]) -> None:
        """Of what stands above the first quote and of what ends the message."""
        edges = [0, *(edge for quote in cut for edge in (quote.start, quote.end)), len(self.views)]
        stretches = list(zip(edges[::2], edges[1::2], strict=True))
        for start, end in {stretches[0], stretches[-1]}:
            self._cut_signature(start, end)

    def _cut_signature(self, start: int, end: int) -> None:
        full = [at for at in range(start, end) if self.labels[at] == _TEXT and self.views[at]]
        while full and marks.is_added(self.views[full[-1]]):
            self.labels[full.pop()] = _SIGNATURE
        for index in range(max(0, len(full) - _SIGNATURE_LINES - 1), len(full)):
            if marks.is_rule(self.views[full[index]]) and self._signs(full[index], full[index + 1 :]):
                for at in full[index:]:
                    self.labels[at] = _SIGNATURE
                full = full[:index]
                break
        while full and (marks.is_added(self.views[full[-1]]) or self._is_idle_rule(full, end)):
            self.labels[full.pop()] = _SIGNATURE

    def _is_idle_rule(self, full: list[int], end: int) -> bool:
        """A rule with nothing of the message under it: of a signature that was cut, or of the quote."""
        return marks.is_rule(self.views[full[-1]]) and self.labels[full[-1] + 1 : end].count(_SIGNATURE) > 0

    def _signs(self, rule: int, below: list[int]) -> bool:
        """Whether what is below the rule is a signature (RFC 3676, section 4.3, or nearly)."""
        views = [self.views[at] for at in below]
        if not views:
            return False
        if self.lines[rule] == "-- ":
            return len(views) <= _SIGNATURE_LINES
        if len(views) > _CARD_LINES or any(map(_is_written, views)) or any(map(marks.is_rule, views[:-1])):
            return False
        if any(map(marks.is_contact, views)) or sum(map(marks.is_post, views)) > 1:
            return True
        return self.views[rule] in {"--", "—", "——"} and len(views) <= _NAME_LINES and all(map(_is_name, views))


def _is_written(line: str) -> bool:
    """Whether a line under a rule is more than a card would say."""
    if marks.is_notice(line):
        return False
    ends = line.endswith(("?", "？", "。", "！", "；")) or (line.endswith((".", "!", ",", ";")) and line.count(" ") > 5)
    return ends or len(line) > _CARD_CHARS or "，" in line


def _is_name(line: str) -> bool:
    return len(line) <= (_NAME_CHARS if line.isascii() else _NAME_CHARS // 3) and line.count(" ") <= _NAME_BLANKS


def _next(lines: list[bool]) -> list[int]:
    """For each line the first one from it on that is so, or how many lines there are."""
    following = [len(lines)] * (len(lines) + 1)
    for at in range(len(lines) - 1, -1, -1):
        following[at] = at if lines[at] else following[at + 1]
    return following
