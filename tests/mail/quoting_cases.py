"""The texts of tests/payloads/quoting with what of them was written now."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "payloads" / "quoting"
_MARKS = {"+": "text", "|": "quoted", "~": "signature"}


@dataclass(frozen=True)
class Case:
    """One text; `parts` has the lines of each part that are not empty, without blanks around them."""

    name: str
    text: str
    parts: dict[str, list[str]]


def cases() -> Iterator[Case]:
    for file in sorted(FOLDER.glob("*.txt")):
        _, *blocks = re.split(r"(?m)^# ", file.read_text("utf-8"))
        for block in blocks:
            name, _, marked = block.partition("\n")
            yield _case(f"{file.stem}: {name}", marked.strip("\n").split("\n"))


def _case(name: str, marked: list[str]) -> Case:
    parts: dict[str, list[str]] = {part: [] for part in _MARKS.values()}
    for line in marked:
        if line:
            parts[_MARKS[line[0]]].append(line[2:].replace("␠", " ").strip())
    text = "\n".join(line[2:].replace("␠", " ") for line in marked)
    return Case(name, text, {part: [line for line in lines if line] for part, lines in parts.items()})


def full_lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]
