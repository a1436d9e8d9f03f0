"""Finds connectors by channel type and normalizers by message kind, without knowing any of them.

`connectors/<type>.py` defines a class `Connector`, `normalizers/<kind>.py` a function `normalize`. Others offer
theirs as entry points `<type> = "package.module"` in the groups `huiru.connectors` and `huiru.normalizers`; our own
names win.
Modules are imported when they are asked for, so that a channel's libraries are needed only where it is used. A look-up
reads folders: do it once and keep the answer.
"""

import difflib
import pkgutil
import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, requires
from types import ModuleType
from typing import cast

from gateway.contract import Connector, Normalizer
from gateway.errors import ConfigError

CONNECTORS = "connectors"
NORMALIZERS = "normalizers"


def connector(type_: str) -> type[Connector]:
    """The connector class of a channel type. Raises ConfigError: unknown, or a library is missing."""
    return cast("type[Connector]", _member(CONNECTORS, "channel type", type_, "Connector"))


def connector_module(type_: str) -> ModuleType:
    """The module of a channel type, for what some channels offer beside the contract. Raises ConfigError."""
    return _module(CONNECTORS, "channel type", type_)


def normalizer(kind: str) -> Normalizer:
    """The normalizer of a message kind. Raises ConfigError: unknown, or a library is missing."""
    return cast("Normalizer", _member(NORMALIZERS, "message kind", kind, "normalize"))


def types() -> list[str]:
    """Every channel type there is, in alphabetical order; nothing is imported for it."""
    return sorted(_modules(CONNECTORS))


def closest(word: str, choices: list[str]) -> str:
    """`did you mean webform?`, or nothing when no choice is near."""
    near = difflib.get_close_matches(word.lower(), choices, n=1)
    return f"did you mean {near[0]}?" if near else ""


def _modules(package: str) -> dict[str, str]:
    """Name -> module path. Ours go before those of others."""
    outside = {point.name: point.module for point in entry_points(group=f"huiru.{package}") if _is_name(point.name)}
    return outside | _own_modules(package)


def _own_modules(package: str) -> dict[str, str]:
    folder = import_module(package).__path__
    return {name: f"{package}.{name}" for _, name, _ in pkgutil.iter_modules(folder) if _is_name(name)}


def _is_name(text: str) -> bool:
    return text.isidentifier() and not text.startswith("_")


def _module(package: str, noun: str, name: str) -> ModuleType:
    known = _own_modules(package)
    if name not in known:  # for the others every installed distribution is read: tens of milliseconds
        known = _modules(package)
    if name not in known:
        raise ConfigError(_unknown(noun, name, sorted(known)))
    try:
        return import_module(known[name])
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise ConfigError(f"{noun} {name} needs the library {missing}; {_how_to_install(missing)}") from error


def _member(package: str, noun: str, name: str, attribute: str) -> object:
    module = _module(package, noun, name)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ConfigError(f"{noun} {name}: {module.__name__} defines no {attribute}") from None


def _unknown(noun: str, name: str, known: list[str]) -> str:
    shown = name if name.isprintable() and len(name) <= 64 else "of this name"
    hint = closest(name, known)
    return f"unknown {noun} {shown}; {hint + ' ' if hint else ''}there are: {', '.join(known)}"


def _how_to_install(library: str) -> str:
    """By the extra of our own package that brings the library, where one does."""
    extra = _extra(library)
    return f"install it by: pip install {f'huiru[{extra}]' if extra else library}"


def _extra(library: str) -> str:
    try:
        requirements = requires("huiru") or []
    except PackageNotFoundError:  # run from a checkout that was not installed
        return ""
    for requirement in requirements:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", requirement)
        if name and extra and name[0].lower().replace("-", "_") == library.lower():
            return extra[1]
    return ""
