"""A vendor as data: what it sends, how that reads in our words, and what it wants to hear.

The built-in ones are the YAML files in `presets/`; each says at its top what was verified and what was not. An operator
names one, overrides some of its keys, or writes a whole one:

    preset: twilio
    preset: {use: tccc, zone: Asia/Singapore, map: {agent: SeatUser.Name}}
    preset: {name: ours, formats: [json], map: {call_id: id, caller: from}, events: [{then: ended}]}

A path says where a value lies: `CallSid`; `SeatUser.Name` in an object; `callflow.0.name` and `callflow.-1.name` in a
list (a value that stands alone is a list of one); a name behind a list is looked for in each of its elements.
`$query.action` is a parameter of the address, `$header.X-Name` a header. Of several paths the first that says
something counts.

A condition names paths and what they may say: one value, a list of them, or `<present>`, `<absent>`, `<positive>` (a
number above zero), `<zero>` (that or nothing). All paths of a condition must agree; no condition is always true. Of
several rules the first whose condition is true counts.
"""

from collections.abc import Mapping
from pathlib import Path as File
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field
from ruamel.yaml import YAML

from gateway.contract import Settings
from gateway.voice.report import Direction, Kind, Result, Sound

PRESENT, ABSENT, POSITIVE, ZERO = "<present>", "<absent>", "<positive>", "<zero>"
_FOLDER = File(__file__).with_name("presets")

Format = Literal["query", "form", "json", "array", "xml", "wrapped"]
Scheme = Literal["path", "basic", "bearer", "header", "twilio", "hmac", "networks", "none"]


def text_of(value: Any) -> str:
    """A value of JSON or YAML as vendors write it in a form: `1`, `1.5`, `true`, and nothing for null."""
    if value is None or isinstance(value, list | dict):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _several(given: Any) -> Any:
    return (given,) if isinstance(given, str) else given


def _texts(given: Any) -> Any:
    return tuple(map(text_of, given)) if isinstance(given, list | tuple) else (text_of(given),)


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, OSError, ValueError) as error:  # by what is wrong with the name
        raise ValueError("expected the name of a time zone, such as Asia/Shanghai") from error
    return name


Zone = Annotated[str, AfterValidator(_zone)]
Path = Annotated[str, Field(min_length=1, max_length=200)]
Paths = Annotated[
    tuple[Path, ...],
    BeforeValidator(_several, json_schema_input_type=str | list[str]),
    Field(description="where it lies: a path, or several, of which the first that says something counts"),
]
Values = Annotated[
    tuple[str, ...], BeforeValidator(_texts, json_schema_input_type=str | int | bool | list[str | int | bool])
]
When = Annotated[dict[Path, Values], Field(description="a condition; none: always")]


class EventRule(Settings):
    """What kind of callback it is."""

    then: Kind = Field(description="`other` is understood and makes nothing")
    when: When = {}
    id: Paths = Field(
        default=(), description="what tells it from others of its kind and call, all of it; none: nothing"
    )


class ResultRule(Settings):
    """How the call ended."""

    then: Result = Field(description="in our words")
    when: When = {}


class DirectionRule(Settings):
    """Who called whom."""

    then: Direction = Field(description="as the customer's call or ours")
    when: When = {}


class HangupRule(Settings):
    """Who hung up."""

    then: Literal["customer", "agent", "system"] = Field(description="in our words")
    when: When = {}


class RecordingRule(Settings):
    """Where a record has the address of a sound file."""

    kind: Sound = Field(default="recording", description="what the file is")
    each: Path | None = Field(
        default=None, description="a list with one recording in each element: a text or an object"
    )
    url: str = Field(
        default="",
        description="a path, or a template with paths in braces: `{FileServer}/{RecordFile}`; in `each` from its"
        " element on, empty where the element is the address",
    )
    id: Paths = Field(default=(), description="the vendor's id; none: the address")
    seconds: Paths = ()
    when: When = {}


class Map(Settings):
    """Their names for what a report has."""

    call_id: Paths = Field(min_length=1)
    caller: Paths = ()
    caller_name: Paths = ()
    callee: Paths = ()
    started_at: Paths = ()
    answered_at: Paths = ()
    ended_at: Paths = ()
    timestamp: Paths = Field(
        default=(),
        description="when this very event was: the start of a ring, the answer or the end, where no other path says it",
    )
    ring_seconds: Paths = ()
    talk_seconds: Paths = ()
    their_result: Paths = ()
    keys_pressed: Paths = ()
    ivr_choice: Paths = ()
    queue: Paths = ()
    agent: Paths = ()
    hangup_by: Paths = ()
    transcription: Paths = ()
    sequence: Paths = ()


class SecondLeg(Settings):
    """Which records are of the leg to an agent, and of which call."""

    when: When
    call_id: Paths = Field(default=(), description="the id of the call it belongs to; none: as of any other record")


class Answer(Settings):
    """What the vendor is told."""

    status: int = Field(default=200, ge=200, le=599, description="of HTTP")
    content_type: str = Field(
        default="text/plain; charset=utf-8", max_length=100, description="what the body is sent as"
    )
    body: str | dict[str, Any] = Field(
        default="",
        description="a mapping is sent as JSON, or as a form where the content type is one; `{reference}` in a text is"
        " the ticket's reference, empty where no ticket was made; `{message}` what a failure is",
    )


class Fetching(Settings):
    """How recordings are fetched."""

    scheme: Literal["none", "basic", "bearer", "header"] = Field(default="none", description="what the server wants")
    hosts: tuple[str, ...] = Field(
        default=(), description="credentials are sent to these hosts and what is below them, and nowhere else"
    )


class Preset(Settings):
    """A vendor."""

    name: str = Field(pattern=r"^[a-z0-9_-]{1,40}$", description="the vendor's, in small letters")
    formats: tuple[Format, ...] = Field(
        min_length=1,
        description="`query`: the address' parameters; `form`; `json`: an object; `array`: of objects; `xml`;"
        " `wrapped`: JSON or XML in the form value `wrapper`, as it is, URL-encoded or in base64",
    )
    wrapper: str = Field(default="cdr", min_length=1, max_length=100, description="the form value of `wrapped`")
    records: Path | None = Field(
        default=None, description="where in an object the list of records lies; null: it is one"
    )
    appended_query: bool = Field(
        default=False, description="a further `?` in the address separates parameters: the vendor appends blindly"
    )
    percent_encoded: bool = Field(default=False, description="values inside the record are URL-encoded once more")
    nothing: tuple[str, ...] = Field(default=(), description="values that say nothing, beside the empty one: `none`")
    zone: Zone = Field(default="Asia/Shanghai", description="of times that name none: an IANA name")
    time_formats: tuple[str, ...] = Field(
        default=(), description="of times beyond the usual ones, as strptime has them: `%d.%m.%Y %H:%M`"
    )
    map: Map = Field(description="their names for what a report has")
    id_prefixes: tuple[str, ...] = Field(default=(), description="what stands before a call id and is no part of it")
    events: tuple[EventRule, ...] = Field(min_length=1, description="which kinds of callback there are")
    results: tuple[ResultRule, ...] = Field(default=(), description="how calls end")
    directions: tuple[DirectionRule, ...] = Field(default=(), description="who called whom")
    hangups: tuple[HangupRule, ...] = Field(default=(), description="who hung up; what none knows stays as it came")
    second_leg: SecondLeg | None = Field(default=None, description="which records are of the leg to an agent")
    recordings: tuple[RecordingRule, ...] = Field(default=(), description="where sound files are named")
    fetching: Fetching = Field(default=Fetching(), description="how recordings are fetched")
    fields: dict[str, Paths] = Field(default={}, description="our name -> their path, for the ticket's `fields`")
    spread: Paths = Field(default=(), description="objects, or objects as JSON text, whose members become fields")
    rest: bool = Field(default=False, description="what nothing else reads becomes a field by its own name")
    authentication: Scheme | None = Field(
        default=None, description="what the vendor offers, where the channel does not say; null: the channel must say"
    )
    success: Answer = Field(default=Answer(), description="when everything is durable")
    failure: Answer = Field(default=Answer(status=503), description="what makes the vendor try again")


def names() -> list[str]:
    """The built-in presets."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def preset(given: str | Mapping[str, Any]) -> Preset:
    """By name, by name with overrides (`use`), or whole. Raises ValueError, as pydantic does.

    An override of a mapping adds to it and replaces its keys one by one; anything else is replaced as a whole.
    """
    if isinstance(given, str):
        return Preset.model_validate(_built_in(given))
    own = dict(given)
    base = own.pop("use", None)
    return Preset.model_validate(_overridden(_built_in(base), own) if base is not None else own)


def _built_in(name: Any) -> dict[str, Any]:
    if name not in names():
        raise ValueError(f"expected one of the presets {', '.join(names())}, or a mapping that describes one")
    document = YAML(typ="safe", pure=True).load((_FOLDER / f"{name}.yaml").read_text("utf-8"))
    return {"name": name, **document}


def _overridden(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in own.items():
        before = merged.get(key)
        merged[key] = {**before, **value} if isinstance(before, dict) and isinstance(value, Mapping) else value
    return merged
