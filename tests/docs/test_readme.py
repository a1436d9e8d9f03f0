"""What the README and the pages of channels show works as it is pasted."""

import asyncio
import json
import mailbox
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from ruamel.yaml import YAML

from gateway import registry
from gateway.__main__ import cli
from gateway.envelope import Envelope
from gateway.settings import load
from tests.daemon import ROOT, Daemon, free_port
from tests.dovecot import Dovecot, mail

READMES = [ROOT / "README.md", ROOT / "README.zh.md"]
CHANNELS = ROOT / "config" / "channels"
SMTP_PAGES = [CHANNELS / "smtp.md", CHANNELS / "smtp.zh.md"]
OTHER_PAGES = [
    CHANNELS / f"{name}{end}" for name in ("imap", "wechat", "miniprogram", "voice") for end in (".md", ".zh.md")
]
PAGES = [*READMES, *SMTP_PAGES, *OTHER_PAGES]
PAIRS = list(zip(PAGES[::2], PAGES[1::2], strict=True))
PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489")


def blocks(readme: Path, language: str) -> list[str]:
    """The code blocks of a language, without the indentation of the list they may stand in."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", readme.read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


@pytest.fixture
async def quickstart(make_daemon: Callable[..., Daemon]) -> Daemon:
    """`make run`, on other ports."""
    channels = YAML(typ="safe").load(ROOT / "config" / "quickstart.yaml")["channels"]
    channels["mail"]["listen"] = f"127.0.0.1:{free_port()}"
    return await make_daemon(channels, name="quickstart").start()


@pytest.fixture
async def receiver(make_daemon: Callable[..., Daemon]) -> Daemon:
    """What the README's section on SMTP starts, on other ports."""
    (channels,) = [
        block["channels"] for block in yaml_blocks(READMES[0]) if block.get("state_dir") == "./acme-mail-state"
    ]
    channels["inbound"]["listen"] = f"127.0.0.1:{free_port()}"
    return await make_daemon(channels, name="acme").start()


def yaml_blocks(page: Path) -> list[dict[str, Any]]:
    return [YAML(typ="safe").load(text) for text in blocks(page, "yaml")]


async def outcome(*command: str, cwd: Path = ROOT) -> tuple[int | None, str]:
    """Exit status and output of a command."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()


def huiru(daemon: Daemon, *command: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "gateway", *command, "--config", str(daemon.config_path))


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
async def test_the_swaks_example_is_accepted_under_its_reference(readme: Path, receiver: Daemon) -> None:
    (example,) = [text for text in blocks(readme, "sh") if text.startswith("swaks ")]
    command = example.replace("127.0.0.1:2525", receiver.config["channels"]["inbound"]["listen"])

    status, said = await outcome("sh", "-ec", command)

    data = (await receiver.until_tickets(1))[0]["data"]
    assert (status, data["queue"], data["priority"]) == (0, "billing", "high")
    assert f"250 2.0.0 Accepted as {data['reference']}" in said
    assert (data["subject"], data["text"]) == ("打印机坏了", "你好")


@pytest.mark.parametrize("page", SMTP_PAGES, ids=lambda path: path.name)
async def test_the_smtp_page_sends_by_curl_and_by_python_what_it_shows(
    page: Path, receiver: Daemon, tmp_path: Path
) -> None:
    host, _, port = receiver.config["channels"]["inbound"]["listen"].rpartition(":")
    (tmp_path / "mail.eml").write_bytes(mail(1))
    (curl,), (program,), (shown,) = (blocks(page, language) for language in ("sh", "python", "json"))

    said = await outcome("sh", "-ec", curl.replace("127.0.0.1:2525", f"{host}:{port}"), cwd=tmp_path)
    sent = await outcome(sys.executable, "-c", program.replace("2525", port), cwd=tmp_path)

    assert [said[0], sent[0]] == [0, 0], (said, sent)
    tickets = [ticket["data"] for ticket in await receiver.until_tickets(2)]
    (ticket,) = [one for one in tickets if one["thread"]["message_id"] == "2@example.com"]
    assert {name: ticket[name] for name in json.loads(shown)} == json.loads(shown)
    assert [one["filename"] for one in ticket["attachments"]] == ["照片.png"]


@pytest.mark.parametrize("page", [CHANNELS / "voice.md", CHANNELS / "voice.zh.md"], ids=lambda path: path.name)
async def test_the_voice_page_makes_the_ticket_that_it_shows(page: Path, make_daemon: Callable[..., Daemon]) -> None:
    daemon = await make_daemon(yaml_blocks(page)[0]["channels"]).start()
    (curl,) = blocks(page, "sh")

    status, said = await outcome("sh", "-ec", curl.replace("http://127.0.0.1:8080", daemon.url))

    data = (await daemon.until_tickets(1))[0]["data"]
    assert status == 0
    assert f'{{"ok":true,"reference":"{data["reference"]}"}}' in said
    assert data["subject"] == "未接来电 13800138000 → 4008001234"
    assert data["subject"] in page.read_text()


async def test_an_import_says_what_the_readme_shows(receiver: Daemon, tmp_path: Path) -> None:
    box = mailbox.mbox(tmp_path / "archive.mbox")
    for number in range(3):
        box.add(mail(number))
    box.close()
    mailbox.Maildir(tmp_path / "Maildir").add(mail(3))
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "1.eml").write_bytes(mail(4))
    (tmp_path / "letters" / "scan.eml").write_bytes(bytes(range(256)))
    for readme in READMES:
        (command,) = [text.split() for text in blocks(readme, "sh") if text.startswith("huiru import")]
        again = command[1 : command.index("--config")]
        assert again == ["import", "inbound", "archive.mbox", "Maildir", "letters/"]

    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        *huiru(receiver, *again), cwd=tmp_path, env=env, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()

    assert process.returncode == 1
    for readme in READMES:
        assert f"```\n{out.decode()}```\n" in readme.read_text()


async def test_the_mailbox_page_probes_and_reads(make_daemon: Callable[..., Daemon]) -> None:
    page = yaml_blocks(CHANNELS / "imap.md")[0]["channels"]["mailbox"]
    dovecot = Dovecot().start()
    try:
        dovecot.make_folder()
        there = {"host": "127.0.0.1", "port": dovecot.port, "tls": "none"}
        login = {"username": dovecot.user, "password": dovecot.password}
        daemon = make_daemon({"mailbox": {**page, **there, **login}})
        daemon.write_config()
        _, probed = await outcome(*huiru(daemon, "check", "--probe"))
        assert "ok   mailbox   imap: its server answered, the credentials are good\n" in probed

        await daemon.start()
        async with asyncio.timeout(20):
            while not daemon.events("imap.starts"):
                await asyncio.sleep(0.02)
        dovecot.put(mail(2))
        assert (await daemon.until_tickets(1))[0]["data"]["text"] == "你好"

        dovecot.set_password("another")
        _, probed = await outcome(*huiru(daemon, "check", "--probe"))
        refused = "failed   mailbox   login refused: NO [AUTHENTICATIONFAILED] Authentication failed."
        assert refused in probed
        assert refused in (CHANNELS / "imap.md").read_text()
        assert refused in (CHANNELS / "imap.zh.md").read_text()
    finally:
        dovecot.remove()


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_the_ticket_it_shows_is_one(readme: Path) -> None:
    (shown,) = blocks(readme, "json")
    assert Envelope.model_validate_json(shown).data.reference == "2XW4-EAF2-YJHN"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_its_configurations_load(page: Path, tmp_path: Path) -> None:
    shown = blocks(page, "yaml")
    assert shown
    for number, text in enumerate(shown):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        assert load(path, {}).channels


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_it_names_every_channel_type_and_every_command(readme: Path) -> None:
    text = readme.read_text()
    table = re.findall(r"^\| `(\w+)` \|.*\]\(#", text, re.MULTILINE)
    assert sorted(table) == registry.types()
    commands = [
        command.name or (command.callback.__name__ if command.callback else "") for command in cli.registered_commands
    ]
    assert [name for name in commands if f"huiru {name}" not in text and f"`{name}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_its_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(#[^)]*)?\)", page.read_text())
    assert [link for link, _ in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda path: path.name)
def test_both_languages_show_the_same(ours: Path, theirs: Path) -> None:
    assert [len(blocks(ours, kind)) for kind in ("sh", "json", "yaml", "html", "python")] == [
        len(blocks(theirs, kind)) for kind in ("sh", "json", "yaml", "html", "python")
    ]
    assert blocks(ours, "json") == blocks(theirs, "json")
    assert len(re.findall(r"^#+ ", ours.read_text(), re.MULTILINE)) == len(
        re.findall(r"^#+ ", theirs.read_text(), re.MULTILINE)
    )


def test_every_module_has_its_room() -> None:
    rooms = (ROOT / "gateway" / "README.md").read_text()
    modules = [path for kind in ("*.py", "*.lua") for path in (ROOT / "gateway").rglob(kind)]
    assert [str(one) for one in modules if one.name != "__init__.py" and one.name not in rooms] == []
