"""What every connector has to state in its own file, and that the suite can speak to it."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gateway import registry
from gateway.contract import ChannelSettings, RunningConnector, WebhookConnector
from tests.contract import running, webhook
from tests.contract.driver import DRIVERS, drivers
from tests.contract.rig import example, load_with

TYPES = registry.types()
TOPICS = ("protocol", "authentication", "redelivery", "limits", "source")


@pytest.mark.parametrize("type_", TYPES)
def test_it_has_a_driver(type_: str) -> None:
    assert drivers(type_)


def test_every_driver_has_its_connector() -> None:
    assert {path.stem for path in DRIVERS.glob("*.py")} <= set(TYPES)


@pytest.mark.parametrize("type_", TYPES)
def test_the_class(type_: str) -> None:
    connector = registry.connector(type_)

    assert connector.__name__ == "Connector"
    assert not inspect.isabstract(connector)
    assert issubclass(connector, WebhookConnector | RunningConnector)
    assert isinstance(vars(connector).get("redelivers"), bool), "state redelivers in the class itself"
    assert inspect.iscoroutinefunction(connector.probe)


@pytest.mark.parametrize("type_", TYPES)
def test_the_core_of_it_is_its_own(type_: str) -> None:
    connector = registry.connector(type_)
    names = ("verify", "extract", "reply") if issubclass(connector, WebhookConnector) else ("run",)

    assert set(names) <= vars(connector).keys()


@pytest.mark.parametrize("type_", TYPES)
def test_the_docstring_tells_what_a_reader_needs(type_: str) -> None:
    documentation = registry.connector_module(type_).__doc__ or ""

    for topic in TOPICS:
        assert re.search(rf"^{topic}\b", documentation, re.IGNORECASE | re.MULTILINE), f"say something of {topic}"


@pytest.mark.parametrize("type_", TYPES)
def test_the_settings(type_: str) -> None:
    settings = registry.connector(type_).Settings

    assert issubclass(settings, ChannelSettings)
    assert get_args(settings.model_fields["type"].annotation) == (type_,)
    for model in models(settings):
        assert model.model_config.get("frozen") is True, model
        assert model.model_config.get("extra") == "forbid", model
        for name, field in model.model_fields.items():
            assert explains_itself(field), f"{model.__name__}.{name} has no description"


@pytest.mark.parametrize("type_", TYPES)
def test_the_example_loads(type_: str, tmp_path: Path) -> None:
    for driver in drivers(type_):
        name, block = example(driver(type_))

        settings = load_with(tmp_path, driver(type_), {name: block})

        assert isinstance(settings.channels[name], registry.connector(type_).Settings)


@pytest.mark.parametrize("type_", TYPES)
def test_a_waiver_is_for_a_check_and_has_a_reason(type_: str) -> None:
    kind = webhook if issubclass(registry.connector(type_), WebhookConnector) else running
    checks = {check.__name__ for check in kind.CHECKS}

    for driver in drivers(type_):
        assert driver.waivers.keys() <= checks
        assert all(driver.waivers.values())


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model in an annotation, and in those of its fields."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models(field.annotation)
    for argument in get_args(annotation):
        yield from models(argument)


def explains_itself(field: FieldInfo) -> bool:
    """By a description, or as a `type` that can have one value alone."""
    return bool(field.description) or (get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1)
