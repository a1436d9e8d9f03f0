"""Connectors and normalizers are found by name; what cannot be found says what to do."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import connectors
from gateway import registry
from gateway.errors import ConfigError

PIGEON = """
from gateway.contract import ChannelSettings, WebhookConnector

class Connector(WebhookConnector):
    Settings = ChannelSettings
    redelivers = False
"""


@pytest.fixture(autouse=True)
def forgotten(tmp_path: Path) -> Iterator[None]:
    """What a test imports from its own folder is no module any more afterwards."""
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules are connectors."""
    monkeypatch.setattr(connectors, "__path__", [*connectors.__path__, str(tmp_path)])
    return tmp_path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution of somebody else, with a connector and a normalizer."""
    about = tmp_path / "pigeon_post-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: pigeon-post\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[huiru.connectors]\npigeon = pigeon_post\napi = pigeon_post\n[huiru.normalizers]\npigeon = pigeon_post\n"
    )
    (tmp_path / "pigeon_post.py").write_text(PIGEON + "\ndef normalize(raw):\n    raise NotImplementedError\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_connector_is_a_module_of_the_package(folder: Path) -> None:
    (folder / "pigeon.py").write_text(PIGEON)

    assert registry.connector("pigeon").__module__ == "connectors.pigeon"
    assert "pigeon" in registry.types()


def test_every_type_there_is_can_be_had() -> None:
    found = [registry.connector(name) for name in registry.types()]

    assert all(connector.__name__ == "Connector" for connector in found)
    assert {"api", "echo", "webform"} <= set(registry.types())


def test_every_normalizer_of_ours_can_be_had() -> None:
    assert callable(registry.normalizer("echo"))


def test_listing_imports_nothing(folder: Path) -> None:
    (folder / "broken.py").write_text("raise AssertionError\n")

    assert "broken" in registry.types()


def test_outsiders_are_found_by_entry_point(installed: Path) -> None:
    assert registry.connector("pigeon").__module__ == "pigeon_post"
    assert registry.normalizer("pigeon").__module__ == "pigeon_post"
    assert "pigeon" in registry.types()


def test_an_outsider_does_not_replace_ours(installed: Path) -> None:
    assert registry.connector("api").__module__ == "connectors.api"


def test_an_unknown_type_names_the_nearest_and_all_others() -> None:
    with pytest.raises(ConfigError) as caught:
        registry.connector("webfrom")

    assert caught.value.public.startswith("unknown channel type webfrom; did you mean webform? there are: api, ")


def test_an_unknown_kind_of_message() -> None:
    with pytest.raises(ConfigError, match="unknown message kind telepathy; there are: "):
        registry.normalizer("telepathy")


@pytest.mark.parametrize("name", ["", "os.path", "../gateway/app", "__init__", "_hidden", "a\x1b[2J", "x" * 500])
def test_only_names_are_looked_up(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.connector(name)

    assert caught.value.public.isprintable()
    assert len(caught.value.public) < 500


def test_a_missing_library_says_how_to_install_it(folder: Path) -> None:
    (folder / "owl.py").write_text("import owl_wire.feathers\n")

    with pytest.raises(ConfigError, match=r"channel type owl needs the library owl_wire; .* pip install owl_wire"):
        registry.connector("owl")


def test_a_library_of_an_extra_is_installed_by_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "owl.py").write_text("import owl_wire\n")
    about = folder / "huiru-9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        'Metadata-Version: 2.1\nName: huiru\nVersion: 9\nRequires-Dist: owl-wire>=2; extra == "birds"\n'
    )
    monkeypatch.syspath_prepend(folder)

    with pytest.raises(ConfigError, match=r"pip install huiru\[birds\]"):
        registry.connector("owl")


def test_a_module_without_its_class_is_named(folder: Path) -> None:
    (folder / "hollow.py").write_text("")

    with pytest.raises(ConfigError, match=r"connectors\.hollow defines no Connector"):
        registry.connector("hollow")
