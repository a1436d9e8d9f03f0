"""The JSON Schemas are right for what we ship, and the files in config/ are what the code says."""

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from gateway import registry
from gateway.envelope import Channel, Envelope, Raw, Ticket
from gateway.schema import DIALECT, config_schema, envelope_schema
from gateway.settings import load

CONFIG = Path(__file__).parents[2] / "config"
WHOLE = ["gateway.example.yaml", "quickstart.yaml"]
FRAGMENTS = sorted(path.name for path in CONFIG.glob("channels/*.yaml"))


def type_of(example: str) -> str:
    """A type may have several examples: `voice-twilio.example.yaml`."""
    return example.partition(".")[0].partition("-")[0]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return config_schema()


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator(schema)


def read(path: Path) -> Any:
    return json.loads(json.dumps(YAML(typ="safe", pure=True).load(path), default=str))


def with_channel(**channel: Any) -> dict[str, Any]:
    return {"channels": {"one": channel}}


# Freshness


@pytest.mark.parametrize(("name", "make"), [("envelope", envelope_schema), ("gateway", config_schema)])
def test_the_file_is_fresh(name: str, make: Any) -> None:
    found = json.loads((CONFIG / f"{name}.schema.json").read_text("utf-8"))

    assert found == make(), f"huiru schema {name.replace('gateway', 'config')} > config/{name}.schema.json"


@pytest.mark.parametrize("make", [envelope_schema, config_schema])
def test_it_is_a_schema_of_2020_12(make: Any) -> None:
    schema = make()

    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == DIALECT
    assert schema["$id"].startswith("urn:huiru:")


# The configuration


@pytest.mark.parametrize("name", WHOLE)
def test_an_example_is_valid_and_loads(name: str, validator: Draft202012Validator) -> None:
    env = {"SHOP_API_KEY_SHA256": "ab" * 32}

    assert list(validator.iter_errors(read(CONFIG / name))) == []
    assert load(CONFIG / name, env).channels


@pytest.mark.parametrize("name", FRAGMENTS)
def test_an_example_of_a_channel_is_valid(name: str, validator: Draft202012Validator) -> None:
    fragment = read(CONFIG / "channels" / name)

    assert list(validator.iter_errors(fragment)) == []
    assert {channel["type"] for channel in fragment["channels"].values()} == {type_of(name)}


def test_every_channel_type_has_an_example() -> None:
    assert sorted(set(map(type_of, FRAGMENTS))) == registry.types()


@pytest.mark.parametrize("path", [CONFIG / name for name in WHOLE])
def test_an_editor_finds_the_schema(path: Path) -> None:
    match = re.match(r"# yaml-language-server: \$schema=(\S+)\n", path.read_text("utf-8"))

    assert match
    assert (path.parent / match[1]).is_file()


def test_every_channel_type_is_in_it(schema: dict[str, Any]) -> None:
    block = next(iter(schema["properties"]["channels"]["patternProperties"].values()))

    assert [one["$ref"] for one in block["oneOf"]] == [f"#/$defs/channel.{name}" for name in registry.types()]
    assert all(schema["$defs"][f"channel.{name}"]["properties"]["type"]["const"] == name for name in registry.types())


def test_every_key_is_described(schema: dict[str, Any]) -> None:
    silent = [
        f"{name}.{key}"
        for name, definition in schema["$defs"].items()
        for key, member in definition.get("properties", {}).items()
        if "description" not in member and key != "type"
    ]

    assert silent == []


GOOD: list[Mapping[str, Any]] = [
    {"http": {"max_inflight": "${MAX}"}},
    {"spool": {"max_bytes": "10 GiB"}},
    {"spool": {"max_bytes": 1 << 30}},
    {"spool": {"max_bytes": "${file:size}"}},
    {"log": {"level": "${LEVEL:-info}"}},
    {"http": {"listen": "[::1]:80", "trusted_proxies": ["10.0.0.0/8"]}},
    {"http": {"listen": "${HOST}:${PORT}"}},
    {"name": "${NAME}"},
    {"secret": None, "stream": {"max_len": None}},
    {"x-anything": [1, {"a": None}]},
]
BAD: list[Mapping[str, Any]] = [
    {"nmae": "a"},
    {"name": "A B"},
    {"name": 5},
    {"http": {"max_inflight": "many"}},
    {"http": {"max_inflight": 0}},
    {"http": {"listen": 80}},
    {"http": {"lisen": "a:1"}},
    {"log": {"level": "loud"}},
    {"channels": {}},
    {"channels": {"A b": {"type": "echo", "secret": "x"}}},
    {"channels": {"one": {"type": "pigeon"}}},
    {"channels": {"one": {}}},
    {"channels": {"one": {"type": "${TYPE}"}}},
]


@pytest.mark.parametrize("change", GOOD)
def test_what_can_be_written_is_valid(change: Mapping[str, Any], validator: Draft202012Validator) -> None:
    document = read(CONFIG / "quickstart.yaml") | change

    assert list(validator.iter_errors(document)) == []


@pytest.mark.parametrize("change", BAD)
def test_what_is_wrong_is_not(change: Mapping[str, Any], validator: Draft202012Validator) -> None:
    document = read(CONFIG / "quickstart.yaml") | change

    assert not validator.is_valid(document)


def test_without_channels_it_is_not_valid(validator: Draft202012Validator) -> None:
    assert not validator.is_valid({"name": "a"})


def test_a_form_field_of_an_unknown_type_is_not_valid(validator: Draft202012Validator) -> None:
    form = deepcopy(read(CONFIG / "quickstart.yaml")["channels"]["support"])
    form["fields"][0]["type"] = "hologram"

    assert not validator.is_valid(with_channel(**form))


def test_it_defines_what_it_refers_to_and_nothing_else(schema: dict[str, Any]) -> None:
    assert set(re.findall(r'"#/\$defs/([^"]+)"', json.dumps(schema))) == set(schema["$defs"])


# The envelope


def event() -> dict[str, Any]:
    moment = "2026-11-23T09:00:00.123Z"
    ticket = Ticket.model_validate(
        {
            "reference": "7K3M-9QX2-4WPD",
            "channel": Channel(name="web", type="webform"),
            "conversation": "c",
            "received_at": moment,
            "raw": Raw(sha256="00", size=1, url="http://127.0.0.1/x"),
        }
    )
    envelope = Envelope.model_validate({"id": "1", "source": "/a/b", "time": moment, "subject": "c", "data": ticket})
    return dict(orjson.loads(envelope.model_dump_json()))


def test_an_event_is_valid() -> None:
    assert list(Draft202012Validator(envelope_schema()).iter_errors(event())) == []


def test_an_event_of_a_later_v1_is_valid_too() -> None:
    later = event()
    later["data"]["mood"] = {"happy": True}

    assert Draft202012Validator(envelope_schema()).is_valid(later)


@pytest.mark.parametrize(("key", "value"), [("specversion", "2.0"), ("id", 5), ("data", {}), ("time", None)])
def test_another_kind_of_event_is_not(key: str, value: Any) -> None:
    assert not Draft202012Validator(envelope_schema()).is_valid(event() | {key: value})
