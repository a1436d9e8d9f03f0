"""A Postfix of a test's own, which hands everything on to one place. It needs root: its processes change users."""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

_MASTER = Path("/usr/share/postfix/master.cf.dist")
_SETTINGS = """
compatibility_level = 3.6
queue_directory = {folder}/spool
data_directory = {folder}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = relay.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
default_transport = {next_hop}
smtpd_relay_restrictions = permit_mynetworks, reject
smtp_dns_support_level = disabled
smtp_host_lookup = native
alias_maps =
local_recipient_maps =
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
minimal_backoff_time = 1s
maximal_backoff_time = 2s
queue_run_delay = 1s
{more}
"""


class Postfix:
    """`port` is where it receives."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def queued(self) -> int:
        """Messages that it has not handed on."""
        queues = ("incoming", "active", "deferred", "maildrop", "hold")
        return sum(len([one for one in (self.folder / "spool" / q).rglob("*") if one.is_file()]) for q in queues)

    async def until_queued(self, messages: int, seconds: float = 30) -> None:
        """While it moves one from queue to queue, it may be seen in both."""
        async with asyncio.timeout(seconds):
            while self.queued() != messages:
                await asyncio.sleep(0.05)

    async def flush(self) -> None:
        """Tries everything that waits, at once."""
        await _run("postqueue", "-c", str(self.folder / "etc"), "-f")


@asynccontextmanager
async def postfix(folder: Path, port: int, next_hop: str, more: str = "") -> AsyncIterator[Postfix]:
    """`next_hop` as in transport(5): `smtp:[127.0.0.1]:25`, `lmtp:inet:127.0.0.1:24`; `more` are lines of main.cf."""
    if os.geteuid() != 0:
        pytest.skip("needs root: Postfix runs as several users")
    for name in ("etc", "spool", "data"):
        (folder / name).mkdir(parents=True)
    for path in (folder, *folder.parents[:-2]):
        path.chmod(path.stat().st_mode | 0o555)
    shutil.chown(folder / "data", "postfix")
    master = re.sub(r"(?m)^smtp      inet .*$", f"127.0.0.1:{port} inet n - n - - smtpd", _MASTER.read_text())
    # Without chroot, which would need a copy of the system's files.
    master = re.sub(r"(?m)^([a-z0-9-]+ +(?:unix|fifo|unix-dgram) +[ny-] +[ny-] +)[y-] ", r"\1n ", master)
    (folder / "etc/master.cf").write_text(master)
    settings = _SETTINGS.format(folder=folder, next_hop=next_hop, more=more)
    (folder / "etc/main.cf").write_text(settings)
    await _run("postfix", "-c", str(folder / "etc"), "start")
    try:
        yield Postfix(folder, port)
    finally:
        await _run("postfix", "-c", str(folder / "etc"), "abort")


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
