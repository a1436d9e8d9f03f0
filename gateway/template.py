"""A new channel begins as a copy of the template: connector, normalizer, their tests, example, the suite's driver."""

import keyword
import re
from pathlib import Path

from gateway import registry
from gateway.errors import Rejected

TEMPLATE = "echo"
_HERE = Path(__file__).parents[1]
FILES = (
    "connectors/{}.py",
    "normalizers/{}.py",
    "tests/connectors/test_{}.py",
    "tests/normalizers/test_{}.py",
    "config/channels/{}.example.yaml",
    "tests/contract/drivers/{}.py",
)


def copy(name: str, start: Path) -> list[Path]:
    """The files made, below the checkout that `start` is the top of, else the one we run from.

    Raises Rejected before anything is written: a name that will not do, a file that is there, no checkout.
    """
    _demand_name(name)
    root = _checkout(start)
    made = {root / path.format(name): (root / path.format(TEMPLATE)).read_text("utf-8") for path in FILES}
    for path in made:
        if path.exists():
            raise Rejected("conflict", f"{path} is there already; choose another name or remove it")
    for path, text in made.items():
        path.write_text(_renamed(text, name), "utf-8")
    return list(made)


def _demand_name(name: str) -> None:
    # It becomes a module, part of a class name, of a header's name and of an environment variable's.
    if not re.fullmatch(r"[a-z][a-z0-9]{1,30}", name) or keyword.iskeyword(name):
        raise Rejected(
            "invalid",
            "a channel type is 2 to 31 characters of a-z and 0-9, begins with a letter, and is no Python keyword",
        )
    if name in registry.types():
        raise Rejected("conflict", f"the channel type {name} is there already; choose another name")


def _checkout(start: Path) -> Path:
    for root in (start, _HERE):
        if all((root / path.format(TEMPLATE)).is_file() for path in FILES):
            return root
    raise Rejected(
        "not_found",
        f"{start} is not the top of a checkout of huiru: {FILES[0].format(TEMPLATE)} and what"
        " belongs to it are not all there",
    )


def _renamed(text: str, name: str) -> str:
    for word in (str.lower, str.capitalize, str.upper):
        text = text.replace(word(TEMPLATE), word(name))
    return text
