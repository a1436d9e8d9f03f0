"""The message that a program hands in as JSON: its shape, its limits, and every fault of one that is not so.

What `parse` lets through, a normalizer can read. `null` and an empty string are the same as no key.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from gateway.errors import Rejected

MAX_ATTACHMENTS = 100
MAX_FIELDS = 200
MAX_FIELD_DEPTH = 16  # beyond it some consumers' parsers give up
MAX_LISTED_FAULTS = 100
LOWEST, HIGHEST = -(2**63), 2**63 - 1  # what every consumer's integers hold

_COMPONENT = "#/components/schemas/{model}"
# The patterns mean the same to pydantic (Rust), to JSON Schema (ECMA 262) and to Python: no \d, \s or \w.
_SOMETHING = r"[^\x00-\x20]"
_EMAIL = r"^([^@\x00-\x20]+@[^@\x00-\x20]+)?$"
_BASE64 = r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_FIELD_NAME = r"^[^\x00-\x1f]{1,128}$"
# RFC 3339 in capitals, on days that exist, from 1970 to 2199.
_YEAR = "(19[7-9][0-9]|2[01][0-9]{2})"
_LEAP_YEAR = "(19(7[26]|8[048]|9[26])|20([02468][048]|[13579][26])|21(0[48]|[2468][048]|[13579][26]))"
_DAY_OF_YEAR = "((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
_HOUR = "([01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = (
    f"^(({_YEAR}-{_DAY_OF_YEAR}|{_LEAP_YEAR}-02-29)"
    rf"T{_HOUR}:[0-5][0-9](\.[0-9]{{1,9}})?(Z|[+-]{_HOUR}))?$"
)
_is_field_name = re.compile(_FIELD_NAME.replace("$", r"\Z")).match

# pydantic's kinds of fault -> our codes and texts. A kind that is not here keeps its own.
_KINDS = {
    "missing": ("missing", "is missing"),
    "string_type": ("wrong_type", "must be a text"),
    "dict_type": ("wrong_type", "must be an object"),
    "model_type": ("wrong_type", "must be an object"),
    "tuple_type": ("wrong_type", "must be a list"),
    "string_too_long": ("too_long", "has more than {max_length} characters"),
    "too_long": ("too_many", "has more than {max_length} entries"),
}
_FORMATS: Mapping[str | int, str] = {
    "text": "must say something",
    "email": "is no e-mail address",
    "content": "must be standard base64: padded, in one line, without a data: prefix",
    "sent_at": "must be a time such as 2026-11-23T09:00:00Z or 2026-11-23T17:00:00.123+08:00",
    "fields": "has a key that is empty, longer than 128 characters, or has control characters",
}
_VALUE_FAULTS = {
    "too_deep": f"nests more than {MAX_FIELD_DEPTH} levels",
    "out_of_range": "has a number that does not fit 64 bits; send it as text",
    "wrong_format": _FORMATS["fields"],
}
_OWN_KIND = "huiru_"


def _plain(value: Any) -> Any:
    """A field's value, unless a consumer's parser or database would choke on it."""
    if code := _value_fault(value, MAX_FIELD_DEPTH):
        raise PydanticCustomError(_OWN_KIND + code, _VALUE_FAULTS[code])
    return value


def _value_fault(value: Any, depth: int) -> str:
    if isinstance(value, int | float):  # NaN is not within any bounds
        return "" if LOWEST <= value <= HIGHEST else "out_of_range"
    if not isinstance(value, list | dict):
        return ""
    if depth == 0:
        return "too_deep"
    if isinstance(value, dict) and not all(map(_is_field_name, value)):
        return "wrong_format"
    items = value.values() if isinstance(value, dict) else value
    return next(filter(None, (_value_fault(item, depth - 1) for item in items)), "")


FieldName = Annotated[str, StringConstraints(pattern=_FIELD_NAME)]
FieldValue = Annotated[Any, AfterValidator(_plain)]
Time = Annotated[str, StringConstraints(pattern=_TIME)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class Sender(_Model):
    """The end user, as the caller knows them."""

    name: str | None = Field(default=None, max_length=200)
    email: str | None = Field(default=None, max_length=320, pattern=_EMAIL)
    phone: str | None = Field(default=None, max_length=64, description="best as E.164: +8613800138000")
    user_id: str | None = Field(default=None, max_length=255, description="the caller's own id of the user")


class Attachment(_Model):
    """A file within the JSON. Larger ones travel better as parts of a multipart request."""

    filename: str | None = Field(default=None, max_length=255)
    content_type: str | None = Field(default=None, max_length=255)
    content: str = Field(
        pattern=_BASE64,
        json_schema_extra={"contentEncoding": "base64"},
        description="base64 of RFC 4648, section 4: padded, in one line, without a `data:` prefix",
    )


class Message(_Model):
    """A message from an end user."""

    text: str = Field(pattern=_SOMETHING, description="what the user wrote")
    subject: str | None = Field(default=None, max_length=1000)
    html: str | None = Field(default=None, description="the text as HTML; sanitised before it goes on")
    sender: Sender | None = None
    conversation: str | None = Field(
        default=None,
        max_length=255,
        description="messages with the same value belong together; one namespace for the whole channel",
    )
    fields: Annotated[dict[FieldName, FieldValue], Field(max_length=MAX_FIELDS)] | None = Field(
        default=None, description="anything else, by your own names"
    )
    sent_at: Time | None = Field(default=None, description="by the user's clock: RFC 3339, from 1970 to 2199")
    language: str | None = Field(default=None, max_length=64, description="BCP 47; anything else is ignored")
    attachments: Annotated[tuple[Attachment, ...], Field(max_length=MAX_ATTACHMENTS)] | None = None


def parse(document: bytes) -> Message:
    """Raises Rejected: `malformed` for what is no JSON, else `invalid` with every fault in `errors`.

    Of two equal keys the last counts.
    """
    try:
        return Message.model_validate_json(document)
    except ValidationError as error:
        raise _rejection(error) from None  # the cause would repeat what the customer wrote


def fault(field: str, code: str, message: str) -> dict[str, str]:
    """One of `errors`. `field` is a JSON Pointer."""
    return {"field": field, "code": code, "message": message}


def pointer(place: Sequence[str | int]) -> str:
    """RFC 6901; a key beyond reason is cut."""
    return "".join(f"/{str(part)[:128].replace('~', '~0').replace('/', '~1')}" for part in place)


def invalid(faults: Sequence[Mapping[str, str]], code: str = "invalid") -> Rejected:
    """The refusal that lists them."""
    summary = "; ".join(f"{fault['field']} {fault['message']}" for fault in faults[:3])
    return Rejected(code, summary, extra={"errors": list(faults)})


class _Untitled(GenerateJsonSchema):
    """Without a title for every key: it would only say the key's name again."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schemas() -> dict[str, Any]:
    """The JSON Schemas of a message, to stand in an OpenAPI document's `components`."""
    message = Message.model_json_schema(ref_template=_COMPONENT, schema_generator=_Untitled)
    # What `_plain` lets through, which pydantic cannot know. JSON Schema has no word for depth.
    item = {"$ref": _COMPONENT.format(model="FieldValue")}
    object_ = {"type": "object", "propertyNames": {"pattern": _FIELD_NAME}, "additionalProperties": item}
    message["properties"]["fields"]["anyOf"][0] = {**object_, "maxProperties": MAX_FIELDS}
    value = {
        "description": f"Nests {MAX_FIELD_DEPTH} levels at most.",
        "anyOf": [
            {"type": ["null", "boolean", "string"]},
            {"type": "number", "minimum": LOWEST, "maximum": HIGHEST},
            {"type": "array", "items": item},
            object_,
        ],
    }
    return {**message.pop("$defs"), "Message": message, "FieldValue": value}


def _rejection(error: ValidationError) -> Rejected:
    count = error.error_count()
    if count > MAX_LISTED_FAULTS:
        return Rejected("invalid", f"{count} values are not valid: too many to list")
    details = error.errors(include_url=False, include_input=False)
    if details[0]["type"] == "json_invalid":
        return Rejected("malformed", details[0]["msg"])
    return invalid([_explain(detail) for detail in details])


def _explain(detail: ErrorDetails) -> dict[str, str]:
    kind, place = detail["type"], [part for part in detail["loc"] if part != "[key]"]
    if kind == "extra_forbidden":
        return fault(pointer(place), "unknown", _unknown(place))
    if kind == "string_pattern_mismatch":
        return fault(pointer(place), "wrong_format", _FORMATS.get(place[-1], _FORMATS["fields"]))
    if kind in _KINDS:
        code, text = _KINDS[kind]
        return fault(pointer(place), code, text.format(**detail.get("ctx", {})))
    return fault(pointer(place), kind.removeprefix(_OWN_KIND), detail["msg"])


def _unknown(place: Sequence[str | int]) -> str:
    models: Mapping[str | int, type[_Model]] = {"sender": Sender, "attachments": Attachment}
    known = list((models.get(place[0], Message) if len(place) > 1 else Message).model_fields)
    near = get_close_matches(str(place[-1])[:64], known, n=1)
    return f'is unknown; did you mean "{near[0]}"?' if near else f"is unknown; the keys here are {', '.join(known)}"
