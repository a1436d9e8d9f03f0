"""The `smtp` channel of a real daemon, from real clients to the stream, and behind a real mail server."""

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.password import hashed
from tests.connectors.test_smtp import OURS, PASSWORD
from tests.daemon import Daemon, free_port
from tests.postfix import postfix
from tests.smtp_talk import make_certificate

StartDaemon = Callable[..., Awaitable[Daemon]]
PATH = f"{os.environ['PATH']}:/usr/sbin"
PACKAGES = {"swaks": "swaks", "msmtp": "msmtp", "smtp-source": "postfix"}
AWKWARD = "From: zhang@example.com\nTo: support@acme.cn\nSubject: 打印机坏了\n\n.\n..\n请看。\n.x\n"


async def run(*command: str, stdin: str = "") -> str:
    """What a client says. Raises AssertionError with it when it has failed."""
    found = shutil.which(command[0], path=PATH)
    assert found, f"{command[0]} is missing: apt-get install {PACKAGES[command[0]]}"
    process = await asyncio.create_subprocess_exec(
        *(found, *command[1:]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(stdin.encode()), 30)
    assert process.returncode == 0, said.decode(errors="replace")
    return said.decode(errors="replace")


def channel(port: int, **more: Any) -> dict[str, Any]:
    return {"type": "smtp", "listen": f"127.0.0.1:{port}", "domains": ["acme.cn"], **more}


async def test_real_clients_bring_tickets(start_daemon: StartDaemon, short_path: Path) -> None:
    chain, key = make_certificate(short_path)
    tls = {"tls": "starttls", "certificate": str(chain), "private_key": str(key)}
    users = [{"name": "shop", "password": hashed(PASSWORD.encode(), bytes(16))}]
    smtp, lmtp, path = free_port(), free_port(), short_path / "mail.sock"
    daemon = await start_daemon(
        {
            "mx": channel(smtp, **tls, users=users, recipients={"vip@acme.cn": {"queue": "vip"}}),
            "local": channel(lmtp, protocol="lmtp", unix_socket=str(path)),
        }
    )
    mail = short_path / "mail.eml"
    mail.write_text(AWKWARD)
    settings = f"account default\nhost 127.0.0.1\nport {smtp}\nfrom a@example.com\ntls on\ntls_certcheck off\n"
    login = f"auth plain\nuser shop\npassword {PASSWORD}\n"
    (short_path / "msmtprc").write_text(settings + login)
    (short_path / "msmtprc").chmod(0o600)

    at = ("--server", "127.0.0.1", "--from", "zhang@example.com", "--data", f"@{mail}")
    await run("swaks", *at, "--port", str(smtp), "--to", "vip@acme.cn,b@acme.cn")
    await run("swaks", *at, "--port", str(lmtp), "--to", OURS, "--protocol", "LMTP")
    await run("swaks", "--socket", str(path), *at[2:], "--to", OURS, "--protocol", "LMTP", "--header", "X-Way: socket")
    await run("msmtp", "-C", str(short_path / "msmtprc"), OURS, stdin=AWKWARD.replace("请看", "msmtp"))
    await run("smtp-source", "-s", "5", "-m", "50", "-l", "3000", "-t", OURS, f"127.0.0.1:{smtp}")
    await run("smtp-source", "-s", "5", "-m", "50", "-l", "3000", "-d", "-t", OURS, f"127.0.0.1:{smtp}")
    await run("smtp-source", "-s", "5", "-m", "50", "-l", "70000", "-L", "-r", "3", "-t", OURS, f"127.0.0.1:{lmtp}")

    status = await daemon.until_status(lambda status: all(one["waiting"] == 0 for one in status["channels"]))
    channels = {one["name"]: one for one in status["channels"]}
    assert channels["mx"]["accepted"] == 102
    assert channels["local"]["accepted"] == 52
    assert all(one["quarantined"] == 0 for one in channels.values())
    tickets = [ticket["data"] for ticket in await daemon.tickets()]
    first = next(ticket for ticket in tickets if ticket["queue"] == "vip")
    assert first["subject"] == "打印机坏了"
    assert first["full_text"].strip() == ".\n..\n请看。\n.x"
    envelope = [one["value"] for one in first["recipients"] if one["role"] == "envelope"]
    assert envelope == ["vip@acme.cn", "b@acme.cn"]
    metrics = await daemon.metrics()
    assert metrics['huiru_credential_expiry_timestamp_seconds{channel="mx"}'] > 0
    assert 'huiru_credential_expiry_timestamp_seconds{channel="local"}' not in metrics


@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
async def test_nothing_is_lost_behind_a_mail_server_while_we_are_down(
    make_daemon: Callable[..., Daemon], short_path: Path, protocol: str
) -> None:
    """Down at first, killed when the mail begins to come, up again: what the mail server took are our tickets."""
    ours, theirs, messages = free_port(), free_port(), 60
    hop = f"smtp:[127.0.0.1]:{ours}" if protocol == "smtp" else f"lmtp:inet:127.0.0.1:{ours}"
    daemon = make_daemon({"mx": channel(ours, protocol=protocol)})
    async with postfix(short_path / "postfix", theirs, hop) as server:
        await run("smtp-source", "-s", "4", "-m", str(messages), "-r", "2", "-t", OURS, f"127.0.0.1:{theirs}")
        await server.until_queued(messages)

        await daemon.start()
        await server.flush()
        await daemon.until_tickets(1)
        await daemon.kill()
        await daemon.start()
        await server.flush()
        await server.until_queued(0)

        await daemon.until_status(lambda status: status["channels"][0]["waiting"] == 0)
        assert "status=bounced" not in server.log
    tickets = await daemon.tickets()
    subjects = {ticket["data"]["thread"]["message_id"] for ticket in tickets}
    assert len(subjects) == len(tickets) == messages
