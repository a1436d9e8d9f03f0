"""What the README shows works as it is pasted."""

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import ClientSession
from ruamel.yaml import YAML

from gateway import registry
from gateway.__main__ import cli
from gateway.envelope import Envelope
from gateway.settings import load
from tests.daemon import ROOT, Daemon

READMES = [ROOT / "README.md", ROOT / "README.zh.md"]
PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489")


def blocks(readme: Path, language: str) -> list[str]:
    """The code blocks of a language, without the indentation of the list they may stand in."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", readme.read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


@pytest.fixture
async def quickstart(make_daemon: Callable[..., Daemon]) -> Daemon:
    """`make run`, on other ports."""
    channels = YAML(typ="safe").load(ROOT / "config" / "quickstart.yaml")["channels"]
    return await make_daemon(channels, name="quickstart").start()


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
async def test_every_curl_example_is_accepted(readme: Path, quickstart: Daemon, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(PNG)
    examples = [text for text in blocks(readme, "sh") if text.startswith("curl ")]
    assert len(examples) >= 3
    for example in examples:
        command = example.replace("http://127.0.0.1:8080", quickstart.url)
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", command), cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        out, _ = await process.communicate()
        assert json.loads(out)["status"] == "accepted", example
    tickets = await quickstart.until_tickets(len(examples))
    assert [ticket["data"]["attachments"][0]["filename"] for ticket in tickets if ticket["data"]["attachments"]]


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
async def test_the_redis_cli_example_takes_and_acknowledges_a_ticket(
    readme: Path, quickstart: Daemon, http: ClientSession
) -> None:
    headers = {"Authorization": "Bearer quickstart-key"}
    await http.post(f"{quickstart.url}/c/app", json={"text": "你好"}, headers=headers)
    await quickstart.until_tickets(1)
    (example,) = [text for text in blocks(readme, "sh") if text.startswith("redis-cli ")]
    port = quickstart.config["redis"]["embedded_port"]
    process = await asyncio.create_subprocess_exec(
        *("sh", "-ec", example.replace("-p 6390", f"-p {port}")), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert "你好" in out.decode()
    async with quickstart.redis() as redis:
        (group,) = await redis.xinfo_groups("tickets")
    assert (group["entries-read"], group["pending"]) == (1, 0)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_the_ticket_it_shows_is_one(readme: Path) -> None:
    (shown,) = blocks(readme, "json")
    assert Envelope.model_validate_json(shown).data.reference == "2XW4-EAF2-YJHN"


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_its_configurations_load(readme: Path, tmp_path: Path) -> None:
    shown = blocks(readme, "yaml")
    assert shown
    for number, text in enumerate(shown):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        assert load(path, {}).channels


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_it_names_every_channel_type_and_every_command(readme: Path) -> None:
    text = readme.read_text()
    table = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(table) == registry.types()
    commands = [
        command.name or (command.callback.__name__ if command.callback else "") for command in cli.registered_commands
    ]
    assert [name for name in commands if f"huiru {name}" not in text and f"`{name}`" not in text] == []


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_its_links_lead_somewhere(readme: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", readme.read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_both_languages_show_the_same() -> None:
    ours, theirs = READMES
    assert [len(blocks(ours, kind)) for kind in ("sh", "json", "yaml", "html", "python")] == [
        len(blocks(theirs, kind)) for kind in ("sh", "json", "yaml", "html", "python")
    ]
    assert blocks(ours, "json") == blocks(theirs, "json")
    assert len(re.findall(r"^#+ ", ours.read_text(), re.MULTILINE)) == len(
        re.findall(r"^#+ ", theirs.read_text(), re.MULTILINE)
    )
