r"""Lines that were broken to be sent, made whole again: text/plain with `format=flowed` (RFC 3676).

A line that ends in a blank goes on in the next one of the same quote depth; "-- " never does (4.3), and an empty line
ends a paragraph even where the one above it was left open, as readers of mail show it. The blank put before
a line that begins with a blank, with "From " or with ">" is taken away (4.4), that behind the quote marks too. With
`DelSp=yes` the blank at the end was added as well, as is usual where words have no blanks between them (4.1).
"""

import re

_QUOTE = re.compile(">*")
_SIGNATURE = "-- "


def unfold(text: str, delsp: bool) -> str:
    r"""The text with `\n` line ends, quotes as "> " for each line. Never raises."""
    paragraphs: list[list[str]] = []
    depths: list[int] = []
    goes_on = False
    for line in text.replace("\r\n", "\n").split("\n"):
        depth, content = _parts(line)
        if not (goes_on and depths[-1] == depth and content not in {"", _SIGNATURE}):
            paragraphs.append([])
            depths.append(depth)
        goes_on = content.endswith(" ") and content != _SIGNATURE
        paragraphs[-1].append(content[:-1] if goes_on and delsp else content)
    return "\n".join(map(_line, depths, paragraphs))


def _parts(line: str) -> tuple[int, str]:
    depth = _QUOTE.match(line).end()  # type: ignore[union-attr]  # it matches anything
    content = line[depth:]
    return depth, content.removeprefix(" ")


def _line(depth: int, pieces: list[str]) -> str:
    content = "".join(pieces)
    if not depth:
        return content
    return ">" * depth + (f" {content}" if content else "")
