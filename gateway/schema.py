"""The JSON Schemas (2020-12) of what goes in and what comes out: the configuration file and the ticket envelope."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from gateway import registry
from gateway.address import Address
from gateway.envelope import Envelope
from gateway.settings import GatewaySettings

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
CONFIG_ID = "urn:huiru:config:v1"
ENVELOPE_ID = "urn:huiru:event:v1"
_INTERPOLATION = {"$ref": "#/$defs/Interpolation"}
# What describes a place rather than constrains it.
_ANNOTATIONS = frozenset({"description", "default", "examples", "title", "deprecated"})
_CONSTRAINTS = frozenset({"enum", "const", "pattern", "minLength", "maxLength"})


class _Generator(GenerateJsonSchema):
    """Without a title for every key: it would only say the key's name again."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def encode_default(self, dft: Any) -> Any:
        return str(dft) if isinstance(dft, Address) else super().encode_default(dft)


def envelope_schema() -> Schema:
    """Of the event in the stream's `event` field. It is open: fields may be added within v1."""
    schema = Envelope.model_json_schema(mode="serialization", schema_generator=_Generator)
    for model in (schema, *schema["$defs"].values()):
        model.pop("additionalProperties", None)
    return {"$schema": DIALECT, "$id": ENVELOPE_ID, **schema}


def config_schema() -> Schema:
    """Of the configuration file as it is written: `${…}` may stand wherever a value may."""
    channels = {name: registry.connector(name).Settings for name in registry.types()}
    models: dict[type[BaseModel], None] = dict.fromkeys([GatewaySettings, *channels.values()])
    refs, whole = models_json_schema([(model, "validation") for model in models], schema_generator=_Generator)
    definitions: Schema = whole["$defs"]
    own = {name: _definition(definitions, refs[model, "validation"]) for name, model in channels.items()}
    root = _definition(definitions, refs[GatewaySettings, "validation"])
    definitions |= {f"channel.{name}": _of_type(schema, name) for name, schema in own.items()}
    _set_channels(root["properties"]["channels"], list(channels))
    root["title"] = "huiru configuration"
    root["patternProperties"] = {"^x-": {"description": "a place for YAML anchors; not read"}}
    used = _with_interpolation({**root, "$defs": definitions})
    used["$defs"]["Interpolation"] = {
        "description": "${NAME}, ${NAME:-default} from the environment, ${file:PATH} from a file",
        "type": "string",
        "pattern": r"\$\{.+\}",
    }
    return {"$schema": DIALECT, "$id": CONFIG_ID, **_without_unused(used)}


def _definition(definitions: Schema, ref: Mapping[str, Any]) -> Schema:
    return dict(definitions[ref["$ref"].rpartition("/")[2]])


def _of_type(schema: Schema, name: str) -> Schema:
    """A channel's schema for one type; two types may share a Settings model."""
    told = schema["properties"]["type"].get("description", "")
    properties = {**schema["properties"], "type": {"description": told, "const": name}}
    required = dict.fromkeys(["type", *schema.get("required", [])])
    return {**schema, "properties": properties, "required": list(required)}


def _set_channels(schema: Schema, types: list[str]) -> None:
    one = {"oneOf": [{"$ref": f"#/$defs/channel.{name}"} for name in types]}
    names = next(iter(schema.get("patternProperties", {})))
    schema |= {"patternProperties": {names: one}, "additionalProperties": False, "minProperties": 1}


def _with_interpolation(node: Any, name: str = "") -> Any:
    """Opens each place whose own type or constraint would refuse the text `${…}`."""
    if isinstance(node, list):
        return [_with_interpolation(item) for item in node]
    if not isinstance(node, dict):
        return node
    if _refuses_text(node, name):
        told = {key: value for key, value in node.items() if key in _ANNOTATIONS}
        constraint = {key: value for key, value in node.items() if key not in _ANNOTATIONS}
        return {**told, "anyOf": [constraint, _INTERPOLATION]}
    return {
        key: value if key in _ANNOTATIONS or key in _CONSTRAINTS else _with_members(key, value)
        for key, value in node.items()
        if key != "discriminator"  # OpenAPI's, not JSON Schema's
    }


def _with_members(key: str, value: Any) -> Any:
    """Below `properties` and the like the keys are names, not keywords."""
    if key in {"properties", "patternProperties", "$defs"}:
        return {name: _with_interpolation(member, name) for name, member in value.items()}
    return _with_interpolation(value)


def _refuses_text(node: Schema, name: str) -> bool:
    if name == "type" and "const" in node:  # tells one kind of channel or field from the others
        return False
    if node.get("type") in {"integer", "number", "boolean"}:
        return True
    return node.get("type", "string") == "string" and bool(_CONSTRAINTS & node.keys())


def _without_unused(schema: Schema) -> Schema:
    """Leaves out the definitions nothing refers to."""
    definitions, used = schema["$defs"], set[str]()
    pending = _refs({key: value for key, value in schema.items() if key != "$defs"})
    while pending:
        name = pending.pop()
        used.add(name)
        pending |= _refs(definitions[name]) - used
    return {**schema, "$defs": {name: definitions[name] for name in sorted(used)}}


def _refs(node: Any) -> set[str]:
    members = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    found = set[str]().union(*(_refs(member) for member in members))
    if isinstance(node, dict) and isinstance(node.get("$ref"), str):
        found.add(node["$ref"].removeprefix("#/$defs/"))
    return found
