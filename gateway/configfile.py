"""A YAML file as plain data, with the line of every key, and with `${…}` filled in.

YAML 1.2, but dates stay text, merge keys (`<<`) work, and top-level keys that start with `x-` are a place for anchors.
In text values:

    ${NAME}            the environment variable; it must exist
    ${NAME:-default}   the default where the variable is absent or empty
    ${file:PATH}       the file's content without its last line break; PATH is relative to the configuration file
    $${                a plain ${

What came in that way is never repeated in a fault (R17).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gateway.errors import ConfigError

MAX_FILE_BYTES = 1 << 20
MAX_SECRET_BYTES = 64 << 10
MAX_VALUES = 50_000  # aliases of aliases can make a small file very large
MAX_DEPTH = 64

Key = tuple[str | int, ...]
_TAG = "tag:yaml.org,2002:"
_TEXT_TAGS = frozenset({"str", "timestamp", "value", "merge"})  # the last three are text in YAML 1.2's core schema
_OTHER_TAGS = frozenset({"null", "bool", "int", "float"})
_PLACEHOLDER = re.compile(
    r"(?P<escape>\$\$\{)"
    r"|\$\{file:(?P<file>[^{}$]+)\}"
    r"|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^{}$]*))?\}"
    r"|(?P<bad>\$\{)"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong at a line; line 0 means the file as a whole."""

    line: int
    key: Key
    text: str

    def show(self, file: str) -> str:
        """`FILE:LINE: key.path: what is wrong; remedy`, on one line."""
        place = f"{file}:{self.line}" if self.line else file
        return one_line(": ".join(part for part in (place, dotted(self.key), self.text) if part))


@dataclass(slots=True)
class ConfigFile:
    """What was read. A value with a fault is in `data` as None."""

    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[Key, int] = field(default_factory=dict)
    hidden: dict[Key, list[str]] = field(default_factory=dict)  # what came from the environment and from files
    faults: list[Fault] = field(default_factory=list)

    def line(self, key: Key) -> int:
        """The line of a key, or of the nearest section around it."""
        return next((self.lines[key[:end]] for end in range(len(key), -1, -1) if key[:end] in self.lines), 0)

    def position(self, fault: Fault) -> tuple[int, int]:
        """What faults are sorted by: the line, and within it the order of the keys."""
        return fault.line, next((n for n, key in enumerate(self.lines) if key == fault.key), 0)

    def add(self, key: Key, text: str) -> None:
        self.faults.append(Fault(self.line(key), key, text))


def read(path: Path, env: Mapping[str, str]) -> ConfigFile:
    """Raises ConfigError when the file cannot be read as YAML; every other fault is in the answer's `faults`."""
    try:
        text = _read_text(path, MAX_FILE_BYTES)
    except ValueError as error:
        raise ConfigError(
            Fault(0, (), f"{error}; name another file by --config or $HUIRU_CONFIG").show(str(path))
        ) from None
    file = ConfigFile()
    yaml = YAML(typ="safe", pure=True)
    root = _compose(yaml, text, path)
    if not isinstance(root, MappingNode):
        raise ConfigError(Fault(1, (), "expected keys such as `channels:`; the file holds none").show(str(path)))
    file.data = _Reader(file, yaml, env, path).mapping(root, ())
    return file


def dotted(key: Key) -> str:
    """`channels.web.fields[0].name`; parts that are not plain words are quoted."""
    return "".join(_shown(part) for part in key).removeprefix(".")


def one_line(text: str) -> str:
    """No control characters, so that a fault stays on its line and a terminal is not played with."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _shown(part: str | int) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if re.fullmatch(r"[\w-]{1,100}", part) else f'."{part[:100]}"'


def _read_text(path: Path, limit: int) -> str:
    """Raises ValueError that says why."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("is not a regular file")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if len(content) > limit:
        raise ValueError(f"is larger than {limit} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"is not UTF-8 text (line {line})") from None


def _compose(yaml: YAML, text: str, path: Path) -> Node | None:
    yaml.max_depth = MAX_DEPTH
    yaml.composer.warn_double_anchors = False  # YAML allows an anchor to be set again
    try:
        root: Node | None = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise ConfigError(one_line(f"{place}: not valid YAML: {_problem(error)}")) from None
    except YAMLError as error:  # a character YAML does not allow
        raise ConfigError(one_line(f"{path}: not valid YAML: {str(error).splitlines()[0]}")) from None
    return root


def _problem(error: MarkedYAMLError) -> str:
    """The parser's words without its snippet, which could show a secret."""
    return ", ".join(part.splitlines()[0] for part in (error.context, error.problem) if part)


class _Reader:
    """Turns YAML nodes into plain data; what is wrong becomes a fault of the file."""

    def __init__(self, file: ConfigFile, yaml: YAML, env: Mapping[str, str], path: Path) -> None:
        self._file = file
        self._yaml = yaml
        self._env = env
        self._path = path
        self._open: list[Node] = []
        self._values = 0

    def mapping(self, node: MappingNode, key: Key) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name_node, value_node in self._pairs(node, key):
            name = self._name(name_node, key)
            if name is None or (not key and name.startswith("x-")):
                continue
            below, line = (*key, name), name_node.start_mark.line + 1
            if name in found:
                first = self._file.lines[below]
                self._file.faults.append(Fault(line, below, f"given twice, first in line {first}; remove one"))
                continue
            self._file.lines[below] = line
            found[name] = self._value(value_node, below)
        return found

    def _pairs(self, node: MappingNode, key: Key) -> Iterator[tuple[Node, Node]]:
        """The mapping's own pairs, then those it merges in and does not have."""
        merged = [value for name, value in node.value if name.tag == _TAG + "merge"]
        own = [(name, value) for name, value in node.value if name.tag != _TAG + "merge"]
        yield from own
        seen = {name.value for name, _ in own if isinstance(name, ScalarNode)}
        for source in self._sources(merged, key):
            for name, value in source.value:
                if isinstance(name, ScalarNode) and name.value not in seen:
                    seen.add(name.value)
                    yield name, value

    def _sources(self, merged: list[Node], key: Key) -> Iterator[MappingNode]:
        for node in merged:
            for source in node.value if isinstance(node, SequenceNode) else [node]:
                if isinstance(source, MappingNode):
                    yield source
                else:
                    self._file.add(key, "`<<` takes a mapping or a list of them")

    def _name(self, node: Node, key: Key) -> str | None:
        if isinstance(node, ScalarNode) and node.tag == _TAG + "str" and _is_text(node.value):
            return str(node.value)
        shown = f" {node.value}" if isinstance(node, ScalarNode) and len(node.value) < 64 else ""
        self._file.faults.append(Fault(node.start_mark.line + 1, key, f"the key{shown} is not text; put it in quotes"))
        return None

    def _value(self, node: Node, key: Key) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            raise ConfigError(Fault(0, (), f"holds more than {MAX_VALUES} values").show(str(self._path)))
        if node in self._open:
            self._file.add(key, "an alias that contains itself")
            return None
        if isinstance(node, ScalarNode):
            return self._scalar(node, key)
        self._open.append(node)
        plain = self._plain_collection(node, key)
        found = self._collection(node, key) if plain else None
        self._open.pop()
        return found

    def _plain_collection(self, node: Node, key: Key) -> bool:
        if node.tag in {_TAG + "map", _TAG + "seq"}:
            return True
        self._file.add(key, f"the tag {node.tag} is not supported; leave it out")
        return False

    def _collection(self, node: Node, key: Key) -> Any:
        if isinstance(node, MappingNode):
            return self.mapping(node, key)
        for index, item in enumerate(node.value):
            self._file.lines[*key, index] = item.start_mark.line + 1
        return [self._value(item, (*key, index)) for index, item in enumerate(node.value)]

    def _scalar(self, node: ScalarNode, key: Key) -> Any:
        tag = str(node.tag).removeprefix(_TAG)
        if tag in _TEXT_TAGS:
            return self._text(node.value, key)
        if tag not in _OTHER_TAGS:
            self._file.add(key, f"the tag {node.tag} is not supported; leave it out")
            return None
        try:
            return _finite(self._yaml.constructor.construct_object(node))
        except (ValueError, LookupError, YAMLError):  # what the library makes of `!!int ""` is an IndexError
            self._file.add(key, f"not a valid {tag} value")
            return None

    def _text(self, text: str, key: Key) -> str | None:
        came: list[str] = []
        try:
            filled = _PLACEHOLDER.sub(lambda match: self._fill(match, came), text)
        except ValueError as error:
            self._file.add(key, str(error))
            return None
        if came:
            self._file.hidden[key] = came
        if _is_text(filled):
            return filled
        self._file.add(key, "holds a NUL or half a character; text is expected")
        return None

    def _fill(self, match: re.Match[str], came: list[str]) -> str:
        if match["escape"]:
            return "${"
        if match["bad"]:
            raise ValueError("write ${NAME}, ${NAME:-default} or ${file:PATH}; for a plain ${ write $${")
        value = self._file_content(match["file"]) if match["file"] else self._variable(match["name"], match["default"])
        if value:
            came.append(value)
        return value or match["default"] or ""

    def _variable(self, name: str, default: str | None) -> str:
        value = self._env.get(name, None if default is None else "")
        if value is None:
            raise ValueError(f"the environment variable {name} is not set; set it or write ${{{name}:-default}}")
        return value

    def _file_content(self, name: str) -> str:
        try:
            text = _read_text(self._path.parent / name, MAX_SECRET_BYTES)
        except ValueError as error:
            raise ValueError(f"the file {name} {error}") from None
        return text.removesuffix("\n").removesuffix("\r")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(value)
    return value


def _is_text(text: str) -> bool:
    return not re.search("[\0\ud800-\udfff]", text)
