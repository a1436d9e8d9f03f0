"""What pydantic says about a configuration file, in an operator's words, with the line and the remedy."""

import re
from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from gateway import registry
from gateway.configfile import ConfigFile, Fault, Key, dotted
from gateway.contract import ChannelSettings
from gateway.errors import ConfigError

_HIDDEN = "is not valid (the value is not shown)"
_EXPECTED: Mapping[str, str] = {
    "string_type": "text",
    "path_type": "text (a path)",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping (`key: value` lines)",
    "mapping_type": "a mapping (`key: value` lines)",
    "model_type": "a mapping (`key: value` lines)",
    "model_attributes_type": "a mapping (`key: value` lines)",
    "byte_size": "a size in bytes or with a unit, as in 64 MiB",
    "byte_size_unit": "a size in bytes or with a unit, as in 64 MiB",
    "datetime_type": "a date and time such as 2026-11-23T09:00:00Z",
    "datetime_parsing": "a date and time such as 2026-11-23T09:00:00Z",
    "datetime_from_date_parsing": "a date and time such as 2026-11-23T09:00:00Z",
    "date_type": "a date such as 2026-11-23",
    "date_parsing": "a date such as 2026-11-23",
    "date_from_datetime_parsing": "a date such as 2026-11-23",
}
_Speak = Callable[[ErrorDetails, Key, Any, type[BaseModel]], str]
_QUOTE = "; put it in quotes"


def explain(error: ValidationError, file: ConfigFile, model: type[BaseModel]) -> list[Fault]:
    """One fault for each place, none where reading the file found one already."""
    known = {fault.key for fault in file.faults}
    places: dict[Key, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        places.setdefault(_place(detail, file.data), []).append(detail)
    places = {key: details for key, details in places.items() if not any(key[: len(one)] == one for one in known)}
    return [
        Fault(file.line(key), key, _safe(_words(key, details, file.data, model), key, file, model))
        for key, details in places.items()
        if not _is_other_branch(key, details, places)
    ]


def _place(detail: ErrorDetails, data: Any) -> Key:
    """pydantic's location without what is no key of the file: the names of a union's branches."""
    place: list[str | int] = []
    for part in detail["loc"]:
        if _has(data, part):
            place.append(part)
            data = data[part]
    if detail["type"] == "missing":
        place.append(detail["loc"][-1])
    if detail["type"].startswith("union_tag"):
        place.append(detail["ctx"]["discriminator"].strip("'"))
    return tuple(place)


def _has(data: Any, part: str | int) -> bool:
    if isinstance(data, list):
        return isinstance(part, int) and 0 <= part < len(data)
    return isinstance(data, dict) and part in data


def _at(data: Any, key: Key) -> Any:
    for part in key:
        data = data[part] if _has(data, part) else None
    return data


def _is_other_branch(key: Key, details: list[ErrorDetails], places: Mapping[Key, object]) -> bool:
    """A union's branch that wants another kind of value, while the branch meant has faults further in."""
    deeper = any(len(other) > len(key) and other[: len(key)] == key for other in places)
    return deeper and all(detail["type"] in _EXPECTED for detail in details)


def _words(key: Key, details: list[ErrorDetails], data: Any, model: type[BaseModel]) -> str:
    kinds = dict.fromkeys(_EXPECTED[detail["type"]] for detail in details if detail["type"] in _EXPECTED)
    others = [detail for detail in details if detail["type"] not in _EXPECTED]
    if others:
        return "; ".join(dict.fromkeys(_sentence(detail, key, data, model) for detail in others))
    return f"expected {' or '.join(kinds)}, found {_found(_at(data, key), 'text' in kinds)}"


def _sentence(detail: ErrorDetails, key: Key, data: Any, model: type[BaseModel]) -> str:
    speak: _Speak = _SENTENCES.get(detail["type"], _plain)
    return speak(detail, key, data, model)


def _plain(detail: ErrorDetails, *_: object) -> str:
    text = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    for ours in ("Input should", "Value should", "String should", "Data should"):
        if text.startswith(ours):
            return "must" + text.removeprefix(ours)
    return text


def _missing(_detail: ErrorDetails, key: Key, *_: object) -> str:
    section = dotted(key[:-1])
    return f"the key is missing; add it {f'to {section}' if section else 'to the file'}"


def _unknown_key(_detail: ErrorDetails, key: Key, data: Any, model: type[BaseModel]) -> str:
    options = (option for option in _annotations(model, data, key[:-1]) if _is_model(option))
    known = sorted({field.alias or name for option in options for name, field in option.model_fields.items()})
    hint = registry.closest(str(key[-1]), known)
    if not known:
        return "unknown key; remove it"
    return f"unknown key; {hint or 'the keys here are: ' + ', '.join(known)}"


def _choice(detail: ErrorDetails, key: Key, data: Any, *_: object) -> str:
    listed = detail["ctx"].get("expected") or detail["ctx"].get("expected_tags") or ""
    choices = [choice.strip(" '") for choice in listed.replace(" or ", ", ").split(",")]
    value = _at(data, key)
    hint = registry.closest(value, choices) if isinstance(value, str) else ""
    return f"must be one of: {', '.join(choices)}{'; ' + hint if hint else ''}"


def _no_tag(detail: ErrorDetails, *_: object) -> str:
    return "the key is missing; add it: it says which kind this is"


_SENTENCES: Mapping[str, _Speak] = {
    "missing": _missing,
    "extra_forbidden": _unknown_key,
    "literal_error": _choice,
    "enum": _choice,
    "union_tag_invalid": _choice,
    "union_tag_not_found": _no_tag,
}


def _found(value: Any, wants_text: bool) -> str:
    match value:
        case None:
            return "nothing; give a value or remove the key"
        case bool():
            return "true or false" + _QUOTE * wants_text
        case int() | float():
            return "a number" + _QUOTE * wants_text
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "a mapping"


def _safe(text: str, key: Key, file: ConfigFile, model: type[BaseModel]) -> str:
    """The text, unless it repeats a value that is secret or may be (R17)."""
    for place, value in _texts(_at(file.data, key), key):
        secret = SecretStr in _annotations(model, file.data, place)
        if any(_repeats(text, one) for one in [*file.hidden.get(place, ()), *([value] if secret else [])]):
            return _HIDDEN
    return text


def _repeats(text: str, value: str) -> bool:
    # A short value is looked for as a word: `a` is in every text.
    return value in text if len(value) > 7 else re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


def _texts(data: Any, key: Key) -> Iterator[tuple[Key, str]]:
    """Every text value at or below a key that is not empty."""
    if isinstance(data, str) and data:
        yield key, data
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for part, value in items:
        yield from _texts(value, (*key, part))


def _annotations(annotation: Any, data: Any, key: Key) -> Iterator[Any]:
    """The types that the models give to a key: several for a union, none where the data fits nothing."""
    for option in _branches(annotation, data):
        if not key:
            yield option
        elif (below := _below(option, key[0])) is not None:
            yield from _annotations(below, _at(data, key[:1]), key[1:])


def _branches(annotation: Any, data: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _branches(get_args(annotation)[0], data)
    elif origin in (Union, UnionType):
        for option in get_args(annotation):
            yield from _branches(option, data)
    elif annotation is ChannelSettings:
        yield from _channel_settings(data)
    elif not _is_model(annotation) or _type_fits(annotation, data):
        yield annotation


def _channel_settings(data: Any) -> Iterator[type[ChannelSettings]]:
    try:
        yield registry.connector(data["type"]).Settings
    except (ConfigError, TypeError, KeyError):
        return


def _below(option: Any, part: str | int) -> Any:
    """The annotation of a model's field, of a list's items or of a mapping's values."""
    if _is_model(option):
        field = option.model_fields.get(str(part))
        return field.annotation if field else None
    arguments = get_args(option)
    return arguments[isinstance(part, str)] if len(arguments) > isinstance(part, str) else None


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _type_fits(model: type[BaseModel], data: Any) -> bool:
    """Whether the data's `type` is the one by which a union of models tells this one from the others."""
    tag = model.model_fields.get("type")
    choices = get_args(tag.annotation) if tag and get_origin(tag.annotation) is Literal else ()
    return not choices or not isinstance(data, dict) or data.get("type") in choices
