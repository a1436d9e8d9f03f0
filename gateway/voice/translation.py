"""A vendor's record as a report, by its preset."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes
from zoneinfo import ZoneInfo

from gateway.contract import Request
from gateway.envelope import Oddity
from gateway.formdata import decode
from gateway.text import one_line, plain_text
from gateway.voice import numbers, times
from gateway.voice.preset import ABSENT, POSITIVE, PRESENT, ZERO, EventRule, Preset, RecordingRule, When, text_of
from gateway.voice.reading import Record, query, read
from gateway.voice.report import Recording, Report, Result

MAX_FIELDS = 200
MAX_RECORDINGS = 50
_MAX_ID_CHARS = 200
_MAX_CHARS = 1000
_MAX_TEXT_CHARS = 20_000
_MAX_NODES = 1000  # of a list that are looked into

_INDEX = re.compile(r"-?[0-9]{1,4}")
_HOLE = re.compile(r"\{([^{}]{1,200})\}")
_ADDRESS = re.compile(r"https?://[!-~]{1,4000}", re.IGNORECASE)
_NUMERIC = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,20})?")

Rule = TypeVar("Rule", bound=Any)


@dataclass(frozen=True, slots=True)
class Found:
    """A record and its report, or why there is none: then the record is authentic, but cannot be read."""

    record: Record
    report: Report | None = None
    fault: str = ""


def reports(preset: Preset, request: Request, region: str = "CN") -> list[Found]:
    """What an authenticated request says. `region` is that of numbers without a country code.

    Raises Rejected when nothing of the request can be read. The same request gives the same reports.
    """
    parameters = query(preset, request)
    return [
        _found(preset, record, _View(preset, record.data, parameters, request.headers), region)
        for record in read(preset, request)
    ]


def _found(preset: Preset, record: Record, view: "_View", region: str) -> Found:
    if record.fault:
        return Found(record, fault=record.fault)
    own_id = _call_id(preset, view.text(preset.map.call_id, _MAX_TEXT_CHARS))
    if not own_id:
        return Found(record, fault="the record has no call id")
    return Found(record, _report(preset, view, own_id, region))


@dataclass(slots=True)
class _View:
    """A record, looked at by paths. Nothing in it raises."""

    preset: Preset
    data: Mapping[str, Any]
    parameters: Mapping[str, Any]
    headers: Mapping[str, str]
    warnings: list[Oddity] = field(default_factory=list)

    def of(self, element: Any) -> "_View":
        return _View(self.preset, element if isinstance(element, dict) else {"": element}, {}, {}, self.warnings)

    def at(self, path: str) -> list[Any]:
        """Whatever lies there."""
        root, _, rest = path.partition(".")
        if root == "$query":
            return _flat([self.parameters.get(rest)])
        if root == "$header":
            return _flat([self.headers.get(rest)])
        return _flat([self.data[path]] if path in self.data else _walk(self.data, path))

    def texts(self, paths: Iterable[str], max_chars: int = _MAX_CHARS) -> list[str]:
        """What the first path that says something says."""
        for path in paths:
            encoded = self.preset.percent_encoded and not path.startswith("$")
            said = [self._plain(value, encoded, max_chars) for value in self.at(path)]
            if any(said):
                return [text for text in said if text]
        return []

    def text(self, paths: Iterable[str], max_chars: int = _MAX_CHARS) -> str:
        return next(iter(self.texts(paths, max_chars)), "")

    def joined(self, paths: Iterable[str]) -> str:
        return ",".join(self.texts(paths))[:_MAX_CHARS]

    def whether(self, when: When) -> bool:
        return all(self._agrees(path, values) for path, values in when.items())

    def first(self, rules: Sequence[Rule]) -> Rule | None:
        return next((rule for rule in rules if self.whether(rule.when)), None)

    def moment(self, name: str, paths: Iterable[str]) -> datetime | None:
        text = self.text(paths)
        try:
            return times.moment(text, ZoneInfo(self.preset.zone), self.preset.time_formats)
        except ValueError as error:
            self._odd(name, text, error)
            return None

    def seconds(self, name: str, paths: Iterable[str]) -> float | None:
        text = self.text(paths)
        try:
            return times.seconds(text)
        except ValueError as error:
            self._odd(name, text, error)
            return None

    def _odd(self, name: str, text: str, error: ValueError) -> None:
        self.warnings.append(Oddity(code="odd_time", detail=f"{name} {text[:64]!r} {error}"))

    def _plain(self, value: Any, encoded: bool, max_chars: int) -> str:
        text = text_of(value)
        text = one_line(_percent_decoded(text) if encoded else text)[:max_chars]
        return "" if text.lower() in self.preset.nothing else text

    def _agrees(self, path: str, values: Sequence[str]) -> bool:
        texts = self.texts((path,))
        there = bool(texts) or any(isinstance(value, dict) and value for value in self.at(path))
        return any(_is(texts, value, there) for value in values)


def _is(texts: Sequence[str], value: str, there: bool) -> bool:
    if value in (PRESENT, ABSENT):
        return there is (value == PRESENT)
    if value in (POSITIVE, ZERO):
        positive = any(_NUMERIC.fullmatch(text) and float(text) > 0 for text in texts)
        return positive is (value == POSITIVE)
    return value in texts


def _walk(data: Any, path: str) -> list[Any]:
    nodes = [data]
    for segment in path.split("."):
        nodes = [child for node in nodes for child in _children(node, segment)][:_MAX_NODES]
    return nodes


def _children(node: Any, segment: str) -> Iterator[Any]:
    if isinstance(node, dict) and segment in node:
        yield node[segment]
    elif _INDEX.fullmatch(segment):
        elements = node if isinstance(node, list) else [node]
        if -len(elements) <= int(segment) < len(elements):
            yield elements[int(segment)]
    elif isinstance(node, list):
        yield from (
            element[segment] for element in node[:_MAX_NODES] if isinstance(element, dict) and segment in element
        )


def _flat(found: Iterable[Any]) -> list[Any]:
    return [value for node in found for value in (node[:_MAX_NODES] if isinstance(node, list) else [node])]


def _percent_decoded(text: str) -> str:
    """A plus is a plus. FreeSWITCH cuts the last byte of a text that is encoded throughout (the buffer that
    switch_ivr_set_json_chan_vars gives to switch_url_encode is one byte short): half a character is left out."""
    raw = unquote_to_bytes(text)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        cut = error.reason == "unexpected end of data" and error.start > 0
        return raw[: error.start].decode() if cut else decode(raw)


def _report(preset: Preset, view: _View, own_id: str, region: str) -> Report:
    names, event = preset.map, view.first(preset.events)
    second = preset.second_leg if preset.second_leg and view.whether(preset.second_leg.when) else None
    call_id = _call_id(preset, view.text(second.call_id, _MAX_TEXT_CHARS)) if second else ""
    caller = numbers.number(view.text(names.caller), region)
    callee = numbers.number(view.text(names.callee), region)
    direction, hangup = view.first(preset.directions), view.first(preset.hangups)
    known = {name: view.text(getattr(names, name)) or None for name in _TEXTS}
    moments = _moments(view, event)
    lengths = {name: view.seconds(name, getattr(names, name)) for name in ("ring_seconds", "talk_seconds")}
    return Report(
        call_id=call_id or own_id,
        kind=event.then if event else "other",
        event_id=_event_id(view, event, own_id if second else ""),
        leg="b" if second else "a",
        direction=direction.then if direction else "unknown",
        caller=caller.text,
        caller_masked=caller.masked,
        caller_hidden=caller.hidden,
        callee=callee.text,
        callee_masked=callee.masked,
        **moments,
        **_with_talk(moments, lengths),
        result=_result(preset, view, event),
        keys_pressed=view.joined(names.keys_pressed) or None,
        ivr_choice=view.joined(names.ivr_choice) or None,
        hangup_by=hangup.then if hangup else view.text(names.hangup_by) or None,
        fields=_fields(preset, view),
        recordings=_recordings(preset, view),
        transcription=plain_text(view.text(names.transcription, _MAX_TEXT_CHARS)) or None,
        sequence=_count(view.text(names.sequence)),
        warnings=tuple(dict.fromkeys(view.warnings)),
        **known,
    )


def _moments(view: _View, event: EventRule | None) -> dict[str, datetime | None]:
    names = view.preset.map
    found = {name: view.moment(name, getattr(names, name)) for name in _WHEN.values()}
    own = _WHEN.get(event.then) if event else None
    if own and found[own] is None:
        found[own] = view.moment("timestamp", names.timestamp)
    return found


_WHEN = {"ring": "started_at", "answered": "answered_at", "ended": "ended_at"}
_TEXTS = ("caller_name", "their_result", "queue", "agent")


def _call_id(preset: Preset, text: str) -> str:
    for prefix in preset.id_prefixes:
        text = text.removeprefix(prefix)
    return _bounded(text)


def _event_id(view: _View, event: EventRule | None, second: str) -> str:
    parts = [event.then if event else "other", *(["b", second] if second else [])]
    parts += [",".join(view.texts((path,))) for path in (event.id if event else ())]
    return _bounded(":".join(parts).rstrip(":"))


def _bounded(id_: str) -> str:
    """An id beyond reason, by its digest: it still tells what it is of."""
    return id_ if len(id_) <= _MAX_ID_CHARS else sha256(id_.encode("utf-8", "replace")).hexdigest()


def _result(preset: Preset, view: _View, event: EventRule | None) -> Result | None:
    kind, rule = event.then if event else "other", view.first(preset.results)
    if kind == "voicemail":
        return "voicemail"
    if rule:
        return rule.then
    return "unknown" if kind == "ended" else None


def _with_talk(moments: Mapping[str, datetime | None], lengths: dict[str, float | None]) -> dict[str, float | None]:
    answered, ended = moments["answered_at"], moments["ended_at"]
    if lengths["talk_seconds"] is None and answered and ended and ended >= answered:
        return lengths | {"talk_seconds": (ended - answered).total_seconds()}
    return lengths


def _count(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,15}", text) else None


# Recordings


def _recordings(preset: Preset, view: _View) -> tuple[Recording, ...]:
    found: dict[str, Recording] = {}
    for rule in preset.recordings:
        if view.whether(rule.when):
            for recording in _of_rule(rule, view):
                found.setdefault(recording.id, recording)
    if len(found) > MAX_RECORDINGS:
        view.warnings.append(Oddity(code="too_many_recordings", detail=f"{len(found)}"))
    return tuple(found.values())[:MAX_RECORDINGS]


def _of_rule(rule: RecordingRule, view: _View) -> Iterator[Recording]:
    places = [view] if rule.each is None else [view.of(element) for element in view.at(rule.each)]
    for place in places:
        url = _filled(rule.url, place)
        if not url:
            continue
        if not _ADDRESS.fullmatch(url):
            view.warnings.append(Oddity(code="odd_recording", detail=f"{url[:200]!r} is not an address"))
            continue
        id_ = ":".join(filter(None, (place.text((path,)) for path in rule.id)))
        yield Recording(
            id=_bounded(id_ or url), url=url, kind=rule.kind, seconds=place.seconds("recording", rule.seconds)
        )


def _filled(template: str, view: _View) -> str:
    """Empty when one of its holes is."""
    if "{" not in template:
        return view.text((template,), 4096)
    holes = [view.text((path,), 4096) for path in _HOLE.findall(template)]
    return _HOLE.sub(lambda _: holes.pop(0), template) if all(holes) else ""


# Fields


def _fields(preset: Preset, view: _View) -> dict[str, Any]:
    found = {name: text for name, paths in preset.fields.items() if (text := view.joined(paths))}
    for members in (_members(view, path) for path in preset.spread):
        found |= {name: value for name, value in members if name not in found}
    if preset.rest:
        used = _used(preset)
        found |= {name: value for name, value in _plain_items(view, view.data) if name not in used | found.keys()}
    if len(found) > MAX_FIELDS:
        view.warnings.append(Oddity(code="too_many_fields", detail=f"{len(found)}"))
    return dict(list(found.items())[:MAX_FIELDS])


def _members(view: _View, path: str) -> Iterator[tuple[str, Any]]:
    for node in view.at(path):
        members = _object(node) if isinstance(node, str) else node
        if isinstance(members, dict):
            yield from _plain_items(view, members)


def _object(text: str) -> Any:
    try:
        return json.loads(text, parse_int=str, parse_float=str) if text.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return None


def _plain_items(view: _View, node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        plain = _plain(view, value)
        if plain not in ("", None) and (key := one_line(name)[:128]):
            yield key, plain


def _plain(view: _View, value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return one_line(_percent_decoded(value) if view.preset.percent_encoded else value)[:_MAX_CHARS]
    return None if value is None else one_line(json.dumps(value, ensure_ascii=False))[:_MAX_CHARS]


def _used(preset: Preset) -> set[str]:
    """The names that something reads, by themselves or with what is in them."""
    paths = [path for name in type(preset.map).model_fields for path in getattr(preset.map, name)]
    rules: list[Any] = [*preset.events, *preset.results, *preset.directions, *preset.hangups, *preset.recordings]
    paths += [path for rule in rules for path in rule.when]
    paths += [path for rule in preset.events for path in rule.id]
    for rule in preset.recordings:
        paths += [rule.each or "", *rule.id, *rule.seconds, *(_HOLE.findall(rule.url) or [rule.url])]
    paths += [path for paths in preset.fields.values() for path in paths] + list(preset.spread)
    return {name for path in paths for name in (path, path.partition(".")[0])}
